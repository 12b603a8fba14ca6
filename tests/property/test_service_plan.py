# SPDX-License-Identifier: Apache-2.0
"""
Services planned one by one are what they are planned all at once, after every change.

Objects come, change and go in any order: services that claim each other's addresses, slices that change
hands, pods with host ports, nodes whose addresses are guarded, a node that moves.  After each the rows, and
the rows a reader of the changes alone has, are those that are computed from all objects at once.
"""

import random
from collections import Counter
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ciliumd.abi import LbServiceKey
from ciliumd.daemon.service_plan import ServicePlan, Surroundings
from ciliumd.desired import services as stage
from ciliumd.desired.bindports import bind_rows
from ciliumd.desired.guard import guard
from ciliumd.desired.hostports import host_ports
from ciliumd.desired.lbbook import PARTS
from ciliumd.desired.lbrows import lb_rows
from ciliumd.desired.slices import derived_slices
from ciliumd.model.objects import EndpointSliceRow, HostPort
from ciliumd.model.service import (
    EVERY_KIND,
    Backend,
    BackendState,
    Frontend,
    Place,
    Service,
    ServiceKind,
    ServicePort,
    TrafficPolicy,
)
from ciliumd.tables import Tables
from unit.desired.worlds import endpoint, pod

pytestmark = pytest.mark.property

NODE = "here"
NAMES = ("web", "api", "db", "old")
CLUSTER_IPS = ("10.96.0.1", "10.96.0.2", "10.96.0.3", "fd00:96::1")
OUTSIDE = ("192.0.2.1", "192.0.2.7", "10.96.0.2", "2001:db8::7")
OWN = (
    (),
    (ip_address("192.0.2.1"),),
    (ip_address("192.0.2.1"), ip_address("2001:db8::1")),
)
KINDS = (EVERY_KIND, EVERY_KIND - {ServiceKind.NODE_PORT}, frozenset({ServiceKind.CLUSTER_IP}))
PORTS = (ServicePort("http", "TCP", 80, 8080, 30080), ServicePort("dns", "UDP", 53, "dns"))
STEPS = 30


@dataclass
class Objects:
    """Tables that random objects are put into, a plan that follows them, and a reader of its changes."""

    chance: random.Random
    tables: Tables = field(default_factory=Tables)
    around: Surroundings = field(default_factory=lambda: Surroundings(here=Place(NODE)))

    def __post_init__(self) -> None:
        self.read: dict[str, dict[bytes, bytes]] = {part: {} for part in PARTS}
        self.external = self.chance.random() < 0.2
        self.plan = ServicePlan(self.tables, external_cluster_ip=self.external)
        self.plan.restore_slots(self.read["slots"].get)

    def step(self) -> str:
        """One change; its name."""
        change = self.chance.choice((*[self._service] * 4, *[self._slice] * 4, self._pod, self._around))
        change()
        if self.chance.random() < 0.05:
            self._release()
        return change.__name__.removeprefix("_")

    def _service(self) -> None:
        pick, name = self.chance.choice, self.chance.choice(NAMES)
        if self.chance.random() < 0.25:
            self.tables.services.delete(("shop", name))
            return
        ports = tuple(self.chance.sample(PORTS, self.chance.randint(1, 2)))
        claims = [(pick(CLUSTER_IPS), ServiceKind.CLUSTER_IP)]
        claims += [
            (pick(OUTSIDE), pick((ServiceKind.EXTERNAL_IP, ServiceKind.LOAD_BALANCER)))
            for _ in range(self.chance.randint(0, 2))
        ]
        self.tables.services.set(
            ("shop", name),
            Service(
                "shop",
                name,
                "LoadBalancer",
                tuple(
                    Frontend(ip_address(address), port.port, port.protocol, kind)
                    for address, kind in dict.fromkeys(claims)
                    for port in ports
                ),
                ports,
                selector=pick(((), (("app", name),))),
                external_policy=pick(tuple(TrafficPolicy)),
                internal_policy=pick(tuple(TrafficPolicy)),
                affinity_timeout=pick((0, 0, 30)),
                source_ranges=pick(((), (ip_network("203.0.113.0/24"),))),
                denies_sources=pick((False, True)),
                proxy=pick(("", "", "", "mesh")),
                created=pick(("", "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z")),
            ),
        )

    def _slice(self) -> None:
        pick, name = self.chance.choice, f"slice-{self.chance.randint(1, 5)}"
        if self.chance.random() < 0.25:
            self.tables.slices.delete(("shop", name))
            return
        backends = tuple(
            (
                port.name,
                Backend(
                    ip_address(pick(("10.0.0.1", "10.0.0.2", "10.0.1.1", "fd00::1"))),
                    8080,
                    port.protocol,
                    pick((NODE, "far", None)),
                    pick((BackendState.ACTIVE, BackendState.ACTIVE, BackendState.TERMINATING)),
                    zone=pick(("", "a")),
                ),
            )
            for port in PORTS
            for _ in range(self.chance.randint(0, 2))
        )
        self.tables.slices.set(("shop", name), EndpointSliceRow("shop", name, pick(NAMES), backends))

    def _pod(self) -> None:
        pick, number = self.chance.choice, self.chance.randint(1, 3)
        made = endpoint(number)
        if self.chance.random() < 0.3:
            self.tables.endpoints.delete(number)
            self.tables.pods.delete(made.pod_key)
            return
        ports = pick(((), (HostPort(None, pick((8080, 30080)), "TCP", 80),)))
        row = pod(
            made.pod, {"app": pick(NAMES)}, named_ports={"dns": ("UDP", 5353)}, ready=pick((True, False))
        )
        self.tables.pods.set(made.pod_key, replace(row, host_ports=ports))
        self.tables.endpoints.set(number, made)

    def _around(self) -> None:
        pick = self.chance.choice
        taken = pick(((), (ip_address("192.0.2.7"),)))
        self.around = Surroundings(
            addresses=pick(OWN),
            serves=pick(KINDS),
            serves6=pick((frozenset(), *KINDS)),
            here=Place(NODE, pick(("", "a"))),
            proxy=pick(("", "", "mesh")),
            guard=guard((), protected=[(addr, "somebody's") for addr in taken]),
        )

    def _release(self) -> None:
        """Numbers that nobody has any more may be given to others."""
        wanted = {one.frontend.key for one in self.plan.each()}
        for key in set(self.tables.service_ids) - wanted:
            self.tables.service_ids.delete(key)
        for key in [
            key for key, number in self.tables.backend_ids.items() if number not in self.plan.backends
        ]:
            self.tables.backend_ids.delete(key)

    def refresh(self) -> None:
        """Plan, and read what changed."""
        self.plan.refresh(self.around)
        for part, rows in self.read.items():
            changes = self.plan.changes(part)
            for key in changes.removals:
                rows.pop(key, None)
            rows.update(changes.updates)

    def judge(self) -> None:
        """Everything is what it is when it is computed at once."""
        tables, around = self.tables, self.around
        written = tables.slices.values()
        derived = derived_slices(
            tables.services.values(), written, tables.pods.view(), tables.endpoints.values(), node=NODE
        )
        addresses = [addr for addr in around.addresses if around.kinds[addr.version]]
        ports = host_ports(tables.pods.view(), tables.endpoints.values(), addresses, node=NODE)
        services = [
            *stage.with_node_ports(tables.services.values(), around.addresses),
            *ports.services,
        ]
        served, refused = stage.served_frontends(
            stage.of_kinds(services, around.kinds),
            [*written, *derived.values(), *ports.slices],
            here=around.here,
            guard=around.guard,
        )
        served = [
            one
            for one in served
            if one.service.proxy == around.proxy or one.frontend.kind is ServiceKind.HOST_PORT
        ]
        rows = lb_rows(
            served, tables.service_ids.view(), tables.backend_ids.view(), external_cluster_ip=self.external
        )
        problems = stage.by_service((*refused, *ports.problems, *rows.problems))

        assert self.plan.served == served
        assert self.plan.problems() == problems
        assert in_any_slot(self.read) == {
            "backends": rows.backends,
            "revnat": rows.revnat,
            "matches": rows.matches,
            "sources": rows.sources,
            "binds": bind_rows(served),
            "slots": by_frontend(rows.slots),
            "frontends": rows.frontends,
        }
        together = self.plan.rows
        assert together.slots == self.read["slots"]
        assert (together.backends, together.frontends) == (rows.backends, rows.frontends)


def by_frontend(slots: dict[bytes, bytes]) -> dict[bytes, list[tuple[int, bytes]]]:
    """What each frontend has in its slots, wherever; a slot with any number may have any backend."""
    found: dict[bytes, list[bytes]] = {}
    numbers: dict[bytes, list[int]] = {}
    for key, value in slots.items():
        slot = LbServiceKey.unpack(key)
        frontend = replace(slot, slot=0).pack()
        found.setdefault(frontend, []).append(value)
        numbers.setdefault(frontend, []).append(slot.slot)
    return {
        key: list(zip(sorted(numbers[key]), sorted(values), strict=True)) for key, values in found.items()
    }


def in_any_slot(read: dict[str, dict[bytes, bytes]]) -> dict[str, object]:
    """Rows as they are read, with slots by frontend."""
    return {**read, "slots": by_frontend(read["slots"])}


@given(st.randoms(use_true_random=False))
def test_one_by_one_is_all_at_once(chance: random.Random) -> None:
    """Whatever changes, and however many changes there are before somebody looks."""
    objects = Objects(chance)
    seen: Counter[str] = Counter()
    for _ in range(STEPS):
        seen[objects.step()] += 1
        if chance.random() < 0.7:
            objects.refresh()
            objects.judge()
    objects.refresh()
    objects.judge()
