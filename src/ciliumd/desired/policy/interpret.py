# SPDX-License-Identifier: Apache-2.0
"""
What the datapath would say: its two lookups over a computed map state, as a plain list scan.

The judge between the computed rows and the kernel: it shares no code with the computation.
"""

from ciliumd import abi
from ciliumd.desired.policy.mapstate import EVERYBODY_ELSE, MapState
from ciliumd.model.identity import NumericIdentity
from ciliumd.model.policy import Direction

_FULL = int(abi.PolicyPrefix.POLICY_PREFIX_PORT)

Row = tuple[abi.PolicyKey, abi.PolicyEntry]


def lookup(
    state: MapState, identity: NumericIdentity, direction: Direction, protocol: int, port: int
) -> tuple[abi.PolicyVerdict, int]:
    """
    Return the verdict on traffic of *protocol* to *port* with *identity* as its peer, and the cookie.

    No row at all is verdict NONE: the datapath drops for want of a configuration.
    """
    row = lookup_row(state, identity, direction, protocol, port)
    if row is None:
        return abi.PolicyVerdict.POLICY_VERDICT_NONE, 0
    return abi.PolicyVerdict(row[1].verdict), row[1].rule_cookie


def lookup_row(
    state: MapState, identity: NumericIdentity, direction: Direction, protocol: int, port: int
) -> Row | None:
    """Return the row that decides, or None."""
    class_id = state.classes.get((identity, direction), EVERYBODY_ELSE)
    wanted = _bits(class_id, int(direction), protocol, port)
    longest: Row | None = None
    for key, entry in state.entries.items():
        different = wanted ^ _bits(key.class_id, key.direction, key.protocol, key.dport)
        if different >> (_FULL - key.prefixlen):
            continue
        if longest is None or key.prefixlen > longest[0].prefixlen:
            longest = key, entry
    return longest


def _bits(class_id: int, direction: int, protocol: int, port: int) -> int:
    return class_id << 32 | direction << 24 | protocol << 16 | port
