# SPDX-License-Identifier: Apache-2.0
"""Services of IPv4, of IPv6, and of both: which frontends there are, and who is behind each."""

from dataclasses import replace
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ciliumd.desired.services import of_kinds, served_frontends, with_node_ports
from ciliumd.model.service import EVERY_KIND, Frontend, Service, ServiceKind, ServicePort
from ciliumd.tables import EndpointSliceRow
from unit.desired.worlds import SERVICES, SLICES, backend, endpoint_slice, service

pytestmark = pytest.mark.unit


def mixed(*addresses: str) -> Service:
    """A service with a node port, and with these cluster addresses."""
    port = ServicePort("http", "TCP", 80, 8080, node_port=30080)
    one = service("web", addresses[0], port)
    frontends = tuple(Frontend(ip_address(text), 80, "TCP", ServiceKind.CLUSTER_IP) for text in addresses)
    return replace(one, frontends=frontends)


OWN = [ip_address("192.0.2.1"), ip_address("2001:db8::1")]
MIXED_SLICES = [
    endpoint_slice("web", backend("10.0.0.1")),
    endpoint_slice("web", backend("fd00::1"), backend("fd00::2"), name="six"),
]


def test_each_family_of_a_service_has_its_frontends_and_backends() -> None:
    """Cluster addresses and node ports; nobody is sent to an address of the other family."""
    found, problems = served_frontends(with_node_ports([mixed("10.96.0.1", "fd00:96::1")], OWN), MIXED_SLICES)

    four, six = (backend("10.0.0.1"),), (backend("fd00::1"), backend("fd00::2"))
    assert {str(one.frontend.key): one.chosen for one in found} == {
        "10.96.0.1:80/TCP": four,
        "192.0.2.1:30080/TCP": four,
        "[fd00:96::1]:80/TCP": six,
        "[2001:db8::1]:30080/TCP": six,
    }
    assert problems == []


@pytest.mark.parametrize(
    ("six", "shown"),
    [
        (frozenset(), {"10.96.0.1", "192.0.2.1"}),
        ({ServiceKind.CLUSTER_IP}, {"10.96.0.1", "192.0.2.1", "fd00:96::1"}),
    ],
)
def test_kinds_are_served_by_family(six: frozenset[ServiceKind], shown: set[str]) -> None:
    """Where pods have no IPv6 nothing of it is served, whether or not the service has IPv4 as well."""
    kinds = {4: EVERY_KIND, 6: six}
    grown = with_node_ports([mixed("fd00:96::1", "10.96.0.1"), replace(mixed("fd00:96::2"), name="six")], OWN)
    ours = list(of_kinds(grown, kinds))

    assert {str(one.addr) for one in ours[0].frontends} == shown
    assert {str(one.addr) for one in ours[1].frontends} == ({"fd00:96::2"} if six else set())


@given(SERVICES, SLICES, st.sets(st.sampled_from([4, 6])))
def test_no_frontend_is_of_a_family_that_is_not_served(
    services: list[Service], slices: list[EndpointSliceRow], families: set[int]
) -> None:
    """Whatever there is; and those of the other one are what they were."""
    whole, _ = served_frontends(services, slices)
    kinds = {version: EVERY_KIND if version in families else frozenset() for version in (4, 6)}
    found, _ = served_frontends(of_kinds(services, kinds), slices)

    assert {one.frontend.key: one.chosen for one in found} == {
        one.frontend.key: one.chosen for one in whole if one.frontend.addr.version in families
    }
    for one in found:
        assert {each.addr.version for each in one.backends} <= {one.frontend.addr.version}
