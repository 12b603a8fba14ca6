# SPDX-License-Identifier: Apache-2.0
"""Host ports become services of one backend, at addresses of the node only."""

from ipaddress import IPv6Address, ip_address

import pytest

from ciliumd.desired.hostports import host_ports, pod_of
from ciliumd.desired.services import served_frontends
from ciliumd.model.endpoint import EndpointSpec
from ciliumd.model.objects import HostPort, PodRow
from ciliumd.model.service import EXTERNAL, NODE, Backend, BackendState, Frontend, ServiceKind

pytestmark = pytest.mark.unit

ONE, TWO, OTHER = ip_address("192.0.2.1"), ip_address("192.0.2.2"), ip_address("198.51.100.1")
LOOPBACK = ip_address("127.0.0.1")
POD = ip_address("10.0.1.7")


def pod(name: str, *ports: HostPort, terminating: bool = False) -> PodRow:
    """A pod of the namespace shop."""
    return PodRow("shop", name, {}, "default", None, False, "n1", {}, True, terminating, ports)


def endpoint(name: str, number: int = 1, ipv4: str = str(POD), ipv6: str = "") -> EndpointSpec:
    """Its endpoint."""
    return EndpointSpec(
        id=number,
        slot=number,
        slot_gen=1,
        namespace="shop",
        pod=name,
        container_id="c",
        netns="/n",
        ifname=f"lxc{number}",
        ifindex=number,
        mac="02:00:00:00:00:01",
        node_mac="02:00:00:00:00:02",
        ipv4=ip_address(ipv4),
        ipv6=IPv6Address(ipv6) if ipv6 else None,
    )


def of(pods: list[PodRow], endpoints: list[EndpointSpec], addresses=(ONE, TWO)):
    """Host ports of a node."""
    return host_ports({(one.namespace, one.name): one for one in pods}, endpoints, addresses, node="n1")


def test_port_is_served_at_every_address_of_the_node() -> None:
    """And leads to the container's port of that pod alone."""
    found = of([pod("web", HostPort(None, 80, "TCP", 8080))], [endpoint("web")])
    served, refused = served_frontends(found.services, found.slices)

    assert [one.frontend for one in served] == [
        Frontend(LOOPBACK, 80, "TCP", ServiceKind.HOST_PORT, NODE),
        *(Frontend(addr, 80, "TCP", ServiceKind.HOST_PORT) for addr in (ONE, TWO)),
    ]
    assert {one.chosen for one in served} == {(Backend(POD, 8080, "TCP", "n1"),)}
    assert refused == found.problems == []
    assert pod_of(found.services[0].key) == ("shop", "web")


def test_address_and_protocol_belong_to_the_key() -> None:
    """One number may lead to as many containers."""
    ports = (
        HostPort(ONE, 53, "UDP", 5301),
        HostPort(TWO, 53, "UDP", 5302),
        HostPort(None, 53, "TCP", 5303),
    )
    found = of([pod("dns", *ports)], [endpoint("dns")])
    served, _ = served_frontends(found.services, found.slices)

    assert {(one.frontend.addr, one.frontend.protocol): one.chosen[0].port for one in served} == {
        (ONE, "UDP"): 5301,
        (TWO, "UDP"): 5302,
        (ONE, "TCP"): 5303,
        (TWO, "TCP"): 5303,
        (LOOPBACK, "TCP"): 5303,
    }


def test_loopback_address_is_the_nodes_too() -> None:
    """One of several may be there alone; without an address that is ours to serve, none is."""
    ports = (HostPort(LOOPBACK, 80, "TCP", 8080), HostPort(ONE, 80, "TCP", 8081))
    found = of([pod("web", *ports)], [endpoint("web")])
    served, _ = served_frontends(found.services, found.slices)

    assert {one.frontend.addr: one.chosen[0].port for one in served} == {LOOPBACK: 8080, ONE: 8081}
    assert {one.frontend.addr: one.frontend.scope for one in served} == {LOOPBACK: NODE, ONE: EXTERNAL}
    assert of([pod("web", *ports)], [endpoint("web")], ()).services == []


def test_each_family_leads_to_the_pods_address_of_that_family() -> None:
    """At ::1 only on a node that is reached by IPv6; a pod without IPv6 is not reached there."""
    six, pod6 = ip_address("2001:db8::1"), ip_address("fd00::7")
    both = pod("web", HostPort(None, 80, "TCP", 8080), HostPort(six, 53, "UDP", 5353))
    found = of([both], [endpoint("web", ipv6=str(pod6))], (ONE, six))
    served, refused = served_frontends(found.services, found.slices)

    assert {(str(one.frontend.key), one.frontend.scope): one.chosen[0].addr for one in served} == {
        ("127.0.0.1:80/TCP", NODE): POD,
        ("192.0.2.1:80/TCP", EXTERNAL): POD,
        ("[::1]:80/TCP", NODE): pod6,
        ("[2001:db8::1]:80/TCP", EXTERNAL): pod6,
        ("[2001:db8::1]:53/UDP", EXTERNAL): pod6,
    }
    assert [service.name for service in found.services] == [
        "web/host-port/80/TCP",
        "web/host-port/[2001:db8::1]:53/UDP",
    ]
    assert refused == found.problems == []
    alone = of([both], [endpoint("web")], (ONE, six))
    assert {one.frontend.addr for one in served_frontends(alone.services, alone.slices)[0]} == {LOOPBACK, ONE}


def test_address_of_somebody_else_is_refused_by_name() -> None:
    """A hostIP must not take what is not the node's: an API server, a resolver, another pod."""
    found = of([pod("web", HostPort(OTHER, 80, "TCP", 8080))], [endpoint("web")])

    assert found.services == []
    (problem,) = found.problems
    assert "198.51.100.1 is no address at which this node is reached" in problem.message
    assert pod_of(problem.service) == ("shop", "web")


def test_pod_that_stays_has_the_port() -> None:
    """While the one before is on its way out; the other is told whose it is."""
    port = HostPort(None, 80, "TCP", 8080)
    pods = [pod("a", port, terminating=True), pod("b", port)]
    found = of(pods, [endpoint("a"), endpoint("b", 2, "10.0.1.8")], (ONE,))
    served, _ = served_frontends(found.services, found.slices)

    assert [one.chosen[0].addr for one in served] == [ip_address("10.0.1.8")] * 2
    assert [problem.message for problem in found.problems] == [
        "192.0.2.1:80/TCP is a host port of pod shop/b",
        "127.0.0.1:80/TCP is a host port of pod shop/b",
    ]
    found = of(pods[:1], [endpoint("a")], (ONE,))
    one, _ = served_frontends(found.services, found.slices)[0]
    assert one.chosen[0].state is BackendState.TERMINATING


def test_pods_without_an_endpoint_here_have_none() -> None:
    """And on a node that is reached at no address nobody has."""
    port = HostPort(None, 80, "TCP", 8080)

    assert of([pod("web", port)], []).services == []
    assert of([pod("web", port)], [endpoint("web")], ()).services == []


def test_other_services_are_no_pods() -> None:
    """Their names have no slash."""
    assert pod_of(("shop", "web")) is None
