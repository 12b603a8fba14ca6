# SPDX-License-Identifier: Apache-2.0
"""What is due is done, once for many changes and again after failures; what is known is the newest."""

import asyncio

from ciliumd.kubernetes.kinds import NODE
from ciliumd.operator import queue
from ciliumd.operator.queue import MAX_DELAY, WorkQueue, delay, repeat
from ciliumd.operator.store import Store


def _object(name, version, uid="u"):
    return {"metadata": {"name": name, "uid": uid, "resourceVersion": str(version)}}


async def _run_for(work, seconds):
    task = asyncio.create_task(work)
    await asyncio.sleep(seconds)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def test_many_changes_of_one_key_are_one_piece_of_work():
    """And a change while it is being done is one more, afterwards."""

    async def story():
        done, running = [], set()

        async def work(key):
            assert key not in running, "never twice at a time"
            running.add(key)
            await asyncio.sleep(0.01)
            if done.count(key) == 0 and key == "a":
                todo.add("a")
            running.discard(key)
            done.append(key)

        todo = WorkQueue("test", work, workers=3)
        for key in "aabbaab":
            todo.add(key)
        await _run_for(todo.run(), 0.1)
        assert sorted(done) == ["a", "a", "b"]

    asyncio.run(story())


def test_what_fails_is_done_again_and_holds_up_nobody(monkeypatch):
    """With delays that grow and have a bound."""
    monkeypatch.setattr(queue, "FIRST_DELAY", 0.001)

    async def story():
        tries = {"good": 0, "bad": 0}

        async def work(key):
            tries[key] += 1
            if key == "bad" and tries[key] < 4:
                raise RuntimeError("not yet")

        todo = WorkQueue("test", work)
        todo.add("bad")
        todo.add("good")
        await _run_for(todo.run(), 0.2)
        assert tries == {"good": 1, "bad": 4}

    asyncio.run(story())
    assert delay(100) == MAX_DELAY


def test_repeated_work_survives_its_failures(monkeypatch):
    """It comes sooner after a failure, and goes on."""
    monkeypatch.setattr(queue, "FIRST_DELAY", 0.001)

    async def story():
        calls = 0

        async def work():
            nonlocal calls
            calls += 1
            if calls < 3:
                raise RuntimeError("not yet")

        await _run_for(repeat("test", 60.0, work), 0.1)
        assert calls == 3

    asyncio.run(story())


def test_an_older_version_never_replaces_a_newer_one():
    """Whatever way it comes."""
    store, told = Store(), []
    store.follow(NODE, told.append)
    store.put(NODE, _object("a", 10))
    store.put(NODE, _object("a", 9))
    store.put(NODE, _object("a", 10))
    assert store.get(NODE, ("", "a")) == _object("a", 10)
    assert told == [("", "a")]


def test_a_late_deletion_does_not_take_the_successor():
    """Same name, another object."""
    store = Store()
    store.put(NODE, _object("a", 10, "first"))
    store.put(NODE, _object("a", 12, "second"))
    store.drop(NODE, _object("a", 11, "first"))
    assert store.get(NODE, ("", "a")) == _object("a", 12, "second")
    store.drop(NODE, _object("a", 13, "second"))
    assert store.get(NODE, ("", "a")) is None


def test_a_sweep_drops_what_is_gone_and_only_that():
    """What came or changed after the list was asked for is newer than the list."""
    store, told = Store(), []
    for name in ("stays", "gone", "changed"):
        store.put(NODE, _object(name, 1))
    before = dict(store.rows(NODE))
    store.put(NODE, _object("changed", 5))
    store.put(NODE, _object("new", 6))
    store.follow(NODE, told.append)
    assert store.sweep(NODE, before, {("", "stays")}) == [("", "gone")]
    assert sorted(name for _, name in store.rows(NODE)) == ["changed", "new", "stays"]
    assert told == [("", "gone")]
