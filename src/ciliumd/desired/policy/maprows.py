# SPDX-License-Identifier: Apache-2.0
"""
A map state as the bytes of its two maps, and back.

Reading back is how a restarted agent learns what its predecessor enforced.
"""

from collections.abc import Mapping

from ciliumd import abi
from ciliumd.desired.policy.mapstate import MapState
from ciliumd.model.identity import NumericIdentity
from ciliumd.model.policy import Direction


class CorruptRowsError(Exception):
    """Rows read from a policy version's maps that no agent of this layout writes."""


def class_check(identity: NumericIdentity, direction: int) -> int:
    """Return the word a reader compares to know that a class row is still the one it looked up."""
    return (identity ^ direction << 24) & 0xFFFFFFFF


def packed_classes(state: MapState) -> dict[bytes, bytes]:
    """Return the rows of the classes map."""
    return {
        abi.PolicyClassKey(identity=identity, direction=int(direction)).pack(): abi.PolicyClass(
            check=class_check(identity, direction), class_id=class_id
        ).pack()
        for (identity, direction), class_id in state.classes.items()
    }


def packed_rules(state: MapState) -> dict[bytes, bytes]:
    """Return the rows of the rules map."""
    return {key.pack(): entry.pack() for key, entry in state.entries.items()}


def unpacked(classes: Mapping[bytes, bytes], rules: Mapping[bytes, bytes]) -> MapState:
    """Return the content of a version whose maps hold *classes* and *rules*."""
    found: dict[tuple[NumericIdentity, Direction], int] = {}
    for raw_key, raw_value in classes.items():
        key, value = abi.PolicyClassKey.unpack(raw_key), abi.PolicyClass.unpack(raw_value)
        if value.check != class_check(key.identity, key.direction):
            raise CorruptRowsError(f"class row of identity {key.identity} carries the check of another")
        found[key.identity, _direction(key.direction)] = value.class_id
    entries = {abi.PolicyKey.unpack(k): abi.PolicyEntry.unpack(v) for k, v in rules.items()}
    for entry_key in entries:
        _direction(entry_key.direction)
    return MapState(found, entries)


def _direction(number: int) -> Direction:
    try:
        return Direction(number)
    except ValueError:
        raise CorruptRowsError(f"policy row with direction {number}") from None
