# SPDX-License-Identifier: Apache-2.0
"""A cluster of IPv6 alone, whose tunnel is of IPv6: pods, nodes, the world, services, DNS, policy, health."""

import json
from collections.abc import Iterator

import pytest

from lab import manifests
from lab.k8s.ciliumd import NAMESPACE as SYSTEM
from lab.k8s.ciliumd import Ciliumd
from lab.k8s.kubectl import Kubectl
from lab.k8s.people import (
    HOST_PORT_POD,
    NAMESPACE,
    SERVER,
    People,
    node_port_service,
    serve_host_port,
)
from lab.waiting import eventually

PORT, SERVICE_PORT, NODE_SERVER_PORT, WORLD_PORT = 8000, 8100, 8001, 8002
NODE_PORT, HOST_PORT = 30084, 8091
MTU, VXLAN_OVERHEAD, IP_ICMP_HEADERS = 1500, 70, 48
PODS, NODES, SERVERS = ["client1", "client2"], ["node1", "node2"], ["server1", "server2"]
VERBS = ["tcp_connect", "udp_exchange"]


@pytest.fixture(scope="module")
def kubectl(six: Ciliumd) -> Kubectl:
    """That cluster's."""
    return six.kubectl


@pytest.fixture(scope="module")
def people(six: Ciliumd) -> People:
    """Servers in pods, on nodes and outside, and a service with a port on every node."""
    people = People.settle(six.cluster)
    for name in SERVERS:
        for verb in ("serve_tcp", "serve_udp"):
            for port in (PORT, SERVICE_PORT):
                people.actor(name).call(verb, name=name, port=port, address="::")
    for name in NODES:
        people.actor(name).call("serve_tcp", name=name, port=NODE_SERVER_PORT, address="::")
    people.actor("world").call("serve_tcp", name="world", port=WORLD_PORT, address="::")
    six.kubectl.apply(node_port_service("served", target=SERVICE_PORT, node_port=NODE_PORT))
    address = cluster_ip(six.kubectl)
    for name in (*PODS, *NODES):
        eventually(
            lambda name=name: people.tcp(name, address, 80)["outcome"] == "answered",
            f"{name} reaches the service",
        )
    return people


def cluster_ip(kubectl: Kubectl) -> str:
    """Address of the service."""
    return str(kubectl.get("service", "served", NAMESPACE)["spec"]["clusterIP"])


def test_nothing_of_the_cluster_has_ipv4(people: People, kubectl: Kubectl) -> None:
    """Pods, Nodes, CiliumNodes, CiliumEndpoints, services."""
    for pod in (*kubectl.list("pods", namespace=NAMESPACE), *kubectl.list("pods", namespace=SYSTEM)):
        assert pod["status"]["podIPs"]
        assert all(":" in one["ip"] for one in pod["status"]["podIPs"]), pod["metadata"]["name"]
    for node in kubectl.list("ciliumnodes"):
        assert all(":" in one["ip"] for one in node["spec"]["addresses"])
        assert [":" in cidr for cidr in node["spec"]["ipam"]["podCIDRs"]] == [True]
        assert list(node["spec"]["health"]) == ["ipv6"]
    found = {one["metadata"]["name"]: one for one in kubectl.list("ciliumendpoints", namespace=NAMESPACE)}
    for name in people.names:
        networking = found[name]["status"]["networking"]
        assert networking["addressing"] == [{"ipv6": people[name].address}]
        assert networking["node"] == people[name].node.address
    assert ":" in cluster_ip(kubectl)


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("client", PODS)
@pytest.mark.parametrize("verb", VERBS)
def test_pod_to_pod(people: People, client: str, server: str, verb: str) -> None:
    """Same node and through the tunnel; the server sees the client's own address."""
    reply = people.actor(client).call(verb, address=people[server].address, port=PORT)

    assert reply["outcome"] == "answered", reply
    assert (reply["answer"]["server"], reply["answer"]["client"][0]) == (server, people[client].address)


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("node", NODES)
def test_node_to_pod(people: People, node: str, server: str) -> None:
    """A node reaches pods of its own and of the other node."""
    reply = people.tcp(node, people[server].address, PORT)

    assert reply["outcome"] == "answered", reply
    assert reply["answer"]["server"] == server


@pytest.mark.parametrize("node", NODES)
@pytest.mark.parametrize("client", PODS)
def test_pod_to_node(people: People, client: str, node: str) -> None:
    """Pods reach servers on nodes' own network."""
    reply = people.tcp(client, people.cluster.node(node).address, NODE_SERVER_PORT)

    assert reply["outcome"] == "answered", reply
    assert reply["answer"]["server"] == node


@pytest.mark.parametrize("client", PODS)
def test_pod_to_world(people: People, client: str) -> None:
    """The world does not know pods: it sees the node's address."""
    reply = people.tcp(client, people.cluster.plan.far, WORLD_PORT)

    assert reply["outcome"] == "answered", reply
    assert reply["answer"]["client"][0] == people[client].node.address


def test_mtu(people: People) -> None:
    """The largest packet that fits into the tunnel passes whole, a byte more the pod's own route refuses."""
    largest = MTU - VXLAN_OVERHEAD - IP_ICMP_HEADERS
    actor, target = people.actor("client1"), people["server2"].address

    assert actor.call("ping", address=target, size=largest, dont_fragment=True)["outcome"] == "answered"
    assert actor.call("ping", address=target, size=largest + 1, dont_fragment=True)["outcome"] == "too-big"


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("client", [*PODS, *NODES])
def test_cluster_ip(people: People, kubectl: Kubectl, client: str, verb: str) -> None:
    """From pods and from nodes, to the backends on both nodes."""
    assert people.servers_seen(client, cluster_ip(kubectl), 80, verb) == set(SERVERS)


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("node", NODES)
@pytest.mark.parametrize("client", ["client1", "node1", "world"])
def test_node_port(people: People, client: str, node: str, verb: str) -> None:
    """Any node's port reaches the backends on both nodes, from inside and from outside."""
    assert people.servers_seen(client, people.cluster.node(node).address, NODE_PORT, verb) == set(SERVERS)


def test_host_port(people: People) -> None:
    """A port of the node is the pod's."""
    serve_host_port(people, HOST_PORT, address="::")
    address = people.cluster.node("node1").address
    for who in ("client2", "world"):
        eventually(
            lambda who=who: (
                people.tcp(who, address, HOST_PORT).get("answer", {}).get("server") == HOST_PORT_POD
            ),
            f"{who} reaches the host port",
        )


@pytest.mark.usefixtures("people")
@pytest.mark.parametrize("client", PODS)
def test_dns(kubectl: Kubectl, client: str) -> None:
    """By name, with the pod's own resolver, which has IPv6 alone."""
    words = ["dig", "+short", "AAAA", f"served.{NAMESPACE}.svc.cluster.local"]
    assert kubectl.exec(client, *words, namespace=NAMESPACE).stdout.split() == [cluster_ip(kubectl)]


@pytest.fixture
def only_client1(people: People, kubectl: Kubectl) -> Iterator[None]:
    """A policy by which nobody reaches the servers but client1."""
    rule = {"fromEndpoints": [{"matchLabels": {"on": "node1"}}]}
    spec = {"endpointSelector": {"matchLabels": SERVER}, "ingress": [rule]}
    kubectl.apply(manifests.cilium_policy("only-client1", spec, namespace=NAMESPACE))
    yield
    kubectl.delete("ciliumnetworkpolicy", "only-client1", namespace=NAMESPACE)


@pytest.mark.usefixtures("only_client1")
@pytest.mark.parametrize("server", SERVERS)
def test_policy(people: People, server: str) -> None:
    """By identity, on the same node and through the tunnel."""
    address = people[server].address
    eventually(
        lambda: people.tcp("client2", address, PORT, timeout=0.5)["outcome"] == "timeout",
        f"client2 is denied at {server}",
    )

    assert people.tcp("client1", address, PORT)["outcome"] == "answered"


def test_nodes_are_healthy(six: Ciliumd) -> None:
    """Each is asked by the other, its health endpoint too."""

    def reachable() -> bool:
        words = ["cilium-health", "status", "--probe", "-o", "json"]
        said = six.kubectl.exec(six.agent_name(six.cluster.nodes[0]), *words, namespace=SYSTEM).stdout
        paths = [
            one[kind]["primary-address"]
            for one in json.loads(said)["nodes"]
            for kind in ("host", "health-endpoint")
        ]
        assert all(":" in path["ip"] for path in paths)
        return len(paths) == 4 and not any(path[way]["status"] for path in paths for way in ("icmp", "http"))

    eventually(reachable, "all addresses of all nodes answer", seconds=60.0)
