# SPDX-License-Identifier: Apache-2.0
"""
Whether packets pass through this node: asked once, before the agent says that it is ready.

A request from the host to the health endpoint and its answer meet the same programs and maps as a
pod's; an agent that cannot reach its own endpoint must not be given pods.
"""

import asyncio
from collections.abc import Callable
from typing import Final

from ciliumd.health.prober import Checks, check
from ciliumd.model.net import Addr

ATTEMPT_SECONDS: Final = 1.0
PAUSE_SECONDS: Final = 0.1


class SelfTest:
    """Passed once both probes of *address* were answered; :attr:`problem` says what is missing till then."""

    def __init__(self, checks: Checks, address: Callable[[], Addr | None]) -> None:
        self._checks = checks
        self._address = address
        self.problem = "there is no health endpoint yet"

    async def run(self) -> None:
        """Try until it passes."""
        while self.problem:
            address = self._address()
            if address is not None:
                self.problem = await self._attempt(address)
            if self.problem:
                await asyncio.sleep(PAUSE_SECONDS)

    async def _attempt(self, address: Addr) -> str:
        for name, ask in (("ICMP", self._checks.icmp), ("HTTP", self._checks.http)):
            found = await check(ask, address, ATTEMPT_SECONDS)
            if found.error:
                return f"{name} to the health endpoint {address}: {found.error}"
        return ""
