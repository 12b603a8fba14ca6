# SPDX-License-Identifier: Apache-2.0
"""
The one thread that speaks netlink.

pyroute2 runs an event loop of its own inside each call and cannot do so under uvloop, nor may its
socket be shared between threads.  So one thread owns one ``IPRoute``; the main loop awaits calls, which
run one after another in the order they were made.  A call that hangs holds those behind it: its age is
in :meth:`NetlinkThread.status`.
"""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Thread
from typing import Any, Concatenate, ParamSpec, TypeVar

from pyroute2 import IPRoute

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class NetlinkStatus:
    """*running* names the current call and *age* the seconds it has taken so far."""

    alive: bool
    queued: int
    running: str | None
    age: float
    calls: int
    failures: int


@dataclass(frozen=True, slots=True)
class _Call:
    name: str
    run: Callable[[IPRoute], Any]
    done: Future[Any]


class NetlinkThread:
    """
    Runs functions that take an ``IPRoute``.

    The namespace is the one of the thread that calls :meth:`start`.  The thread is a daemon: a call
    hanging in the kernel must not keep the process from ending.
    """

    def __init__(self, name: str = "netlink", *, clock: Callable[[], float] = time.monotonic) -> None:
        self._name = name
        self._clock = clock
        self._queue: SimpleQueue[_Call | None] = SimpleQueue()
        self._thread: Thread | None = None
        self._stopping = False
        self._running: tuple[str, float] | None = None
        self._calls = 0
        self._failures = 0

    def start(self) -> None:
        """Start the thread."""
        if self._thread is not None:
            raise RuntimeError("the netlink thread was started before")
        self._thread = Thread(target=self._serve, name=self._name, daemon=True)
        self._thread.start()

    async def stop(self, timeout: float = 5.0) -> bool:  # noqa: ASYNC109  join() takes it
        """Let the queued calls finish and end the thread; False if it still hangs after *timeout*."""
        if self._thread is None:
            return True
        self._stopping = True
        self._queue.put(None)
        await asyncio.to_thread(self._thread.join, timeout)
        return not self._thread.is_alive()

    async def call(
        self, function: Callable[Concatenate[IPRoute, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run ``function(ipr, *args, **kwargs)`` in the thread and return what it returns."""
        return await asyncio.wrap_future(self.submit(function, *args, **kwargs))

    def submit(
        self, function: Callable[Concatenate[IPRoute, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> Future[T]:
        """The same for callers without an event loop."""
        if self._thread is None or self._stopping or not self._thread.is_alive():
            raise RuntimeError("the netlink thread is not running")
        done: Future[T] = Future()
        name = getattr(function, "__name__", repr(function))
        self._queue.put(_Call(name, lambda ipr: function(ipr, *args, **kwargs), done))
        return done

    def status(self) -> NetlinkStatus:
        """What the thread is doing and for how long."""
        running = self._running
        return NetlinkStatus(
            alive=self._thread is not None and self._thread.is_alive(),
            queued=self._queue.qsize(),
            running=running[0] if running else None,
            age=self._clock() - running[1] if running else 0.0,
            calls=self._calls,
            failures=self._failures,
        )

    def _serve(self) -> None:
        with IPRoute() as ipr:
            while (call := self._queue.get()) is not None:
                # False: the caller was cancelled before its turn came.
                if call.done.set_running_or_notify_cancel():
                    self._run(call, ipr)

    def _run(self, call: _Call, ipr: IPRoute) -> None:
        self._running = (call.name, self._clock())
        self._calls += 1
        try:
            result = call.run(ipr)
        except BaseException as error:  # noqa: BLE001  the thread's edge: handed to whoever awaits it
            self._failures += 1
            call.done.set_exception(error)
        else:
            call.done.set_result(result)
        finally:
            self._running = None
