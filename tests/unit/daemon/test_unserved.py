# SPDX-License-Identifier: Apache-2.0
"""Whose rows do not fit into a map, as their authors are told."""

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from ciliumd.bpf.errors import NoSpace
from ciliumd.daemon import stages
from ciliumd.daemon.unserved import Unserved
from ciliumd.model.objects import HostPort
from ciliumd.model.service import Frontend, ServiceKind, ServicePort
from unit.daemon import nodes
from unit.daemon.kernel import Kernel, service

NODE, BALANCER = ip_address("192.0.2.1"), ip_address("192.0.2.10")
FULL = NoSpace("update", "a map", 7)


class Told(Kernel):
    """A node that says which services wait."""

    def __init__(self):
        super().__init__()
        self.node.plan.set_addresses((NODE,), (NODE,))
        tables = self.tables
        self.unserved = Unserved(
            self.reconciler,
            self.node.plan,
            service_ids=tables.service_ids.view,
            backend_ids=tables.backend_ids.view,
        )
        self.news = 0
        self.unserved.changed = self.count
        nodes.add_pod(tables, 1, {"app": "web"})
        tables.services.set(("shop", "old"), service("old"))
        self.round(2)

    def count(self):
        """There was news."""
        self.news += 1

    def round(self, count=1):
        """Rounds, with a look after each."""
        for _ in range(count):
            super().round()
            self.unserved.look()

    def fill(self, name, error=FULL):
        """No row fits into a map any more."""
        fake = self.maps[name]
        fake.fail = lambda key: None if key in fake.rows else error

    def empty(self, name):
        """There is room again."""
        self.maps[name].fail = lambda _: None

    def add(self, name="new", address="10.96.0.2", **fields):
        """A service with an address of a balancer, ranges, affinity and a NodePort."""
        one = service(name, address)
        outside = Frontend(BALANCER, 80, "TCP", ServiceKind.LOAD_BALANCER)
        fields = {
            "frontends": (*one.frontends, outside),
            "source_ranges": (ip_network("203.0.113.0/24"),),
            "affinity_timeout": 60,
            "ports": (ServicePort("", "TCP", 80, 8080, 30080),),
        } | fields
        self.tables.services.set(("shop", name), replace(one, **fields))

    def problem(self, name="new"):
        """What is told of a service."""
        return self.tables.problems.get(("Service", "shop", name))


@pytest.fixture
def kernel():
    """A node with a service that has all it needs."""
    return Told()


HOST_PORTS = (HostPort(None, 8080, "TCP", 80),)
CLUSTER_IP, NODE_PORT, LOAD_BALANCER = "10.96.0.2:80/TCP", "192.0.2.1:30080/TCP", "192.0.2.10:80/TCP"
ALL = (CLUSTER_IP, NODE_PORT, LOAD_BALANCER)


@pytest.mark.parametrize(
    ("name", "waiting"),
    [
        (stages.SERVICES, ALL),
        (stages.SERVICE_SLOTS, ALL),
        (stages.REVNAT, ALL),
        (stages.AFFINITY_MATCH, ALL),
        (stages.SOURCES, (LOAD_BALANCER,)),
        (stages.BIND, (NODE_PORT,)),
    ],
)
def test_a_new_service_is_told_which_map_is_full_and_when_there_is_room_it_is_served(kernel, name, waiting):
    """The old one has no problem, and the new one has none in the end."""
    kernel.fill(name)
    kernel.add()
    kernel.round(4)
    told = kernel.problem()
    verb = "wait" if len(waiting) > 1 else "waits"
    assert told.message == f"{', '.join(waiting)} {verb} for room in {name.removesuffix('.slots')}"
    assert kernel.problem("old") is None
    assert kernel.news == 1

    kernel.empty(name)
    kernel.round(40)
    assert kernel.problem() is None
    assert kernel.news == 2
    assert kernel.reconciler.status().in_sync


def test_slots_and_frontends_are_of_one_map(kernel):
    """A frontend of which neither fits is named once."""
    kernel.fill(stages.SERVICES)
    kernel.fill(stages.SERVICE_SLOTS)
    kernel.add()
    kernel.round(4)
    assert kernel.problem().message == f"{', '.join(ALL)} wait for room in cilium_lb_services_v1"


def test_a_backend_without_room_is_told_to_all_its_services(kernel):
    """They keep those that they have."""
    kernel.add()
    kernel.round(2)
    kernel.fill(stages.BACKENDS)
    nodes.add_pod(kernel.tables, 2, {"app": "web"})
    kernel.round(4)
    for name, field in (("old", "spec.clusterIPs"), ("new", "spec.clusterIPs")):
        told = kernel.problem(name)
        assert (told.field, "for room in cilium_lb_backends_v1" in told.message) == (field, True)


def test_what_fails_once_is_not_told(kernel):
    """The kernel had no memory for a moment."""
    kernel.fill(stages.SERVICES, OSError(12, "no memory"))
    kernel.add()
    kernel.round()
    kernel.empty(stages.SERVICES)
    kernel.round(4)
    assert kernel.news == 0

    kernel.fill(stages.REVNAT, OSError(12, "no memory"))
    kernel.add("other", "10.96.0.9", frontends=service("other", "10.96.0.9").frontends, ports=(PORT,))
    kernel.round(4)
    assert kernel.problem("other").message == (
        "10.96.0.9:80/TCP waits for cilium_lb_revnat_v1: [Errno 12] no memory"
    )


PORT = ServicePort("", "TCP", 80, 8080)


def test_the_whole_address_of_a_service_waits_too(kernel):
    """A port nobody serves leads somewhere else until it is there."""
    kernel.fill(stages.SERVICES)
    services = kernel.maps[stages.SERVICES]
    services.fail = lambda key: FULL if key not in services.rows and key[16:18] == bytes(2) else None
    kernel.add()
    kernel.round(4)
    assert kernel.problem().message == f"{CLUSTER_IP} waits for room in cilium_lb_services_v1"


def test_a_host_port_is_told_to_its_pod(kernel):
    """Nobody wrote a service."""
    kernel.fill(stages.SERVICES)
    kernel.tables.pods.set(
        ("shop", "pod-1"), replace(kernel.tables.pods.get(("shop", "pod-1")), host_ports=HOST_PORTS)
    )
    kernel.round(4)
    told = kernel.tables.problems.get(("Pod", "shop", "pod-1"))
    assert told.field == "spec.containers.ports"
    assert told.message.endswith("192.0.2.1:8080/TCP wait for room in cilium_lb_services_v1")


def test_of_many_frontends_a_few_are_named(kernel):
    """An event has no room for thousands of ports, nor has its reader."""
    kernel.fill(stages.REVNAT)
    ports = range(1000, 1100)
    frontends = tuple(
        Frontend(ip_address("10.96.0.2"), port, "TCP", ServiceKind.CLUSTER_IP) for port in ports
    )
    kernel.add(frontends=frontends, ports=tuple(ServicePort(str(port), "TCP", port, 8080) for port in ports))
    kernel.round(4)
    assert kernel.problem().message == (
        f"{', '.join(f'10.96.0.2:{port}/TCP' for port in range(1000, 1004))}, 96 more "
        "wait for room in cilium_lb_revnat_v1"
    )
