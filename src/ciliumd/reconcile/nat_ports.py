# SPDX-License-Identifier: Apache-2.0
"""
How many ports of masquerading are in use, by destination.

Flows that leave under one address towards one address and port need a port each, and there are no more
than :data:`PORTS`.  Pure: rows of ``cilium_snat_v1`` come in; what is used most, and where the datapath
found no port any more, goes out.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Final, NamedTuple

from ciliumd import abi
from ciliumd.model.net import Addr, addr_from16

Row = tuple[bytes, bytes]

FIRST_PORT: Final = 32768
LAST_PORT: Final = 65535
PORTS: Final = LAST_PORT - FIRST_PORT + 1
# A row that says "no port was found" counts for so long, in seconds; the datapath renews it.
FULL_SECONDS: Final = 60

_MAPPED: Final = bytes(10) + b"\xff\xff"
_DIR: Final = abi.place_of(abi.NatKey, "dir").start
_DPORT: Final = abi.place_of(abi.NatKey, "dport")
_NAMES: Final = {1: "ICMP", 6: "TCP", 17: "UDP", 58: "ICMPv6"}


class Target(NamedTuple):
    """Whom flows go to, and under which address of the node; echoes have port 0."""

    remote: Addr
    port: int
    protocol: int
    address: Addr

    def shown(self) -> dict[str, str | int]:
        """For logs and status."""
        return {
            "remote": str(self.remote),
            "port": self.port,
            "protocol": _NAMES.get(self.protocol, str(self.protocol)),
            "address": str(self.address),
        }


class PortUse(NamedTuple):
    """One destination: *used* ports, those of the node's own flows included."""

    target: Target
    used: int

    @property
    def saturation(self) -> float:
        """0 to 1."""
        return min(self.used / PORTS, 1.0)


class NatPorts(NamedTuple):
    """*most*: by IP version, the destination that needs most; *full*: where a flow was refused lately."""

    most: dict[int, PortUse]
    full: tuple[PortUse, ...]


NOTHING: Final = NatPorts({}, ())


class Count:
    """Counts rows as they come, a piece of the map at a time."""

    def __init__(self) -> None:
        self._used: Counter[bytes] = Counter()
        self._full: set[bytes] = set()

    def add(self, rows: Iterable[Row], now: int) -> None:
        """Rows of ``cilium_snat_v1`` at *now* (seconds of CLOCK_MONOTONIC)."""
        into, full = int(abi.NatDir.NAT_IN), int(abi.NatDir.NAT_FULL)
        for key, value in rows:
            direction = key[_DIR]
            if direction == into:
                self._used[_target(key)] += 1
            elif direction == full and now - abi.NatEntry.unpack(value).created <= FULL_SECONDS:
                self._full.add(_target(key))

    def result(self) -> NatPorts:
        """Of all rows so far."""
        most: dict[int, PortUse] = {}
        for raw, used in self._used.items():
            version = 4 if raw.startswith(_MAPPED) else 6
            if version not in most or used > most[version].used:
                most[version] = PortUse(_unpacked(raw), used)
        return NatPorts(most, tuple(PortUse(_unpacked(raw), self._used[raw]) for raw in sorted(self._full)))


def _target(key: bytes) -> bytes:
    """A packed key without what tells one flow from another: port and direction."""
    cut = bytearray(key)
    cut[_DPORT] = bytes(2)
    cut[_DIR] = 0
    return bytes(cut)


def _unpacked(raw: bytes) -> Target:
    key = abi.NatKey.unpack(raw)
    return Target(addr_from16(key.src), key.sport, key.protocol, addr_from16(key.dst))
