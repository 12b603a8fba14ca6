# SPDX-License-Identifier: Apache-2.0
"""Services of both families on a cluster of both: who asks by IPv6 is served like who asks by IPv4."""

import pytest

from lab.k8s.ciliumd import Ciliumd
from lab.k8s.people import HOST_PORT_POD, NAMESPACE, People, node_port_service, serve_host_port
from lab.waiting import eventually

PORT = 8100
NODE_PORT, HOST_PORT = 30082, 8090
SERVERS = {"server1", "server2"}
PODS, NODES = ["client1", "client2"], ["node1", "node2"]
FAMILIES = [4, 6]
VERBS = ["tcp_connect", "udp_exchange"]


@pytest.fixture(scope="module")
def people(dual: Ciliumd) -> People:
    """Servers of both families, and a service of both in front of them with a port on every node."""
    people = People.settle(dual.cluster)
    for name in SERVERS:
        for verb in ("serve_tcp", "serve_udp"):
            people.actor(name).call(verb, name=name, port=PORT, address="::")
    families = {"ipFamilyPolicy": "RequireDualStack"}
    dual.kubectl.apply(node_port_service("both", target=PORT, node_port=NODE_PORT, **families))
    for family in FAMILIES:
        for name in (*PODS, *NODES):
            address = cluster_ip(dual, family)
            eventually(
                lambda name=name, address=address: people.tcp(name, address, 80)["outcome"] == "answered",
                f"{name} reaches {address}",
            )
    return people


def cluster_ip(dual: Ciliumd, family: int) -> str:
    """Address of the service in that family."""
    addresses = dual.kubectl.get("service", "both", NAMESPACE)["spec"]["clusterIPs"]
    return next(one for one in addresses if (":" in one) == (family == 6))


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("client", [*PODS, *NODES])
@pytest.mark.parametrize("family", FAMILIES)
def test_cluster_ip(people: People, dual: Ciliumd, family: int, client: str, verb: str) -> None:
    """From pods and from nodes, to the backends on both nodes."""
    assert people.servers_seen(client, cluster_ip(dual, family), 80, verb) == SERVERS


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("node", NODES)
@pytest.mark.parametrize("client", ["client1", "node1", "world"])
@pytest.mark.parametrize("family", FAMILIES)
def test_node_port(people: People, family: int, client: str, node: str, verb: str) -> None:
    """Any node's port reaches the backends on both nodes, from inside and from outside."""
    there = people.cluster.node(node)
    address = there.address6 if family == 6 else there.address

    assert people.servers_seen(client, address, NODE_PORT, verb) == SERVERS


@pytest.mark.parametrize("client", PODS)
@pytest.mark.parametrize("kind", ["A", "AAAA"])
def test_dns(people: People, dual: Ciliumd, client: str, kind: str) -> None:
    """Both addresses by name, with the pod's own resolver."""
    words = ["dig", "+short", kind, f"both.{NAMESPACE}.svc.cluster.local"]
    answer = dual.kubectl.exec(client, *words, namespace=NAMESPACE).stdout.split()

    assert answer == [cluster_ip(dual, 6 if kind == "AAAA" else 4)]


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("family", FAMILIES)
def test_host_port(people: People, dual: Ciliumd, family: int, verb: str) -> None:
    """A container's port on its node, from outside and from the other node."""
    if not dual.kubectl.exists("pod", HOST_PORT_POD, NAMESPACE):
        serve_host_port(people, HOST_PORT, address="::")
    node = people.cluster.node("node1")
    for who in ("world", "node2", "client2"):
        reply = people.actor(who).call(
            verb, address=node.address6 if family == 6 else node.address, port=HOST_PORT
        )

        assert reply["outcome"] == "answered", (who, reply)
        assert reply["answer"]["server"] == HOST_PORT_POD
