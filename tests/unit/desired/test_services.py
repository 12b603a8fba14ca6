# SPDX-License-Identifier: Apache-2.0
"""Which service owns a frontend, and which backends it gets."""

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ciliumd.desired.guard import guard
from ciliumd.desired.services import (
    NOWHERE,
    ServedFrontend,
    ServiceProblem,
    allocate_backend_ids,
    allocate_service_ids,
    by_service,
    of_kinds,
    served_frontends,
    served_of,
    with_node_ports,
)
from ciliumd.model.service import (
    EVERY_KIND,
    EXTERNAL,
    INTERNAL,
    Backend,
    BackendState,
    Frontend,
    FrontendKey,
    Hints,
    Place,
    Service,
    ServiceKind,
    ServicePort,
    TrafficPolicy,
)
from ciliumd.tables import EndpointSliceRow
from unit.desired.worlds import BACKENDS, SERVICES, SLICES, backend, endpoint_slice, service

pytestmark = pytest.mark.unit

ACTIVE, TERMINATING = BackendState.ACTIVE, BackendState.TERMINATING


def first(one: Service, *slices: EndpointSliceRow, here: Place = NOWHERE) -> ServedFrontend:
    """The first frontend of *one*, served."""
    (served,) = served_of(one, one.frontends[:1], slices, here)
    return served


def chosen(one: Service, *slices: EndpointSliceRow, node: str | None = None) -> list[Backend]:
    """Who gets new connections to the first frontend of *one*."""
    return list(first(one, *slices, here=Place(node)).chosen)


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

    served = first(one, endpoint_slice("web", leaving, backend("10.0.0.2")))

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

    found = [served.chosen for served in served_of(one, one.frontends, slices, NOWHERE)]

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
    assert first(one, *slices, here=Place("three")).elsewhere
    assert not first(one, here=Place("three")).elsewhere
    assert not first(service("web", "10.96.0.1"), *slices, here=Place("three")).elsewhere


@pytest.mark.parametrize(
    ("here", "there", "expected"),
    [
        ([ACTIVE], [ACTIVE], ["here-0"]),
        ([ACTIVE, TERMINATING], [ACTIVE], ["here-0"]),
        ([TERMINATING], [ACTIVE], ["here-0"]),
        ([], [ACTIVE], []),
        ([], [TERMINATING], []),
    ],
)
def test_local_policy_uses_what_terminates_here_before_it_gives_up(
    here: list[BackendState], there: list[BackendState], expected: list[str]
) -> None:
    """KEP-1669: a node that a balancer still sends to serves as long as somebody on it can."""
    one = service("web", "10.96.0.1", internal_policy=TrafficPolicy.LOCAL)
    names = {}
    backends = []
    for node, states in (("here", here), ("there", there)):
        for number, state in enumerate(states):
            made = backend(f"10.0.{len(node)}.{number + 1}", state=state, node=node)
            names[made.addr] = f"{node}-{number}"
            backends.append(made)

    assert [
        names[each.addr] for each in chosen(one, endpoint_slice("web", *backends), node="here")
    ] == expected


def test_nearest_backends_are_of_the_cluster_policy_alone() -> None:
    """Hints choose among what the policy leaves; the others stay listed, for the connections they have."""
    slices = [
        endpoint_slice(
            "web",
            *(
                replace(backend(f"10.0.0.{number}", node=node), hints=Hints((zone,)))
                for number, (node, zone) in enumerate((("one", "b"), ("two", "a"), ("one", "a")), 1)
            ),
        )
    ]
    zonal = Place("one", "a")

    def found(policy: TrafficPolicy) -> ServedFrontend:
        one = service("web", "10.96.0.1", internal_policy=policy)
        return first(one, *slices, here=zonal)

    assert [str(one.addr) for one in found(TrafficPolicy.CLUSTER).chosen] == ["10.0.0.2", "10.0.0.3"]
    assert len(found(TrafficPolicy.CLUSTER).backends) == 3
    assert [str(one.addr) for one in found(TrafficPolicy.LOCAL).chosen] == ["10.0.0.1", "10.0.0.3"]


def test_cluster_policy_uses_what_terminates_when_nothing_else_is_left() -> None:
    """KEP-1669: anywhere in the cluster."""
    one = service("web", "10.96.0.1")
    leaving = [backend(f"10.0.0.{number}", state=TERMINATING, node="two") for number in (1, 2)]

    assert chosen(one, endpoint_slice("web", *leaving), node="one") == leaving
    assert chosen(one, endpoint_slice("web", *leaving, backend("10.0.0.3", node="two")), node="one") == [
        backend("10.0.0.3", node="two")
    ]


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


def outside(name: str, address: str, kind: ServiceKind, *, created: str = "", own: str = "") -> Service:
    """A service with a cluster address of its own, and 80/TCP of *address* outside."""
    one = service(name, own or f"10.96.1.{len(name)}", created=created)
    return replace(one, frontends=(*one.frontends, Frontend(ip_address(address), 80, "TCP", kind)))


EXTERNAL_IP, LOAD_BALANCER = ServiceKind.EXTERNAL_IP, ServiceKind.LOAD_BALANCER


@pytest.mark.parametrize(
    ("one", "two", "owner"),
    [
        (("old", LOAD_BALANCER), ("young", LOAD_BALANCER), "old"),
        (("old", EXTERNAL_IP), ("young", EXTERNAL_IP), "old"),
        (("old", LOAD_BALANCER), ("young", EXTERNAL_IP), "old"),
        # Its author may have written it in yesterday, when the balancer's address was known.
        (("old", EXTERNAL_IP), ("young", LOAD_BALANCER), "young"),
    ],
)
def test_who_has_an_address_outside_keeps_it(
    one: tuple[str, ServiceKind], two: tuple[str, ServiceKind], owner: str
) -> None:
    """What a balancer's controller said comes before what anybody may write; then the older service."""
    services = [
        outside(name, "198.51.100.7", kind, created={"old": "2024", "young": "2025"}[name])
        for name, kind in (one, two)
    ]

    for order in (services, services[::-1]):
        served, problems = served_frontends(order, [])
        at = [each.service.name for each in served if str(each.frontend.addr) == "198.51.100.7"]
        assert at == [owner]
        ((field, message),) = by_service(problems).values()
        loser = next(each for each in services if each.name != owner)
        assert field == problems[0].field == ServiceProblem(("", ""), *_claim(loser)).field
        assert message == f"198.51.100.7:80/TCP belongs to service shop/{owner}"


def _claim(one: Service) -> tuple[FrontendKey, str, ServiceKind]:
    return one.frontends[-1].key, "", one.frontends[-1].kind


@pytest.mark.parametrize("kind", [EXTERNAL_IP, LOAD_BALANCER])
@pytest.mark.parametrize("port", [80, 81])
def test_nobody_takes_a_cluster_address(kind: ServiceKind, port: int) -> None:
    """Neither at a port that its service has nor at another, however old who wants it is."""
    victim = service("dns", "10.96.0.10", ServicePort("http", "TCP", port, 53), created="2025")
    thief = outside("thief", "10.96.0.10", kind, created="2020")
    served, problems = served_frontends([thief, victim], [])

    assert [each.service.name for each in served if str(each.frontend.addr) == "10.96.0.10"] == ["dns"]
    assert [problem.message for problem in problems] == [
        "10.96.0.10 is the cluster address of service shop/dns"
    ]
    lent = guard([], allowed=[ip_network("10.96.0.10/32")])
    served, problems = served_frontends([thief, victim], [], guard=lent)
    found = {
        each.frontend.port: each.service.name for each in served if str(each.frontend.addr) == "10.96.0.10"
    }
    assert found == {80: "thief", port: "dns"}, "what the service itself serves stays its own"
    assert len(problems) == (port == 80)


def test_node_ports_come_before_addresses_outside() -> None:
    """Also where the configuration lends the node's address."""
    lent = guard([], protected=[(ip_address("192.0.2.1"), "node")], allowed=[ip_network("192.0.2.1/32")])
    port = ServicePort("http", "TCP", 8080, 8080, node_port=80)
    (victim,) = with_node_ports([service("web", "10.96.0.1", port)], [ip_address("192.0.2.1")])
    thief = outside("thief", "192.0.2.1", EXTERNAL_IP, created="2020")
    served, problems = served_frontends([thief, victim], [], guard=lent)

    assert [each.service.name for each in served if each.frontend.port == 80] == ["thief", "web"]
    assert [str(each.frontend.addr) for each in served if each.service is thief] == ["10.96.1.5"]
    assert [problem.message for problem in problems] == ["192.0.2.1:80/TCP belongs to service shop/web"]


def test_what_is_refused_is_told_once_for_each_address() -> None:
    """Not for each port, and of many addresses the first few."""
    ports = tuple(ServicePort(f"p{number}", "TCP", number, number) for number in range(1, 4))
    one = service("web", "10.96.0.1", *ports)
    loopback = [
        Frontend(ip_address(f"127.0.0.{host}"), port.port, "TCP", EXTERNAL_IP)
        for host in range(1, 8)
        for port in ports
    ]
    _, problems = served_frontends([replace(one, frontends=(*one.frontends, *loopback))], [])

    ((field, message),) = by_service(problems).values()
    assert len(problems) == 21
    assert field == "spec.externalIPs"
    assert message.startswith("127.0.0.1 is a loopback address")
    assert message.count("127.0.0.") == 4
    assert message.endswith("; and 3 more")


@given(SERVICES, SLICES, st.randoms())
def test_order_of_rows_does_not_matter(
    services: list[Service], slices: list[EndpointSliceRow], random: object
) -> None:
    """Whatever order objects arrived in, the same frontends are served the same way."""
    expected = served_frontends(services, slices, here=Place("one"))
    random.shuffle(services)  # type: ignore[attr-defined]
    random.shuffle(slices)  # type: ignore[attr-defined]

    assert served_frontends(services, slices, here=Place("one")) == expected


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
    served, problems = served_frontends([grown], slices, here=Place("here"))

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
    served, problems = served_frontends([grown], slices, here=Place("here"))

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


@pytest.mark.parametrize("kind", list(ServiceKind))
def test_frontends_of_kinds_that_are_not_served_are_nobodys(kind: ServiceKind) -> None:
    """They are kube-proxy's: no row leads there, nobody is told of a refusal."""
    one = service("web", "10.96.0.1")
    frontends = tuple(
        Frontend(ip_address(f"192.0.2.{number}"), 80, "TCP", each)
        for number, each in enumerate(ServiceKind, start=1)
    )
    whole = replace(one, frontends=frontends)

    assert list(of_kinds([whole], {4: EVERY_KIND})) == [whole]
    (rest,) = of_kinds([whole], {4: EVERY_KIND - {kind}})
    assert [frontend.kind for frontend in rest.frontends] == [
        each for each in ServiceKind if each is not kind
    ]
    assert replace(rest, frontends=frontends) == whole
