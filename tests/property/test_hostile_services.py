# SPDX-License-Identifier: Apache-2.0
"""
Services that ask for addresses of others (A6): whatever they ask for and whenever they come, they take
nothing.

Two hundred of them come and go among nodes, pods, an API server, a resolver and honest services that come
and go themselves.  At every step every honest frontend has its backends, and no address of a victim has a
frontend that is not honest; when the last of them is gone nothing of them is left.
"""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from ipaddress import ip_address, ip_network

import pytest

from ciliumd import abi
from ciliumd.daemon.node_facts import NodeFacts
from ciliumd.daemon.plan import NodePlan
from ciliumd.desired.lbrows import backends_in_rows
from ciliumd.model.net import Addr, addr_from16
from ciliumd.model.objects import INTERNAL_IP, EndpointSliceRow, NodeRow
from ciliumd.model.service import (
    EVERY_KIND,
    Backend,
    BackendKey,
    Frontend,
    FrontendKey,
    Service,
    ServiceKind,
    ServicePort,
)
from ciliumd.tables import Problem, Tables
from unit.daemon import nodes

pytestmark = pytest.mark.property

HOSTILE, ROUNDS, LONG = 200, 10, 200
OWN, FAR, POD_HERE, POD_THERE = "192.0.2.1", "192.0.2.2", "10.0.0.77", "10.0.1.77"
API_SERVER, ITS_URL, RESOLVER = "192.0.2.90", "192.0.2.91", "192.0.2.53"
SPECIAL = ("127.0.0.1", "127.1.2.3", "224.0.0.251", "169.254.169.254", "0.0.0.0", "255.255.255.255")
CLUSTER_IP, EXTERNAL_IP, LOAD_BALANCER = (
    *(ServiceKind.CLUSTER_IP, ServiceKind.EXTERNAL_IP),
    ServiceKind.LOAD_BALANCER,
)
HONEST = {
    "dns": (("10.96.0.10", 53, CLUSTER_IP),),
    "kubernetes": (("10.96.0.1", 443, CLUSTER_IP),),
    "shop": (("10.96.0.20", 80, CLUSTER_IP), ("198.51.100.20", 80, LOAD_BALANCER)),
    "mail": (("10.96.0.30", 25, CLUSTER_IP), ("198.51.100.30", 25, EXTERNAL_IP)),
}
NODES = (*(OWN, FAR, POD_HERE, POD_THERE), *(API_SERVER, ITS_URL, RESOLVER))
# At these a service takes an exact port; the address itself may be shared.
SHARED = {"198.51.100.20": 80, "198.51.100.30": 25}
VICTIMS = (*NODES, *SPECIAL, "10.96.0.10", "10.96.0.1", "10.96.0.20", "10.96.0.30", *SHARED)


def honest(name: str) -> Service:
    """One of the services whose addresses are asked for; they are neither young nor old."""
    made = HONEST[name]
    return Service(
        "default",
        name,
        "LoadBalancer",
        tuple(Frontend(ip_address(addr), port, "TCP", kind) for addr, port, kind in made),
        (ServicePort("", "TCP", made[0][1], 8080),),
        created="2024",
    )


def slice_of(name: str) -> EndpointSliceRow:
    """What is behind it; behind the API server's service its address."""
    address = API_SERVER if name == "kubernetes" else f"10.0.1.{len(name) + 1}"
    return EndpointSliceRow(
        "default", f"{name}-1", name, (("", Backend(ip_address(address), 8080, "TCP", "far")),)
    )


@dataclass
class Field:
    """A node's plan, what was done to it, and what must be true of it."""

    chance: random.Random
    tables: Tables = field(default_factory=nodes.filled)
    plan: NodePlan = field(init=False)
    standing: set[str] = field(default_factory=set)
    asked: dict[tuple[str, str], Addr] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.plan = NodePlan(
            self.tables,
            NodeFacts(
                "node",
                "default",
                (ip_address(OWN),),
                pod_cidrs=(ip_network("10.0.0.0/24"),),
                serves6=EVERY_KIND,
                protected=((ip_address(ITS_URL), "the API server's"), (ip_address(RESOLVER), "a resolver's")),
            ),
            reserve_version=lambda _: None,
            next_version=1,
            clock=lambda: 0.0,
        )

    def build(self) -> list[Callable[[], None]]:
        """The world they come into, a step each."""
        far = NodeRow(
            "far", addresses=((INTERNAL_IP, ip_address(FAR)),), pod_cidrs=(ip_network("10.0.1.0/24"),)
        )
        steps: list[Callable[[], None]] = [partial(self._join, far)]
        for name in HONEST:
            steps += [partial(self._stand, name), partial(self._behind, name)]
        return steps

    def _join(self, row: NodeRow) -> None:
        self.tables.nodes.set(row.name, row)

    def _stand(self, name: str) -> None:
        self.tables.services.set(("default", name), honest(name))
        self.standing.add(name)

    def _behind(self, name: str) -> None:
        row = slice_of(name)
        self.tables.slices.set((row.namespace, row.name), row)

    def ask(self, number: int) -> None:
        """A hostile service: one victim's address, at the victim's port or another, as old as it likes."""
        chance = self.chance
        address = ip_address(chance.choice(VICTIMS))
        port = SHARED.get(str(address)) or chance.choice((53, 80, 443, 6443))
        # A balancer's address may be asked for by an older service, for it is no external address; of two
        # that are the honest service's is the older.
        shared = str(address) in SHARED
        kind = EXTERNAL_IP if shared else chance.choice((EXTERNAL_IP, LOAD_BALANCER))
        may_be_old = not (shared and str(address) == "198.51.100.30")
        created = chance.choice(("2020", "2025", "")) if may_be_old else "2025"
        own = Frontend(ip_address(f"10.97.{number // 250}.{number % 250 + 1}"), port, "TCP", CLUSTER_IP)
        key = ("evil", f"e{number}")
        row = Service(
            *key,
            "LoadBalancer",
            (own, Frontend(address, port, "TCP", kind)),
            (ServicePort("", "TCP", port, 666),),
            created=created,
        )
        self.tables.services.set(key, row)
        self.asked[key] = address

    def go(self) -> None:
        """One of the hostile ones goes."""
        key = self.chance.choice(sorted(self.asked))
        self.tables.services.delete(key)
        del self.asked[key]

    def taken(self) -> int:
        """How many addresses of victims are taken.  AssertionError if an honest frontend is wrong."""
        self.plan.refresh()
        rows = self.plan.services.rows
        mine: dict[FrontendKey, tuple[BackendKey, ...]] = {}
        for name in self.standing:
            slices = [row for row in self.tables.slices.values() if row.service == name]
            backends = tuple(backend.key for row in slices for _, backend in row.backends)
            mine |= {one.key: backends for one in honest(name).frontends}
        for frontend, backends in mine.items():
            assert backends_in_rows(frontend, rows.services, rows.backends) == backends, frontend
        return sum(
            self._is_victim(abi.LbServiceKey.unpack(key), mine)
            for key in rows.frontends
            if key[16:18] != b"\0\0"
        )

    def _is_victim(self, key: abi.LbServiceKey, mine: dict[FrontendKey, tuple[BackendKey, ...]]) -> bool:
        address = str(addr_from16(key.addr))
        return FrontendKey(ip_address(address), key.port, "TCP") not in mine and self._stands(address)

    def _stands(self, address: str) -> bool:
        """Whether the victim of that address is there already: before, nobody loses anything."""
        if address in SPECIAL or address in {OWN, POD_HERE, ITS_URL, RESOLVER}:
            return True
        if address in {FAR, POD_THERE}:
            return "far" in self.tables.nodes
        if address == API_SERVER:
            return ("default", "kubernetes-1") in self.tables.slices
        return any(address == addr for name in self.standing for addr, _, _ in HONEST[name])


def test_hostile_services_take_nothing(is_long: bool, record_property: Callable[[str, object], None]) -> None:
    """Whatever the order; who is refused is told at its field, and after them all is as before them."""
    taken = asked = 0
    for seed in range(LONG if is_long else ROUNDS):
        chance = random.Random(seed)
        world = Field(chance)
        steps = world.build()
        steps += [partial(world.ask, number) for number in range(HOSTILE)]
        chance.shuffle(steps)
        for count, step in enumerate(steps):
            step()
            if chance.random() < 0.1 and world.asked:
                world.go()
            if count % 10 == 0:
                taken += world.taken()
        taken += world.taken()
        asked += HOSTILE
        for key, address in world.asked.items():
            problem = world.tables.problems.get(("Service", *key))
            assert isinstance(problem, Problem), (key, address)
            assert problem.field in {"spec.externalIPs", "status.loadBalancer.ingress"}
            assert str(address) in problem.message
        while world.asked:
            world.go()
        taken += world.taken()
        alone = Field(random.Random(seed))
        for step in alone.build():
            step()
        alone.taken()
        assert world.plan.services.rows.frontends.keys() == alone.plan.services.rows.frontends.keys()
        assert [one for one in world.tables.problems if one[0] == "Service"] == []

    record_property("figure", f"{asked} services asked for addresses of others, {taken} taken")
    record_property("data", json.dumps({"case": "A6", "hostile services": asked, "taken": taken}))
    assert taken == 0
