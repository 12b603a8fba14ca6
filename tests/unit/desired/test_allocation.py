# SPDX-License-Identifier: Apache-2.0
"""Numbers: never one that is in use, the lowest free ones, whatever the order of asking."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ciliumd.desired.allocation import Allocation, allocate, free_numbers, unused

pytestmark = pytest.mark.unit

KEYS = st.text("abcdef", min_size=1, max_size=2)
EXISTING = st.dictionaries(KEYS, st.integers(1, 20)).filter(lambda d: len(set(d.values())) == len(d))


def numbers(existing: dict[str, int], wanted: list[str], *, last: int = 20) -> Allocation[str]:
    """Numbers 1 to *last*, keys served in alphabetical order."""
    return allocate(existing, wanted, free_numbers(existing, 1, last), order=str)


@given(EXISTING, st.lists(KEYS))
def test_new_numbers_are_nobody_elses(existing: dict[str, int], wanted: list[str]) -> None:
    """No number is given twice, nor taken from a key that has one, wanted or not."""
    result = numbers(existing, wanted)

    together = [*existing.values(), *result.assigned.values()]
    assert len(together) == len(set(together))
    assert result.assigned.keys() & existing.keys() == set()
    assert set(wanted) == (existing.keys() & set(wanted)) | result.assigned.keys() | set(result.refused)
    assert all(1 <= number <= 20 for number in result.assigned.values())


@given(EXISTING, st.lists(KEYS), st.randoms())
def test_order_of_asking_does_not_matter(existing: dict[str, int], wanted: list[str], random: object) -> None:
    """Sets and dictionaries may come in any order."""
    shuffled = list(wanted)
    random.shuffle(shuffled)  # type: ignore[attr-defined]

    assert numbers(existing, wanted) == numbers(existing, shuffled)


def test_lowest_free_numbers_come_first() -> None:
    """Holes are filled before the range grows."""
    assert numbers({"x": 2, "y": 4}, ["c", "a", "b", "x"]).assigned == {"a": 1, "b": 3, "c": 5}


def test_who_gets_no_number_is_told() -> None:
    """A full range gives what it has and names the others."""
    assert numbers({"x": 1}, ["c", "a", "b"], last=2) == Allocation({"a": 2}, ("b", "c"))


@given(EXISTING, st.lists(KEYS))
def test_asking_again_gives_nothing_new(existing: dict[str, int], wanted: list[str]) -> None:
    """Once assigned, a number stays."""
    assigned = numbers(existing, wanted).assigned

    assert numbers(existing | assigned, wanted).assigned == {}


def test_unused_keys_are_those_nobody_wants() -> None:
    """Only keys that have a number can be released."""
    assert unused({"x": 1, "y": 2}, ["y", "z"]) == {"x"}
