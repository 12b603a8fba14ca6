# SPDX-License-Identifier: Apache-2.0
"""Policies of the whole cluster, ICMP rules and entities on real packets."""

from typing import Any

import pytest

from lab.manifests import Object, cilium_policy, to_ports
from lab.node import Node
from lab.world import World
from netns.policycast import EVERYBODY, FRIEND, SERVER, Cast, cast, in_force, who_reaches

__all__ = ["cast"]

pytestmark = pytest.mark.netns

PING = [{"fields": [{"type": "EchoRequest", "family": "IPv4"}]}]
OTHER_TYPES = [{"fields": [{"type": "Timestamp"}, {"type": "EchoReply"}, {"type": 128, "family": "IPv6"}]}]


def clusterwide_policy(name: str, spec: dict[str, Any]) -> Object:
    """A CiliumClusterwideNetworkPolicy."""
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumClusterwideNetworkPolicy",
        "metadata": {"name": name},
        "spec": spec,
    }


def who_pings(cast: Cast) -> set[str]:
    """Pods whose echo requests the server answers."""
    return {
        pod.name for pod in cast[1:] if pod.ping(cast.server.address, timeout=0.3)["outcome"] == "answered"
    }


def test_policy_of_the_cluster_means_pods_of_every_namespace(node: Node, cast: Cast) -> None:
    """The server is closed to all but pods labelled as friends, wherever they are."""
    policy = clusterwide_policy(
        "friends", {"endpointSelector": SERVER, "ingress": [{"fromEndpoints": [FRIEND]}]}
    )

    with in_force(node, policy):
        assert who_reaches(cast, 80) == {"friend", "foreigner"}
        assert cast.server.reaches(cast.stranger.address, 80)
    assert who_reaches(cast, 80) == EVERYBODY


def test_empty_selectors_of_the_cluster_are_all_pods_and_never_the_world(
    node: Node, world: World, cast: Cast
) -> None:
    """Pods reach each other across namespaces, the node reaches its pods, nobody reaches the world."""
    policy = clusterwide_policy(
        "pods-only",
        {
            "endpointSelector": {},
            "ingress": [{"fromEndpoints": [{}]}],
            "egress": [{"toEndpoints": [{}]}],
        },
    )

    with in_force(node, policy):
        assert who_reaches(cast, 80) == EVERYBODY
        assert node.outside.call("tcp_connect", address=cast.server.address, port=80)["outcome"] == "answered"
        assert not cast.server.reaches(world.far, 80)
    assert cast.server.reaches(world.far, 80)


def test_icmp_rule_lets_pings_in_and_nothing_else(node: Node, cast: Cast) -> None:
    """From the friend; its ports stay shut, and answers need no rule."""
    policy = cilium_policy(
        "pings", {"endpointSelector": SERVER, "ingress": [{"fromEndpoints": [FRIEND], "icmps": PING}]}
    )
    assert who_pings(cast) == EVERYBODY

    with in_force(node, policy):
        assert who_pings(cast) == {"friend"}
        assert who_reaches(cast, 80) == set()
        assert cast.server.ping(cast.stranger.address)["outcome"] == "answered"
    assert who_pings(cast) == EVERYBODY


def test_icmp_rule_of_other_types_lets_no_ping_through(node: Node, cast: Cast) -> None:
    """The type counts, not the protocol alone."""
    policy = cilium_policy(
        "others", {"endpointSelector": SERVER, "ingress": [{"fromEntities": ["all"], "icmps": OTHER_TYPES}]}
    )

    with in_force(node, policy):
        assert who_pings(cast) == set()


def test_icmp_deny_takes_pings_from_what_is_allowed(node: Node, cast: Cast) -> None:
    """On the way out; ports are not concerned."""
    policy = cilium_policy(
        "no-pings",
        {
            "endpointSelector": FRIEND,
            "egress": [{"toEntities": ["all"]}],
            "egressDeny": [{"toEndpoints": [SERVER], "icmps": PING}],
        },
    )

    with in_force(node, policy):
        assert who_pings(cast) == EVERYBODY - {"friend"}
        assert cast.friend.ping(cast.stranger.address)["outcome"] == "answered"
        assert cast.friend.reaches(cast.server.address, 80)


@pytest.mark.parametrize(
    ("entity", "reaches_world", "reaches_pods"),
    [
        ("world", True, False),
        ("world-ipv4", True, False),
        ("world-ipv6", False, False),
        ("cluster", False, True),
        ("remote-node", False, False),
        ("none", False, False),
        ("all", True, True),
    ],
)
def test_entity_is_who_its_name_promises(
    node: Node, world: World, cast: Cast, entity: str, *, reaches_world: bool, reaches_pods: bool
) -> None:
    """Seen from the friend, on one port."""
    policy = cilium_policy(
        "friend",
        {"endpointSelector": FRIEND, "egress": [{"toEntities": [entity], "toPorts": to_ports((80, "TCP"))}]},
    )

    with in_force(node, policy):
        assert cast.friend.reaches(world.far, 80) is reaches_world
        assert cast.friend.reaches(cast.server.address, 80) is reaches_pods
        assert not cast.friend.reaches(cast.server.address, 81)
