# SPDX-License-Identifier: Apache-2.0
"""
Work that is due: keys, not events, so that ten changes of an object are looked at once.

Whoever does the work reads the present state and may be called at any time, again and in any order.
What fails is tried again with growing delays, forever: the API server comes back.
"""

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

import structlog

from ciliumd.kubernetes.errors import ApiError, Conflict

FIRST_DELAY = 0.25
MAX_DELAY = 30.0
_NORMAL_FAILURES = 3

K = TypeVar("K", bound=Hashable)

log = structlog.get_logger("operator")


def delay(failures: int) -> float:
    """Seconds to wait after so many failures in a row."""
    return min(MAX_DELAY, FIRST_DELAY * 2.0 ** min(failures - 1, 16))


def report(name: str, error: Exception, *, failures: int, key: str = "") -> None:
    """Log that work failed: as a fault when it is one, or when it goes on."""
    if isinstance(error, Conflict) and failures <= _NORMAL_FAILURES:
        return  # somebody else wrote first, and now it is done anew
    passing = isinstance(error, ApiError) and failures <= _NORMAL_FAILURES
    text = str(error) if isinstance(error, ApiError) else f"{type(error).__name__}: {error}"
    write = log.info if passing else log.warning
    write("work.failed", work=name, key=key, failures=failures, error=text)


async def repeat(name: str, interval: float, work: Callable[[], Awaitable[None]]) -> None:
    """Do *work* now and every *interval* seconds, sooner after a failure, until cancelled."""
    failures = 0
    while True:
        try:
            await work()
        except Exception as error:  # noqa: BLE001  task's edge: one piece of work must not end the others
            failures += 1
            report(name, error, failures=failures)
            await asyncio.sleep(min(interval, delay(failures)))
        else:
            failures = 0
            await asyncio.sleep(interval)


class WorkQueue(Generic[K]):
    """Calls *work* for every key that was added, one at a time for each key, *workers* at a time in all."""

    def __init__(self, name: str, work: Callable[[K], Awaitable[None]], *, workers: int = 1) -> None:
        self._name = name
        self._work = work
        self._workers = workers
        self._due: dict[K, None] = {}
        self._active: set[K] = set()
        self._failures: dict[K, int] = {}
        self._wake = asyncio.Event()

    def add(self, key: K) -> None:
        """Have *key* looked at; while it is being looked at, once more afterwards."""
        self._due[key] = None
        self._wake.set()

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self._workers):
                group.create_task(self._worker(group))

    async def _worker(self, group: asyncio.TaskGroup) -> None:
        while True:
            key = await self._take()
            try:
                await self._one(key, group)
            finally:
                self._active.discard(key)
                self._wake.set()

    async def _take(self) -> K:
        while (key := self._next()) is None:
            self._wake.clear()
            await self._wake.wait()
        del self._due[key]
        self._active.add(key)
        return key

    def _next(self) -> K | None:
        return next((key for key in self._due if key not in self._active), None)

    async def _one(self, key: K, group: asyncio.TaskGroup) -> None:
        try:
            await self._work(key)
        except Exception as error:  # noqa: BLE001  task's edge: one key's failure must not end the operator
            failures = self._failures[key] = self._failures.get(key, 0) + 1
            report(self._name, error, failures=failures, key=str(key))
            group.create_task(self._later(key, delay(failures)))
        else:
            self._failures.pop(key, None)

    async def _later(self, key: K, seconds: float) -> None:
        await asyncio.sleep(seconds)
        self.add(key)
