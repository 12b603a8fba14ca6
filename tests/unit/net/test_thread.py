# SPDX-License-Identifier: Apache-2.0
"""NetlinkThread: calls in order, errors to their caller, a hung call visible."""

import asyncio
import threading
from typing import Any

import pytest
import uvloop

from ciliumd.net.thread import NetlinkThread


def run(main: Any) -> Any:
    """Run a coroutine under uvloop, as the agent does."""
    return uvloop.run(asyncio.wait_for(main, 10))


def test_calls_run_one_after_another_in_the_thread_with_its_socket() -> None:
    """Order is that of the calls; the loop's thread is not used."""
    seen: list[tuple[int, str]] = []

    def note(ipr: object, number: int) -> object:
        seen.append((number, threading.current_thread().name))
        return ipr

    async def main() -> list[object]:
        thread = NetlinkThread()
        thread.start()
        sockets = await asyncio.gather(*(thread.call(note, number) for number in range(20)))
        assert await thread.stop()
        return sockets

    sockets = run(main())

    assert seen == [(number, "netlink") for number in range(20)]
    assert len(set(map(id, sockets))) == 1


def test_error_reaches_its_caller_and_the_thread_goes_on() -> None:
    """A failing call is that caller's problem and is counted."""

    def fail(_ipr: object) -> None:
        raise OSError(1, "not permitted")

    async def main() -> None:
        thread = NetlinkThread()
        thread.start()
        with pytest.raises(OSError, match="not permitted"):
            await thread.call(fail)
        assert await thread.call(lambda _ipr: 42) == 42
        status = thread.status()
        assert (status.calls, status.failures, status.alive) == (2, 1, True)
        await thread.stop()
        assert not thread.status().alive

    run(main())


def test_hanging_call_is_shown_with_its_age_and_stop_does_not_wait_for_ever() -> None:
    """Status names the call; what is behind it waits."""
    release, entered = threading.Event(), threading.Event()
    now = [100.0]

    def hang(_ipr: object) -> None:
        entered.set()
        release.wait(10)

    async def main() -> None:
        thread = NetlinkThread(clock=lambda: now[0])
        thread.start()
        hung = asyncio.create_task(thread.call(hang))
        behind = asyncio.create_task(thread.call(lambda _ipr: "done"))
        await asyncio.to_thread(entered.wait, 10)
        now[0] += 12
        status = thread.status()
        assert (status.running, status.age, status.queued) == ("hang", 12.0, 1)
        assert not await thread.stop(timeout=0.05)
        release.set()
        await hung
        assert await behind == "done"

    run(main())


def test_call_cancelled_before_its_turn_is_not_made() -> None:
    """A request whose client went away does not change the network."""
    release, entered = threading.Event(), threading.Event()
    made: list[str] = []

    def hang(_ipr: object) -> None:
        entered.set()
        release.wait(10)

    async def main() -> None:
        thread = NetlinkThread()
        thread.start()
        hung = asyncio.create_task(thread.call(hang))
        await asyncio.to_thread(entered.wait, 10)
        waiting = asyncio.create_task(thread.call(lambda _ipr: made.append("cancelled")))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        release.set()
        await hung
        await thread.call(lambda _ipr: made.append("next"))
        await thread.stop()

    run(main())

    assert made == ["next"]


def test_calls_before_start_and_after_stop_are_refused() -> None:
    """A programming error is said, not waited for."""

    async def main() -> None:
        thread = NetlinkThread()
        with pytest.raises(RuntimeError, match="not running"):
            await thread.call(lambda _ipr: None)
        thread.start()
        await thread.stop()
        with pytest.raises(RuntimeError, match="not running"):
            await thread.call(lambda _ipr: None)

    run(main())
