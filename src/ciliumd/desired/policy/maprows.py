# SPDX-License-Identifier: Apache-2.0
"""
A map state as the bytes of its two maps, and back.

Reading back is how a restarted agent learns what its predecessor enforced.  Every row carries a seal, so
that neither an agent nor a packet believes one that somebody changed (docs/decisions/0014).
"""

import struct
from collections.abc import Mapping
from dataclasses import replace

from ciliumd import abi
from ciliumd.desired.policy.mapstate import MapState
from ciliumd.model.identity import NumericIdentity
from ciliumd.model.policy import Direction


class CorruptRowsError(Exception):
    """Rows read from a policy version's maps that no agent of this layout writes."""


_ODD = 0x9E3779B97F4A7C15
_WORD = (1 << 64) - 1
_CONTENT = struct.Struct("<BBHI")


def seal(content: int, key: int) -> int:
    """Return the check of a row: 64 bits of content, 32 of its key; datapath/lib/addr.h does the same."""
    mixed = (content ^ key << 32 ^ key) * _ODD & _WORD
    mixed = (mixed ^ mixed >> 32) * _ODD & _WORD
    return mixed >> 32


def class_check(identity: NumericIdentity, direction: int, class_id: int) -> int:
    """Return the check of the class row that leads *identity* to *class_id*."""
    return seal(class_id << 32 | identity, direction)


def entry_check(key: abi.PolicyKey, entry: abi.PolicyEntry) -> int:
    """Return the check of a row of rules; what the row says apart from its check counts."""
    said = _CONTENT.pack(int(entry.verdict), entry.flags, entry.proxy_slot, entry.rule_cookie)
    return seal(int.from_bytes(said, "little"), key.direction << 16 | key.class_id)


def sealed(key: abi.PolicyKey, entry: abi.PolicyEntry) -> abi.PolicyEntry:
    """Return *entry* as packets believe it under *key*."""
    return replace(entry, check=entry_check(key, entry))


def packed_classes(state: MapState) -> dict[bytes, bytes]:
    """Return the rows of the classes map."""
    return {
        abi.PolicyClassKey(identity=identity, direction=int(direction)).pack(): abi.PolicyClass(
            check=class_check(identity, direction, class_id), class_id=class_id
        ).pack()
        for (identity, direction), class_id in state.classes.items()
    }


def packed_rules(state: MapState) -> dict[bytes, bytes]:
    """Return the rows of the rules map."""
    return {key.pack(): sealed(key, entry).pack() for key, entry in state.entries.items()}


def unpacked(classes: Mapping[bytes, bytes], rules: Mapping[bytes, bytes]) -> MapState:
    """Return the content of a version whose maps hold *classes* and *rules*, all of them as written."""
    found: dict[tuple[NumericIdentity, Direction], int] = {}
    for raw_key, raw_value in classes.items():
        key, value = abi.PolicyClassKey.unpack(raw_key), abi.PolicyClass.unpack(raw_value)
        if value.check != class_check(key.identity, key.direction, value.class_id):
            raise CorruptRowsError(f"class row of identity {key.identity} is not as it was written")
        found[key.identity, _direction(key.direction)] = value.class_id
    entries: dict[abi.PolicyKey, abi.PolicyEntry] = {}
    for raw_key, raw_value in rules.items():
        place, entry = abi.PolicyKey.unpack(raw_key), abi.PolicyEntry.unpack(raw_value)
        _direction(place.direction)
        if entry.check != entry_check(place, entry):
            raise CorruptRowsError(f"rule of class {place.class_id} is not as it was written")
        entries[place] = replace(entry, check=0)
    return MapState(found, entries)


def _direction(number: int) -> Direction:
    try:
        return Direction(number)
    except ValueError:
        raise CorruptRowsError(f"policy row with direction {number}") from None
