# SPDX-License-Identifier: Apache-2.0
"""
Maps in the shape the reconciler writes to: load, update, delete, failures by key.

One class per way of being absent: a hash deletes, an array row becomes zero, a mapped word is
stored zero.  The reconciler's protocol is met by shape; this room does not import it.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from ciliumd.bpf.map import Map
    from ciliumd.bpf.words import U64Array

ROW = struct.Struct("=I")
WORD = struct.Struct("=Q")


class MapTarget:
    """A hash or LPM map, or of its rows those whose keys are of the *part*."""

    def __init__(self, target: Map, *, part: Callable[[bytes], bool] | None = None) -> None:
        self.name = target.name
        self._map = target
        self._part = part

    def load(self) -> dict[bytes, bytes]:
        """What the kernel holds."""
        part = self._part
        return dict(self._map.items() if part is None else (one for one in self._map.items() if part(one[0])))

    def fingerprint(self) -> bytes | None:
        """The same as before only if nothing in the whole map changed; None where the kernel cannot tell."""
        return self._map.fingerprint()

    def update(self, items: Mapping[bytes, bytes]) -> Mapping[bytes, Exception]:
        """Write; returns the failures by key."""
        return self._map.update_batch(items)

    def delete(self, keys: Collection[bytes]) -> Mapping[bytes, Exception]:
        """Remove; absent is success."""
        return self._map.delete_batch(keys)


class ArrayTarget:
    """An array map, in which a row of zeros is an absent row."""

    def __init__(self, target: Map) -> None:
        self.name = target.name
        self._map = target
        self._zero = bytes(target.value_size)

    def load(self) -> dict[bytes, bytes]:
        """Rows that are not zero."""
        return {key: value for key, value in self._map.items() if value != self._zero}

    def fingerprint(self) -> bytes | None:
        """The same as before only if no row changed; None where the kernel cannot tell."""
        return self._map.fingerprint()

    def update(self, items: Mapping[bytes, bytes]) -> Mapping[bytes, Exception]:
        """Write; returns the failures by key."""
        return self._map.update_batch(items)

    def delete(self, keys: Collection[bytes]) -> Mapping[bytes, Exception]:
        """Write zeros."""
        return self._map.update_batch(dict.fromkeys(keys, self._zero))


class WordsTarget:
    """A mapped array of u64, where every write is one aligned store and zero is absent."""

    def __init__(self, words: U64Array) -> None:
        self.name = words.name
        self._words = words

    def load(self) -> dict[bytes, bytes]:
        """Rows that are not zero."""
        rows = ((row, self._words[row]) for row in range(len(self._words)))
        return {ROW.pack(row): WORD.pack(word) for row, word in rows if word}

    def update(self, items: Mapping[bytes, bytes]) -> Mapping[bytes, Exception]:
        """Store; a row the array does not have is a failure of its key."""
        failed: dict[bytes, Exception] = {}
        for key, value in items.items():
            try:
                self._words[ROW.unpack(key)[0]] = WORD.unpack(value)[0]
            except IndexError as failure:
                failed[key] = failure
        return failed

    def delete(self, keys: Collection[bytes]) -> Mapping[bytes, Exception]:
        """Store zero."""
        return self.update(dict.fromkeys(keys, WORD.pack(0)))
