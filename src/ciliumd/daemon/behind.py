# SPDX-License-Identifier: Apache-2.0
"""
Devices whose programs hang by filters until links take their place, and when that is.

Bookkeeping only.  A link waits for the kernel with the lock of all devices held, so links follow when no
pod has come or gone for a moment, and after a while in any case.
"""

import time
from collections.abc import Callable

QUIET_SECONDS = 1.0
"""How long no pod may have come or gone before links follow."""

LATEST_SECONDS = 10.0
"""How long links wait for that at most."""


class Behind:
    """Which devices wait for their links."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since: dict[int, float] = {}
        self._stirred = clock()

    def add(self, ifindex: int) -> None:
        """Its programs hang by filters from now on."""
        self._since[ifindex] = self._clock()
        self.stir()

    def drop(self, ifindex: int) -> bool:
        """It has links, or is gone; whether it waited."""
        return self._since.pop(ifindex, None) is not None

    def stir(self) -> None:
        """A pod comes or goes: whoever follows wants the lock of all devices."""
        self._stirred = self._clock()

    def due(self) -> int | None:
        """The device whose links are to follow now, the one that waited longest; None if none is."""
        if not self._since:
            return None
        ifindex, since = min(self._since.items(), key=lambda one: one[1])
        now = self._clock()
        quiet = now - self._stirred >= QUIET_SECONDS
        return ifindex if quiet or now - since >= LATEST_SECONDS else None

    def __contains__(self, ifindex: int) -> bool:
        return ifindex in self._since
