# SPDX-License-Identifier: Apache-2.0
"""A table of numbers that are given out: which of them are free is known without looking at all rows."""

from collections.abc import Hashable, Iterator
from typing import Final, TypeVar

from ciliumd.tables.table import Table

K = TypeVar("K", bound=Hashable)

# Numbers of a page, one bit each: the lowest ones are given out first, so pages are few and full.
_PAGE: Final = 1024
_FULL: Final = (1 << _PAGE) - 1


class NumberTable(Table[K, int]):
    """Numbers by key, without a log of changes.  Two keys may have one number: damaged maps say so."""

    def __init__(self, name: str) -> None:
        super().__init__(name, logged=False)
        self._pages: dict[int, int] = {}
        self._shared_by: dict[int, int] = {}

    def free(self, first: int, last: int) -> Iterator[int]:
        """Those from *first* to *last* that no key has, in order; good until the table changes."""
        for page in range(first // _PAGE, last // _PAGE + 1):
            free = ~self._pages.get(page, 0) & _FULL
            while free:
                lowest = free & -free
                free ^= lowest
                number = page * _PAGE + lowest.bit_length() - 1
                if first <= number <= last:
                    yield number

    def _replaced(self, old: int | None, new: int | None) -> None:
        if old is not None:
            self._give_back(old)
        if new is not None:
            self._take(new)

    def _take(self, number: int) -> None:
        page, bit = number // _PAGE, 1 << number % _PAGE
        taken = self._pages.get(page, 0)
        if taken & bit:
            self._shared_by[number] = self._shared_by.get(number, 1) + 1
        self._pages[page] = taken | bit

    def _give_back(self, number: int) -> None:
        others = self._shared_by.pop(number, 1) - 1
        if others > 1:
            self._shared_by[number] = others
        if others:
            return
        page = number // _PAGE
        self._pages[page] ^= 1 << number % _PAGE
        if not self._pages[page]:
            del self._pages[page]
