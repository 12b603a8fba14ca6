# SPDX-License-Identifier: Apache-2.0
"""
Deletes the devices of pods that are gone, while whoever asked for that has his answer.

The kernel takes several grace periods of RCU to delete a device.  By then a pod's device is down, has no
row in any map, and is marked as retired: an agent that dies here leaves it to the next one, or to
``cilium cleanup``.

It is deleted when none has been taken for a moment: the deletion of one would hold up the next pod's.  By
then most are gone, with the namespaces their other ends were in, which the kernel takes down together.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable

import structlog

from ciliumd.bpf.errors import BpfError
from ciliumd.net import links
from ciliumd.net.errors import NetError
from ciliumd.net.thread import NetlinkThread

QUIET_SECONDS = 0.1
"""How long no device may have been taken before one is deleted."""

LATEST_SECONDS = 1.0
"""How long a device waits for that at most."""

log = structlog.get_logger("endpoint")


class Reaper:
    """Takes retired devices; deletes them in the order they came."""

    def __init__(self, netlink: NetlinkThread, *, detach: Callable[[int], Awaitable[None]]) -> None:
        """*netlink* is a thread nobody waits for; *detach* lets go of a device's programs."""
        self._netlink = netlink
        self._detach = detach
        self._taken: dict[int, tuple[str, asyncio.Task[None]]] = {}
        self._last = 0.0
        self._hurried = 0
        self._hurry_up = asyncio.Event()

    def take(self, ifindex: int, *, netns: str = "") -> None:
        """Delete a retired device from now on; *netns* is where its pod was."""
        if ifindex in self._taken:
            return
        self._last = time.monotonic()
        task = asyncio.get_running_loop().create_task(self._reap(ifindex))
        self._taken[ifindex] = netns, task
        task.add_done_callback(lambda _: self._taken.pop(ifindex, None))

    async def leave(self, netns: str) -> None:
        """Wait until nothing that was taken is in a namespace any more: another pod may begin there."""
        tasks = [task for where, task in self._taken.values() if where == netns]
        await self._hurry(tasks, None)

    async def sweep(self) -> None:
        """Take what an agent before this one, or a failure, left retired.  Raises NetError."""
        for link in await self._netlink.call(links.retired_links):
            self.take(link.ifindex)

    async def stop(self, seconds: float) -> None:
        """Finish what was taken, within that time; the rest is the next agent's."""
        await self._hurry([task for _, task in self._taken.values()], seconds)

    @property
    def pending(self) -> frozenset[int]:
        """Devices that were taken and may still be there."""
        return frozenset(self._taken)

    async def _hurry(self, tasks: list[asyncio.Task[None]], seconds: float | None) -> None:
        """Wait for them, and have them wait for nothing."""
        if tasks:
            self._hurried += 1
            self._hurry_up.set()
            try:
                await asyncio.wait(tasks, timeout=seconds)
            finally:
                self._hurried -= 1
                if not self._hurried:
                    self._hurry_up.clear()

    async def _quiet(self) -> None:
        latest = time.monotonic() + LATEST_SECONDS
        while (left := min(self._last + QUIET_SECONDS, latest) - time.monotonic()) > 0:
            # Time that passed is what is waited for; the other way out is to be hurried.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._hurry_up.wait()
                return

    async def _reap(self, ifindex: int) -> None:
        await self._quiet()
        try:
            # As long as it is there its packets meet the programs.
            await self._netlink.call(links.delete_retired, ifindex)
            await self._detach(ifindex)
        except (NetError, BpfError) as error:
            log.warning("endpoint.device_left", ifindex=ifindex, reason=str(error))
