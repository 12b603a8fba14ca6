# SPDX-License-Identifier: Apache-2.0
"""Reconciler: order, permission to delete, retries, dependencies, drift, restarts."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from ciliumd.reconcile.fake import FakeMap, Write
from ciliumd.reconcile.loop import Reconciler
from ciliumd.reconcile.progress import Backoff
from ciliumd.reconcile.target import BeforeSync, Changes, Stage, Whole
from unit.reconcile.rounds import Clock, Counts, Inline


class World:
    """A reconciler over fakes named in order; each stage wants what ``want[name]`` says."""

    def __init__(self, *names, live=None, executor=None, stages=None, **settings):
        self.clock = Clock()
        self.counts = Counts()
        self.journal = []
        self.in_sync = True
        self.maps = {name: FakeMap(name, rows=(live or {}).get(name), journal=self.journal) for name in names}
        self.want = {name: {} for name in names}
        self.reconciler = Reconciler(
            stages(self) if stages else [self.stage(name) for name in names],
            executor=executor or Inline(),
            may_delete=lambda: self.in_sync,
            observer=self.counts,
            clock=self.clock,
            backoff=Backoff(first=1.0, longest=30.0),
            **settings,
        )

    def stage(self, name, **settings):
        """The stage of the fake *name*."""
        return Stage(
            name=name, target=self.maps[name], compute=lambda: Whole(dict(self.want[name])), **settings
        )

    def round(self, *, dirty=True, **settings):
        """Run one round to its end."""
        if dirty:
            self.reconciler.trigger()
        asyncio.run(self.reconciler.round(**settings))

    def status(self, name):
        """Status of one stage."""
        return next(stage for stage in self.reconciler.status().stages if stage.name == name)


def test_rows_are_created_in_stage_order_and_deleted_in_reverse():
    """Backends exist before the services that name them and go after them."""
    world = World("backends", "services")
    world.want = {"backends": {b"b": b"1"}, "services": {b"s": b"b"}}
    world.round()
    world.want = {"backends": {}, "services": {}}
    world.round()

    assert [
        Write("backends", b"b", b"1"),
        Write("services", b"s", b"b"),
        Write("services", b"s", None),
        Write("backends", b"b", None),
    ] == world.journal


def test_nothing_is_deleted_or_changed_before_sources_are_in_sync():
    """After a restart, rows computed from half of the objects neither sweep nor overwrite live ones."""
    world = World("lb", live={"lb": {b"old": b"1", b"kept": b"3 backends"}})
    world.in_sync = False
    world.want["lb"] = {b"new": b"2", b"kept": b"1 backend"}
    world.round()

    assert {b"old": b"1", b"kept": b"3 backends", b"new": b"2"} == world.maps["lb"].rows

    world.in_sync = True
    world.round()

    assert {b"new": b"2", b"kept": b"1 backend"} == world.maps["lb"].rows


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        (BeforeSync.HOLD, {b"kept": b"old"}),
        (BeforeSync.CREATE, {b"kept": b"old", b"new": b"2"}),
        (BeforeSync.WRITE, {b"kept": b"now", b"new": b"2"}),
    ],
)
def test_stage_says_what_may_be_written_before_sync(mode, expected):
    """A stage that does not depend on the sources may write early; one that must not, does not."""
    world = World(
        "s", live={"s": {b"kept": b"old"}}, stages=lambda world: [world.stage("s", before_sync=mode)]
    )
    world.in_sync = False
    world.want["s"] = {b"kept": b"now", b"new": b"2"}
    world.round()

    assert expected == world.maps["s"].rows


def test_equal_rows_are_never_written_again():
    """A restart over maps that are right writes nothing at all."""
    world = World("m", live={"m": {b"a": b"1"}})
    world.want["m"] = {b"a": b"1"}
    world.round()

    assert [] == world.journal
    assert world.status("m").in_sync


def test_failed_row_is_retried_with_growing_delays_and_stops_nobody():
    """One bad row waits 1, 2, 4, ... seconds; its neighbours and other stages are written at once."""
    world = World("one", "two")
    world.want = {"one": {b"bad": b"1", b"good": b"1"}, "two": {b"x": b"1"}}
    world.maps["one"].failures[b"bad"] = OSError(22, "Invalid argument")
    attempts = []
    world.maps["one"].fail = lambda key: (
        attempts.append(world.clock.now) or OSError(22, "no") if key == b"bad" else None
    )
    start = world.clock.now
    for _ in range(200):
        world.round()
        world.clock.now += 0.5

    assert [0, 1, 3, 7, 15, 31, 61, 91] == [moment - start for moment in attempts]
    assert {b"good": b"1"} == world.maps["one"].rows
    assert {b"x": b"1"} == world.maps["two"].rows
    status = world.status("one")
    assert (1, 1) == (status.pending_updates, status.failing)
    assert status.last_error == "OSError: [Errno 22] no"


def test_new_value_of_a_failed_row_is_tried_at_once():
    """A user who corrects what failed does not wait for the backoff of the wrong value."""
    world = World("m")
    world.want["m"] = {b"k": b"bad"}
    world.maps["m"].failures[b"k"] = OSError("no")
    world.round()
    world.maps["m"].failures.clear()
    world.round()
    assert {} == world.maps["m"].rows

    world.want["m"] = {b"k": b"good"}
    world.round()

    assert {b"k": b"good"} == world.maps["m"].rows


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


def test_a_round_that_makes_another_one_necessary_is_followed_by_it():
    """Without anybody's trigger, and no more often than asked for."""
    answers = iter((True, True, False))
    asked, last = [], asyncio.Event()

    def unfinished():
        asked.append(world.counts.rounds)
        if len(asked) == 3:
            last.set()
        return next(answers)

    world = World("m", unfinished=unfinished, throttle=0.0)

    async def run():
        task = asyncio.create_task(world.reconciler.run())
        await last.wait()
        # Whoever waits for a trigger or the clock stays there.
        for _ in range(20):
            await asyncio.sleep(0)
        task.cancel()

    asyncio.run(run())
    assert asked == [1, 2, 3]


def test_call_that_raises_midway_is_read_back_before_anything_else():
    """Rows of a call that died are not forgotten: what it wrote is found and still removed."""
    world = World("m")
    world.want["m"] = {b"a": b"1", b"b": b"1"}

    def die(key):
        if key == b"b":
            raise OSError("the map is gone")

    world.maps["m"].fail = die
    world.round()
    assert {b"a": b"1"} == world.maps["m"].rows

    world.maps["m"].fail = world.maps["m"].failures.get
    world.want["m"] = {}
    world.round()

    assert {} == world.maps["m"].rows


def test_target_that_cannot_be_read_is_not_written():
    """Without knowing what is there, nothing is created, changed or swept."""
    world = World("m", live={"m": {b"old": b"1"}})
    world.want["m"] = {b"new": b"1"}
    world.maps["m"].broken = OSError("not permitted")
    world.round()
    assert {b"old": b"1"} == world.maps["m"].rows
    assert not world.status("m").in_sync

    world.maps["m"].broken = None
    world.clock.now += 1
    world.round(dirty=False)

    assert {b"new": b"1"} == world.maps["m"].rows


def test_stage_whose_computation_fails_neither_sweeps_nor_stops_others():
    """A bug in one computation leaves that stage as it is and is shown."""

    def bug():
        raise RuntimeError("bug")

    def stages(world):
        return [Stage(name="one", target=world.maps["one"], compute=bug), world.stage("two")]

    world = World("one", "two", live={"one": {b"k": b"1"}}, stages=stages)
    world.want["two"] = {b"x": b"1"}
    world.round()

    assert {b"k": b"1"} == world.maps["one"].rows
    assert {b"x": b"1"} == world.maps["two"].rows
    assert world.status("one").last_error == "RuntimeError: bug"


def test_changes_are_taken_as_changes():
    """A stage may answer what changed instead of everything."""
    answers = [Changes({b"a": b"1", b"b": b"1"}), Changes({}), Changes({b"b": b"2"}, [b"a"])]

    def stages(world):
        return [Stage(name="m", target=world.maps["m"], compute=lambda: answers.pop(0))]

    world = World("m", stages=stages)
    for _ in range(3):
        world.round()

    assert {b"b": b"2"} == world.maps["m"].rows


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


def test_full_map_gets_its_rows_once_there_is_room():
    """A full map fails the rows that do not fit; they are written when others are deleted."""
    world = World("m")
    world.maps["m"].capacity = 1
    world.want["m"] = {b"a": b"1"}
    world.round()
    world.want["m"] = {b"b": b"1"}
    world.round()
    assert {} == world.maps["m"].rows

    world.clock.now += 1
    world.round(dirty=False)

    assert {b"b": b"1"} == world.maps["m"].rows


def test_stage_must_come_after_those_it_needs():
    """An order that would write references before what they refer to is refused at once."""
    stage = Stage(name="services", target=FakeMap("services"), needs=("backends",))

    with pytest.raises(ValueError, match="services needs backends"):
        Reconciler([stage], executor=Inline(), may_delete=lambda: True)


def test_running_loop_coalesces_triggers_and_calls_targets_in_the_writer_thread():
    """A thousand triggers make a handful of rounds; the loop's thread never touches a target."""
    threads = set()

    async def main(world):
        fake = world.maps["m"]
        fake.fail = lambda _key: threads.add(threading.current_thread().name)
        running = asyncio.create_task(world.reconciler.run())
        for number in range(1000):
            world.want["m"] = {b"k": str(number).encode()}
            world.reconciler.trigger()
            if number % 100 == 0:
                await asyncio.sleep(0)
        status = await world.reconciler.flush()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        return status

    with ThreadPoolExecutor(1, thread_name_prefix="writer") as executor:
        world = World("m", executor=executor)
        status = asyncio.run(asyncio.wait_for(main(world), 10))

    assert status.in_sync
    assert {b"k": b"999"} == world.maps["m"].rows
    assert {"writer_0"} == threads
    assert status.rounds < 20


def test_running_loop_retries_and_checks_drift_by_itself():
    """Nobody has to trigger for a retry or for the check against drift."""

    async def main(reconciler, fake):
        running = asyncio.create_task(reconciler.run())
        fake.failures[b"k"] = OSError("not yet")
        await reconciler.flush()
        assert {} == fake.rows
        fake.failures.clear()
        while fake.rows != {b"k": b"1"}:  # noqa: ASYNC110  another thread's doing is waited for
            await asyncio.sleep(0.005)
        fake.rows.clear()
        while fake.rows != {b"k": b"1"}:  # noqa: ASYNC110  another thread's doing is waited for
            await asyncio.sleep(0.005)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    fake = FakeMap("m")
    stage = Stage(name="m", target=fake, compute=lambda: Whole({b"k": b"1"}))
    with ThreadPoolExecutor(1) as executor:
        reconciler = Reconciler(
            [stage],
            executor=executor,
            may_delete=lambda: True,
            backoff=Backoff(first=0.01),
            drift_interval=0.05,
            throttle=0.001,
        )
        asyncio.run(asyncio.wait_for(main(reconciler, fake), 10))


def test_hanging_call_is_shown_with_its_age():
    """Status names the target a stuck writer thread is in and for how long."""
    release = threading.Event()

    async def main(world):
        world.maps["m"].fail = lambda _key: release.wait(10) and None
        world.want["m"] = {b"k": b"1"}
        task = asyncio.create_task(world.reconciler.round())
        while (running := world.reconciler.status().running) is None or running.operation != "update":  # noqa: ASYNC110  another thread's doing is waited for
            await asyncio.sleep(0.001)
        world.clock.now += 7
        running = world.reconciler.status().running
        release.set()
        await task
        return running

    with ThreadPoolExecutor(1) as executor:
        running = asyncio.run(asyncio.wait_for(main(World("m", executor=executor)), 10))

    assert ("m", "update", 7.0) == (running.stage, running.operation, running.seconds)
