# SPDX-License-Identifier: Apache-2.0
"""
Numbers for things: which get a new one, and which number.

Memoryless: who has a number is an argument, and nothing is taken away here.  When a number may be used
again is decided by whoever deletes its row, since packets and maps may still know it.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
FreeNumbers = Callable[[int, int], Iterator[int]]
"""The free numbers of a range, both ends included, in order."""


@dataclass(frozen=True, slots=True)
class Allocation(Generic[Key]):
    """New numbers by key, and the keys there was none left for."""

    assigned: dict[Key, int]
    refused: tuple[Key, ...]


def allocate(
    existing: Mapping[Key, int],
    wanted: Iterable[Key],
    free: Iterable[int],
    *,
    order: Callable[[Key], Any],
) -> Allocation[Key]:
    """
    Numbers for those *wanted* that have none in *existing*, as they come from *free*.

    Keys are served in the order *order* sorts them by, so that the result does not depend on how they were
    collected.
    """
    missing = sorted({key for key in wanted if key not in existing}, key=order)
    assigned = dict(zip(missing, free, strict=False))
    return Allocation(assigned, tuple(missing[len(assigned) :]))


def free_numbers(existing: Mapping[Any, int], first: int, last: int) -> Iterator[int]:
    """Those from *first* to *last* that are not in *existing*, whether their keys are wanted or not."""
    taken = set(existing.values())
    return (number for number in range(first, last + 1) if number not in taken)


def unused(existing: Mapping[Key, int], wanted: Iterable[Key]) -> frozenset[Key]:
    """The keys that have a number nobody wants any more: candidates for release."""
    return frozenset(existing) - frozenset(wanted)
