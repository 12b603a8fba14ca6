# SPDX-License-Identifier: Apache-2.0
"""Services nobody wrote slices for: their backends are the local pods they select."""

from ipaddress import ip_address

import pytest

from ciliumd.desired.slices import derived_slices
from ciliumd.model.service import Backend, BackendState, Service, ServicePort
from ciliumd.tables import EndpointSliceRow, PodRow
from unit.desired.worlds import backend, endpoint, endpoint_slice, pod, service

pytestmark = pytest.mark.unit

SELECT_WEB = (("app", "web"),)


def derived(one: Service, pods: list[PodRow], slices: tuple[EndpointSliceRow, ...] = ()) -> list[Backend]:
    """The backends derived for *one* when pod n is endpoint n."""
    rows = derived_slices(
        [one],
        slices,
        {(row.namespace, row.name): row for row in pods},
        [endpoint(number, pod=row.name) for number, row in enumerate(pods, 1)],
        node="one",
    )
    return [found for row in rows.values() for _, found in row.backends]


def test_selected_pods_are_backends() -> None:
    """All labels of the selector must be there; other pods and other labels do not matter."""
    one = service("web", "10.96.0.1", selector=(("app", "web"), ("tier", "front")))
    pods = [
        pod("a", {"app": "web", "tier": "front", "x": "y"}),
        pod("b", {"app": "web"}),
        pod("c", {"app": "web", "tier": "front"}),
    ]

    assert derived(one, pods) == [backend("10.0.0.1"), backend("10.0.0.3")]


def test_derived_slice_belongs_to_its_service_and_to_no_object() -> None:
    """Its name is none an object could have."""
    rows = derived_slices(
        [service("web", "10.96.0.1", selector=SELECT_WEB)],
        [],
        {("shop", "a"): pod("a", {"app": "web"})},
        [endpoint(1, pod="a")],
    )

    assert list(rows) == [("shop", "web/derived")]
    assert rows["shop", "web/derived"].service_key == ("shop", "web")


def test_service_with_a_slice_of_its_own_is_left_alone() -> None:
    """Whoever writes slices, even empty ones, knows better."""
    one = service("web", "10.96.0.1", selector=SELECT_WEB)

    assert derived(one, [pod("a", {"app": "web"})], (endpoint_slice("web"),)) == []
    assert derived(one, [pod("a", {"app": "web"})], (endpoint_slice("other"),)) == [backend("10.0.0.1")]


def test_service_without_selector_gets_nothing() -> None:
    """An empty selector selects nobody: its endpoints are somebody's to write."""
    assert derived(service("web", "10.96.0.1"), [pod("a", {"app": "web"})]) == []


def test_pods_of_other_namespaces_are_not_selected() -> None:
    """A service selects in its own namespace."""
    rows = derived_slices(
        [service("web", "10.96.0.1", selector=SELECT_WEB)],
        [],
        {("other", "a"): pod("a", {"app": "web"})},
        [endpoint(1, pod="a")],
    )

    assert rows["shop", "web/derived"].backends == ()


def test_named_target_port_is_each_pods_own() -> None:
    """The same name may be another number on another pod; another protocol is not that port."""
    one = service("web", "10.96.0.1", ServicePort("http", "TCP", 80, "web"), selector=SELECT_WEB)
    pods = [
        pod("a", {"app": "web"}, named_ports={"web": ("TCP", 8080)}),
        pod("b", {"app": "web"}, named_ports={"web": ("TCP", 9090)}),
        pod("c", {"app": "web"}, named_ports={"web": ("UDP", 9090)}),
        pod("d", {"app": "web"}),
    ]

    assert derived(one, pods) == [backend("10.0.0.1"), backend("10.0.0.2", port=9090)]


def test_every_port_of_a_service_has_its_backends() -> None:
    """Port names tell them apart."""
    ports = (ServicePort("http", "TCP", 80, 8080), ServicePort("dns", "UDP", 53, 5353))
    rows = derived_slices(
        [service("web", "10.96.0.1", *ports, selector=SELECT_WEB)],
        [],
        {("shop", "a"): pod("a", {"app": "web"})},
        [endpoint(1, pod="a", ipv6="fd00::1")],
    )

    assert rows["shop", "web/derived"].backends == tuple(
        (name, Backend(ip_address(addr), port, protocol))
        for name, protocol, port in (("dns", "UDP", 5353), ("http", "TCP", 8080))
        for addr in ("10.0.0.1", "fd00::1")
    )


@pytest.mark.parametrize(
    ("ready", "terminating", "publish", "state"),
    [
        (True, False, False, BackendState.ACTIVE),
        (False, False, False, None),
        (True, True, False, BackendState.TERMINATING),
        (False, True, False, None),
        (False, False, True, BackendState.ACTIVE),
        (False, True, True, BackendState.ACTIVE),
    ],
)
def test_fitness_of_a_pod_is_that_of_its_backend(
    *, ready: bool, terminating: bool, publish: bool, state: BackendState | None
) -> None:
    """As an EndpointSlice would say it; a service may ask for pods that are not ready."""
    one = service("web", "10.96.0.1", selector=SELECT_WEB, publish_not_ready=publish)
    found = derived(one, [pod("a", {"app": "web"}, ready=ready, terminating=terminating)])

    assert [row.state for row in found] == ([] if state is None else [state])
