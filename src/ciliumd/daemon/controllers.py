# SPDX-License-Identifier: Apache-2.0
"""
Repeated work of the agent, and how each piece of it is doing.

A controller that fails says so in status and metrics and is tried again; it never ends the agent.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import structlog

from ciliumd.metrics.tally import Tallies

MAX_DELAY = 30.0

log = structlog.get_logger("controller")


@dataclass(slots=True)
class Controller:
    """One piece of repeated work; times are wall-clock seconds, 0: never."""

    name: str
    failures: int = 0
    last_success: float = 0.0
    last_failure: float = 0.0
    last_error: str = ""

    def model(self) -> dict[str, Any]:
        """``models.ControllerStatus``."""
        return {
            "name": self.name,
            "status": {
                "consecutive-failure-count": self.failures,
                "last-failure-msg": self.last_error if self.failures else "",
                "last-failure-timestamp": rfc3339(self.last_failure),
                "last-success-timestamp": rfc3339(self.last_success),
            },
        }


def rfc3339(seconds: float) -> str:
    """A wall-clock time as text; the year 1 for never, as Cilium's API has it."""
    if not seconds:
        return "0001-01-01T00:00:00Z"
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def delay(interval: float, *, failures: int) -> float:
    """Seconds until the next run: sooner after a failure, less soon after many in a row."""
    if not failures:
        return interval
    return min(interval, MAX_DELAY, 2.0 ** min(failures, 16))


class Controllers:
    """All controllers of the agent."""

    def __init__(self, tallies: Tallies) -> None:
        self._tallies = tallies
        self._controllers: dict[str, Controller] = {}

    def all(self) -> list[Controller]:
        """Every controller, by name."""
        return [self._controllers[name] for name in sorted(self._controllers)]

    async def repeat(self, name: str, interval: float, work: Callable[[], Awaitable[None]]) -> None:
        """Run *work* every *interval* seconds, sooner after a failure, until cancelled."""
        controller = self._controllers[name] = Controller(name)
        while True:
            try:
                await work()
            except Exception as error:  # noqa: BLE001  task's edge: one controller's failure must not end the agent
                controller.failures += 1
                controller.last_failure = time.time()
                controller.last_error = f"{type(error).__name__}: {error}"
                self._tallies.controller_runs.add("failure")
                log.warning("controller.failed", controller=name, error=controller.last_error)
            else:
                controller.failures = 0
                controller.last_success = time.time()
                self._tallies.controller_runs.add("success")
            await asyncio.sleep(delay(interval, failures=controller.failures))
