# SPDX-License-Identifier: Apache-2.0
"""Services and EndpointSlices become frontends and backends."""

from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest

from ciliumd.model.service import (
    Backend,
    BackendState,
    Frontend,
    Service,
    ServiceKind,
    ServicePort,
    TrafficPolicy,
)
from ciliumd.tables import EndpointSliceRow
from unit.resources.documents import problems, rows

pytestmark = pytest.mark.unit


def service_text(spec: str) -> str:
    """A Service with this spec."""
    return f"{{apiVersion: v1, kind: Service, metadata: {{name: web, namespace: shop}}, spec: {spec}}}"


def service(spec: str) -> Service:
    """The row of a Service with this spec."""
    ((table, key, row),) = rows(service_text(spec))
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
        "ports: [{port: 80, nodePort: 30080}], status: {}}"
    )

    assert [frontend.kind for frontend in row.frontends] == [ServiceKind.CLUSTER_IP]
    assert (row.type, row.external_policy) == (kind, TrafficPolicy.LOCAL)
    assert row.ports[0].node_port == 30080


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
    ],
)
def test_service_that_cannot_be_is_refused_by_field(spec: str, field: str) -> None:
    """Each mistake leads to its line."""
    assert list(problems(service_text(spec))) == [field]


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
