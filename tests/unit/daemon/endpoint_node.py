# SPDX-License-Identifier: Apache-2.0
"""Endpoints over a machine in memory, for their tests."""

import asyncio
from ipaddress import IPv4Network, IPv6Network

import pytest

from ciliumd.bpf.errors import BpfError
from ciliumd.daemon.api import EndpointRequest, RequestRefused
from ciliumd.daemon.endpoints import Endpoints, PodNetwork
from ciliumd.daemon.reaper import Reaper
from ciliumd.ipam.hostscope import HostScope
from ciliumd.net.errors import NetError
from ciliumd.tables import Tables
from unit.daemon import nodes
from unit.daemon.machine import FakeAttachments, FakeNetlink

SECONDS = 5.0
BROKEN = NetError("ask the kernel", "Input/output error", errno=5)
REFUSED = BpfError("attach", "veth", 22)


class Node:
    """Endpoints over a machine in memory."""

    def __init__(self, *, slots=4096, cidr="10.0.0.0/24", cidr6=""):
        self.journal = []
        self.tables = Tables()
        self.ipam = HostScope(IPv4Network(cidr)) if cidr else None
        self.ipam6 = HostScope(IPv6Network(cidr6)) if cidr6 else None
        self.netlink = FakeNetlink(self.journal)
        self.attachments = FakeAttachments(self.journal)
        self.clock = nodes.Clock()
        self.problem = ""
        self.realizing = None
        self.generations = 0
        self.rows = set()
        self.reaper = Reaper(self.netlink, detach=self.attachments.detach)
        self.endpoints = Endpoints(
            self.tables,
            network=PodNetwork(
                self.ipam.router if self.ipam else None,
                1500,
                slots,
                router6=self.ipam6.router if self.ipam6 else None,
            ),
            ipam=self.ipam,
            ipam6=self.ipam6,
            netlink=self.netlink,
            attachments=self.attachments,
            reaper=self.reaper,
            next_slot_gen=self.next_slot_gen,
            realized=self.realized,
            clock=self.clock,
        )

    def next_slot_gen(self):
        """The next one."""
        self.generations += 1
        return self.generations

    async def realized(self, number):
        """The rows follow the table, unless a problem is programmed."""
        if self.realizing is not None:
            await self.realizing.wait()
        await asyncio.sleep(0)
        wanted = number in self.tables.endpoints
        if wanted and self.problem:
            return self.problem
        self.journal.append(("rows" if wanted else "rows gone", number))
        (self.rows.add if wanted else self.rows.discard)(number)
        return ""

    async def add(self, name="web", **changes):
        """Ask for the pod shop/*name* in a namespace of that name."""
        return await self.endpoints.add(self.request(name, **changes))

    def hold(self, step):
        """Additions wait at this *step*, "rows" or a call of netlink, until the event is set."""
        gate = asyncio.Event()
        if step == "rows":
            self.realizing = gate
        else:
            self.netlink.hold[step] = gate
        return gate

    async def begin(self):
        """An addition under way, as far as it comes."""
        adding = asyncio.ensure_future(self.add())
        await asyncio.sleep(0.01)
        return adding

    def request(self, name="web", **changes):
        """The request for it."""
        path = changes.pop("netns", f"/run/netns/{name}")
        if path not in self.netlink.namespaces and not changes.pop("dead", False):
            self.netlink.namespace(path)
        return EndpointRequest.model_validate({"netns": path, "pod": f"shop/{name}", **changes})

    async def delete(self, number):
        """Take it away, and see its device go."""
        await self.endpoints.delete(number)
        await self.reaper.stop(SECONDS)

    def left(self):
        """Everything that exists: endpoints, devices, programs, addresses, rows."""
        return (
            set(self.tables.endpoints),
            set(self.netlink.links),
            set(self.attachments.devices),
            set(self.ipam.owners()) - {self.ipam.router},
            self.rows,
        )

    @property
    def names(self):
        """What was done, by name."""
        return [entry[0] for entry in self.journal]


NOTHING = (set(), set(), set(), set(), set())


def run(scenario, **settings):
    """Run ``scenario(node)`` to its end."""

    async def timed():
        node = Node(**settings)
        async with asyncio.timeout(SECONDS):
            return await scenario(node)

    return asyncio.run(timed())


def refused(status, text, **settings):
    """The refusal of a scenario."""

    def judge(scenario):
        with pytest.raises(RequestRefused, match=text) as caught:
            run(scenario, **settings)
        assert caught.value.status == status

    return judge
