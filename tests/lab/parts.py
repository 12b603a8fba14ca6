# SPDX-License-Identifier: Apache-2.0
"""A part of many tests: what takes hours need not be run one after the other."""

from typing import NamedTuple, Self
from zlib import crc32


class Part(NamedTuple):
    """
    The *number*-th of *parts* of all there is.

    What has a name is in the part that its name says, so that nothing is in another one when something is
    added.
    """

    number: int
    parts: int

    @classmethod
    def read(cls, text: str) -> Self:
        """Read ``N/M``.  Raises ValueError."""
        number, parts = map(int, text.split("/"))
        if not 1 <= number <= parts:
            raise ValueError(f"{text} is not a part: the first of two is 1/2")
        return cls(number, parts)

    def has(self, name: str) -> bool:
        """Whether what has this *name* is in it."""
        return crc32(name.encode()) % self.parts == self.number - 1

    def __str__(self) -> str:
        """As it is read."""
        return f"{self.number}/{self.parts}"
