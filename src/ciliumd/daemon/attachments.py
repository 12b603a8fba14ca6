# SPDX-License-Identifier: Apache-2.0
"""
Which programs hang where: the wanted attachments, whether they are there, and their repair.

tcx links where the kernel has them, else clsact filters; socket programs on the control group.
A new pod's device has filters first, for they hang at once, and links behind it.  Links and filters hold
without this process; what is counted here is read from the kernel.
"""

import asyncio
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from ciliumd.bpf.errors import BpfError, NotFound
from ciliumd.bpf.generation import Generation, detach_cgroup, detach_device, device_pin, drop_detached
from ciliumd.bpf.link import Link, TcxHook
from ciliumd.daemon.behind import Behind
from ciliumd.net import links, tc
from ciliumd.net.errors import NetError
from ciliumd.net.thread import NetlinkThread

T = TypeVar("T")

FAILURES = (BpfError, NetError)
"""What attaching may raise."""

TCX, LEGACY_TC = "TCX", "Legacy TC"


@dataclass(frozen=True, slots=True)
class Device:
    """A device and the entry programs it must run; *owner* is for messages."""

    ifindex: int
    owner: str
    ingress: str | None = None
    egress: str | None = None

    @property
    def hooks(self) -> tuple[tuple[TcxHook, str], ...]:
        """The hooks in use and their programs."""
        pairs = ((TcxHook.INGRESS, self.ingress), (TcxHook.EGRESS, self.egress))
        return tuple((hook, program) for hook, program in pairs if program is not None)


def pod_device(ifindex: int, owner: str) -> Device:
    """The host side of a pod's veth."""
    return Device(ifindex, owner, ingress="entry_from_container", egress="entry_to_container")


def host_device(ifindex: int) -> Device:
    """cilium_net, where the node's packets to its pods arrive."""
    return Device(ifindex, "cilium_net", ingress="entry_from_host")


def overlay_device(ifindex: int) -> Device:
    """cilium_vxlan, where packets of other nodes' pods arrive."""
    return Device(ifindex, "cilium_vxlan", ingress="entry_from_overlay", egress="entry_to_overlay")


def native_device(ifindex: int, name: str) -> Device:
    """A device to the world."""
    return Device(ifindex, name, ingress="entry_from_netdev", egress="entry_to_netdev")


@dataclass(frozen=True, slots=True)
class Missing:
    """A program that should hang somewhere and does not; *ifindex* 0 is the control group."""

    ifindex: int
    text: str


class Attachments:
    """Everything this node attaches; blocking calls go to the writer and netlink threads."""

    def __init__(
        self,
        generation: Generation,
        *,
        netlink: NetlinkThread,
        executor: Executor,
        tcx: bool,
        cgroup: Path | None,
        waiter: Executor | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Maps are written in the *executor*; the *waiter*, of one thread, takes what waits for the kernel.

        A tcx link is attached, and taken away, within a grace period of RCU, under the lock of all devices:
        in the executor's thread it would hold up every map, and two threads gain nothing.
        """
        self.mode = TCX if tcx else LEGACY_TC
        self.cgroup = cgroup
        self._generation = generation
        self._netlink = netlink
        self._executor = executor
        self._waiter = waiter or executor
        self._devices: dict[int, Device] = {}
        self._behind = Behind(clock=clock)

    @property
    def devices(self) -> dict[int, Device]:
        """Wanted attachments by ifindex."""
        return dict(self._devices)

    async def attach(self, device: Device) -> None:
        """Hang the programs on a device, or replace those that hang there."""
        self._devices[device.ifindex] = device
        if self.mode == TCX:
            await self._link(device)
            if self._behind.drop(device.ifindex):
                await self._unfilter(device.ifindex)
        else:
            await self._filter(device)

    async def attach_new(self, device: Device) -> None:
        """
        The same for a new pod's device: filters at once, links when :meth:`catch_up` is called.

        Each link would take a grace period of RCU, and the pod would wait for both.
        """
        if self.mode == TCX:
            try:
                await self._filter(device)
            except NetError:
                # A kernel without them may have what links need.
                await self.attach(device)
                return
            self._behind.add(device.ifindex)
            self._devices[device.ifindex] = device
        else:
            await self.attach(device)

    async def catch_up(self) -> None:
        """
        Give devices with filters their links, one after the other, as long as no pod comes or goes.

        Links run before filters and leave nothing to them, so no packet meets two sets of programs.
        """
        while (ifindex := self._behind.due()) is not None:
            try:
                await self.attach(self._devices[ifindex])
            except FAILURES:
                # The filters hold, and it is tried again behind all others; unless it has gone meanwhile.
                if self._behind.drop(ifindex):
                    self._behind.add(ifindex)
                    raise

    async def _link(self, device: Device) -> None:
        await asyncio.get_running_loop().run_in_executor(
            self._waiter,
            lambda: self._generation.attach_device(
                device.ifindex, ingress=device.ingress, egress=device.egress
            ),
        )

    async def _filter(self, device: Device) -> None:
        for hook, program in device.hooks:
            await self._netlink.call(
                tc.attach_filter,
                device.ifindex,
                direction=tc.Direction[hook.name],
                hook=program.removeprefix("entry_"),
                program=self._generation.entries[program].fd,
            )

    async def _unfilter(self, ifindex: int) -> None:
        for direction in tc.Direction:
            await self._netlink.call(tc.detach_filter, ifindex, direction=direction)

    async def detach(self, ifindex: int) -> None:
        """Take the programs off a device that is going away or has gone."""
        self._devices.pop(ifindex, None)
        self._behind.drop(ifindex)
        self._behind.stir()
        if self.mode == TCX:
            await asyncio.get_running_loop().run_in_executor(
                self._waiter, lambda: self._generation.detach_device(ifindex)
            )

    async def attach_cgroup(self) -> None:
        """Hang the socket programs on the control group, if there is one."""
        if self.cgroup is not None:
            cgroup = self.cgroup
            await self.in_writer(lambda: self._generation.attach_cgroup(cgroup))

    async def detach_leftovers(self) -> None:
        """
        Take away what an agent with other options attached: no packet passes two sets of programs.

        And the links of devices that went while no agent was there.
        """
        pins = self._generation.pins
        await self.in_writer(partial(drop_detached, pins))
        for ifindex in self._devices:
            if self.mode == TCX:
                await self._unfilter(ifindex)
            else:
                await self.in_writer(partial(detach_device, pins, ifindex))
        if self.cgroup is None:
            await self.in_writer(partial(detach_cgroup, pins))

    async def missing(self) -> list[Missing]:
        """What should hang and does not."""
        found = await self.in_writer(self._missing_sockets)
        # As of now: devices come and go while the kernel is asked, and this goes on in other threads.
        missing = await self._missing_of(tuple(self._devices.values()))
        # A device that is not wanted any more misses nothing.
        return [*(one for one in missing if one.ifindex in self._devices), *found]

    async def missing_on(self, ifindex: int) -> list[Missing]:
        """The same of one device, whose programs are wanted."""
        device = self._devices.get(ifindex)
        if device is None:
            return [Missing(ifindex, f"every program on device {ifindex}")]
        return await self._missing_of((device,))

    async def _missing_of(self, devices: tuple[Device, ...]) -> list[Missing]:
        by_filter = [one for one in devices if self.mode != TCX or one.ifindex in self._behind]
        by_link = [one for one in devices if one not in by_filter]
        filters = [await self._netlink.call(tc.list_filters, device.ifindex) for device in by_filter]
        attached = {(one.ifindex, one.direction.name) for some in filters for one in some}
        unfiltered = _unattached(by_filter, lambda ifindex, hook: (ifindex, hook.name) in attached)
        if not by_link:
            return unfiltered
        return [*await self.in_writer(lambda: _unattached(by_link, self._is_linked)), *unfiltered]

    async def repair(self) -> list[Missing]:
        """
        Attach again what is missing; returns what that was.

        One device that refuses does not keep the others waiting; its error comes last.  One that has gone
        is let go: whoever removed it may have failed midway.
        """
        missing = await self.missing()
        failed: list[BpfError | NetError] = []
        for ifindex in dict.fromkeys(one.ifindex for one in missing):
            device = self._devices.get(ifindex)
            try:
                if device is not None:
                    await self.attach(device)
                elif not ifindex:
                    await self.attach_cgroup()
            except FAILURES as error:
                if not ifindex or not await self._let_go(ifindex):
                    failed.append(error)
        if failed:
            raise failed[0]
        return [one for one in missing if not one.ifindex or one.ifindex in self._devices]

    async def _let_go(self, ifindex: int) -> bool:
        """Want nothing any more on a device that has gone without a word; False when it is there."""
        if await self._netlink.call(links.link_by_index, ifindex) is not None:
            return False
        await self.detach(ifindex)
        return True

    async def socket_lb(self) -> bool:
        """Whether every socket program hangs on its control group."""
        return self.cgroup is not None and not await self.in_writer(self._missing_sockets)

    @property
    def check_seconds(self) -> float:
        """How often to look whether all hangs: links say so cheaply, filters are listed by device."""
        return 2.0 if self.mode == TCX else 10.0

    def _is_linked(self, ifindex: int, hook: TcxHook) -> bool:
        pin = device_pin(self._generation.pins, ifindex, hook)
        return _holds(pin, lambda link: link.info.ifindex == ifindex)

    def _missing_sockets(self) -> list[Missing]:
        if self.cgroup is None:
            return []
        group = self.cgroup.stat().st_ino if self.cgroup.is_dir() else 0
        return [
            Missing(0, f"{name} on {self.cgroup}")
            for name, program in self._generation.programs.items()
            if program.section.startswith("cgroup/")
            and not _holds(
                self._generation.pins.link("cgroup", name), lambda link: link.info.cgroup_id == group != 0
            )
        ]

    async def in_writer(self, call: Callable[[], T]) -> T:
        """Run a blocking call where all map writes are made."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, call)


def _unattached(devices: Iterable[Device], attached: Callable[[int, TcxHook], bool]) -> list[Missing]:
    return [
        Missing(device.ifindex, f"{program} on {device.owner} ({hook.name.lower()})")
        for device in devices
        for hook, program in device.hooks
        if not attached(device.ifindex, hook)
    ]


def _holds(pin: Path, attached: Callable[[Link], bool]) -> bool:
    """Whether the link pinned there exists and hangs where it should."""
    try:
        with Link.from_pin(pin) as link:
            return attached(link)
    except NotFound:
        return False
