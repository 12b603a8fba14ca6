# SPDX-License-Identifier: Apache-2.0
"""Pods of two nodes reach each other through the tunnel, by name of who they are, to the byte."""

import signal
from collections.abc import Iterator

import pytest

from lab import manifests
from lab.cluster import Cluster
from lab.node import Node
from lab.pod import Pod
from lab.waiting import eventually

pytestmark = pytest.mark.netns

MTU, OVERHEAD = 1500, 50
PAGE = "x" * 200_000
WEB, NODE_PORT = "10.96.0.10", 30080


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two nodes, agents running."""
    with Cluster(mtu=MTU) as cluster:
        yield cluster.start()


@pytest.fixture(scope="module")
def near(cluster: Cluster) -> Node:
    """The client's node."""
    return cluster.nodes[0]


@pytest.fixture(scope="module")
def far(cluster: Cluster) -> Node:
    """The server's node."""
    return cluster.nodes[1]


@pytest.fixture(scope="module")
def client(cluster: Cluster, near: Node) -> Pod:
    """Asks."""
    return cluster.pod(near, "client", {"app": "client"}).serve(tcp=(80,))


@pytest.fixture(scope="module")
def stranger(cluster: Cluster, near: Node) -> Pod:
    """Asks too, under another name."""
    return cluster.pod(near, "stranger", {"app": "stranger"})


@pytest.fixture(scope="module")
def server(cluster: Cluster, far: Node) -> Pod:
    """Answers on the other node."""
    return cluster.pod(far, "server", {"app": "server"}).serve(tcp=(80, 8080), udp=(80,))


def test_pods_of_two_nodes_reach_each_other(client: Pod, server: Pod) -> None:
    """TCP, UDP and ping arrive with the client's own address, both ways round."""
    tcp, back, udp = (
        client.tcp(server.address, 80),
        server.tcp(client.address, 80),
        client.udp(server.address, 80),
    )

    assert tcp["outcome"] == back["outcome"] == udp["outcome"] == "answered", (tcp, back, udp)
    assert tcp["answer"]["client"][0] == udp["answer"]["client"][0] == client.address
    assert back["answer"]["client"][0] == server.address
    assert client.ping(server.address, count=3)["answered"] == 3


def test_much_data_arrives_whole(client: Pod, server: Pod) -> None:
    """What is merged before the tunnel is cut behind it."""
    kept = client.outside.call("tcp_open", address=server.address, port=80)
    said = client.outside.call("tcp_say", handle=kept["handle"], text=PAGE, timeout=5.0)
    client.outside.call("tcp_stop", handle=kept["handle"])

    assert said["echo"] == PAGE


def test_the_tunnel_takes_its_bytes_exactly(client: Pod, server: Pod) -> None:
    """The largest packet that fits goes in one piece; one byte more is refused, or goes in pieces."""
    largest = MTU - OVERHEAD - 28

    assert client.ping(server.address, size=largest, dont_fragment=True)["answered"] == 1
    assert client.ping(server.address, size=largest + 1, dont_fragment=True)["answered"] == 0
    assert client.ping(server.address, size=largest + 1)["answered"] == 1
    assert client.udp(server.address, 80, payload="f" * 4000)["outcome"] == "answered"


def test_closed_port_over_there_refuses(client: Pod, server: Pod) -> None:
    """RST and ICMP errors travel the tunnel too."""
    assert client.tcp(server.address, 4444)["outcome"] == "refused"
    assert client.udp(server.address, 4444)["outcome"] == "refused"


def test_node_and_pods_of_the_other_node(
    cluster: Cluster, near: Node, far: Node, client: Pod, server: Pod
) -> None:
    """A node reaches the other's pods by its router address; pods reach the other node as their node."""
    tcp = near.outside.call("tcp_connect", address=server.address, port=80)
    far.outside.call("serve_tcp", name="far", port=7000)
    there, router = client.tcp(far.address, 7000), client.tcp(cluster.router(far), 7000)

    assert tcp["outcome"] == "answered", tcp
    assert tcp["answer"]["client"][0] == cluster.router(near)
    assert there["outcome"] == "answered", there
    assert there["answer"]["client"][0] == near.address
    assert router["outcome"] == "answered", router
    assert router["answer"]["client"][0] == client.address


def test_policy_knows_who_asks_from_the_other_node(
    cluster: Cluster, far: Node, client: Pod, stranger: Pod, server: Pod
) -> None:
    """The identity travels with the packet."""
    assert stranger.reaches(server.address, 80)
    far.apply_policy("only-client", _only_client())
    try:
        assert client.reaches(server.address, 80)
        assert not stranger.reaches(server.address, 80)
    finally:
        far.delete_policy("only-client")
    assert stranger.reaches(server.address, 80)


def test_the_next_agent_knows_who_asks_from_the_other_node(
    cluster: Cluster, far: Node, client: Pod, stranger: Pod, server: Pod
) -> None:
    """No pod of its node has these identities: their objects alone say whose they are."""
    far.apply_policy("only-client", _only_client())
    try:
        far.agent.restart(signal.SIGKILL)
        assert client.reaches(server.address, 80)
        assert not stranger.reaches(server.address, 80)
    finally:
        far.delete_policy("only-client")


def test_remote_node_is_an_entity(cluster: Cluster, near: Node, far: Node, client: Pod, server: Pod) -> None:
    """The other node's own packets are its own, not its pods'."""
    far.apply_policy(
        "only-nodes",
        manifests.cilium_policy(
            "only-nodes",
            {
                "endpointSelector": {"matchLabels": {"app": "server"}},
                "ingress": [{"fromEntities": ["remote-node"]}],
            },
        ),
    )
    try:
        assert near.outside.call("tcp_connect", address=server.address, port=80)["outcome"] == "answered"
        assert not client.reaches(server.address, 80)
    finally:
        far.delete_policy("only-nodes")


def test_a_pod_nobody_published_yet_is_reached(cluster: Cluster, far: Node, client: Pod) -> None:
    """Its node's pod network says where it is, and the packet says whose it is."""
    fresh = cluster.pod(far, "fresh", {"app": "fresh"}, published=False).serve(tcp=(80,))

    assert client.reaches(fresh.address, 80)
    assert fresh.tcp(client.address, 80)["outcome"] == "answered"


def test_node_port_of_either_node(cluster: Cluster, near: Node, far: Node, client: Pod, server: Pod) -> None:
    """From the world, by the backend's own node and by the other one; the far backend sees the node."""
    cluster.apply("web", *_web(server))
    for node in cluster.nodes:
        node.wait_service(f"{node.address}:{NODE_PORT}", 1)
    actor = cluster.world.actor
    own = actor.call("tcp_connect", address=far.address, port=NODE_PORT)
    other = actor.call("tcp_connect", address=near.address, port=NODE_PORT)
    udp = actor.call("udp_exchange", address=near.address, port=NODE_PORT)

    assert own["outcome"] == "answered", own
    assert own["answer"]["client"][0] == cluster.world.far or own["answer"]["client"][0].startswith(
        "192.168."
    )
    assert other["outcome"] == "answered", other
    assert other["answer"]["client"][0] == cluster.router(near)
    assert udp["outcome"] == "answered", udp
    assert client.inside.call("tcp_connect", address=near.address, port=NODE_PORT)["outcome"] == "answered"
    assert client.tcp(near.address, NODE_PORT)["outcome"] == "answered"
    assert client.tcp(WEB, 80)["outcome"] == "answered"


def test_cut_off_is_not_forgotten(cluster: Cluster, near: Node, client: Pod, server: Pod) -> None:
    """Connections between nodes outlive the agents of both."""
    kept = client.outside.call("tcp_open", address=server.address, port=80)
    for node in cluster.nodes:
        node.agent.restart()
    said = client.outside.call("tcp_say", handle=kept["handle"], timeout=5.0)
    client.outside.call("tcp_stop", handle=kept["handle"])

    assert said["outcome"] == "answered"
    eventually(lambda: client.reaches(server.address, 80), "new connections after the restart")


def _only_client() -> manifests.Object:
    return manifests.cilium_policy(
        "only-client",
        {
            "endpointSelector": {"matchLabels": {"app": "server"}},
            "ingress": [{"fromEndpoints": [{"matchLabels": {"app": "client"}}]}],
        },
    )


def _web(server: Pod) -> tuple[manifests.Object, ...]:
    ports = [("TCP", 80, 8080), ("UDP", 80, 80)]
    service = manifests.service("web", WEB, {}, ports=ports)
    service["spec"]["type"] = "NodePort"
    for port in service["spec"]["ports"]:
        port["nodePort"] = NODE_PORT
    endpoints = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": "web-1",
            "namespace": "default",
            "labels": {"kubernetes.io/service-name": "web"},
        },
        "addressType": "IPv4",
        "ports": [
            {"name": f"{protocol.lower()}-{port}", "protocol": protocol, "port": target}
            for protocol, port, target in ports
        ],
        "endpoints": [{"addresses": [server.address], "nodeName": "node2", "conditions": {"ready": True}}],
    }
    return service, endpoints
