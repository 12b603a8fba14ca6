# SPDX-License-Identifier: Apache-2.0
"""Memory of an interpreted packet: separate regions, so that a stray access is an error and not a number."""

from typing import Final

REGION_BITS: Final = 32
OFFSET_MASK: Final = (1 << REGION_BITS) - 1


class Memory:
    """Regions by address; address 0 is NULL and belongs to none."""

    def __init__(self) -> None:
        self._regions: list[bytearray] = []

    def add(self, data: bytes | bytearray) -> int:
        """A new region; a bytearray is used itself, bytes are copied.  Its address."""
        self._regions.append(data if isinstance(data, bytearray) else bytearray(data))
        return len(self._regions) << REGION_BITS

    def read(self, address: int, size: int) -> bytes:
        """Bytes; IndexError outside of a region."""
        region, offset = self._place(address, size)
        return bytes(region[offset : offset + size])

    def write(self, address: int, data: bytes) -> None:
        """Write bytes."""
        region, offset = self._place(address, len(data))
        region[offset : offset + len(data)] = data

    def load(self, address: int, size: int) -> int:
        """A little-endian number."""
        return int.from_bytes(self.read(address, size), "little")

    def store(self, address: int, size: int, value: int) -> None:
        """Write a little-endian number, cut to its size."""
        self.write(address, (value & ((1 << size * 8) - 1)).to_bytes(size, "little"))

    def _place(self, address: int, size: int) -> tuple[bytearray, int]:
        number, offset = address >> REGION_BITS, address & OFFSET_MASK
        if not 0 < number <= len(self._regions) or offset + size > len(self._regions[number - 1]):
            raise IndexError(f"access of {size} bytes at {address:#x}")
        return self._regions[number - 1], offset
