# SPDX-License-Identifier: Apache-2.0
"""
ClusterIP services, translated by socket for those in the control group and per packet for others.

``inside`` and ``outside`` of a pod are these two kinds of people (see ``lab.pod``).
"""

from collections.abc import Iterator

import pytest

from lab import manifests
from lab.kernel import chooses_errno_of_connect
from lab.node import Node
from lab.pod import Pod
from lab.waiting import eventually
from lab.world import World

pytestmark = pytest.mark.netns

VIP = "10.96.0.10"
EMPTY = "10.96.0.11"
LONELY = "10.96.0.12"
ABROAD = "10.96.0.13"
STICKY = "10.96.0.14"
REFUSED_WITHIN = 1.0
SIDES = ["inside", "outside"]


@pytest.fixture(scope="module")
def backends(node: Node) -> tuple[Pod, Pod]:
    """Two pods behind 10.96.0.10: 80/TCP to 8080 and 53/UDP to 5353."""
    pods = tuple(
        node.pod(name, {"app": "web"}).serve(tcp=(8080,), udp=(5353,)) for name in ("web-one", "web-two")
    )
    node.apply(
        "service-web",
        manifests.service("web", VIP, {"app": "web"}, ports=[("TCP", 80, 8080), ("UDP", 53, 5353)]),
    )
    node.wait_service(f"{VIP}:80", 2)
    node.wait_service(f"{VIP}:53", 2)
    return pods[0], pods[1]


@pytest.fixture(scope="module")
def client(node: Node, backends: tuple[Pod, Pod]) -> Pod:
    """A pod that asks."""
    del backends
    return node.pod("asker", {"app": "asker"})


@pytest.mark.parametrize("side", SIDES)
def test_tcp_reaches_a_backend_and_shows_the_service(client: Pod, side: str) -> None:
    """The client believes to speak to the service; the backend sees the client itself."""
    reply = getattr(client, side).call("tcp_connect", address=VIP, port=80)

    assert reply["outcome"] == "answered", reply
    assert reply["answer"]["server"].startswith("web-")
    assert reply["answer"]["client"][0] == client.address
    assert reply["peer"] == [VIP, 80]


@pytest.mark.parametrize("connected", [True, False], ids=["connected", "unconnected"])
@pytest.mark.parametrize("side", SIDES)
def test_udp_reaches_a_backend_and_shows_the_service(client: Pod, side: str, connected: bool) -> None:
    """Answers come from the service's address, also for sockets that never connected."""
    reply = getattr(client, side).call("udp_exchange", address=VIP, port=53, connected=connected)

    assert reply["outcome"] == "answered", reply
    assert reply["answer"]["server"].startswith("web-")
    assert reply["answer"]["client"][0] == client.address
    assert reply["sender"] == [VIP, 53]


@pytest.mark.parametrize("side", SIDES)
def test_every_backend_gets_its_share(client: Pod, side: str) -> None:
    """Of forty connections both backends get some."""
    people = getattr(client, side)
    names = [people.call("tcp_connect", address=VIP, port=80)["answer"]["server"] for _ in range(40)]

    assert set(names) == {"web-one", "web-two"}


def test_client_keeps_its_backend_where_the_service_says_so(node: Node, client: Pod) -> None:
    """By socket and per packet alike: all connections of a pod go to one of the two."""
    node.apply(
        "service-sticky",
        manifests.service("sticky", STICKY, {"app": "web"}, ports=[("TCP", 80, 8080)], affinity_seconds=60),
    )
    node.wait_service(f"{STICKY}:80", 2)
    replies = [
        getattr(client, side).call("tcp_connect", address=STICKY, port=80)
        for side in SIDES
        for _ in range(20)
    ]
    assert [one["outcome"] for one in replies] == ["answered"] * 40
    assert len({one["answer"]["server"] for one in replies}) == 1


def test_node_reaches_a_service(node: Node, client: Pod) -> None:
    """Processes of the node in the control group use services as pods do."""
    del client
    reply = node.inside.call("tcp_connect", address=VIP, port=80)

    assert reply["outcome"] == "answered", reply
    assert reply["peer"] == [VIP, 80]


@pytest.mark.parametrize("side", SIDES)
def test_connection_stays_with_its_backend(client: Pod, side: str) -> None:
    """All of one connection goes to one backend."""
    people = getattr(client, side)
    kept = people.call("tcp_open", address=VIP, port=80)
    replies = [people.call("tcp_say", handle=kept["handle"], text=f"line {number}") for number in range(10)]
    people.call("tcp_stop", handle=kept["handle"])

    assert [reply.get("echo") for reply in replies] == [f"line {number}" for number in range(10)]
    assert replies[-1]["peer"] == [VIP, 80]


@pytest.mark.parametrize("side", SIDES)
def test_service_without_endpoints_refuses_at_once(node: Node, client: Pod, side: str) -> None:
    """Nobody waits for a service nobody serves: TCP and UDP are refused within a second."""
    by_socket = side == "inside"
    refused = "refused" if chooses_errno_of_connect() or not by_socket else "forbidden"
    node.apply(
        "service-empty",
        manifests.service("empty", EMPTY, {"app": "nobody"}, ports=[("TCP", 80, 80), ("UDP", 53, 53)]),
    )
    node.wait_service(f"{EMPTY}:80", 0)
    node.wait_service(f"{EMPTY}:53", 0)
    people = getattr(client, side)
    tcp = people.call("tcp_connect", address=EMPTY, port=80, timeout=5.0)
    udp = people.call("udp_exchange", address=EMPTY, port=53, timeout=5.0)

    assert tcp["outcome"] == refused, tcp
    assert tcp["seconds"] < REFUSED_WITHIN
    assert udp["outcome"] == refused, udp
    assert udp["seconds"] < REFUSED_WITHIN


@pytest.mark.parametrize("side", SIDES)
def test_pod_reaches_itself_through_its_service(node: Node, client: Pod, side: str) -> None:
    """The only backend of a service is also its client."""
    del client
    key = "default/lonely"
    if key not in node.pods:
        node.pod("lonely", {"app": "lonely"}).serve(tcp=(8080,), udp=(5353,))
        node.apply(
            "service-lonely",
            manifests.service(
                "lonely", LONELY, {"app": "lonely"}, ports=[("TCP", 80, 8080), ("UDP", 53, 5353)]
            ),
        )
        node.wait_service(f"{LONELY}:80", 1)
        node.wait_service(f"{LONELY}:53", 1)
    people = getattr(node.pods[key], side)
    tcp = people.call("tcp_connect", address=LONELY, port=80)
    udp = people.call("udp_exchange", address=LONELY, port=53)

    assert tcp["outcome"] == "answered", tcp
    assert tcp["answer"]["server"] == "lonely"
    assert tcp["peer"] == [LONELY, 80]
    assert udp["outcome"] == "answered", udp
    assert udp["sender"] == [LONELY, 53]


@pytest.mark.parametrize("side", SIDES)
def test_backends_from_an_endpointslice(node: Node, world: World, client: Pod, side: str) -> None:
    """A service without selector is served by its EndpointSlice; a far backend is masqueraded."""
    if side == SIDES[0]:
        world.actor.call("serve_tcp", name="abroad", port=9090, address=world.far)
        service = manifests.service("abroad", ABROAD, {}, ports=[("TCP", 80, 9090)])
        del service["spec"]["selector"]
        node.apply(
            "service-abroad",
            service,
            {
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {
                    "name": "abroad-1",
                    "namespace": "default",
                    "labels": {"kubernetes.io/service-name": "abroad"},
                },
                "addressType": "IPv4",
                "ports": [{"name": "tcp-80", "port": 9090, "protocol": "TCP"}],
                "endpoints": [{"addresses": [world.far], "conditions": {"ready": True}}],
            },
        )
        node.wait_service(f"{ABROAD}:80", 1)
    reply = getattr(client, side).call("tcp_connect", address=ABROAD, port=80)

    assert reply["outcome"] == "answered", reply
    assert reply["answer"]["server"] == "abroad"
    assert reply["answer"]["client"][0] == node.address
    assert reply["peer"] == [ABROAD, 80]


@pytest.fixture
def third(node: Node, backends: tuple[Pod, Pod]) -> Iterator[Pod]:
    """One more backend, which may go."""
    del backends
    pod = node.pod("web-three", {"app": "web"}).serve(tcp=(8080,), udp=(5353,))
    node.wait_service(f"{VIP}:80", 3)
    yield pod
    if pod.key in node.pods:
        node.remove_pod(pod)


@pytest.mark.parametrize("side", SIDES)
def test_removed_backend_is_not_asked_any_more(node: Node, client: Pod, third: Pod, side: str) -> None:
    """New connections go to those that are left, and connections to them go on."""
    people = getattr(client, side)
    kept = [people.call("tcp_open", address=VIP, port=80) for _ in range(40)]
    assert {one["answer"]["server"] for one in kept} >= {"web-three"}

    node.remove_pod(third)
    node.wait_service(f"{VIP}:80", 2)
    fresh = [people.call("tcp_connect", address=VIP, port=80) for _ in range(20)]
    old = [
        people.call("tcp_say", handle=one["handle"])["outcome"]
        for one in kept
        if one["answer"]["server"] != "web-three"
    ]
    for one in kept:
        people.call("tcp_stop", handle=one["handle"])

    assert {one["outcome"] for one in fresh} == {"answered"}
    assert {one["answer"]["server"] for one in fresh} == {"web-one", "web-two"}
    assert set(old) == {"answered"}


def test_changed_port_replaces_the_frontend(node: Node, client: Pod) -> None:
    """After an edit the new port answers and the old one is no service any more."""
    node.apply("service-web", manifests.service("web", VIP, {"app": "web"}, ports=[("TCP", 81, 8080)]))
    node.wait_service(f"{VIP}:81", 2)
    frontends = [service["spec"]["frontend-address"] for service in node.agent.get("service")]

    assert client.inside.call("tcp_connect", address=VIP, port=81)["outcome"] == "answered"
    assert client.outside.call("tcp_connect", address=VIP, port=81)["outcome"] == "answered"
    assert {one["port"] for one in frontends if one["ip"] == VIP} == {81}
    assert client.outside.call("tcp_connect", address=VIP, port=80, timeout=0.4)["outcome"] != "answered"


def test_removed_service_leaves_nothing(node: Node, client: Pod) -> None:
    """Its address leads nowhere and no row of it stays."""
    node.delete("service-web")
    eventually(
        lambda: (
            VIP not in str([node.agent.get(f"map/cilium_lb_{name}_v1") for name in ("services", "revnat")])
        ),
        "no row of the removed service",
    )

    assert client.outside.call("tcp_connect", address=VIP, port=81, timeout=0.4)["outcome"] != "answered"
    assert client.inside.call("tcp_connect", address=VIP, port=81, timeout=0.4)["outcome"] != "answered"
