# SPDX-License-Identifier: Apache-2.0
"""
Maps: packed keys to packed values, one by one or in batches.

What the bytes mean is abi's business.  Batches are retried element by element where the kernel
has none for a map's type, and report failures by key instead of stopping at the first.
"""

from __future__ import annotations

import errno
import hashlib
import struct
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Self

from ciliumd.abi import MapType
from ciliumd.bpf._libbpf import ffi, lib
from ciliumd.bpf.errors import BpfError, NotFound, check, error
from ciliumd.bpf.handle import Handle, open_pin

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from ciliumd.abi import MapSpec

ANY, NOEXIST, EXIST = 0, 1, 2
BATCH = 4096
PER_CPU = frozenset({MapType.PERCPU_HASH, MapType.PERCPU_ARRAY, MapType.LRU_PERCPU_HASH})
# Kernels answer a batch call on a map type that has none with the first; libbpf's caller sees 524.
ENOTSUPP = 524


@cache
def possible_cpus() -> int:
    """Number of values a per-CPU map holds for each key."""
    return check(lib.libbpf_num_possible_cpus(), "count", "possible CPUs")


@dataclass(frozen=True, slots=True)
class MapInfo:
    """What the kernel says of a map."""

    type: int
    id: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int
    name: str


class Map(Handle):
    """An open map; owns one descriptor."""

    def __init__(self, fd: int, name: str) -> None:
        super().__init__(fd, name)
        self.info = self._read_info()
        self.key_size = self.info.key_size
        self.per_cpu = self.info.type in PER_CPU
        # The kernel copies per-CPU values in 8-byte steps.
        step = (self.info.value_size + 7) // 8 * 8
        self.value_size = step * possible_cpus() if self.per_cpu else self.info.value_size

    @classmethod
    def from_pin(cls, path: Path) -> Self:
        """Open a pinned map; its full name is the pin's."""
        return cls(open_pin(path), path.name)

    @classmethod
    def create(cls, spec: MapSpec, *, max_entries: int | None = None) -> Self:
        """A new map after a spec: an inner map, or the one of spec.name; not pinned."""
        entries = spec.max_entries if max_entries is None else max_entries
        name = spec.name[:15].encode()
        fd = lib.cil_map_create(spec.type, name, spec.key_size, spec.value_size, entries, spec.flags)
        return cls(check(fd, "create map", spec.name), spec.name)

    def _read_info(self) -> MapInfo:
        raw = ffi.new("struct cil_map_info *")
        check(lib.cil_map_info(self.fd, raw), "read info of map", self.name)
        name = ffi.string(raw.name).decode()
        return MapInfo(raw.type, raw.id, raw.key_size, raw.value_size, raw.max_entries, raw.flags, name)

    # -- one element ---------------------------------------------------------------------------

    def lookup(self, key: bytes) -> bytes | None:
        """The value of a key, None when absent; of a per-CPU map all CPUs' values in a row."""
        value = ffi.new("char[]", self.value_size)
        result = lib.bpf_map_lookup_elem(self.fd, self._key(key), value)
        if result == -errno.ENOENT:
            return None
        check(result, "look up in map", self.name)
        return bytes(ffi.buffer(value))

    def lookup_per_cpu(self, key: bytes) -> list[bytes]:
        """The value of a key on every possible CPU; empty when absent."""
        raw = self.lookup(key)
        return [] if raw is None else self._split(raw)

    def lookup_sums(self, key: bytes) -> tuple[int, ...]:
        """The u64 words of a per-CPU value, each summed over all CPUs; empty when absent."""
        raw = self.lookup(key)
        return () if raw is None else self._sums(raw)

    def update(self, key: bytes, value: bytes, flags: int = ANY) -> None:
        """Write one element."""
        result = lib.bpf_map_update_elem(self.fd, self._key(key), self._value(value), flags)
        check(result, "update map", self.name)

    def delete(self, key: bytes) -> bool:
        """Remove one element; False when it was not there."""
        result = lib.bpf_map_delete_elem(self.fd, self._key(key))
        if result == -errno.ENOENT:
            return False
        check(result, "delete from map", self.name)
        return True

    # -- all elements --------------------------------------------------------------------------

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Every element, each key at most once; elements written meanwhile may be missing."""
        try:
            yield from self._batched_items()
        except _NoBatch:
            for key in self._next_keys():
                value = self.lookup(key)
                if value is not None:
                    yield key, value

    def keys(self) -> Iterator[bytes]:
        """Every key."""
        return (key for key, _ in self.items())

    def items_sums(self) -> Iterator[tuple[bytes, tuple[int, ...]]]:
        """Every element of a per-CPU map as u64 words summed over all CPUs."""
        for key, value in self.items():
            yield key, self._sums(value)

    def fingerprint(self) -> bytes | None:
        """
        16 bytes that are the same as long as nobody writes; None where the kernel has no batches.

        Elements come in the order the kernel keeps them in, so an element taken out and put back may count
        as a change.  No element becomes an object: it costs a copy and a hash of the raw memory.
        """
        digest = hashlib.blake2b(digest_size=16)
        try:
            for keys, values in self._batches():
                digest.update(keys)
                digest.update(values)
        except _NoBatch:
            return None
        return digest.digest()

    def _batched_items(self) -> Iterator[tuple[bytes, bytes]]:
        seen: set[bytes] = set()
        for keys, values in self._batches():
            for key, value in zip(_cut(keys, self.key_size), _cut(values, self.value_size), strict=True):
                if key not in seen:
                    seen.add(key)
                    yield key, value

    def _batches(self) -> Iterator[tuple[bytes, bytes]]:
        """Packed keys and their packed values, as many as one call reads; _NoBatch before the first."""
        room = min(BATCH, max(self.info.max_entries, 1))
        cursor = ffi.new("char[]", max(8, self.key_size))
        count = ffi.new("uint32_t *")
        started = False
        while True:
            keys = ffi.new("char[]", room * self.key_size)
            values = ffi.new("char[]", room * self.value_size)
            count[0] = room
            first = cursor if started else ffi.NULL
            result = lib.cil_map_lookup_batch(self.fd, first, cursor, keys, values, count)
            if result == -errno.ENOSPC and room <= self.info.max_entries:
                # One hash bucket holds more than fits; the cursor has not moved.
                room *= 2
                continue
            if result not in {0, -errno.ENOENT}:
                if started:
                    raise error("read map", self.name, -result)
                raise _NoBatch
            started = True
            yield (
                bytes(ffi.buffer(keys, count[0] * self.key_size)),
                bytes(ffi.buffer(values, count[0] * self.value_size)),
            )
            if result:
                return

    def _next_keys(self) -> Iterator[bytes]:
        # A key that vanishes sends the walk back to the start, so known keys end it.
        seen: set[bytes] = set()
        following = ffi.new("char[]", self.key_size)
        result = lib.bpf_map_get_next_key(self.fd, ffi.NULL, following)
        while result == 0:
            key = bytes(ffi.buffer(following))
            if key in seen:
                return
            seen.add(key)
            yield key
            result = lib.bpf_map_get_next_key(self.fd, ffi.from_buffer(key), following)
        if result != -errno.ENOENT:
            raise error("walk map", self.name, -result)

    # -- many elements -------------------------------------------------------------------------

    def update_batch(self, items: Mapping[bytes, bytes], flags: int = ANY) -> dict[bytes, BpfError]:
        """Write many elements; returns the failures by key, all others are written."""
        failed: dict[bytes, BpfError] = {}
        for keys in _chunks(list(items)):
            packed = b"".join(self._key_bytes(key) for key in keys)
            values = b"".join(self._value_bytes(items[key]) for key in keys)
            done = 0
            while done < len(keys):
                count = ffi.new("uint32_t *", len(keys) - done)
                result = lib.cil_map_update_batch(
                    self.fd,
                    ffi.from_buffer(packed)[done * self.key_size : len(packed)],
                    ffi.from_buffer(values)[done * self.value_size : len(values)],
                    count,
                    flags,
                )
                if result == 0:
                    break
                if _nothing_done(result, count[0], len(keys) - done):
                    failed.update(self._update_each(keys[done:], items, flags))
                    break
                done += count[0]
                failed[keys[done]] = error("update map", self.name, -result)
                done += 1
        return failed

    def delete_batch(self, keys: Iterable[bytes]) -> dict[bytes, BpfError]:
        """Remove many elements; an absent one is success.  Returns the failures by key."""
        failed: dict[bytes, BpfError] = {}
        for chunk in _chunks(list(dict.fromkeys(keys))):
            packed = b"".join(self._key_bytes(key) for key in chunk)
            done = 0
            while done < len(chunk):
                count = ffi.new("uint32_t *", len(chunk) - done)
                start = ffi.from_buffer(packed)[done * self.key_size : len(packed)]
                result = lib.cil_map_delete_batch(self.fd, start, count)
                if result == 0:
                    break
                if _nothing_done(result, count[0], len(chunk) - done):
                    failed.update(self._delete_each(chunk[done:]))
                    break
                done += count[0]
                if result != -errno.ENOENT:
                    failed[chunk[done]] = error("delete from map", self.name, -result)
                done += 1
        return failed

    def _update_each(
        self, keys: Sequence[bytes], items: Mapping[bytes, bytes], flags: int
    ) -> dict[bytes, BpfError]:
        failed: dict[bytes, BpfError] = {}
        for key in keys:
            try:
                self.update(key, items[key], flags)
            except BpfError as failure:
                failed[key] = failure
        return failed

    def _delete_each(self, keys: Sequence[bytes]) -> dict[bytes, BpfError]:
        failed: dict[bytes, BpfError] = {}
        for key in keys:
            try:
                self.delete(key)
            except BpfError as failure:
                failed[key] = failure
        return failed

    # -- maps in maps --------------------------------------------------------------------------

    def update_inner(self, items: Mapping[bytes, Map]) -> dict[bytes, BpfError]:
        """Hang inner maps into this outer map, in one batch: each single write waits for RCU."""
        return self.update_batch({key: struct.pack("=i", inner.fd) for key, inner in items.items()})

    def open_inner(self, key: bytes) -> Map:
        """A handle of the inner map under a key."""
        value = self.lookup(key)
        if value is None:
            raise NotFound("open inner map of", self.name, errno.ENOENT)
        (number,) = struct.unpack("=I", value)
        return Map(check(lib.bpf_map_get_fd_by_id(number), "open inner map of", self.name), self.name)

    def freeze(self) -> None:
        """No more writes from user space, for good."""
        check(lib.bpf_map_freeze(self.fd), "freeze map", self.name)

    # -- sizes ---------------------------------------------------------------------------------

    def _key_bytes(self, key: bytes) -> bytes:
        if len(key) != self.key_size:
            raise ValueError(f"map {self.name} has keys of {self.key_size} bytes, got {len(key)}")
        return key

    def _value_bytes(self, value: bytes) -> bytes:
        if len(value) != self.value_size:
            raise ValueError(f"map {self.name} has values of {self.value_size} bytes, got {len(value)}")
        return value

    def _key(self, key: bytes) -> object:
        return ffi.from_buffer(self._key_bytes(key))

    def _value(self, value: bytes) -> object:
        return ffi.from_buffer(self._value_bytes(value))

    def _split(self, raw: bytes) -> list[bytes]:
        step = len(raw) // possible_cpus()
        return [raw[at : at + self.info.value_size] for at in range(0, len(raw), step)]

    def _sums(self, raw: bytes) -> tuple[int, ...]:
        words = (self.info.value_size + 7) // 8
        return tuple(map(sum, zip(*struct.iter_unpack(f"={words}Q", raw), strict=True)))


class _NoBatch(Exception):
    """The kernel has no batch operation for maps of this type."""


def _nothing_done(result: int, count: int, asked: int) -> bool:
    """Whether the kernel refused the call as a whole: then it never wrote how far it came."""
    return -result in {ENOTSUPP, errno.EOPNOTSUPP} or count >= asked


def _cut(packed: bytes, size: int) -> Iterator[bytes]:
    return (packed[at : at + size] for at in range(0, len(packed), size))


def _chunks(keys: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    """Keys in batches the kernel handles without long stalls."""
    return (keys[at : at + BATCH] for at in range(0, len(keys), BATCH))
