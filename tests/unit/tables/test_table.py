# SPDX-License-Identifier: Apache-2.0
"""Tables: what changed since, for every reader, whatever the order of changes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ciliumd.tables import Table

pytestmark = pytest.mark.unit

KEYS = st.integers(0, 5)
ROWS = st.integers(0, 3)


def test_setting_what_is_there_changes_nothing() -> None:
    """No revision, no wake-up for an equal row."""
    table: Table[str, int] = Table("numbers")
    woken: list[int] = []
    table.set("one", 1)
    table.subscribe(lambda: woken.append(table.revision))

    assert not table.set("one", 1)
    assert table.revision == 1
    assert woken == []


def test_a_row_is_deleted_once() -> None:
    """The second time there is none."""
    table: Table[str, int] = Table("numbers")
    table.set("one", 1)

    assert table.delete("one")
    assert not table.delete("one")
    assert table.get("one") is None


def test_wakers_are_called_after_the_change_and_until_they_leave() -> None:
    """A waker sees the row as it is now; one that left hears nothing."""
    table: Table[str, int] = Table("numbers")
    seen: list[int | None] = []
    leave = table.subscribe(lambda: seen.append(table.get("one")))
    table.set("one", 1)
    table.delete("one")
    leave()
    table.set("one", 2)

    assert seen == [1, None]


def test_initialized_wakes_once() -> None:
    """Readers that wait for a source hear of it, even of an empty one."""
    table: Table[str, int] = Table("numbers")
    woken: list[bool] = []
    table.subscribe(lambda: woken.append(table.initialized))
    table.mark_initialized()
    table.mark_initialized()

    assert woken == [True]


def test_changes_since_names_each_key_once_and_deletions_too() -> None:
    """However often a row changed, its key comes once; a deleted one comes as well."""
    table: Table[str, int] = Table("numbers")
    table.set("one", 1)
    table.set("two", 2)
    _, seen = table.changes_since(0)
    table.set("two", 3)
    table.set("two", 4)
    table.delete("one")

    assert table.changes_since(seen) == ({"one", "two"}, 5)
    assert table.changes_since(5) == (set(), 5)


def test_reader_behind_what_was_forgotten_is_told_so() -> None:
    """A reader that would miss a deletion must not go on as if nothing had been deleted."""
    table: Table[str, int] = Table("numbers")
    table.set("one", 1)
    table.delete("one")
    table.forget(table.revision)

    with pytest.raises(ValueError, match="forgotten"):
        table.changes_since(1)
    assert table.changes_since(2) == (set(), 2)


def test_view_does_not_show_later_changes() -> None:
    """A view stays what it was; a view taken later shows the change."""
    table: Table[str, int] = Table("numbers")
    table.set("one", 1)
    before = table.view()
    table.set("one", 2)
    table.delete("one")

    assert dict(before) == {"one": 1}
    assert dict(table.view()) == {}


def test_view_is_for_reading_only() -> None:
    """Nobody changes rows behind the table's back."""
    table: Table[str, int] = Table("numbers")
    with pytest.raises(TypeError):
        table.view()["one"] = 1  # type: ignore[index]


def test_index_follows_rows_as_they_change_owner() -> None:
    """A key moves with its row and leaves nothing behind."""
    table: Table[str, int] = Table("numbers")
    table.set("one", 1)
    index = table.add_index(lambda _key, row: ("odd" if row % 2 else "even",))
    table.set("two", 2)
    table.set("one", 4)

    assert index.get("even") == ("two", "one")
    assert index.get("odd") == ()
    table.delete("one")
    table.delete("two")
    assert index.owners() == ()


@given(st.lists(st.tuples(KEYS, ROWS | st.none()), max_size=30))
def test_order_of_events_does_not_matter_where_keys_differ(events: list[tuple[int, int | None]]) -> None:
    """Events of different keys in any order leave the same rows."""
    last = dict(events)
    tables: list[Table[int, int]] = []
    for order in (events, sorted(events, key=lambda event: event[0])):
        table: Table[int, int] = Table("numbers")
        for key, row in order:
            if row is None:
                table.delete(key)
            else:
                table.set(key, row)
        tables.append(table)

    assert dict(tables[0].items()) == dict(tables[1].items())
    assert dict(tables[0].items()) == {key: row for key, row in last.items() if row is not None}


class FollowedTable(RuleBasedStateMachine):
    """Two readers copy a table through its change feed at their own pace; old changes are forgotten."""

    def __init__(self) -> None:
        super().__init__()
        self.table: Table[int, int] = Table("numbers")
        self.index = self.table.add_index(lambda _key, row: (row,))
        self.copies: list[dict[int, int]] = [{}, {}]
        self.read = [0, 0]
        self.views: list[tuple[object, dict[int, int]]] = []

    @rule(key=KEYS, row=ROWS)
    def set_row(self, key: int, row: int) -> None:
        """A real change is reported as one."""
        changed = self.table.get(key) != row
        assert self.table.set(key, row) is changed

    @rule(key=KEYS)
    def delete_row(self, key: int) -> None:
        """Deleting what is there is a change."""
        there = key in self.table
        assert self.table.delete(key) is there

    @rule(reader=st.sampled_from([0, 1]))
    def follow(self, reader: int) -> None:
        """A reader that applies the changes since has exactly the table's rows."""
        keys, revision = self.table.changes_since(self.read[reader])
        self.read[reader] = revision
        for key in keys:
            row = self.table.get(key)
            if row is None:
                self.copies[reader].pop(key, None)
            else:
                self.copies[reader][key] = row
        assert self.copies[reader] == dict(self.table.items())
        assert self.table.changes_since(revision) == (set(), revision)

    @rule()
    def forget_what_both_have_read(self) -> None:
        """Forgetting what every reader passed takes nothing from any of them."""
        self.table.forget(min(self.read))

    @rule()
    def take_view(self) -> None:
        """A view must stay as it is now."""
        self.views.append((self.table.view(), dict(self.table.items())))

    @invariant()
    def views_never_change(self) -> None:
        """Whatever happened since, a view shows the rows it was taken of."""
        assert all(dict(view) == rows for view, rows in self.views)  # type: ignore[call-overload]

    @invariant()
    def index_is_the_one_built_from_scratch(self) -> None:
        """The index names for each row value exactly the keys that have it."""
        for row in range(4):
            assert set(self.index.get(row)) == {key for key, value in self.table.items() if value == row}


TestFollowedTable = FollowedTable.TestCase
