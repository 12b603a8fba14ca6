# SPDX-License-Identifier: Apache-2.0
"""
The kernel as interpreted programs meet it: helpers over a packet and over copies of live map rows.

Rows are read from the kernel when first asked for; what programs write stays here.
"""

import errno
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from bench.interpreter.memory import Memory
from bench.interpreter.processor import TailCall
from ciliumd.abi import MapType
from ciliumd.bpf import Map

FIB_IFINDEX: Final = 8
EVENT_BYTES: Final = 256
NOEXIST, EXIST = 1, 2
CSUM_SIZE_MASK, MARK_MANGLED_0 = 0xF, 0x20
REDIRECT: Final = 7
KIND_OF: Final = {
    MapType.HASH: "hash",
    MapType.LRU_HASH: "LRU hash",
    MapType.LPM_TRIE: "LPM",
    MapType.ARRAY: "array",
    MapType.PERCPU_ARRAY: "array",
    MapType.HASH_OF_MAPS: "hash",
}


class UnknownHelper(Exception):
    """A walk calls a helper that is not interpreted."""


@dataclass(slots=True)
class Copy:
    """Rows of one live map as this packet sees them; 0 is an absent row."""

    source: Map
    name: str
    rows: dict[bytes, int] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """Family of the map's type."""
        return KIND_OF[MapType(self.source.info.type)]


@dataclass(slots=True)
class Kernel:
    """Helpers for one packet, and the count of everything they were asked for."""

    memory: Memory
    packet: bytearray
    tail_calls: Callable[[str, int], str | None]
    route: int
    lookups: Counter[str] = field(default_factory=Counter)
    updates: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    helpers: Counter[str] = field(default_factory=Counter)
    _maps: dict[int, Copy] = field(default_factory=dict)
    _addresses: dict[str, int] = field(default_factory=dict)

    def map_address(self, name: str, source: Callable[[], Map] | None) -> int:
        """The address that stands for a map; one without a source can only be named, not read."""
        if name not in self._addresses:
            self._addresses[name] = self.memory.add(bytes(8))
            if source is not None:
                self._maps[self._addresses[name]] = Copy(source(), name)
        return self._addresses[name]

    def call(self, number: int, arguments: Sequence[int]) -> int:
        """One helper."""
        known = HELPERS.get(number)
        if known is None:
            raise UnknownHelper(f"helper {number}")
        name, function = known
        self.helpers[name] += 1
        return function(self, *arguments)

    # -- maps ----------------------------------------------------------------------------------

    def lookup(self, which: int, key_at: int, *_: int) -> int:
        """bpf_map_lookup_elem."""
        rows = self._maps[which]
        self.lookups[rows.name] += 1
        self.kinds[rows.kind] += 1
        return self._row(rows, self.memory.read(key_at, rows.source.key_size))

    def _row(self, rows: Copy, key: bytes) -> int:
        if key not in rows.rows:
            rows.rows[key] = self._read(rows, key)
        return rows.rows[key]

    def _read(self, rows: Copy, key: bytes) -> int:
        if rows.source.info.type == MapType.HASH_OF_MAPS:
            if rows.source.lookup(key) is None:
                return 0
            return self.map_address(f"{rows.name} {key.hex()}", lambda: rows.source.open_inner(key))
        if rows.source.per_cpu:
            values = rows.source.lookup_per_cpu(key)
            return self.memory.add(values[0]) if values else 0
        value = rows.source.lookup(key)
        return 0 if value is None else self.memory.add(value)

    def update(self, which: int, key_at: int, value_at: int, flags: int, *_: int) -> int:
        """bpf_map_update_elem, of this packet's copy."""
        rows = self._maps[which]
        self.updates[rows.name] += 1
        key = self.memory.read(key_at, rows.source.key_size)
        known = self._row(rows, key)
        if (flags == NOEXIST and known) or (flags == EXIST and not known):
            return -errno.EEXIST if known else -errno.ENOENT
        rows.rows[key] = self.memory.add(self.memory.read(value_at, rows.source.value_size))
        return 0

    def reserve(self, *_: int) -> int:
        """bpf_ringbuf_reserve."""
        return self.memory.add(bytes(EVENT_BYTES))

    def tail_call(self, _context: int, table: int, row: int, *_: int) -> int:
        """bpf_tail_call: goes on elsewhere, or returns when the row is empty."""
        name = next(name for name, address in self._addresses.items() if address == table)
        target = self.tail_calls(name, row & 0xFFFFFFFF)
        if target is None:
            return -errno.ENOENT
        raise TailCall(target)

    # -- the packet ----------------------------------------------------------------------------

    def load_bytes(self, _context: int, offset: int, to: int, size: int, *_: int) -> int:
        """bpf_skb_load_bytes."""
        if offset + size > len(self.packet):
            return -errno.EFAULT
        self.memory.write(to, bytes(self.packet[offset : offset + size]))
        return 0

    def store_bytes(self, _context: int, offset: int, source: int, size: int, _flags: int) -> int:
        """bpf_skb_store_bytes."""
        if offset + size > len(self.packet):
            return -errno.EFAULT
        self.packet[offset : offset + size] = self.memory.read(source, size)
        return 0

    def change_sum(self, _context: int, offset: int, old: int, new: int, flags: int) -> int:
        """bpf_l3_csum_replace and bpf_l4_csum_replace of a sum that is complete."""
        size = flags & CSUM_SIZE_MASK
        held = int.from_bytes(self.packet[offset : offset + 2], "little")
        if flags & MARK_MANGLED_0 and not held:
            return 0
        total = ~held & 0xFFFF
        for at in range(0, size, 2):
            total += (~(old >> at * 8) & 0xFFFF) + (new >> at * 8 & 0xFFFF)
        while total >> 16:
            total = (total & 0xFFFF) + (total >> 16)
        self.packet[offset : offset + 2] = (~total & 0xFFFF).to_bytes(2, "little")
        return 0

    # -- the rest ------------------------------------------------------------------------------

    def fib_lookup(self, _context: int, fib: int, *_: int) -> int:
        """bpf_fib_lookup: found, by the device of the default route."""
        self.memory.store(fib + FIB_IFINDEX, 4, self.route)
        return 0

    def clock(self, *_: int) -> int:
        """bpf_ktime_get_ns."""
        return time.monotonic_ns()

    def nothing(self, *_: int) -> int:
        """Succeeds without a trace in the packet."""
        return 0

    def redirect(self, *_: int) -> int:
        """TC_ACT_REDIRECT."""
        return REDIRECT


HELPERS: Final[dict[int, tuple[str, Callable[..., int]]]] = {
    1: ("map lookup", Kernel.lookup),
    2: ("map update", Kernel.update),
    5: ("clock", Kernel.clock),
    7: ("random number", Kernel.nothing),
    9: ("packet write", Kernel.store_bytes),
    10: ("checksum", Kernel.change_sum),
    11: ("checksum", Kernel.change_sum),
    12: ("tail call", Kernel.tail_call),
    23: ("redirect", Kernel.redirect),
    26: ("packet read", Kernel.load_bytes),
    32: ("packet type", Kernel.nothing),
    46: ("socket cookie", Kernel.nothing),
    69: ("route lookup", Kernel.fib_lookup),
    122: ("namespace cookie", Kernel.nothing),
    131: ("event", Kernel.reserve),
    132: ("event submit", Kernel.nothing),
    152: ("redirect", Kernel.redirect),
    155: ("redirect", Kernel.redirect),
    187: ("errno", Kernel.nothing),
}
