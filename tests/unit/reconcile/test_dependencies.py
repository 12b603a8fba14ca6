# SPDX-License-Identifier: Apache-2.0
"""Reconciler: what is written and deleted before what, and what waits when that fails."""

import pytest

from ciliumd.reconcile.fake import FakeMap
from ciliumd.reconcile.loop import Reconciler
from ciliumd.reconcile.target import Stage
from unit.reconcile.rounds import Inline, World


def test_stage_must_come_after_those_it_needs():
    """An order that would write references before what they refer to is refused at once."""
    stage = Stage(name="services", target=FakeMap("services"), needs=("backends",))

    with pytest.raises(ValueError, match="services needs backends"):
        Reconciler([stage], executor=Inline(), may_delete=lambda: True)


def test_needed_stage_that_fails_holds_those_that_need_it_only():
    """Without its policy an endpoint is not attached; services go on."""

    def stages(world):
        return [
            world.stage("policy"),
            world.stage("services"),
            world.stage("endpoints", needs=("policy",)),
        ]

    world = World("policy", "services", "endpoints", stages=stages)
    world.want = {name: {b"k": b"1"} for name in world.maps}
    world.maps["policy"].failures[b"k"] = OSError("no")
    world.round()

    assert {b"k": b"1"} == world.maps["services"].rows
    assert {} == world.maps["endpoints"].rows
    assert world.status("endpoints").held == "updates wait for policy"

    world.maps["policy"].failures.clear()
    world.clock.now += 1
    world.round(dirty=False)

    assert {b"k": b"1"} == world.maps["endpoints"].rows


def test_deletion_waits_while_a_row_that_needs_it_cannot_be_deleted():
    """A backend stays as long as the service row that names it does."""
    live = {"backends": {b"b": b"1"}, "services": {b"s": b"b"}}

    def stages(world):
        return [world.stage("backends"), world.stage("services", needs=("backends",))]

    world = World("backends", "services", live=live, stages=stages)
    world.maps["services"].failures[b"s"] = OSError("busy")
    world.round()
    assert live == {name: fake.rows for name, fake in world.maps.items()}

    world.maps["services"].failures.clear()
    world.clock.now += 1
    world.round(dirty=False)

    assert {"backends": {}, "services": {}} == {name: fake.rows for name, fake in world.maps.items()}


def test_failed_update_that_is_no_longer_wanted_holds_nobody():
    """A backend that could not be changed and then is dropped lets its service move on, then goes."""
    live = {"backends": {b"b1": b"old"}, "services": {b"s": b"b1"}}

    def stages(world):
        return [world.stage("backends"), world.stage("services", needs=("backends",))]

    world = World("backends", "services", live=live, stages=stages)
    world.want = {"backends": {b"b1": b"new"}, "services": {b"s": b"b1"}}
    world.maps["backends"].failures[b"b1"] = OSError("no")
    world.round()
    world.want = {"backends": {b"b2": b"new"}, "services": {b"s": b"b2"}}
    world.maps["backends"].failures.clear()
    world.round()

    assert {name: fake.rows for name, fake in world.maps.items()} == {
        "backends": {b"b2": b"new"},
        "services": {b"s": b"b2"},
    }


def test_stage_that_names_its_references_waits_row_by_row():
    """One backend that cannot be written holds its own service, not the other one."""

    def stages(world):
        def refers(_key, value):
            return [("backends", value)]

        return [world.stage("backends"), world.stage("services", needs=("backends",), refers=refers)]

    world = World("backends", "services", stages=stages)
    world.want = {"backends": {b"b1": b"1", b"b2": b"2"}, "services": {b"s1": b"b1", b"s2": b"b2"}}
    world.maps["backends"].failures[b"b1"] = OSError("no")
    world.round()
    assert {b"s2": b"b2"} == world.maps["services"].rows

    world.maps["backends"].failures.clear()
    world.clock.now += 1
    world.round(dirty=False)
    assert {b"s1": b"b1", b"s2": b"b2"} == world.maps["services"].rows

    world.want = {"backends": {}, "services": {}}
    world.maps["services"].failures[b"s1"] = OSError("busy")
    world.round()

    assert {b"b1": b"1"} == world.maps["backends"].rows, "still named by s1"
    assert {b"s1": b"b1"} == world.maps["services"].rows


def test_row_that_covers_others_is_written_after_them_and_not_without_them():
    """Of prefixes inside each other the longest comes first; one that fails keeps those around it out."""
    inside = {b"/8": [("lpm", b"/16")], b"/16": [("lpm", b"/24"), ("single", b"a")]}

    def stages(world):
        return [world.stage("single"), world.stage("lpm", covers=lambda key: inside.get(key, ()))]

    world = World("single", "lpm", stages=stages)
    wanted = {b"/8": b"1", b"/16": b"2", b"/24": b"3", b"other": b"4"}
    world.want = {"single": {b"a": b"5"}, "lpm": wanted}
    world.maps["single"].failures[b"a"] = OSError("full")
    world.round()
    without = dict(world.maps["lpm"].rows)
    held = world.status("lpm").held
    world.maps["single"].failures.clear()
    del world.journal[:]
    world.clock.now += 1
    world.round(dirty=False)

    assert without == {b"/24": b"3", b"other": b"4"}
    assert held == "updates wait for rows they would stand in for"
    assert [write.key for write in world.journal] == [b"a", b"/16", b"/8"]
    assert world.status("lpm").in_sync


def test_row_that_outlives_others_goes_after_their_change():
    """An exception stays as long as the word that names rules with it could not be written."""

    def stages(world):
        return [world.stage("words"), world.stage("prefixes", outlives=("words",))]

    world = World("words", "prefixes", stages=stages)
    world.want = {"words": {b"w": b"old"}, "prefixes": {b"p": b"1"}}
    world.round()
    world.want = {"words": {b"w": b"new"}, "prefixes": {b"q": b"2"}}
    world.maps["words"].failures[b"w"] = OSError("no")
    world.round()
    meanwhile, held = dict(world.maps["prefixes"].rows), world.status("prefixes").held
    world.maps["words"].failures.clear()
    world.clock.now += 1
    world.round(dirty=False)

    assert meanwhile == {b"p": b"1", b"q": b"2"}
    assert held == "deletions wait for words"
    assert world.maps["prefixes"].rows == {b"q": b"2"}
    with pytest.raises(ValueError, match="needs words, which must come before it"):
        Reconciler([stages(world)[1]], executor=Inline(), may_delete=lambda: True)
