# SPDX-License-Identifier: Apache-2.0
"""
Numbers for things: which get a new one, and which number.

Memoryless: who has a number is an argument, and nothing is taken away here.  When a number may be used
again is decided by whoever deletes its row, since packets and maps may still know it.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Allocation(Generic[Key]):
    """New numbers by key, and the keys there was none left for."""

    assigned: dict[Key, int]
    refused: tuple[Key, ...]


def allocate(
    existing: Mapping[Key, int],
    wanted: Iterable[Key],
    *,
    first: int,
    last: int,
    order: Callable[[Key], Any],
) -> Allocation[Key]:
    """
    Numbers from *first* to *last* for those *wanted* that have none, the lowest free ones first.

    A number in *existing* is taken, whether its key is still wanted or not.  Keys are served in the
    order *order* sorts them by, so that the result does not depend on how they were collected.
    """
    missing = sorted({key for key in wanted if key not in existing}, key=order)
    if not missing:
        return Allocation({}, ())
    taken = set(existing.values())
    assigned: dict[Key, int] = {}
    number = first
    for position, key in enumerate(missing):
        while number in taken:
            number += 1
        if number > last:
            return Allocation(assigned, tuple(missing[position:]))
        assigned[key] = number
        number += 1
    return Allocation(assigned, ())


def unused(existing: Mapping[Key, int], wanted: Iterable[Key]) -> frozenset[Key]:
    """The keys that have a number nobody wants any more: candidates for release."""
    return frozenset(existing) - frozenset(wanted)
