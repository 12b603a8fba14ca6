# SPDX-License-Identifier: Apache-2.0
"""A ring buffer's records as bytes: C copies them, nothing is decoded here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from ciliumd.bpf._libbpf import ffi, lib
from ciliumd.bpf.errors import check, error

if TYPE_CHECKING:
    from ciliumd.bpf.map import Map

CAPACITY = 1 << 20


class RingBuffer:
    """
    The consumer of one ring buffer; there must be only one in the system.

    `fd` becomes readable when records are there, for an event loop's add_reader.
    """

    def __init__(self, source: Map, *, record_size: int, capacity: int = CAPACITY) -> None:
        self.name = source.name
        self.record_size = record_size
        self.records = 0
        self.other_records = 0
        self._ring = lib.cil_ring_open(source.fd, record_size, capacity)
        if self._ring == ffi.NULL:
            raise error("open ring buffer", source.name, ffi.errno)
        self._drained = ffi.new("struct cil_ring_drained *")

    @property
    def fd(self) -> int:
        """The descriptor to wait on; it belongs to this object."""
        return lib.cil_ring_epoll_fd(self._open())

    def drain(self) -> bytes:
        """
        The next records, whole and in order, at most `capacity` bytes; empty when there are none.

        Records of another size are skipped and counted in other_records.
        """
        check(lib.cil_ring_drain(self._open(), self._drained), "drain ring buffer", self.name)
        data = bytes(ffi.buffer(self._drained.data, self._drained.size))
        self.records += len(data) // self.record_size
        self.other_records = self._drained.other
        return data

    def _open(self) -> object:
        if self._ring == ffi.NULL:
            raise ValueError(f"RingBuffer {self.name} is closed")
        return self._ring

    def close(self) -> None:
        """Stop consuming; records stay in the ring."""
        ring, self._ring = self._ring, ffi.NULL
        if ring != ffi.NULL:
            lib.cil_ring_close(ring)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_ring"):
            self.close()
