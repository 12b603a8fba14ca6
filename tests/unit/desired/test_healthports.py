# SPDX-License-Identifier: Apache-2.0
"""How many endpoints of a service load balancers may send to on this node."""

from dataclasses import replace
from ipaddress import ip_address

import pytest

from ciliumd.desired.healthports import LocalEndpoints, health_ports
from ciliumd.desired.services import served_frontends
from ciliumd.model.service import Backend, BackendState, Place, ServicePort
from unit.desired.worlds import endpoint_slice, service

pytestmark = pytest.mark.unit

HERE, THERE = "node-one", "node-two"


def at(ip: str, node: str | None, *, state: BackendState = BackendState.ACTIVE, port: int = 8080) -> Backend:
    """A backend on a node."""
    return Backend(ip_address(ip), port, "TCP", node, state)


def counted(*backends: Backend, port: int = 31000) -> dict[int, LocalEndpoints]:
    """What is told at the port of a service with these backends."""
    web = replace(service("web", "10.96.0.1"), health_check_node_port=port)
    served, _ = served_frontends([web], [endpoint_slice("web", *backends)], here=Place(HERE))
    return health_ports(served, node=HERE)


def test_ready_endpoints_of_this_node_count() -> None:
    """Not those of others, of no known node, or on their way out."""
    found = counted(
        at("10.0.0.1", HERE),
        at("10.0.0.2", HERE),
        at("10.0.0.3", HERE, state=BackendState.TERMINATING),
        at("10.0.1.1", THERE),
        at("10.0.2.1", None),
    )
    assert found == {31000: LocalEndpoints("shop", "web", 2)}


def test_service_without_endpoints_answers_zero() -> None:
    """Somebody has to say so."""
    assert counted() == {31000: LocalEndpoints("shop", "web", 0)}


def test_service_without_a_port_is_not_asked() -> None:
    """As are most."""
    assert counted(at("10.0.0.1", HERE), port=0) == {}


def test_endpoint_of_several_ports_is_one() -> None:
    """Addresses are counted."""
    ports = ServicePort("http", "TCP", 80, 8080), ServicePort("more", "TCP", 81, 8081)
    web = replace(service("web", "10.96.0.1", *ports), health_check_node_port=31000)
    one = endpoint_slice("web", at("10.0.0.1", HERE))
    two = replace(one, name="web-2", backends=(("more", at("10.0.0.1", HERE, port=8081)),))
    served, _ = served_frontends([web], [one, two], here=Place(HERE))
    assert health_ports(served, node=HERE) == {31000: LocalEndpoints("shop", "web", 1)}
