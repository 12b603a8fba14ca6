# SPDX-License-Identifier: Apache-2.0
"""IPv6 of two nodes' pods through the tunnel, which is of IPv4: reached, judged, kept over a restart."""

import signal
from collections.abc import Iterator

import pytest

from lab.cluster import Cluster
from lab.manifests import cilium_policy, to_ports
from lab.node import Node
from lab.pod import Pod
from lab.traffic import Flood, Flow
from lab.waiting import eventually

pytestmark = pytest.mark.netns

MTU, OVERHEAD = 1500, 50
BETWEEN, RATE = 500, 1000


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two nodes whose pods have both families."""
    with Cluster(mtu=MTU, ipv6=True) as cluster:
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


def test_pods_of_two_nodes_reach_each_other(client: Pod, server: Pod) -> None:
    """With their own addresses, both ways round; IPv4 beside it."""
    eventually(lambda: client.reaches(server.address6, 80), "the server's rows are on the client's node")
    tcp, udp = client.tcp(server.address6, 80), client.udp(server.address6, 80)
    assert tcp["outcome"] == udp["outcome"] == "answered", (tcp, udp)
    assert tcp["answer"]["client"][0] == udp["answer"]["client"][0] == client.address6
    assert server.tcp(client.address6, 80)["outcome"] == "answered"
    assert client.ping(server.address6, count=3)["answered"] == 3
    assert client.tcp(server.address, 80)["outcome"] == "answered"
    assert client.tcp(server.address6, 4444)["outcome"] == "refused"
    assert client.udp(server.address6, 4444)["outcome"] == "refused"


def test_much_data_and_the_largest_packet(client: Pod, server: Pod) -> None:
    """What is merged before the tunnel is cut behind it; one byte more than fits is refused."""
    kept = client.outside.call("tcp_open", address=server.address6, port=80)
    page = "x" * 200_000
    said = client.outside.call("tcp_say", handle=kept["handle"], text=page, timeout=5.0)
    assert said.get("echo") == page, said["outcome"]
    largest = MTU - OVERHEAD - 48
    assert client.ping(server.address6, size=largest, dont_fragment=True)["answered"] == 1
    assert client.ping(server.address6, size=largest + 1, dont_fragment=True)["answered"] == 0
    assert client.udp(server.address6, 80, payload="f" * 4000)["outcome"] == "answered"


def test_nodes_and_pods_of_each_other(
    cluster: Cluster, nodes: tuple[Node, Node], client: Pod, server: Pod
) -> None:
    """By the routers' addresses."""
    near, far = nodes
    tcp = near.outside.call("tcp_connect", address=server.address6, port=80)
    assert tcp["outcome"] == "answered", tcp
    assert tcp["answer"]["client"][0] == cluster.router6(near)
    far.outside.call("serve_tcp", name="far", port=7000, address="::")
    there = client.tcp(cluster.router6(far), 7000)
    assert there["outcome"] == "answered", there
    assert there["answer"]["client"][0] == client.address6


def test_policy_and_a_restart_under_load(
    cluster: Cluster, nodes: tuple[Node, Node], client: Pod, server: Pod, stranger: Pod
) -> None:
    """The identity travels: the client may, the stranger may not, while their node's agent is killed."""
    rule = {
        "fromEndpoints": [{"matchLabels": {"app": "client"}}],
        "toPorts": to_ports((80, "TCP"), (9000, "UDP")),
    }
    spec = {"endpointSelector": {"matchLabels": {"app": "server"}}, "ingress": [rule]}
    assert stranger.reaches(server.address6, 80)
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
