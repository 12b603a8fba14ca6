# SPDX-License-Identifier: Apache-2.0
"""Writes of one state file: in a thread of their own, and not all the time."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import structlog

T = TypeVar("T")

# After a write that took t seconds nothing is written for so many t: much in motion must not keep the disk
# busy.
REST = 10.0
# Seconds until a write that failed is tried again.
RETRY = 5.0

log = structlog.get_logger("state")


class Paced:
    """
    Does what blocks, one thing at a time, and pauses after writes.

    :attr:`error` is why the last write failed; a reason is logged once.  The event loop's thread only.
    """

    def __init__(self, name: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.name = name
        self.error: str | None = None
        self._clock = clock
        self._rest_until = 0.0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="state")

    @property
    def pause(self) -> float:
        """Seconds until the next write may begin."""
        return max(0.0, self._rest_until - self._clock())

    async def call(self, work: Callable[[], T]) -> T:
        """Do *work* in the thread; its result."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def write(self, work: Callable[[], None]) -> bool:
        """Do *work*, which may raise OSError; whether it was done."""
        try:
            took = await self.call(lambda: self._timed(work))
        except OSError as error:
            self._rest_until = self._clock() + RETRY
            reason = error.strerror or str(error)
            if reason != self.error:
                self.error = reason
                log.warning("state.not_written", path=self.name, error=reason)
            return False
        self.error = None
        self._rest_until = self._clock() + REST * took
        return True

    def _timed(self, work: Callable[[], None]) -> float:
        """Do *work*; how long that took in the thread, where nothing else is waited for."""
        began = self._clock()
        work()
        return self._clock() - began

    def close(self) -> None:
        """End the thread once it is idle."""
        self._thread.shutdown(wait=False)
