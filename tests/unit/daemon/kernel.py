# SPDX-License-Identifier: Apache-2.0
"""The plan of a node and its stages over maps in memory."""

import asyncio
from ipaddress import ip_address

from ciliumd.daemon import stages
from ciliumd.desired.ipcache import identity_of
from ciliumd.model.service import Frontend, Service, ServiceKind, ServicePort
from ciliumd.reconcile.fake import FakeMap
from ciliumd.reconcile.loop import Reconciler
from unit.daemon import nodes
from unit.reconcile.rounds import Inline


class Maps(dict):
    """A map in memory for every name somebody asks for; *journal* has the order of writes to all of them."""

    def __init__(self):
        super().__init__()
        self.journal = []

    def __missing__(self, name):
        made = self[name] = FakeMap(name, journal=self.journal)
        return made


class Kernel:
    """A plan, its stages, and maps in memory that record the order of writes."""

    def __init__(self, *, in_sync=True, tables=None, maps=None, **about):
        """*maps* are those of an earlier agent, *about* is told to the node."""
        self.node = nodes.Planned(tables or nodes.filled(in_sync=in_sync), **about)
        self.maps = maps or Maps()
        self.journal = self.maps.journal
        self.reconciler = Reconciler(
            stages.stages(self.node.plan, self.node.tables, self.maps, devices=dict, route_mtu=lambda: 1450),
            executor=Inline(),
            may_delete=lambda: self.node.tables.in_sync,
            unfinished=self.node.plan.unfinished,
            clock=self.node.clock,
        )
        self.node.plan.prefixes.identity_at = stages.prefixes_written(self.reconciler)
        self.node.plan.parts.restore(stages.judged_as_written(self.reconciler), ())

    @property
    def tables(self):
        """The node's tables."""
        return self.node.tables

    def round(self, count=1):
        """Rounds, a second apart; what they wrote, as (map, deleted)."""
        del self.journal[:]

        async def rounds():
            for _ in range(count):
                self.node.clock.now += 1.0
                self.reconciler.trigger()
                await self.reconciler.round()

        asyncio.run(rounds())
        return [(write.target, write.value is None) for write in self.journal]

    def first(self, name, *, deleted=False):
        """Position of the first write to a map."""
        return next(
            i for i, one in enumerate(self.journal) if (one.target, one.value is None) == (name, deleted)
        )

    def last(self, name, *, deleted=False):
        """Position of the last write to a map."""
        return max(
            i for i, one in enumerate(self.journal) if (one.target, one.value is None) == (name, deleted)
        )

    def number(self, prefix):
        """The identity of a prefix."""
        return self.tables.prefixes.get(prefix)

    def written(self, prefix):
        """The identity that the ipcache gives to packets of a prefix."""
        maps = self.maps
        return identity_of(prefix, maps[stages.IPCACHE].rows.get, maps[stages.IPCACHE_LPM].rows.get)

    def word(self):
        """The word of the first endpoint."""
        return self.maps[stages.STATES].rows.get(bytes(4))


def with_pod():
    """A pod that may reach the whole world, and all of it written."""
    kernel = Kernel()
    nodes.add_pod(kernel.tables, 1, {"app": "web"})
    nodes.add_policy(kernel.tables, nodes.allow("world", nodes.cidr("0.0.0.0/0")))
    kernel.round(2)
    return kernel


def service(name="web", address="10.96.0.1"):
    """A service whose pods are those called web."""
    port = ServicePort("", "TCP", 80, 8080)
    front = Frontend(ip_address(address), 80, "TCP", ServiceKind.CLUSTER_IP)
    return Service("shop", name, "ClusterIP", (front,), (port,), selector=(("app", "web"),))
