# SPDX-License-Identifier: Apache-2.0
"""
Services of IPv6 alone and of both families, translated by socket and per packet.

``inside`` and ``outside`` of a pod are these two kinds of people (see ``lab.pod``).
"""

from collections.abc import Iterator
from typing import Final

import pytest

from lab import manifests
from lab.kernel import chooses_errno_of_connect
from lab.node import Node
from lab.pod import Pod
from lab.waiting import eventually
from lab.world import World

pytestmark = pytest.mark.netns

VIP, VIP4 = "fd00:96::10", "10.96.0.10"
EMPTY, LONELY, STICKY = "fd00:96::11", "fd00:96::12", "fd00:96::14"
PORTS = [("TCP", 80, 8080), ("UDP", 53, 5353)]
CIDR: Final = "fd00:12::/112"
REFUSED_WITHIN = 1.0
SIDES = ["inside", "outside"]


@pytest.fixture(scope="module")
def node(world: World) -> Iterator[Node]:
    """A node whose pods have both families."""
    with Node(world, name="six", options={"enable-ipv6": "true", "pod-cidr-ipv6": CIDR}) as node:
        yield node.start()


def dual(name: str, *addresses: str, app: str, **options: int) -> manifests.Object:
    """A service with a cluster address of each family that is given."""
    made = manifests.service(name, addresses[0], {"app": app}, ports=PORTS, **options)
    made["spec"] |= {
        "clusterIPs": list(addresses),
        "ipFamilies": ["IPv6" if ":" in address else "IPv4" for address in addresses],
        "ipFamilyPolicy": "PreferDualStack" if len(addresses) > 1 else "SingleStack",
    }
    return made


@pytest.fixture(scope="module")
def backends(node: Node) -> tuple[Pod, Pod]:
    """Two pods behind 80/TCP and 53/UDP of both addresses."""
    one, two = (
        node.pod(name, {"app": "web"}).serve(tcp=(8080,), udp=(5353,), six=True)
        for name in ("web-one", "web-two")
    )
    node.apply("service-web", dual("web", VIP4, VIP, app="web"))
    for address in (f"[{VIP}]", VIP4):
        node.wait_service(f"{address}:80", 2)
        node.wait_service(f"{address}:53", 2)
    return one, two


@pytest.fixture(scope="module")
def client(node: Node, backends: tuple[Pod, Pod]) -> Pod:
    """A pod that asks."""
    del backends
    return node.pod("asker", {"app": "asker"})


@pytest.mark.parametrize("side", SIDES)
def test_each_family_reaches_a_backend_and_shows_the_service(client: Pod, side: str) -> None:
    """The client believes to speak to the service; the backend sees the client by the same family."""
    for address, own in ((VIP, client.address6), (VIP4, client.address)):
        reply = getattr(client, side).call("tcp_connect", address=address, port=80)
        assert reply["outcome"] == "answered", reply
        assert reply["answer"]["server"].startswith("web-")
        assert reply["answer"]["client"][0].endswith(own)
        assert reply["peer"][:2] == [address, 80]


@pytest.mark.parametrize("connected", [True, False], ids=["connected", "unconnected"])
@pytest.mark.parametrize("side", SIDES)
def test_udp_shows_the_service(client: Pod, side: str, connected: bool) -> None:
    """Answers come from the service's address, also for sockets that never connected; fragments, too."""
    for payload in ("hello", "f" * 4000):
        reply = getattr(client, side).call(
            "udp_exchange", address=VIP, port=53, connected=connected, payload=payload
        )
        assert reply["outcome"] == "answered", reply
        assert len(reply["answer"]["payload"]) == len(payload)
        assert reply["answer"]["client"][0] == client.address6
        assert reply["sender"][:2] == [VIP, 53]


@pytest.mark.parametrize("side", SIDES)
def test_every_backend_gets_its_share_and_much_data(client: Pod, side: str) -> None:
    """Of forty connections both backends get some; one connection stays with one, whatever it carries."""
    people = getattr(client, side)
    names = [people.call("tcp_connect", address=VIP, port=80)["answer"]["server"] for _ in range(40)]
    assert set(names) == {"web-one", "web-two"}
    kept = people.call("tcp_open", address=VIP, port=80)
    page = "x" * 200_000
    said = people.call("tcp_say", handle=kept["handle"], text=page, timeout=5.0)
    assert (said["outcome"], said.get("echo") == page) == ("answered", True)
    people.call("tcp_stop", handle=kept["handle"])


def test_client_keeps_its_backend_where_the_service_says_so(node: Node, client: Pod) -> None:
    """By socket and per packet alike: all connections of a pod go to one of the two."""
    node.apply("service-sticky", dual("sticky", STICKY, app="web", affinity_seconds=60))
    node.wait_service(f"[{STICKY}]:80", 2)
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
    assert reply["peer"][:2] == [VIP, 80]


@pytest.mark.parametrize("side", SIDES)
def test_service_without_endpoints_refuses_at_once(node: Node, client: Pod, side: str) -> None:
    """Nobody waits for a service nobody serves: TCP and UDP are refused within a second."""
    by_socket = side == "inside"
    refused = "refused" if chooses_errno_of_connect() or not by_socket else "forbidden"
    node.apply("service-empty", dual("empty", EMPTY, app="nobody"))
    node.wait_service(f"[{EMPTY}]:80", 0)
    node.wait_service(f"[{EMPTY}]:53", 0)
    people = getattr(client, side)
    tcp = people.call("tcp_connect", address=EMPTY, port=80, timeout=5.0)
    udp = people.call("udp_exchange", address=EMPTY, port=53, timeout=5.0)
    assert [tcp["outcome"], udp["outcome"]] == [refused] * 2, (tcp, udp)
    assert max(tcp["seconds"], udp["seconds"]) < REFUSED_WITHIN


@pytest.mark.parametrize("side", SIDES)
def test_pod_reaches_itself_through_its_service(node: Node, client: Pod, side: str) -> None:
    """The only backend of a service is also its client; what nobody listens for is refused."""
    del client
    key = "default/lonely"
    if key not in node.pods:
        node.pod("lonely", {"app": "lonely"}).serve(tcp=(8080,), six=True)
        node.apply("service-lonely", dual("lonely", LONELY, app="lonely"))
        node.wait_service(f"[{LONELY}]:80", 1)
        node.wait_service(f"[{LONELY}]:53", 1)
    people = getattr(node.pods[key], side)
    tcp = people.call("tcp_connect", address=LONELY, port=80)
    assert tcp["outcome"] == "answered", tcp
    assert (tcp["answer"]["server"], tcp["peer"][:2]) == ("lonely", [LONELY, 80])
    assert people.call("udp_exchange", address=LONELY, port=53)["outcome"] == "refused"


@pytest.fixture
def third(node: Node, backends: tuple[Pod, Pod]) -> Iterator[Pod]:
    """One more backend, which may go."""
    del backends
    pod = node.pod("web-three", {"app": "web"}).serve(tcp=(8080,), udp=(5353,), six=True)
    node.wait_service(f"[{VIP}]:80", 3)
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
    node.wait_service(f"[{VIP}]:80", 2)
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


def test_removed_service_leaves_nothing(node: Node, client: Pod) -> None:
    """Its addresses lead nowhere and no row of them stays."""

    def rows() -> str:
        return str([node.agent.get(f"map/cilium_lb_{name}_v1") for name in ("services", "revnat")])

    assert VIP in rows()
    node.delete("service-web")
    eventually(lambda: VIP not in rows() and VIP4 not in rows(), "no row of the removed service")
    assert client.outside.call("tcp_connect", address=VIP, port=80, timeout=0.4)["outcome"] != "answered"
