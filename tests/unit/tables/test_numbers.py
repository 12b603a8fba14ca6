# SPDX-License-Identifier: Apache-2.0
"""Tables of numbers: the free ones are those that no key has, however they came and went."""

from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ciliumd.tables import NumberTable

pytestmark = pytest.mark.unit

KEYS = st.integers(0, 5)
# Both sides of a page's end, and far away.
NUMBERS = st.one_of(st.integers(1, 5), st.integers(1021, 1027), st.just(2**32 - 1))
CHANGES = st.lists(st.tuples(KEYS, NUMBERS | st.none()))


@given(CHANGES, st.integers(1, 1030), st.integers(0, 40))
def test_free_numbers_are_those_that_no_key_has(
    changes: list[tuple[int, int | None]], first: int, more: int
) -> None:
    """Two keys may have one number: it is free when neither has it."""
    table: NumberTable[int] = NumberTable("numbers")
    for key, number in changes:
        if number is None:
            table.delete(key)
        else:
            table.set(key, number)

    last = first + more
    taken = set(table.values())
    assert list(table.free(first, last)) == [one for one in range(first, last + 1) if one not in taken]


def test_a_far_number_costs_nothing() -> None:
    """Nobody walks to the end of a range, nor keeps a bit for every number before the last."""
    table: NumberTable[str] = NumberTable("numbers")
    table.set("damaged", 2**32 - 1)

    assert list(islice(table.free(1, 2**32 - 1), 3)) == [1, 2, 3]


def test_there_is_no_log_of_changes() -> None:
    """Who asks for one is told; deletions are not kept for anybody."""
    table: NumberTable[str] = NumberTable("numbers")
    table.set("one", 1)
    table.forget(1)

    assert table.revision == 1
    with pytest.raises(ValueError, match="has no log"):
        table.changes_since(0)


def test_rows_can_be_read_without_a_copy() -> None:
    """The live rows are those of the moment; a view stays what it was."""
    table: NumberTable[str] = NumberTable("numbers")
    table.set("one", 1)
    live = table.live()
    table.set("two", 2)
    assert dict(live) == {"one": 1, "two": 2}
    view = table.view()
    table.set("three", 3)
    assert dict(view) == {"one": 1, "two": 2}
