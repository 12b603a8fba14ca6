# SPDX-License-Identifier: Apache-2.0
"""Pods and the world outside: masqueraded on the way out, themselves where a route leads to them."""

from collections.abc import Iterator

import pytest

from lab import manifests
from lab.node import Node
from lab.pod import Pod
from lab.world import World

pytestmark = pytest.mark.netns

SHARED_PORT = 40_000


@pytest.fixture(scope="module")
def pods(node: Node) -> tuple[Pod, Pod]:
    """Two pods that serve 80/TCP and 80/UDP."""
    return node.pod("one").serve(tcp=(80,), udp=(80,)), node.pod("two").serve(tcp=(80,))


@pytest.fixture(scope="module")
def far(world: World) -> str:
    """A server far away on 80/TCP and 80/UDP."""
    world.actor.call("serve_tcp", name="far", port=80, address=world.far)
    world.actor.call("serve_udp", name="far", port=80, address=world.far)
    return world.far


@pytest.fixture
def routed(world: World, node: Node) -> Iterator[World]:
    """The world knows the way to the node's pods."""
    world.add_route(node.pod_cidr, node.address)
    yield world
    world.del_route(node.pod_cidr)


@pytest.mark.parametrize("verb", ["tcp", "udp"])
def test_world_sees_the_node(node: Node, pods: tuple[Pod, Pod], far: str, verb: str) -> None:
    """A pod's traffic leaves with the address of the node's uplink."""
    reply = getattr(pods[0], verb)(far, 80)

    assert reply["outcome"] == "answered", reply
    assert reply["answer"]["client"][0] == node.address


def test_pod_pings_the_world(pods: tuple[Pod, Pod], far: str) -> None:
    """Echo requests are masqueraded and their answers come back."""
    assert pods[0].ping(far, count=3)["answered"] == 3
    assert pods[1].ping(far, count=3)["answered"] == 3


def test_pods_with_the_same_source_port_do_not_collide(node: Node, pods: tuple[Pod, Pod], far: str) -> None:
    """Two pods and the node itself use one port towards one server at the same time."""
    kept = [
        person.call("tcp_open", address=far, port=80)
        for person in (pods[0].outside, pods[1].outside, node.outside)
    ]
    same = [
        pods[0].tcp(far, 80, source_port=SHARED_PORT),
        pods[1].tcp(far, 80, source_port=SHARED_PORT),
        node.outside.call("tcp_connect", address=far, port=80, source_port=SHARED_PORT),
    ]

    assert [one["outcome"] for one in [*kept, *same]] == ["answered"] * 6
    assert len({tuple(one["answer"]["client"]) for one in same}) == 3
    for person, one in zip((pods[0].outside, pods[1].outside, node.outside), kept, strict=True):
        assert person.call("tcp_say", handle=one["handle"])["outcome"] == "answered"
        person.call("tcp_stop", handle=one["handle"])


def test_errors_from_the_world_find_the_pod(pods: tuple[Pod, Pod], far: str) -> None:
    """RST and ICMP port unreachable come back through the masquerade."""
    assert pods[0].tcp(far, 4444)["outcome"] == "refused"
    assert pods[0].udp(far, 4444)["outcome"] == "refused"


def test_node_keeps_its_own_way(node: Node, far: str) -> None:
    """The node's connections are its own."""
    reply = node.outside.call("tcp_connect", address=far, port=80)

    assert reply["outcome"] == "answered"
    assert reply["answer"]["client"][0] == node.address


def test_world_cannot_reach_a_pod_it_has_no_route_to(world: World, pods: tuple[Pod, Pod]) -> None:
    """The control of the next test."""
    assert (
        world.actor.call("tcp_connect", address=pods[0].address, port=80, timeout=0.4)["outcome"]
        != "answered"
    )


@pytest.mark.usefixtures("routed")
def test_who_comes_by_route_is_answered_by_the_pod_itself(
    node: Node, world: World, pods: tuple[Pod, Pod]
) -> None:
    """A connection opened from outside keeps both addresses: its answers are not masqueraded."""
    tcp = world.actor.call("tcp_connect", address=pods[0].address, port=80)
    udp = world.actor.call("udp_exchange", address=pods[0].address, port=80)

    assert tcp["outcome"] == "answered", tcp
    assert tcp["answer"]["client"][0] == node.gateway
    assert udp["outcome"] == "answered", udp
    assert udp["sender"] == [pods[0].address, 80]
    assert world.actor.call("ping", address=pods[0].address, count=2)["answered"] == 2
    assert pods[0].tcp(world.far, 80)["answer"]["client"][0] == node.address


def test_native_routing_cidr_is_reached_unmasqueraded(world: World) -> None:
    """Inside --ipv4-native-routing-cidr pods show their own address."""
    with Node(
        world, name="native", pod_cidr="10.12.0.0/24", options={"ipv4-native-routing-cidr": f"{world.far}/32"}
    ) as node:
        node.start()
        world.add_route(node.pod_cidr, node.address)
        world.actor.call("serve_tcp", name="far", port=81, address=world.far)
        world.actor.call("serve_tcp", name="near", port=81, address=node.gateway)
        pod = node.pod("native")

        assert pod.tcp(world.far, 81)["answer"]["client"][0] == pod.address
        assert pod.tcp(node.gateway, 81)["answer"]["client"][0] == node.address


@pytest.mark.usefixtures("routed")
def test_world_is_judged_by_ingress_policy(node: Node, world: World, pods: tuple[Pod, Pod]) -> None:
    """Who comes by route is the world: closed out by default deny, let in by CIDR and by entity."""
    subject = {"endpointSelector": {}}

    def reached() -> bool:
        reply = world.actor.call("tcp_connect", address=pods[0].address, port=80, timeout=0.4)
        return bool(reply["outcome"] == "answered")

    outcomes = []
    for rules in (
        [{"fromEndpoints": [{}]}],
        [{"fromCIDR": [f"{node.gateway}/32"]}],
        [{"fromEntities": ["world"]}],
    ):
        node.apply_policy("ingress", manifests.cilium_policy("ingress", {**subject, "ingress": rules}))
        outcomes.append(reached())
    node.delete_policy("ingress")

    assert outcomes == [False, True, True]
    assert reached()
