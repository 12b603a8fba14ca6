# SPDX-License-Identifier: Apache-2.0
"""Which service owns a frontend, and which backends it gets."""

from dataclasses import replace
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ciliumd.desired.services import (
    allocate_backend_ids,
    allocate_service_ids,
    served_frontend,
    served_frontends,
    with_node_ports,
)
from ciliumd.model.service import (
    EXTERNAL,
    INTERNAL,
    Backend,
    BackendState,
    Frontend,
    Service,
    ServiceKind,
    ServicePort,
    TrafficPolicy,
)
from ciliumd.tables import EndpointSliceRow
from unit.desired.worlds import BACKENDS, SERVICES, SLICES, backend, endpoint_slice, service

pytestmark = pytest.mark.unit

TERMINATING = BackendState.TERMINATING


def chosen(one: Service, *slices: EndpointSliceRow, node: str | None = None) -> list[Backend]:
    """Who gets new connections to the first frontend of *one*."""
    return list(served_frontend(one, one.frontends[0], slices, node=node).chosen)


def test_backends_of_all_slices_are_chosen_in_order() -> None:
    """By address, whichever slice they come from."""
    one = service("web", "10.96.0.1")

    assert chosen(
        one,
        endpoint_slice("web", backend("10.0.0.3"), backend("10.0.0.1")),
        endpoint_slice("web", backend("10.0.0.2"), name="b"),
    ) == [backend("10.0.0.1"), backend("10.0.0.2"), backend("10.0.0.3")]


def test_terminating_backends_are_a_last_resort() -> None:
    """While one is active they get nothing new; when none is, better they than nobody."""
    one = service("web", "10.96.0.1")
    leaving = backend("10.0.0.1", state=TERMINATING)

    assert chosen(one, endpoint_slice("web", leaving, backend("10.0.0.2"))) == [backend("10.0.0.2")]
    assert chosen(one, endpoint_slice("web", leaving)) == [leaving]


def test_terminating_backends_stay_listed() -> None:
    """Connections they have must go on."""
    one = service("web", "10.96.0.1")
    leaving = backend("10.0.0.1", state=TERMINATING)

    served = served_frontend(one, one.frontends[0], [endpoint_slice("web", leaving, backend("10.0.0.2"))])

    assert served.backends == (backend("10.0.0.2"), leaving)


def test_backend_listed_twice_counts_once_at_its_best() -> None:
    """While a slice is split, a backend may be in both parts."""
    one = service("web", "10.96.0.1")
    slices = [
        endpoint_slice("web", backend("10.0.0.1", state=TERMINATING)),
        endpoint_slice("web", backend("10.0.0.1"), name="b"),
    ]

    assert chosen(one, *slices) == chosen(one, *reversed(slices)) == [backend("10.0.0.1")]


def test_ports_are_told_apart_by_name() -> None:
    """Each frontend gets the backends of its own port."""
    ports = (ServicePort("http", "TCP", 80, 8080), ServicePort("admin", "TCP", 81, 8081))
    one = service("web", "10.96.0.1", *ports)
    slices = [
        endpoint_slice("web", backend("10.0.0.1")),
        endpoint_slice("web", backend("10.0.0.1", port=8081), name="b", port="admin"),
    ]

    found = [served_frontend(one, frontend, slices).chosen for frontend in one.frontends]

    assert found == [(backend("10.0.0.1"),), (backend("10.0.0.1", port=8081),)]


def test_backends_are_of_the_frontends_family_and_protocol() -> None:
    """IPv4 clients get no IPv6 backend, UDP no TCP one."""
    slices = [endpoint_slice("web", backend("10.0.0.1"), backend("fd00::1"))]

    assert chosen(service("web", "10.96.0.1"), *slices) == [backend("10.0.0.1")]
    assert chosen(service("web", "fd00::10"), *slices) == [backend("fd00::1")]
    assert chosen(service("web", "10.96.0.1", ServicePort("http", "UDP", 80, 8080)), *slices) == []


def test_local_traffic_policy_stays_on_the_node() -> None:
    """Backends elsewhere or of unknown place do not count, even if nobody is left."""
    one = service("web", "10.96.0.1", internal_policy=TrafficPolicy.LOCAL)
    slices = [
        endpoint_slice(
            "web", backend("10.0.0.1"), backend("10.0.0.2", node="two"), backend("10.0.0.3", node=None)
        )
    ]

    assert chosen(one, *slices, node="one") == [backend("10.0.0.1")]
    assert chosen(one, *slices, node="three") == []
    assert chosen(one, *slices) == []


def test_older_service_keeps_a_frontend() -> None:
    """The younger one is reported, its other frontends stand."""
    old = service("zoo", "10.96.0.1", created="2024-01-01T00:00:00Z")
    young = service(
        "app",
        "10.96.0.1",
        ServicePort("http", "TCP", 80, 80),
        ServicePort("more", "TCP", 81, 81),
        created="2025-01-01T00:00:00Z",
    )

    served, problems = served_frontends([young, old], [])

    assert [(one.service.name, one.frontend.port) for one in served] == [("zoo", 80), ("app", 81)]
    assert [(problem.service, problem.message) for problem in problems] == [
        (("shop", "app"), "10.96.0.1:80/TCP belongs to service shop/zoo")
    ]


@pytest.mark.parametrize(
    ("created", "owner"),
    [(("", ""), "app"), (("2025", "2025"), "app"), (("", "2025"), "zoo"), (("2025", ""), "app")],
)
def test_age_decides_and_then_the_name(created: tuple[str, str], owner: str) -> None:
    """Who does not say its age counts as the youngest."""
    services = [
        service("app", "10.96.0.1", created=created[0]),
        service("zoo", "10.96.0.1", created=created[1]),
    ]

    served, _ = served_frontends(services, [])

    assert [one.service.name for one in served] == [owner]


@given(SERVICES, SLICES, st.randoms())
def test_order_of_rows_does_not_matter(
    services: list[Service], slices: list[EndpointSliceRow], random: object
) -> None:
    """Whatever order objects arrived in, the same frontends are served the same way."""
    expected = served_frontends(services, slices, node="one")
    random.shuffle(services)  # type: ignore[attr-defined]
    random.shuffle(slices)  # type: ignore[attr-defined]

    assert served_frontends(services, slices, node="one") == expected


@given(SERVICES)
def test_every_claim_is_served_or_reported(services: list[Service]) -> None:
    """No frontend is lost silently, none is served twice."""
    served, problems = served_frontends(services, [])

    claims = sorted((one.key, frontend.key) for one in services for frontend in one.frontends)
    answered = [(one.service.key, one.frontend.key) for one in served]
    assert sorted(answered + [(problem.service, problem.frontend) for problem in problems]) == claims
    assert len({one.frontend.key for one in served}) == len(served)


@given(SERVICES, SLICES, SERVICES, SLICES)
def test_ids_are_never_given_to_another(
    services: list[Service],
    slices: list[EndpointSliceRow],
    later_services: list[Service],
    later_slices: list[EndpointSliceRow],
) -> None:
    """An id in the tables stays its owner's, whether the owner is still there or not."""
    first, _ = served_frontends(services, slices)
    service_ids = allocate_service_ids({}, first).assigned
    backend_ids = allocate_backend_ids({}, first).assigned
    later, _ = served_frontends(later_services, later_slices)

    assert not set(allocate_service_ids(service_ids, later).assigned.values()) & set(service_ids.values())
    assert not set(allocate_backend_ids(backend_ids, later).assigned.values()) & set(backend_ids.values())


@given(st.lists(BACKENDS, max_size=6))
def test_a_frontend_with_anybody_fit_is_never_refused(backends: list[Backend]) -> None:
    """Somebody is chosen exactly when somebody of the family is listed, and active ones come first."""
    one = service("web", "10.96.0.1")
    found = chosen(one, endpoint_slice("web", *backends))

    family = [row for row in backends if row.addr.version == 4]
    assert bool(found) == bool(family)
    if any(row.state is BackendState.ACTIVE for row in family):
        assert all(row.state is BackendState.ACTIVE for row in found)


def test_node_ports_are_served_on_the_nodes_own_addresses() -> None:
    """One frontend per port and address; what is local for the world is open inside the cluster."""
    one = replace(
        service("web", "10.96.0.1"),
        ports=(ServicePort("http", "TCP", 80, 8080, node_port=30080),),
        external_policy=TrafficPolicy.LOCAL,
    )
    here = backend("10.0.0.1", node="here")
    slices = [endpoint_slice("web", here, backend("10.0.1.1", node="there"))]
    addresses = [ip_address("192.0.2.1"), ip_address("2001:db8::1")]
    (grown,) = with_node_ports([one], addresses)
    served, problems = served_frontends([grown], slices, node="here")

    assert [(str(s.frontend.addr), s.frontend.port, s.frontend.scope, len(s.chosen)) for s in served] == [
        ("10.96.0.1", 80, EXTERNAL, 2),
        ("192.0.2.1", 30080, EXTERNAL, 1),
        ("192.0.2.1", 30080, INTERNAL, 2),
    ]
    assert not problems
    assert grown.port_of(grown.frontends[-1]).name == "http"


def test_what_is_local_for_the_world_is_open_inside_at_every_address() -> None:
    """External and load balancer addresses like node ports; the cluster address has a policy of its own."""
    one = replace(service("web", "10.96.0.1"), external_policy=TrafficPolicy.LOCAL)
    outside = [
        Frontend(ip_address("198.51.100.7"), 80, "TCP", ServiceKind.EXTERNAL_IP),
        Frontend(ip_address("192.0.2.10"), 80, "TCP", ServiceKind.LOAD_BALANCER),
    ]
    (grown,) = with_node_ports([replace(one, frontends=(*one.frontends, *outside))], [])
    slices = [endpoint_slice("web", backend("10.0.0.1", node="there"))]
    served, problems = served_frontends([grown], slices, node="here")

    assert [(str(s.frontend.addr), s.frontend.scope, len(s.chosen)) for s in served] == [
        ("10.96.0.1", EXTERNAL, 1),
        ("192.0.2.10", EXTERNAL, 0),
        ("192.0.2.10", INTERNAL, 1),
        ("198.51.100.7", EXTERNAL, 0),
        ("198.51.100.7", INTERNAL, 1),
    ]
    assert not problems


def test_service_without_node_ports_stays_as_it_is() -> None:
    """No address of the node is taken for it."""
    one = service("web", "10.96.0.1")

    assert list(with_node_ports([one], [ip_address("192.0.2.1")])) == [one]
