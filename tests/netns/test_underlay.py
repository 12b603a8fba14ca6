# SPDX-License-Identifier: Apache-2.0
"""A tunnel of one family for pods of another: both over IPv6, and IPv6 alone over IPv4."""

from collections.abc import Iterator
from typing import Final, NamedTuple

import pytest

from lab.cluster import Cluster
from lab.manifests import cilium_policy, to_ports
from lab.pod import Pod
from lab.waiting import eventually

pytestmark = pytest.mark.netns

MTU: Final = 1500
HEADERS: Final = {4: 28, 6: 48}


class Way(NamedTuple):
    """Options of the agents, bytes the tunnel takes, and the families that pods have."""

    options: dict[str, str]
    overhead: int
    families: tuple[int, ...]


WAYS: Final = {
    "both over IPv6": Way({"underlay-protocol": "ipv6"}, 70, (4, 6)),
    "IPv6 over IPv4": Way({"underlay-protocol": "ipv4", "enable-ipv4": "false"}, 50, (6,)),
}


@pytest.fixture(scope="module", params=WAYS)
def way(request: pytest.FixtureRequest) -> Way:
    """Which."""
    return WAYS[request.param]


@pytest.fixture(scope="module")
def cluster(way: Way) -> Iterator[Cluster]:
    """Two nodes that have an InternalIP of each family."""
    with Cluster(mtu=MTU, ipv6=True, options=way.options) as cluster:
        world = cluster.world.netns
        world.sysctl("net/ipv6/conf/all/forwarding", "1")
        for number, node in enumerate(cluster.nodes, 1):
            gateway, own = f"2001:db8:10{number}::1", f"2001:db8:10{number}::2"
            world.ip("address", "add", f"{gateway}/64", "dev", f"node{number}", "nodad")
            node.netns.ip("address", "add", f"{own}/64", "dev", "eth0", "nodad")
            node.netns.ip("route", "add", "default", "via", gateway, "dev", "eth0")
            cluster.also[node.name] = own
        yield cluster.start()


@pytest.fixture(scope="module")
def pods(cluster: Cluster) -> tuple[Pod, Pod, Pod]:
    """A client and a stranger on the first node, a server on the second."""
    near, far = cluster.nodes
    return (
        cluster.pod(near, "client", {"app": "client"}).serve(tcp=(80,), six=True),
        cluster.pod(near, "stranger", {"app": "stranger"}),
        cluster.pod(far, "server", {"app": "server"}).serve(tcp=(80,), udp=(80,), six=True),
    )


def address(pod: Pod, family: int) -> str:
    """Its address of a family."""
    return pod.address if family == 4 else pod.address6


def test_pods_reach_each_other(cluster: Cluster, way: Way, pods: tuple[Pod, Pod, Pod]) -> None:
    """By each family they have, under their own addresses, and as large as the tunnel takes."""
    client, _, server = pods
    assert bool(server.address) == (4 in way.families)
    for family in way.families:
        there, back = address(server, family), address(client, family)
        eventually(
            lambda there=there: client.reaches(there, 80), "the server's rows are on the client's node"
        )
        tcp, udp = client.tcp(there, 80), client.udp(there, 80, payload="f" * 4000)
        assert tcp["outcome"] == udp["outcome"] == "answered", (tcp, udp)
        assert tcp["answer"]["client"][0].endswith(back)
        assert server.reaches(back, 80)
        largest = MTU - way.overhead - HEADERS[family]
        assert client.ping(there, size=largest, dont_fragment=True)["answered"] == 1
        assert client.ping(there, size=largest + 1, dont_fragment=True)["answered"] == 0
        node = cluster.nodes[0].outside.call("tcp_connect", address=there, port=80)
        assert node["outcome"] == "answered", node


def test_policy_judges_who_sent(cluster: Cluster, way: Way, pods: tuple[Pod, Pod, Pod]) -> None:
    """By identity, whichever family carries it in which."""
    client, stranger, server = pods
    rule = {"fromEndpoints": [{"matchLabels": {"app": "client"}}], "toPorts": to_ports((80, "TCP"))}
    spec = {"endpointSelector": {"matchLabels": {"app": "server"}}, "ingress": [rule]}
    far = cluster.nodes[1]
    before = far.policy_revision()
    cluster.apply("server", cilium_policy("server", spec))
    far.wait_policy_after(before)
    for family in way.families:
        assert client.reaches(address(server, family), 80)
        assert not stranger.reaches(address(server, family), 80)
