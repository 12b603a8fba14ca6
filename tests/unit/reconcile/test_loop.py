# SPDX-License-Identifier: Apache-2.0
"""Reconciler: order, permission to delete, retries, failures, and the loop that runs by itself."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from ciliumd.reconcile.fake import FakeMap, Write
from ciliumd.reconcile.loop import Reconciler
from ciliumd.reconcile.progress import Backoff
from ciliumd.reconcile.target import BeforeSync, Changes, Stage, Whole
from unit.reconcile.rounds import World


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
