# SPDX-License-Identifier: Apache-2.0
"""DeltaTracker: what is desired, what is realized, and exactly the difference between them."""

import struct
import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from ciliumd.reconcile.delta import DeltaTracker

EVERY = [b"a", b"b", b"c", b"d"]
KEYS = st.sampled_from(EVERY)
VALUES = st.sampled_from([b"", b"1", b"2"])
ROWS = st.dictionaries(KEYS, VALUES)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("set_desired"), ROWS, st.lists(KEYS)),
        st.tuples(st.just("replace_desired"), ROWS),
        st.tuples(st.just("record_updated"), ROWS),
        st.tuples(st.just("record_deleted"), st.lists(KEYS)),
    )
)


def test_wanted_row_that_is_absent_is_a_pending_update():
    """A row nobody has written yet must be written."""
    tracker = DeltaTracker()
    tracker.set_desired({b"a": b"1"})

    assert list(tracker.pending_updates) == [b"a"]
    assert not tracker.in_sync


def test_update_that_is_taken_back_disappears():
    """A change and its reversal between two rounds cost nothing."""
    tracker = DeltaTracker()
    tracker.record_updated({b"a": b"1"})
    tracker.set_desired({b"a": b"2"})
    tracker.set_desired({b"a": b"1"})

    assert tracker.in_sync


def test_row_in_both_updates_and_removals_is_wanted():
    """An owner that lets go of a key another owner takes over must not lose it."""
    tracker = DeltaTracker()
    tracker.record_updated({b"a": b"1"})
    tracker.set_desired({b"a": b"1"}, [b"a"])

    assert tracker.in_sync


def test_pending_updates_keep_the_order_they_were_asked_for():
    """Within one target, backends 1..n are written before slot 0 if the caller says so."""
    tracker = DeltaTracker()
    tracker.set_desired({b"c": b"1", b"a": b"1"})
    tracker.set_desired({b"b": b"1"})

    assert list(tracker.pending_updates) == [b"c", b"a", b"b"]


@given(STEPS)
def test_pending_sets_always_equal_the_difference(steps):
    """However it came about: pending is desired against realized, computed from scratch."""
    tracker = DeltaTracker()
    for name, *arguments in steps:
        getattr(tracker, name)(*arguments)

        desired, realized = dict(tracker.desired), dict(tracker.realized)
        updates = {key for key, value in desired.items() if realized.get(key) != value}
        assert len(realized) == len(tracker.realized)
        assert {key: realized.get(key) for key in EVERY} == {key: tracker.held(key) for key in EVERY}
        assert updates == set(tracker.pending_updates)
        assert realized.keys() - desired.keys() == set(tracker.pending_deletions)


@given(ROWS, ROWS)
def test_recorded_drift_makes_realized_equal_the_live_rows(believed, live):
    """What somebody else changed, added or deleted is found, all of it and nothing else."""
    tracker = DeltaTracker()
    tracker.record_updated(believed)
    drift = tracker.drift(live)
    tracker.record_drift(drift)

    differing = {key for key in believed.keys() | live.keys() if believed.get(key) != live.get(key)}
    assert len(differing) == len(drift)
    assert live == tracker.realized


def test_rows_in_sync_are_in_memory_once():
    """What was written, or read from the kernel at a restart, is no second copy of what is desired."""
    count = 20_000

    def rows():
        return {struct.pack("=Q", number): struct.pack("=QQQ", number, 1, 2) for number in range(count)}

    tracker = DeltaTracker()
    tracemalloc.start()
    try:
        tracker.set_desired(rows())
        pending = tracemalloc.get_traced_memory()[0]
        tracker.record_updated(rows())
        written = tracemalloc.get_traced_memory()[0]
        tracker.record_drift(tracker.drift(rows()))
        read = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()

    assert tracker.in_sync
    assert len(tracker.realized) == count
    assert written < pending, "the memory of what was pending is given back"
    assert read - written < count, "reading the same rows again costs nothing that stays"


def test_rows_computed_anew_replace_their_equals_in_memory():
    """Who computes rows from scratch keeps the newest; older equals would be a copy of every row."""
    tracker = DeltaTracker()
    for _ in range(2):
        rows = {struct.pack("=Q", number): struct.pack("=QQ", number, 1) for number in range(100)}
        tracker.replace_desired(rows)
        tracker.record_updated(rows)

    assert tracker.in_sync
    assert {id(key) for key in rows} == {id(key) for key in tracker.desired}
    assert {id(value) for value in rows.values()} == {id(value) for value in tracker.desired.values()}
