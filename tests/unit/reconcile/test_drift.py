# SPDX-License-Identifier: Apache-2.0
"""Reconciler: what others did to a target is found, counted and put right."""

from unit.reconcile.rounds import World


def test_full_round_finds_counts_and_repairs_drift():
    """Rows another program deleted, changed or added come back to what is desired, and are counted."""
    world = World("m")
    world.want["m"] = {b"a": b"1", b"b": b"1"}
    world.round()
    del world.maps["m"].rows[b"a"]
    world.maps["m"].rows.update({b"b": b"x", b"c": b"x"})
    world.round(dirty=False)
    assert world.maps["m"].rows[b"b"] == b"x", "an ordinary round does not look"

    world.round(dirty=False, check_drift=True)

    assert {b"a": b"1", b"b": b"1"} == world.maps["m"].rows
    assert {"m": 3} == world.counts.drift


def test_target_that_did_not_change_is_not_read_again():
    """A check against drift costs a look at the fingerprint, until somebody writes."""
    world = World("m")
    world.want["m"] = {b"a": b"1"}
    world.round()
    world.round(dirty=False, check_drift=True)
    loads = world.maps["m"].loads
    world.round(dirty=False, check_drift=True)
    world.round(check_drift=True)
    assert loads == world.maps["m"].loads

    world.maps["m"].rows[b"a"] = b"x"
    world.round(dirty=False, check_drift=True)

    assert {b"a": b"1"} == world.maps["m"].rows
    assert {"m": 1} == world.counts.drift


def test_what_was_written_and_is_put_back_by_somebody_is_drift():
    """A map that looks as it did before our last write is not what we believe it to be."""
    world = World("m")
    world.want["m"] = {b"a": b"1"}
    world.round()
    world.round(dirty=False, check_drift=True)
    world.want["m"] = {b"a": b"2"}
    world.round()
    world.maps["m"].rows[b"a"] = b"1"

    world.round(dirty=False, check_drift=True)

    assert {b"a": b"2"} == world.maps["m"].rows
    assert {"m": 1} == world.counts.drift


def test_what_changes_while_it_is_read_is_read_again():
    """The fingerprint is that of the rows which were read, or none is kept."""
    world = World("m", live={"m": {b"a": b"1"}})
    fake = world.maps["m"]
    world.want["m"] = {b"a": b"1"}
    world.round()
    read = fake.load

    def load_while_another_writes():
        rows = read()
        fake.rows[b"b"] = b"x"
        return rows

    fake.load = load_while_another_writes
    fake.rows[b"a"] = b"y"
    world.round(dirty=False, check_drift=True)
    fake.load = read

    world.round(dirty=False, check_drift=True)

    assert {b"a": b"1"} == fake.rows
