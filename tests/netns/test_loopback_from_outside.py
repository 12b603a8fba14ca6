# SPDX-License-Identifier: Apache-2.0
"""
127.0.0.1 of a node from outside, where an administrator has let it in (``route_localnet``).

Nothing that a service has there is served to the world (CVE-2020-8558 and its like), and no agent lets it in.
"""

from collections.abc import Iterator

import pytest

from lab import kinds, manifests
from lab.cluster import Cluster
from lab.node import Node
from lab.pod import Pod
from lab.traffic import Flood, Flow
from lab.waiting import eventually

pytestmark = pytest.mark.netns

LOOPBACK, HOST_PORT, CLAIMED, PORT, OWN = "127.0.0.1", 8099, 8098, 9000, 9001
COUNT = 200
KERNELS = ("dev", "lo", "proto", "kernel", "scope", "host", "src", LOOPBACK, "table", "local")


@pytest.fixture
def hosted() -> Iterator[tuple[Node, Pod]]:
    """A pod with a host port, which a service that claims the loopback address would lead to, too."""
    with Cluster() as cluster:
        cluster.start()
        node = cluster.nodes[0]
        pod = cluster.pod(node, "hosted", {"app": "hosted"}).serve(tcp=(PORT,))
        manifest = manifests.pod("hosted", {"app": "hosted"})
        manifest["spec"]["containers"][0]["ports"] = [
            {"containerPort": PORT, "hostPort": HOST_PORT, "protocol": protocol}
            for protocol in ("TCP", "UDP")
        ]
        node.apply("pod-default-hosted", manifest)
        ports = [("UDP", CLAIMED, PORT)]
        cluster.apply(
            "claim",
            kinds.service("claim", "10.96.0.72", ports=ports, externalIPs=[LOOPBACK]),
            kinds.endpoints("claim", kinds.endpoint(pod.address, node.name), ports=ports),
        )
        node.wait_service(f"{LOOPBACK}:{HOST_PORT}", 1)
        node.wait_service(f"10.96.0.72:{CLAIMED}", 1)
        yield node, pod


def test_loopback_is_nothing_from_outside(hosted: tuple[Node, Pod]) -> None:
    """The world reaches what the node itself has there, and neither a host port nor what a service claims."""
    node, pod = hosted
    world = node.world
    assert node.inside.call("tcp_connect", address=LOOPBACK, port=HOST_PORT)["outcome"] == "answered"
    for device in ("all", "default", "eth0", "cilium_host", "cilium_net"):
        found = node.netns.sysctl(f"net/ipv4/conf/{device}/route_localnet")
        assert found == "0", f"the agent lets loopback in by {device}"
    # The world's own loopback makes room, so that its packets leave.
    for network in (LOOPBACK, "127.0.0.0/8"):
        world.netns.ip("route", "del", "local", network, *KERNELS)
    for one in (world.netns, node.netns):
        one.sysctl("net/ipv4/conf/all/route_localnet", "1")
    world.add_route(f"{LOOPBACK}/32", node.address)

    own = [Flow("the node's own", LOOPBACK, OWN, OWN)]
    to_pod = [Flow("host port", LOOPBACK, HOST_PORT, PORT), Flow("claimed", LOOPBACK, CLAIMED, PORT)]
    node_port = [Flow("host port of the node", node.address, HOST_PORT, PORT)]
    fates = {}
    for receiver, flows in ((node.outside, own), (pod.outside, to_pod), (pod.outside, node_port)):
        with Flood(world.actor, receiver, flows).start(limit=COUNT) as flood:
            flood.wait()
            fates |= flood.stop()
    received = {name: fate.received for name, fate in fates.items()}
    # Controls: the way is open and leads to this node, and the pod takes what is for its host port.
    assert (received["the node's own"], received["host port of the node"]) == (COUNT, COUNT), received
    assert (received["host port"], received["claimed"]) == (0, 0), received
    eventually(node.agent.healthy, "all is well")
