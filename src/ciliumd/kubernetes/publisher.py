# SPDX-License-Identifier: Apache-2.0
"""
What all who write to the API server have in common: they are told *that* something changed, never what.

Each run looks at how things are and makes the API server agree, so nothing is lost by a failure, a restart
or a change of mind.  Many changes at once are one run.
"""

import asyncio
import contextlib
from abc import ABC, abstractmethod
from typing import Final

import structlog

from ciliumd.kubernetes.errors import ApiError
from ciliumd.kubernetes.pace import Backoff

# Seconds between runs when nobody calls: somebody else may have changed what we wrote.
PERIOD: Final = 60.0

log = structlog.get_logger("k8s-publish")


class Publisher(ABC):
    """Runs :meth:`work` when woken and when due; *pause* seconds gather what comes together."""

    def __init__(self, name: str, *, pause: float) -> None:
        self.error: str | None = None
        self._name = name
        self._pause = pause
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """Something may have changed.  The loop's thread only."""
        self._wake.set()

    @abstractmethod
    async def work(self) -> float:
        """Make the API server agree; seconds until it is due again at the latest.  Raises ApiError."""

    async def run(self) -> None:
        """Work until cancelled."""
        backoff = iter(Backoff(last=30.0))
        while True:
            self._wake.clear()
            try:
                due = await self.work()
            except ApiError as error:
                self.failed(str(error))
                await asyncio.sleep(next(backoff))
                continue
            backoff = iter(Backoff(last=30.0))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(due):
                    await self._wake.wait()
            await asyncio.sleep(self._pause)

    def failed(self, error: str) -> None:
        """Say what is wrong, once."""
        if error != self.error:
            self.error = error
            log.warning("publish.failed", what=self._name, error=error)

    def succeeded(self) -> None:
        """All is as it should be."""
        self.error = None
