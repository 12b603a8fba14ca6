# SPDX-License-Identifier: Apache-2.0
"""
Every kind of service between the world, two nodes and their pods: who answers, and whom each side sees.

``inside`` and ``outside`` of a pod are translated by socket and per packet (see ``lab.pod``).
"""

from collections.abc import Iterator
from typing import Any

import pytest

from lab import kinds, manifests
from lab.cluster import Cluster
from lab.kernel import chooses_errno_of_connect
from lab.node import Node
from lab.pod import Pod
from lab.waiting import eventually

pytestmark = pytest.mark.netns

EXTERNAL, BALANCER = "198.51.100.7", "198.51.100.8"
CLUSTER_IP, LOCAL, NEAR = "10.96.0.20", "10.96.0.21", "10.96.0.22"
PORTS = [("TCP", 53, 8080), ("UDP", 53, 5353)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two nodes, agents running; the world sends what is for outside addresses to either."""
    with Cluster() as cluster:
        yield cluster.start()


@pytest.fixture(scope="module")
def client(cluster: Cluster) -> Pod:
    """Asks from the first node."""
    return cluster.pod(cluster.nodes[0], "client", {"app": "client"})


@pytest.fixture(scope="module")
def servers(cluster: Cluster) -> tuple[Pod, Pod]:
    """One on each node."""
    one, two = (
        cluster.pod(node, f"server-{node.name}", {"app": "server"}).serve(tcp=(8080,), udp=(5353,))
        for node in cluster.nodes
    )
    return one, two


def by_way_of(cluster: Cluster, node: int, address: str) -> None:
    """The world sends what is for *address* to a node."""
    cluster.world.add_route(f"{address}/32", cluster.nodes[node].address)


def world_asks(cluster: Cluster, address: str, **options: Any) -> dict[str, Any]:
    """Somebody out there connects."""
    return dict(cluster.world.actor.call("tcp_connect", address=address, port=53, **options))


@pytest.mark.parametrize(("kind", "address"), [("ClusterIP", EXTERNAL), ("LoadBalancer", BALANCER)])
def test_outside_address(
    cluster: Cluster, client: Pod, servers: tuple[Pod, Pod], kind: str, address: str
) -> None:
    """
    The world by both nodes, pods and the node itself reach one port of two protocols at it.

    The backend is on the second node: that one shows it the client, the first one itself.
    """
    server = servers[1]
    addresses: dict[str, Any] = {"externalIPs": [address]}
    if kind == "LoadBalancer":
        addresses = {"balancer": [address]}
    cluster.apply(
        "outside",
        kinds.service("outside", CLUSTER_IP, ports=PORTS, kind=kind, **addresses),
        kinds.endpoints("outside", kinds.endpoint(server.address, "node2"), ports=PORTS),
    )
    for node in cluster.nodes:
        node.wait_service(f"{address}:53", 1)
    seen = []
    for way in (0, 1):
        by_way_of(cluster, way, address)
        tcp = world_asks(cluster, address)
        udp = cluster.world.actor.call("udp_exchange", address=address, port=53)
        assert [tcp["outcome"], udp["outcome"]] == ["answered"] * 2, (tcp, udp)
        assert (tcp["peer"], udp["sender"]) == ([address, 53], [address, 53])
        seen.append(tcp["answer"]["client"][0])
    assert seen[0] == cluster.router(cluster.nodes[0])
    assert seen[1].startswith(("192.168.", cluster.world.far))
    for person in (client.inside, client.outside, cluster.nodes[0].inside):
        reply = person.call("tcp_connect", address=address, port=53)
        assert (reply["outcome"], reply.get("peer")) == ("answered", [address, 53]), (person.who, reply)
        assert reply["answer"]["server"] == server.name


def test_external_traffic_policy_local(cluster: Cluster, client: Pod, servers: tuple[Pod, Pod]) -> None:
    """The node without a backend is silent for the world, the other shows it the client; pods reach all."""
    server = servers[1]
    cluster.apply(
        "outside",
        kinds.service(
            "outside",
            CLUSTER_IP,
            ports=PORTS,
            kind="LoadBalancer",
            balancer=[BALANCER],
            externalTrafficPolicy="Local",
        ),
        kinds.endpoints("outside", kinds.endpoint(server.address, "node2"), ports=PORTS),
    )
    eventually(lambda: "elsewhere" in flags_at(cluster.nodes[0], BALANCER), "nobody is on the first node")
    eventually(
        lambda: "two-scopes" in flags_at(cluster.nodes[1], BALANCER), "the second node knows the policy"
    )
    by_way_of(cluster, 0, BALANCER)
    assert world_asks(cluster, BALANCER, timeout=0.5)["outcome"] == "timeout"
    by_way_of(cluster, 1, BALANCER)
    seen = world_asks(cluster, BALANCER)
    assert seen["outcome"] == "answered", seen
    assert seen["answer"]["client"][0].startswith(("192.168.", cluster.world.far))
    for person in (client.inside, client.outside, cluster.nodes[0].inside):
        reply = person.call("tcp_connect", address=BALANCER, port=53)
        assert reply["outcome"] == "answered", (person.who, reply)


def test_internal_traffic_policy_local(cluster: Cluster, client: Pod, servers: tuple[Pod, Pod]) -> None:
    """Each node's clients get their own node's backend: an active one, one that leaves, or none."""
    here, there = servers

    def serve(*found: manifests.Object) -> None:
        cluster.apply(
            "local",
            kinds.service("local", LOCAL, ports=PORTS, internalTrafficPolicy="Local"),
            kinds.endpoints("local", *found, ports=PORTS),
        )

    def answers() -> set[str]:
        replies = [
            person.call("tcp_connect", address=LOCAL, port=53, timeout=0.5)
            for person in (client.inside, client.outside)
            for _ in range(4)
        ]
        return {
            one["answer"]["server"] if one["outcome"] == "answered" else one["outcome"] for one in replies
        }

    leaving = {"ready": False, "serving": True, "terminating": True}
    over_there = kinds.endpoint(there.address, "node2")
    serve(kinds.endpoint(here.address, "node1"), over_there)
    cluster.nodes[0].wait_service(f"{LOCAL}:53", 1)
    assert answers() == {here.name}
    serve(kinds.endpoint(here.address, "node1", conditions=leaving), over_there)
    eventually(lambda: is_leaving(cluster.nodes[0], here.address), "the backend here is on its way out")
    assert answers() == {here.name}
    serve(over_there)
    cluster.nodes[0].wait_service(f"{LOCAL}:53", 0)
    refused = "refused" if chooses_errno_of_connect() else "forbidden"
    assert answers() == {refused, "timeout"}


def test_load_balancer_source_ranges(cluster: Cluster, client: Pod, servers: tuple[Pod, Pod]) -> None:
    """The world by one link and not by the other, pods by their own address; the cluster address is open."""
    uplinks = [f"{node.gateway}/32" for node in cluster.nodes]

    def serve(policy: str, *ranges: str) -> None:
        cluster.apply(
            "outside",
            kinds.service(
                "outside",
                CLUSTER_IP,
                ports=PORTS,
                kind="LoadBalancer",
                balancer=[BALANCER],
                annotations={"service.cilium.io/src-ranges-policy": policy},
                loadBalancerSourceRanges=list(ranges),
            ),
            kinds.endpoints("outside", kinds.endpoint(servers[1].address, "node2"), ports=PORTS),
        )
        for node in cluster.nodes:
            eventually(
                lambda node=node: restricted(node) == (policy, set(ranges)), f"{node.name} has {ranges}"
            )

    def answered() -> list[bool]:
        found = []
        for way in (0, 1):
            by_way_of(cluster, way, BALANCER)
            found.append(world_asks(cluster, BALANCER, timeout=0.4)["outcome"] == "answered")
        people = (client.inside, client.outside)
        replies = [one.call("tcp_connect", address=BALANCER, port=53, timeout=0.4) for one in people]
        return found + [one["outcome"] == "answered" for one in replies]

    serve("allow", uplinks[0])
    assert answered() == [True, False, False, False]
    for person in (client.inside, client.outside):
        assert person.call("tcp_connect", address=CLUSTER_IP, port=53)["outcome"] == "answered"
    serve("allow", uplinks[1], f"{client.address}/32")
    assert answered() == [False, True, True, True]
    serve("deny", uplinks[1], f"{client.address}/32")
    assert answered() == [True, False, False, False]


def flags_at(node: Node, address: str) -> set[str]:
    """Flags of the frontends at an address in a node's map."""
    rows = node.agent.get("map/cilium_lb_services_v1")
    return {flag for row in rows if row["key"]["addr"] == address for flag in row["value"]["flags"]}


def is_leaving(node: Node, address: str) -> bool:
    """Whether a node's map says that the backends at an address terminate."""
    rows = node.agent.get("map/cilium_lb_backends_v1")
    return {row["value"]["state"] for row in rows if row["value"]["addr"] == address} == {"terminating"}


def restricted(node: Node) -> tuple[str, set[str]]:
    """What the source ranges in a node's map mean, and which they are."""
    flags = {
        flag.removeprefix("sources-")
        for row in node.agent.get("map/cilium_lb_services_v1")
        for flag in row["value"]["flags"]
        if flag.startswith("sources-")
    }
    ranges = {row["key"]["prefix"] for row in node.agent.get("map/cilium_lb_source_range_v1")}
    return " ".join(flags), ranges


def test_topology(cluster: Cluster, client: Pod, servers: tuple[Pod, Pod]) -> None:
    """Each node's clients get the backend that is meant for its zone; with one hint missing, either."""
    here, there = servers
    for node, zone in zip(cluster.nodes, "ab", strict=True):
        cluster.label(node, {"topology.kubernetes.io/zone": zone})

    def serve(*zones: str | None) -> None:
        found = []
        for pod, node, zone in zip(servers, ("node1", "node2"), zones, strict=True):
            hints = {"hints": {"forZones": [{"name": zone}]}} if zone else {}
            found.append(kinds.endpoint(pod.address, node, **hints))
        cluster.apply(
            "near", kinds.service("near", NEAR, ports=PORTS), kinds.endpoints("near", *found, ports=PORTS)
        )

    def answers() -> set[str]:
        people = (client.inside, client.outside)
        replies = [
            one.call("tcp_connect", address=NEAR, port=53, timeout=0.5) for one in people for _ in range(12)
        ]
        return {
            one["answer"]["server"] if one["outcome"] == "answered" else one["outcome"] for one in replies
        }

    serve("b", "a")
    cluster.nodes[0].wait_service(f"{NEAR}:53", 1)
    assert answers() == {there.name}
    serve("a", None)
    cluster.nodes[0].wait_service(f"{NEAR}:53", 2)
    assert answers() == {here.name, there.name}
