# SPDX-License-Identifier: Apache-2.0
"""Arrays of u64 mapped into this process: what packets read while it changes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from ciliumd.abi import MapType
from ciliumd.bpf._libbpf import ffi, lib
from ciliumd.bpf.errors import error

if TYPE_CHECKING:
    from ciliumd.bpf.map import Map


class U64Array:
    """
    A mapped array of u64: each row is read and written with one aligned access.

    Packets read these rows without a lock, so a row is the unit of what may change at once.
    """

    def __init__(self, source: Map) -> None:
        if source.value_size != 8 or source.info.type != MapType.ARRAY:
            raise ValueError(f"map {source.name} is not an array of u64")
        self.name = source.name
        self._length = source.info.max_entries
        self._words = lib.cil_words_map(source.fd, self._length)
        if self._words == ffi.NULL:
            raise error("map into memory", source.name, ffi.errno)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, row: int) -> int:
        return lib.cil_word_load(self._mapped(row), row)

    def __setitem__(self, row: int, value: int) -> None:
        lib.cil_word_store(self._mapped(row), row, value)

    def _mapped(self, row: int) -> object:
        if not 0 <= row < self._length:
            raise IndexError(f"{self.name} has {self._length} rows, not {row}")
        if self._words == ffi.NULL:
            raise ValueError(f"U64Array {self.name} is closed")
        return self._words

    def close(self) -> None:
        """Unmap."""
        words, self._words = self._words, ffi.NULL
        if words != ffi.NULL:
            lib.cil_words_unmap(words, self._length)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
