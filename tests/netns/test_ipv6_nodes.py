# SPDX-License-Identifier: Apache-2.0
"""
IPv6 of two nodes' pods: reached, judged, kept over a restart.

Pods of both families have a tunnel, which is of IPv4; nodes without IPv4 have one of IPv6, or the routes of
the network between them.
"""

import signal
from collections.abc import Iterator
from typing import Any, Final

import pytest

from lab import kinds
from lab.cluster import Cluster
from lab.manifests import cilium_policy, to_ports
from lab.node import Node
from lab.pod import Pod
from lab.traffic import Flood, Flow
from lab.waiting import eventually

pytestmark = pytest.mark.netns

MTU, IP_ICMP_HEADERS = 1500, 48
OVERHEAD: Final = {"dual": 50, "tunnel": 70, "native": 0}
BETWEEN, RATE = 500, 1000
BALANCER, CLUSTER_IP, NODE_PORT = "2001:db8:42::8", "fd00:96::20", 30053
PORTS = [("TCP", 53, 80), ("UDP", 53, 80)]
SETTINGS: Final[dict[str, dict[str, Any]]] = {
    "dual": {"ipv6": True},
    "tunnel": {"ipv4": False},
    "native": {
        "ipv4": False,
        "options": {"routing-mode": "native", "ipv6-native-routing-cidr": "fd00::/16"},
    },
}


@pytest.fixture(scope="module", params=list(SETTINGS))
def mode(request: pytest.FixtureRequest) -> str:
    """How pods of other nodes are reached."""
    return str(request.param)


@pytest.fixture(scope="module")
def cluster(mode: str) -> Iterator[Cluster]:
    """Two nodes; in mode native the network has routes to their pods."""
    with Cluster(mtu=MTU, **SETTINGS[mode]) as cluster:
        if mode == "native":
            for node in cluster.nodes:
                cluster.world.add_route(node.pod_cidr, node.address)
        yield cluster.start()


@pytest.fixture(scope="module")
def nodes(cluster: Cluster) -> tuple[Node, Node]:
    """The client's and the server's."""
    near, far = cluster.nodes
    return near, far


@pytest.fixture(scope="module")
def client(cluster: Cluster, nodes: tuple[Node, Node]) -> Pod:
    """Asks."""
    return cluster.pod(nodes[0], "client", {"app": "client"}).serve(tcp=(80,), six=True)


@pytest.fixture(scope="module")
def stranger(cluster: Cluster, nodes: tuple[Node, Node]) -> Pod:
    """Asks too, under another name."""
    return cluster.pod(nodes[0], "stranger", {"app": "stranger"})


@pytest.fixture(scope="module")
def server(cluster: Cluster, nodes: tuple[Node, Node]) -> Pod:
    """Answers on the other node."""
    return cluster.pod(nodes[1], "server", {"app": "server"}).serve(tcp=(80, 81), udp=(80,), six=True)


@pytest.fixture(scope="module")
def served(cluster: Cluster, nodes: tuple[Node, Node], server: Pod) -> None:
    """The server is behind a service of every kind."""
    service = kinds.service("all", CLUSTER_IP, ports=PORTS, kind="LoadBalancer", balancer=[BALANCER])
    for port in service["spec"]["ports"]:
        port["nodePort"] = NODE_PORT
    found = [kinds.endpoint(server.address6, nodes[1].name)]
    cluster.apply("all", service, kinds.endpoints("all", *found, ports=PORTS))
    for node in nodes:
        node.wait_service(f"[{BALANCER}]:53", 1)


def test_pods_of_two_nodes_reach_each_other(mode: str, client: Pod, server: Pod) -> None:
    """With their own addresses, both ways round; IPv4 beside it, or none."""
    eventually(lambda: client.reaches(server.address6, 80), "the server's rows are on the client's node")
    tcp, udp = client.tcp(server.address6, 80), client.udp(server.address6, 80)
    assert tcp["outcome"] == udp["outcome"] == "answered", (tcp, udp)
    assert tcp["answer"]["client"][0] == udp["answer"]["client"][0] == client.address6
    assert server.tcp(client.address6, 80)["outcome"] == "answered"
    assert client.ping(server.address6, count=3)["answered"] == 3
    assert client.tcp(server.address6, 4444)["outcome"] == "refused"
    assert client.udp(server.address6, 4444)["outcome"] == "refused"
    if mode == "dual":
        assert client.tcp(server.address, 80)["outcome"] == "answered"
    else:
        assert (client.address, server.address) == ("", "")


def test_much_data_and_the_largest_packet(mode: str, client: Pod, server: Pod) -> None:
    """What is merged before the tunnel is cut behind it; one byte more than fits is refused."""
    kept = client.outside.call("tcp_open", address=server.address6, port=80)
    page = "x" * 200_000
    said = client.outside.call("tcp_say", handle=kept["handle"], text=page, timeout=5.0)
    assert said.get("echo") == page, said["outcome"]
    largest = MTU - OVERHEAD[mode] - IP_ICMP_HEADERS
    assert client.ping(server.address6, size=largest, dont_fragment=True)["answered"] == 1
    assert client.ping(server.address6, size=largest + 1, dont_fragment=True)["answered"] == 0
    assert client.udp(server.address6, 80, payload="f" * 4000)["outcome"] == "answered"


def test_nodes_and_pods_of_each_other(
    mode: str, cluster: Cluster, nodes: tuple[Node, Node], client: Pod, server: Pod
) -> None:
    """Through a tunnel by the routers' addresses; where nodes have IPv6 by their own addresses, too."""
    near, far = nodes
    tunnelled = mode != "native"
    tcp = near.outside.call("tcp_connect", address=server.address6, port=80)
    assert tcp["outcome"] == "answered", tcp
    assert tcp["answer"]["client"][0] == (cluster.router6(near) if tunnelled else near.address)
    far.outside.call("serve_tcp", name="far", port=7000, address="::")
    if tunnelled:
        there = client.tcp(cluster.router6(far), 7000)
        assert there["outcome"] == "answered", there
        assert there["answer"]["client"][0] == client.address6
    if mode != "dual":
        there = client.tcp(far.address, 7000)
        assert there["outcome"] == "answered", there
        # Hidden in a tunnel a pod comes with its node's address: the network has no way back to it.
        assert there["answer"]["client"][0] == (near.address if tunnelled else client.address6)


@pytest.mark.usefixtures("served")
@pytest.mark.parametrize("mode", ["tunnel", "native"], indirect=True)
def test_node_ports_lead_to_the_other_node(cluster: Cluster, nodes: tuple[Node, Node], client: Pod) -> None:
    """From the world and from pods, by either node, where nodes have IPv6."""
    for node in nodes:
        cluster.world.add_route(f"{BALANCER}/128", node.address)
        for address, port in ((BALANCER, 53), (node.address, NODE_PORT)):
            tcp = cluster.world.actor.call("tcp_connect", address=address, port=port)
            udp = cluster.world.actor.call("udp_exchange", address=address, port=port, payload="f" * 1200)
            assert [tcp["outcome"], udp["outcome"]] == ["answered"] * 2, (node.name, tcp, udp)
            assert (tcp["peer"][:2], udp["sender"][:2]) == ([address, port], [address, port])
    for side in (client.inside, client.outside):
        assert side.call("tcp_connect", address=CLUSTER_IP, port=53)["outcome"] == "answered"


def test_policy_and_a_restart_under_load(
    cluster: Cluster, nodes: tuple[Node, Node], client: Pod, server: Pod, stranger: Pod
) -> None:
    """The identity is known over there: the client may, the stranger may not, while an agent is killed."""
    rule = {
        "fromEndpoints": [{"matchLabels": {"app": "client"}}],
        "toPorts": to_ports((80, "TCP"), (9000, "UDP")),
    }
    spec = {"endpointSelector": {"matchLabels": {"app": "server"}}, "ingress": [rule]}
    eventually(lambda: stranger.reaches(server.address6, 80), "the stranger may, before there is a policy")
    before = nodes[1].policy_revision()
    cluster.apply("server", cilium_policy("server", spec))
    nodes[1].wait_policy_after(before)
    assert client.reaches(server.address6, 80)
    assert not stranger.reaches(server.address6, 80)
    assert not client.reaches(server.address6, 81)
    may = [Flow("may", server.address6, 9000, 9000, rate=RATE)]
    may_not = [Flow("may not", server.address6, 9001, 9001, rate=RATE)]
    with (
        Flood(client.outside, server.outside, may).start() as flood,
        Flood(stranger.outside, server.outside, may_not).start() as kept_out,
    ):
        flood.wait_sent(BETWEEN)
        nodes[0].agent.restart(signal.SIGKILL)
        flood.wait_sent(BETWEEN)
        fates = flood.stop() | kept_out.stop()
    assert fates["may"].lost == 0, str(fates["may"])
    assert fates["may not"].received == 0, str(fates["may not"])
