# SPDX-License-Identifier: Apache-2.0
"""
The node's own addresses and native devices, followed: what changed is read once per burst of events.

A device that stops being native keeps its programs as long as it exists: connections through it still
need them.  Pods' devices are not looked at here.
"""

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from ciliumd.daemon.attachments import FAILURES, Attachments, native_device
from ciliumd.model.net import Addr
from ciliumd.net import devices, links
from ciliumd.net.devices import NativeDevice
from ciliumd.net.thread import NetlinkThread

BURST_SECONDS = 0.1
RETRY_SECONDS = 1.0

Told = Callable[[tuple[Addr, ...], tuple[NativeDevice, ...]], None]

log = structlog.get_logger("network")


class NodeNetwork:
    """Reads the network again after :meth:`notice` and tells what it is now."""

    def __init__(
        self,
        names: tuple[str, ...],
        *,
        native: tuple[NativeDevice, ...],
        netlink: NetlinkThread,
        attachments: Attachments,
        told: Told,
        follow_mtu: Callable[[], Awaitable[None]],
    ) -> None:
        """
        *names* are the native devices asked for, *native* those that have programs already.

        *follow_mtu* is asked each time before *told*.
        """
        self._names = names
        self._netlink = netlink
        self._attachments = attachments
        self._told = told
        self._follow_mtu = follow_mtu
        self._attached = {device.ifindex for device in native}
        self._changed = asyncio.Event()
        self.reads = 0

    def notice(self) -> None:
        """Something may have changed."""
        self._changed.set()

    async def run(self) -> None:
        """Follow until cancelled."""
        while True:
            await self._changed.wait()
            # Events come in bursts: a pod that is made is worth five.
            await asyncio.sleep(BURST_SECONDS)
            self._changed.clear()
            try:
                await self.read()
            except FAILURES as error:
                log.warning("network.unreadable", error=str(error))
                self._changed.set()
                await asyncio.sleep(RETRY_SECONDS)

    async def read(self) -> None:
        """Look once."""
        self.reads += 1
        addresses = await self._netlink.call(devices.node_addresses)
        native = await self._netlink.call(devices.native_devices, self._names)
        now = {device.ifindex for device in native}
        for ifindex in self._attached - now:
            if await self._netlink.call(links.link_by_index, ifindex) is None:
                await self._attachments.detach(ifindex)
                self._attached.discard(ifindex)
        await self._follow_mtu()
        self._told(tuple(sorted(addresses, key=str)), native)
        for device in native:
            if device.ifindex not in self._attached:
                await self._attachments.attach(native_device(device.ifindex, device.name))
                self._attached.add(device.ifindex)
                log.info("network.device_attached", device=device.name)
