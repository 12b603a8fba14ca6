# SPDX-License-Identifier: Apache-2.0
"""A cluster of both address families: every way of test_network.py by IPv6 too, with real sockets."""

from collections.abc import Iterator
from typing import Any

import pytest

from lab import manifests
from lab.k8s.ciliumd import Ciliumd
from lab.k8s.kubectl import Kubectl
from lab.k8s.people import NAMESPACE, SERVER, People
from lab.k8s.plan import FAR, FAR6
from lab.waiting import eventually

PORT, NODE_SERVER_PORT, WORLD_PORT = 8000, 8001, 8002
MTU, VXLAN_OVERHEAD, IP_ICMP_HEADERS = 1500, 50, 48
PODS = ["client1", "client2"]
NODES = ["node1", "node2"]
FAMILIES = [4, 6]


@pytest.fixture(scope="module")
def kubectl(dual: Ciliumd) -> Kubectl:
    """That cluster's."""
    return dual.kubectl


@pytest.fixture(scope="module")
def people(dual: Ciliumd) -> People:
    """Servers in pods, on nodes and outside, each for both families."""
    people = People.settle(dual.cluster)
    for name in ("server1", "server2"):
        people.actor(name).call("serve_tcp", name=name, port=PORT, address="::")
        people.actor(name).call("serve_udp", name=name, port=PORT, address="::")
    for name in NODES:
        people.actor(name).call("serve_tcp", name=name, port=NODE_SERVER_PORT, address="::")
    people.actor("world").call("serve_tcp", name="world", port=WORLD_PORT, address="::")
    return people


def address_of(people: People, who: str, family: int) -> str:
    """A pod's or a node's."""
    if who.startswith("node"):
        node = people.cluster.node(who)
        return node.address if family == 4 else node.address6
    return people[who].address if family == 4 else people[who].address6


def asked_from(reply: dict[str, Any]) -> str:
    """Who the server, whose sockets are of both families, saw."""
    return str(reply["answer"]["client"][0]).removeprefix("::ffff:")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("server", ["server1", "server2"])
@pytest.mark.parametrize("client", PODS)
@pytest.mark.parametrize("verb", ["tcp_connect", "udp_exchange"])
def test_pod_to_pod(people: People, client: str, server: str, family: int, verb: str) -> None:
    """Same node and through the tunnel; the server sees the client's own address."""
    address = address_of(people, server, family)
    reply = people.actor(client).call(verb, address=address, port=PORT)

    assert reply["outcome"] == "answered", reply
    assert reply["answer"]["server"] == server
    assert asked_from(reply) == address_of(people, client, family)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("server", ["server1", "server2"])
@pytest.mark.parametrize("node", NODES)
def test_node_to_pod(people: People, node: str, server: str, family: int) -> None:
    """A node reaches pods of its own and of the other node."""
    reply = people.tcp(node, address_of(people, server, family), PORT)

    assert reply["outcome"] == "answered", reply
    assert reply["answer"]["server"] == server


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("node", NODES)
@pytest.mark.parametrize("client", PODS)
def test_pod_to_node(people: People, client: str, node: str, family: int) -> None:
    """Pods reach servers on nodes' own network."""
    reply = people.tcp(client, address_of(people, node, family), NODE_SERVER_PORT)

    assert reply["outcome"] == "answered", reply
    assert reply["answer"]["server"] == node


@pytest.mark.parametrize("client", PODS)
@pytest.mark.parametrize("far", [FAR, FAR6])
def test_pod_to_world(people: People, client: str, far: str) -> None:
    """The world does not know pods: it sees the node's address of that family."""
    reply = people.tcp(client, far, WORLD_PORT)
    node = people[client].node

    assert reply["outcome"] == "answered", reply
    assert asked_from(reply) == (node.address6 if ":" in far else node.address)


def test_mtu(people: People) -> None:
    """The largest packet that fits into the tunnel passes whole, a byte more the pod's own route refuses."""
    largest = MTU - VXLAN_OVERHEAD - IP_ICMP_HEADERS
    actor, target = people.actor("client1"), people["server2"].address6

    assert actor.call("ping", address=target, size=largest, dont_fragment=True)["outcome"] == "answered"
    assert actor.call("ping", address=target, size=largest + 1, dont_fragment=True)["outcome"] == "too-big"


@pytest.fixture
def only_client1(people: People, kubectl: Kubectl) -> Iterator[None]:
    """A policy by which nobody reaches the servers but client1."""
    rule = {"fromEndpoints": [{"matchLabels": {"on": "node1"}}]}
    spec = {"endpointSelector": {"matchLabels": SERVER}, "ingress": [rule]}
    kubectl.apply(manifests.cilium_policy("only-client1", spec, namespace=NAMESPACE))
    yield
    kubectl.delete("ciliumnetworkpolicy", "only-client1", namespace=NAMESPACE)


@pytest.mark.usefixtures("only_client1")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("server", ["server1", "server2"])
def test_policy(people: People, server: str, family: int) -> None:
    """The same for both families: by identity, whatever the address."""
    address = address_of(people, server, family)
    eventually(
        lambda: people.tcp("client2", address, PORT, timeout=0.5)["outcome"] == "timeout",
        f"client2 is denied at {server}",
    )

    assert people.tcp("client1", address, PORT)["outcome"] == "answered"


def test_nodes_know_each_other_by_both(dual: Ciliumd) -> None:
    """CiliumNode has both addresses and both pod CIDRs; status tells both pools."""
    for node in dual.kubectl.list("ciliumnodes"):
        internal = {one["ip"] for one in node["spec"]["addresses"] if one["type"] == "InternalIP"}
        there = dual.cluster.node(node["metadata"]["name"])

        assert internal == {there.address, there.address6}
        assert [":" in cidr for cidr in node["spec"]["ipam"]["podCIDRs"]] == [False, True]
