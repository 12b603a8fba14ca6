# SPDX-License-Identifier: Apache-2.0
"""Rows that stand for a set of others as a whole: what is not in it means something, too."""

from ciliumd.reconcile.fake import Write
from unit.reconcile.rounds import World


def sets(world):
    """Ranges, each the member of a set by its first byte, and a row that reads one set as a whole."""
    return [
        world.stage("ranges", set_of=lambda key: key[:1]),
        world.stage(
            "front", needs=("ranges",), refers=lambda *_: (), reads=lambda _, value: [("ranges", value)]
        ),
    ]


def test_a_row_reads_a_set_only_when_it_is_whole_and_nothing_else():
    """Members of what nobody read yet go before, of what is read no longer after it."""
    live = {"ranges": {b"a1": b"", b"b9": b""}, "front": {b"f": b"a"}}
    world = World("ranges", "front", live=live, stages=sets)
    world.want = {"ranges": {b"b1": b""}, "front": {b"f": b"b"}}
    world.round()

    assert [
        Write("ranges", b"b9", None),
        Write("ranges", b"b1", b""),
        Write("front", b"f", b"b"),
        Write("ranges", b"a1", None),
    ] == world.journal


def test_nothing_is_cleared_for_a_set_before_sources_are_in_sync():
    """The row that would read it is not written then either, though it is new."""
    world = World("ranges", "front", live={"ranges": {b"b9": b""}}, stages=sets)
    world.in_sync = False
    world.want = {"ranges": {b"b1": b""}, "front": {b"f": b"b"}}
    world.round()
    assert [Write("ranges", b"b1", b"")] == world.journal
    assert world.status("front").held == "updates wait for ranges"

    world.in_sync = True
    world.round()
    assert world.maps["front"].rows == {b"f": b"b"}
    assert world.maps["ranges"].rows == {b"b1": b""}


def test_a_set_that_is_read_changes_under_its_reader():
    """New members before old ones go: at no time are there fewer than both states have."""
    live = {"ranges": {b"a1": b""}, "front": {b"f": b"a"}}
    world = World("ranges", "front", live=live, stages=sets)
    world.want = {"ranges": {b"a2": b""}, "front": {b"f": b"a"}}
    world.round()

    assert [Write("ranges", b"a2", b""), Write("ranges", b"a1", None)] == world.journal
