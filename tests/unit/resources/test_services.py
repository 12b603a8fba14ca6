# SPDX-License-Identifier: Apache-2.0
"""Services and EndpointSlices become frontends and backends."""

from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest

from ciliumd.model.service import (
    Backend,
    BackendState,
    Frontend,
    Hints,
    Service,
    ServiceKind,
    ServicePort,
    TrafficDistribution,
    TrafficPolicy,
)
from ciliumd.resources.services import MOST_EXTERNAL, MOST_RANGES
from ciliumd.tables import EndpointSliceRow
from unit.resources.documents import problems, rows

pytestmark = pytest.mark.unit


def service_text(spec: str, status: str = "{}") -> str:
    """A Service with this spec and status."""
    return (
        "{apiVersion: v1, kind: Service, metadata: {name: web, namespace: shop}, "
        f"spec: {spec}, status: {status}}}"
    )


def service(spec: str, status: str = "{}") -> Service:
    """The row of a Service with this spec and status."""
    ((table, key, row),) = rows(service_text(spec, status))
    assert (table, key) == ("services", ("shop", "web"))
    assert isinstance(row, Service)
    return row


def test_cluster_ip_service_has_a_frontend_per_port() -> None:
    """Each port of the cluster address is a frontend; targets default to the port."""
    row = service(
        "{clusterIP: 10.96.0.10, selector: {b: '2', a: '1'}, "
        "ports: [{name: http, port: 80, targetPort: web}, {name: dns, port: 53, protocol: UDP}]}"
    )

    addr = IPv4Address("10.96.0.10")
    assert row.frontends == (
        Frontend(addr, 80, "TCP", ServiceKind.CLUSTER_IP),
        Frontend(addr, 53, "UDP", ServiceKind.CLUSTER_IP),
    )
    assert row.ports == (ServicePort("http", "TCP", 80, "web"), ServicePort("dns", "UDP", 53, 53))
    assert row.selector == (("a", "1"), ("b", "2"))


def test_dual_stack_service_has_frontends_of_both_families() -> None:
    """Every cluster address is served."""
    row = service("{clusterIP: 10.96.0.10, clusterIPs: [10.96.0.10, 'fd00::10'], ports: [{port: 80}]}")

    assert [frontend.addr for frontend in row.frontends] == [
        IPv4Address("10.96.0.10"),
        IPv6Address("fd00::10"),
    ]


@pytest.mark.parametrize(
    "spec",
    [
        "{clusterIP: None, ports: [{port: 80}]}",
        "{clusterIP: None, clusterIPs: [None]}",
        "{type: ExternalName, externalName: example.org}",
        "{type: ExternalName, externalName: example.org, selector: {a: b}}",
        "{clusterIP: None, externalIPs: [198.51.100.7], ports: [{port: 80}]}",
        "{type: ExternalName, externalName: example.org, externalIPs: [198.51.100.7], ports: [{port: 80}]}",
    ],
)
def test_service_without_cluster_address_has_no_frontends(spec: str) -> None:
    """Headless and ExternalName services are names, not addresses."""
    assert service(spec).frontends == ()


@pytest.mark.parametrize("kind", ["NodePort", "LoadBalancer"])
def test_wider_types_serve_their_cluster_address(kind: str) -> None:
    """What is inside such a service works; its node port is kept for later."""
    row = service(
        f"{{type: {kind}, clusterIP: 10.96.0.10, externalTrafficPolicy: Local, "
        "ports: [{port: 80, nodePort: 30080}]}"
    )

    assert [frontend.kind for frontend in row.frontends] == [ServiceKind.CLUSTER_IP]
    assert (row.type, row.external_policy) == (kind, TrafficPolicy.LOCAL)
    assert row.ports[0].node_port == 30080


TWO_PORTS = "ports: [{name: tcp, port: 53}, {name: udp, port: 53, protocol: UDP}]"
BALANCER = "{loadBalancer: {ingress: [{ip: 192.0.2.10}, {hostname: lb.example.org}]}}"


@pytest.mark.parametrize("kind", ["ClusterIP", "NodePort", "LoadBalancer"])
def test_external_addresses_are_frontends_of_every_type(kind: str) -> None:
    """Each port at each, also where one number is a port of two protocols."""
    row = service(
        f"{{type: {kind}, clusterIP: 10.96.0.10, externalIPs: [198.51.100.7, 198.51.100.8], {TWO_PORTS}}}"
    )

    outside = [one for one in row.frontends if one.kind is ServiceKind.EXTERNAL_IP]
    assert [(str(one.addr), one.port, one.protocol) for one in outside] == [
        ("198.51.100.7", 53, "TCP"),
        ("198.51.100.7", 53, "UDP"),
        ("198.51.100.8", 53, "TCP"),
        ("198.51.100.8", 53, "UDP"),
    ]
    assert {row.port_of(one).name for one in outside} == {"tcp", "udp"}


def test_addresses_of_the_load_balancer_are_frontends() -> None:
    """Names are left to DNS."""
    row = service(f"{{type: LoadBalancer, clusterIP: 10.96.0.10, {TWO_PORTS}}}", BALANCER)

    found = [(one.kind, str(one.addr), one.protocol) for one in row.frontends[2:]]
    assert found == [(ServiceKind.LOAD_BALANCER, "192.0.2.10", protocol) for protocol in ("TCP", "UDP")]


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("LoadBalancer", "{loadBalancer: {ingress: [{ip: 192.0.2.10, ipMode: Proxy}]}}"),
        ("LoadBalancer", "{loadBalancer: {ingress: null}}"),
        ("LoadBalancer", "{loadBalancer: {}}"),
        ("LoadBalancer", "{}"),
        ("NodePort", BALANCER),
        ("ClusterIP", BALANCER),
    ],
)
def test_what_is_no_address_of_ours_is_left_alone(kind: str, status: str) -> None:
    """A balancer that is a proxy must be gone through; a service that has none may still say where it was."""
    row = service(f"{{type: {kind}, clusterIP: 10.96.0.10, ports: [{{port: 80}}]}}", status)

    assert [one.kind for one in row.frontends] == [ServiceKind.CLUSTER_IP]


def test_an_address_is_one_frontend_however_often_it_is_written() -> None:
    """The cluster's and the load balancer's win over the external one; other families do not count."""
    row = service(
        "{type: LoadBalancer, clusterIP: 10.96.0.10, ports: [{port: 80}], externalIPs: "
        "[10.96.0.10, 192.0.2.10, 198.51.100.7, 198.51.100.7, '2001:db8::7']}",
        BALANCER,
    )

    assert [(str(one.addr), one.kind) for one in row.frontends] == [
        ("10.96.0.10", ServiceKind.CLUSTER_IP),
        ("192.0.2.10", ServiceKind.LOAD_BALANCER),
        ("198.51.100.7", ServiceKind.EXTERNAL_IP),
    ]


def test_load_balancer_without_node_ports() -> None:
    """allocateLoadBalancerNodePorts false: its addresses do without them."""
    row = service(
        "{type: LoadBalancer, clusterIP: 10.96.0.10, allocateLoadBalancerNodePorts: false, "
        "ports: [{port: 80}]}",
        BALANCER,
    )

    assert (row.ports[0].node_port, row.frontends[1].port) == (0, 80)


def test_one_service_takes_no_more_frontends_than_are_good_for_all() -> None:
    """Numbers of frontends are shared."""
    ports = ", ".join(f"{{name: p{number}, port: {number}}}" for number in range(1, 129))
    addresses = [f"198.51.100.{number}" for number in range(1, MOST_EXTERNAL // 128 + 2)]
    spec = f"{{clusterIP: 10.96.0.10, ports: [{ports}], externalIPs: [%s]}}"

    assert len(service(spec % ", ".join(addresses[1:])).frontends) == MOST_EXTERNAL + 128
    assert list(problems(service_text(spec % ", ".join(addresses)))) == ["spec.externalIPs"]


@pytest.mark.parametrize(
    ("spec", "seconds"),
    [
        ("{}", 0),
        ("{sessionAffinity: None}", 0),
        ("{sessionAffinity: ClientIP}", 10800),
        ("{sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 60}}}", 60),
    ],
)
def test_affinity_is_in_seconds(spec: str, seconds: int) -> None:
    """Three hours unless said otherwise."""
    text = (
        spec.removesuffix("}").rstrip()
        + (", " if ":" in spec else "")
        + "clusterIP: 10.96.0.1, ports: [{port: 80}]}"
    )

    assert service(text).affinity_timeout == seconds


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ("{ports: [{port: 80}]}", "spec.clusterIP"),
        ("{clusterIP: 10.96.0.300, ports: [{port: 80}]}", "spec.clusterIP"),
        ("{clusterIP: '::ffff:10.96.0.1', ports: [{port: 80}]}", "spec.clusterIP"),
        ("{clusterIP: 10.96.0.1, clusterIPs: [10.96.0.2], ports: [{port: 80}]}", "spec.clusterIPs[0]"),
        (
            "{clusterIP: 10.96.0.1, clusterIPs: [10.96.0.1, 10.96.0.2], ports: [{port: 80}]}",
            "spec.clusterIPs",
        ),
        ("{clusterIP: 10.96.0.1}", "spec.ports"),
        ("{clusterIP: 10.96.0.1, ports: [{port: 0}]}", "spec.ports[0].port"),
        ("{clusterIP: 10.96.0.1, ports: [{port: 80, targetPort: ''}]}", "spec.ports[0].targetPort"),
        ("{clusterIP: 10.96.0.1, ports: [{port: 80, targetPort: true}]}", "spec.ports[0].targetPort"),
        ("{clusterIP: 10.96.0.1, ports: [{port: 80, protocol: ICMP}]}", "spec.ports[0].protocol"),
        ("{clusterIP: 10.96.0.1, ports: [{name: a, port: 1}, {port: 2}]}", "spec.ports[1].name"),
        ("{clusterIP: 10.96.0.1, ports: [{name: a, port: 1}, {name: a, port: 2}]}", "spec.ports[1].name"),
        ("{clusterIP: 10.96.0.1, ports: [{name: a, port: 1}, {name: b, port: 1}]}", "spec.ports[1].port"),
        ("{clusterIP: 10.96.0.1, selector: {'a b': c}, ports: [{port: 1}]}", 'spec.selector["a b"]'),
        ("{clusterIP: 10.96.0.1, type: Magic, ports: [{port: 1}]}", "spec.type"),
        ("{clusterIP: 10.96.0.1, externalIPs: [10.0.0.1, x], ports: [{port: 1}]}", "spec.externalIPs[1]"),
        ("{clusterIP: 10.96.0.1, externalIPs: [10.0.0.0/8], ports: [{port: 1}]}", "spec.externalIPs[0]"),
    ],
)
def test_service_that_cannot_be_is_refused_by_field(spec: str, field: str) -> None:
    """Each mistake leads to its line."""
    assert list(problems(service_text(spec))) == [field]


@pytest.mark.parametrize(
    ("ingress", "field"),
    [
        ("[{ip: 192.0.2.1}, {ip: nowhere}]", "status.loadBalancer.ingress[1].ip"),
        ("[{ip: 192.0.2.1, ipMode: Magic}]", "status.loadBalancer.ingress[0].ipMode"),
    ],
)
def test_status_that_cannot_be_is_refused_by_field(ingress: str, field: str) -> None:
    """Nobody guesses what a controller meant."""
    spec = "{type: LoadBalancer, clusterIP: 10.96.0.10, ports: [{port: 80}]}"

    assert list(problems(service_text(spec, f"{{loadBalancer: {{ingress: {ingress}}}}}"))) == [field]


def balanced(ranges: str, annotations: str = "{}") -> str:
    """A service with a load balancer, source ranges and annotations."""
    return (
        f"{{apiVersion: v1, kind: Service, metadata: {{name: web, annotations: {annotations}}}, spec: "
        "{type: LoadBalancer, clusterIP: 10.96.0.10, ports: [{port: 80}], "
        f"loadBalancerSourceRanges: {ranges}}}}}"
    )


@pytest.mark.parametrize(
    ("annotations", "denies"),
    [
        ("{}", False),
        ("{service.cilium.io/src-ranges-policy: allow}", False),
        ("{service.cilium.io/src-ranges-policy: deny}", True),
    ],
)
def test_source_ranges_say_who_may_ask_or_who_may_not(annotations: str, denies: bool) -> None:
    """Each once, without the bits behind its length; spaces are allowed, as the API allows them."""
    ((_, _, row),) = rows(balanced("['203.0.113.7/24', ' 198.51.100.1/32 ', 203.0.113.0/24]", annotations))

    assert [str(one) for one in row.source_ranges] == ["203.0.113.0/24", "198.51.100.1/32"]
    assert row.denies_sources is denies


def test_source_ranges_are_of_load_balancers_alone() -> None:
    """The API takes them for no other type."""
    row = service("{clusterIP: 10.96.0.10, ports: [{port: 80}], loadBalancerSourceRanges: [10.0.0.0/8]}")

    assert row.source_ranges == ()


@pytest.mark.parametrize(
    ("text", "field", "message"),
    [
        (
            balanced("[10.0.0.0/8, 10.0.0.1]"),
            "spec.loadBalancerSourceRanges[1]",
            "'10.0.0.1' is not a CIDR (address/length)",
        ),
        (
            balanced("[10.0.0.0/33]"),
            "spec.loadBalancerSourceRanges[0]",
            "'10.0.0.0/33' is not a CIDR: the length does not fit the address",
        ),
        (
            balanced("[10.0.0.0/8]", "{service.cilium.io/src-ranges-policy: Deny}"),
            'metadata.annotations["service.cilium.io/src-ranges-policy"]',
            "must be allow or deny, not 'Deny'",
        ),
        (
            balanced(str([f"10.{n // 250}.{n % 250}.0/24" for n in range(MOST_RANGES + 1)])),
            "spec.loadBalancerSourceRanges",
            "has 1025 ranges, at most 1024 are possible",
        ),
    ],
    ids=["no length", "too long", "policy", "too many"],
)
def test_ranges_that_cannot_be_are_refused_with_the_service(text: str, field: str, message: str) -> None:
    """Half of the ranges would let in, or keep out, whom nobody meant."""
    assert problems(text) == {field: message}


def slice_text(body: str) -> str:
    """An EndpointSlice of service web with these fields."""
    return (
        "{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: web-x, namespace: shop, "
        f"labels: {{kubernetes.io/service-name: web}}}}, {body}}}"
    )


def backends(body: str) -> list[Any]:
    """The backends of an EndpointSlice with these fields."""
    ((table, key, row),) = rows(slice_text(body))
    assert (table, key) == ("slices", ("shop", "web-x"))
    assert isinstance(row, EndpointSliceRow)
    assert row.service_key == ("shop", "web")
    return list(row.backends)


def test_slice_gives_a_backend_per_endpoint_and_port() -> None:
    """Every endpoint answers on every port; addresses beyond the first have no meaning."""
    found = backends(
        "addressType: IPv4, "
        "endpoints: [{addresses: [10.0.0.1, 10.0.0.9], nodeName: one}, {addresses: [10.0.0.2]}], "
        "ports: [{name: http, port: 8080}, {name: dns, port: 53, protocol: UDP}, {name: any}]"
    )

    one, two = IPv4Address("10.0.0.1"), IPv4Address("10.0.0.2")
    assert found == [
        ("http", Backend(one, 8080, "TCP", "one")),
        ("dns", Backend(one, 53, "UDP", "one")),
        ("http", Backend(two, 8080, "TCP", None)),
        ("dns", Backend(two, 53, "UDP", None)),
    ]


def test_slice_tells_where_its_endpoints_are_and_whom_they_are_for() -> None:
    """Zone and hints; those that say nothing are none, and who says the same shares them."""
    hints = "{forZones: [{name: a}, {name: b}], forNodes: [{name: one}]}"
    found = backends(
        "addressType: IPv4, ports: [{port: 80}], endpoints: ["
        f"{{addresses: [10.0.0.1], zone: a, hints: {hints}}}, "
        f"{{addresses: [10.0.0.2], zone: b, hints: {hints}}}, "
        "{addresses: [10.0.0.3], hints: {forZones: [], forNodes: null}}, "
        "{addresses: [10.0.0.4], hints: null}]"
    )

    one, two, three, four = (backend for _, backend in found)
    assert (one.zone, two.zone, three.zone) == ("a", "b", "")
    assert one.hints == Hints(("a", "b"), ("one",))
    assert one.hints is two.hints
    assert three.hints is four.hints is None


def test_places_and_port_names_are_in_memory_once() -> None:
    """A hundred thousand endpoints are on a thousand nodes."""
    body = (
        "addressType: IPv4, ports: [{name: metrics-port, port: 80}], "
        "endpoints: [{addresses: [10.0.0.1], nodeName: worker-1.example, zone: zone-of-one}]"
    )

    ((name, one),), ((same_name, another),) = backends(body), backends(body)

    assert one.node is another.node
    assert one.zone is another.zone
    assert name is same_name


@pytest.mark.parametrize(
    ("text", "distribution"),
    [
        ("PreferClose", TrafficDistribution.SAME_ZONE),
        ("PreferSameZone", TrafficDistribution.SAME_ZONE),
        ("PreferSameNode", TrafficDistribution.SAME_NODE),
        ("PreferSomethingNew", None),
        ("null", None),
    ],
)
def test_distribution_is_a_wish(text: str, distribution: TrafficDistribution | None) -> None:
    """One that is not known yet is no reason to refuse a service."""
    row = service(f"{{clusterIP: 10.96.0.1, ports: [{{port: 80}}], trafficDistribution: {text}}}")

    assert row.distribution is distribution


@pytest.mark.parametrize(
    ("conditions", "state"),
    [
        ("{}", BackendState.ACTIVE),
        ("{ready: true}", BackendState.ACTIVE),
        ("{ready: null}", BackendState.ACTIVE),
        ("{ready: false}", None),
        ("{ready: false, serving: true, terminating: true}", BackendState.TERMINATING),
        ("{ready: false, terminating: true}", BackendState.TERMINATING),
        ("{ready: false, serving: false, terminating: true}", None),
        ("{ready: false, serving: true, terminating: false}", None),
    ],
)
def test_conditions_decide_what_a_backend_is_fit_for(conditions: str, state: BackendState | None) -> None:
    """Unknown counts as ready and serving; who is neither gets nothing."""
    found = backends(
        f"addressType: IPv4, endpoints: [{{addresses: [10.0.0.1], conditions: {conditions}}}], "
        "ports: [{port: 80}]"
    )

    assert [backend.state for _, backend in found] == ([] if state is None else [state])


def test_slice_of_no_service_gives_no_row() -> None:
    """A slice without the service's name belongs to nobody; host names are not served."""
    assert (
        rows("{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: x}, addressType: IPv4}")
        == []
    )
    assert rows(slice_text("addressType: FQDN, endpoints: [{addresses: [example.org]}]")) == []


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ("addressType: IPv5", "addressType"),
        ("addressType: IPv4, endpoints: [{addresses: []}]", "endpoints[0].addresses"),
        ("addressType: IPv4, endpoints: [{addresses: [x]}]", "endpoints[0].addresses[0]"),
        ("addressType: IPv6, endpoints: [{addresses: [10.0.0.1]}]", "endpoints[0].addresses[0]"),
        ("addressType: IPv4, ports: [{port: 70000}]", "ports[0].port"),
    ],
)
def test_slice_that_cannot_be_is_refused_by_field(body: str, field: str) -> None:
    """Each mistake leads to its line."""
    assert list(problems(slice_text(body))) == [field]


def test_labels_say_who_serves_a_service() -> None:
    """Nobody a headless one, whatever it says else; otherwise the proxy that is named."""
    spec = "{clusterIP: 10.96.0.7, externalIPs: [192.0.2.7], ports: [{port: 80}]}"

    def labelled(label: str) -> Service:
        text = service_text(spec).replace("namespace: shop", f"namespace: shop, labels: {{{label}}}")
        ((_, _, row),) = rows(text)
        assert isinstance(row, Service)
        return row

    assert (len(labelled("").frontends), labelled("").proxy) == (2, "")
    headless = "service.kubernetes.io/headless: '', service.kubernetes.io/service-proxy-name: mesh"
    assert labelled(headless).proxy == "service.kubernetes.io/headless"
    assert labelled("service.kubernetes.io/service-proxy-name: mesh").proxy == "mesh"
