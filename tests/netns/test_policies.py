# SPDX-License-Identifier: Apache-2.0
"""NetworkPolicy and CiliumNetworkPolicy on real packets: allowed, denied, allowed again."""

from typing import Any

import pytest

from lab import manifests
from lab.manifests import cilium_policy, network_policy, to_ports
from lab.node import Node
from lab.waiting import eventually
from lab.world import World
from netns.policycast import EVERYBODY, FRIEND, SERVER, Cast, cast, in_force, who_reaches

__all__ = ["cast"]

pytestmark = pytest.mark.netns


def test_network_policy_lets_in_whom_it_names(node: Node, cast: Cast) -> None:
    """Without policy all; with it, the friend on port 80 and nothing else; without it, all again."""
    policy = network_policy(
        "server",
        {
            "podSelector": SERVER,
            "policyTypes": ["Ingress"],
            "ingress": [{"from": [{"podSelector": FRIEND}], "ports": [{"port": 80, "protocol": "TCP"}]}],
        },
    )
    assert (who_reaches(cast, 80), who_reaches(cast, 81)) == (EVERYBODY, EVERYBODY)
    with in_force(node, policy):
        assert (who_reaches(cast, 80), who_reaches(cast, 81)) == ({"friend"}, set())
        assert cast.friend.ping(cast.server.address, timeout=0.3)["outcome"] == "timeout"
        assert cast.server.reaches(cast.stranger.address, 80)
    assert (who_reaches(cast, 80), who_reaches(cast, 81)) == (EVERYBODY, EVERYBODY)


def test_cilium_policy_lets_in_whom_it_names(node: Node, cast: Cast) -> None:
    """The same by a CiliumNetworkPolicy with endpoint selector and port, TCP and UDP."""
    policy = cilium_policy(
        "server",
        {
            "endpointSelector": SERVER,
            "ingress": [{"fromEndpoints": [FRIEND], "toPorts": to_ports((80, "TCP"), (53, "UDP"))}],
        },
    )
    assert who_reaches(cast, 80) == EVERYBODY
    with in_force(node, policy):
        assert (who_reaches(cast, 80), who_reaches(cast, 81)) == ({"friend"}, set())
        assert cast.friend.reaches_udp(cast.server.address, 53)
        assert not cast.friend.reaches_udp(cast.server.address, 54)
        assert not cast.stranger.reaches_udp(cast.server.address, 53)
    assert who_reaches(cast, 80) == EVERYBODY
    assert cast.stranger.reaches_udp(cast.server.address, 53)


def test_default_deny_ingress_takes_all_but_the_node(node: Node, cast: Cast) -> None:
    """An empty podSelector without rules closes the namespace; its node still reaches its pods."""
    policy = network_policy("closed", {"podSelector": {}, "policyTypes": ["Ingress"]})
    with in_force(node, policy):
        assert who_reaches(cast, 80) == set()
        assert not cast.server.reaches(cast.friend.address, 80)
        assert node.outside.call("tcp_connect", address=cast.server.address, port=80)["outcome"] == "answered"
    assert who_reaches(cast, 80) == EVERYBODY


def test_default_deny_egress_takes_pods_and_world_but_no_answers(
    node: Node, world: World, cast: Cast
) -> None:
    """A pod that may send nothing still answers those who may ask it."""
    policy = network_policy("mute", {"podSelector": SERVER, "policyTypes": ["Egress"]})
    with in_force(node, policy):
        assert not cast.server.reaches(cast.friend.address, 80)
        assert not cast.server.reaches(world.far, 80)
        assert cast.server.ping(world.far, timeout=0.3)["outcome"] == "timeout"
        assert who_reaches(cast, 80) == EVERYBODY
    assert cast.server.reaches(world.far, 80)


def test_egress_rules_by_selector_and_port(node: Node, cast: Cast) -> None:
    """The friend may speak to the server's port 80 only; others are not concerned."""
    policy = cilium_policy(
        "friend",
        {"endpointSelector": FRIEND, "egress": [{"toEndpoints": [SERVER], "toPorts": to_ports((80, "TCP"))}]},
    )
    with in_force(node, policy):
        assert cast.friend.reaches(cast.server.address, 80)
        assert not cast.friend.reaches(cast.server.address, 81)
        assert not cast.friend.reaches(cast.stranger.address, 80)
        assert cast.stranger.reaches(cast.server.address, 81)
    assert cast.friend.reaches(cast.stranger.address, 80)


def test_both_sides_must_agree(node: Node, cast: Cast) -> None:
    """An ingress rule of the server does not help a client whose egress is closed."""
    policies = [
        cilium_policy("server", {"endpointSelector": SERVER, "ingress": [{"fromEndpoints": [FRIEND]}]}),
        cilium_policy("friend", {"endpointSelector": FRIEND, "egress": [{"toEntities": ["world"]}]}),
    ]
    with in_force(node, *policies):
        assert who_reaches(cast, 80) == set()
    assert "friend" in who_reaches(cast, 80)


def test_deny_rules_override_allows(node: Node, cast: Cast) -> None:
    """ingressDeny takes the stranger out of what everybody may do."""
    policy = cilium_policy(
        "server",
        {
            "endpointSelector": SERVER,
            "ingress": [{"fromEntities": ["all"]}],
            "ingressDeny": [
                {"fromEndpoints": [{"matchLabels": {"app": "stranger"}}], "toPorts": to_ports((80, "TCP"))}
            ],
        },
    )
    with in_force(node, policy):
        assert (who_reaches(cast, 80), who_reaches(cast, 81)) == (EVERYBODY - {"stranger"}, EVERYBODY)
    assert who_reaches(cast, 80) == EVERYBODY


def test_namespace_selector_lets_in_another_namespace(node: Node, cast: Cast) -> None:
    """Only pods of namespaces with the label come in."""
    policy = network_policy(
        "server",
        {
            "podSelector": SERVER,
            "ingress": [{"from": [{"namespaceSelector": {"matchLabels": {"side": "other"}}}]}],
        },
    )
    with in_force(node, policy):
        assert who_reaches(cast, 80) == {"foreigner"}
    assert who_reaches(cast, 80) == EVERYBODY


def test_cidr_and_entities_of_the_world(node: Node, world: World, cast: Cast) -> None:
    """toCIDRSet with an exception and a port; what is not named in the world is closed."""
    policy = cilium_policy(
        "server",
        {
            "endpointSelector": SERVER,
            "egress": [
                {
                    "toCIDRSet": [{"cidr": "203.0.113.0/24", "except": ["203.0.113.128/25"]}],
                    "toPorts": to_ports((80, "TCP")),
                }
            ],
        },
    )
    world.netns.ip("address", "add", "203.0.113.200/32", "dev", "lo")
    world.actor.call("serve_tcp", name="excepted", port=80, address="203.0.113.200")
    assert cast.server.reaches("203.0.113.200", 80)
    with in_force(node, policy):
        assert cast.server.reaches(world.far, 80)
        assert not cast.server.reaches(world.far, 81)
        assert not cast.server.reaches("203.0.113.200", 80)
        assert not cast.server.reaches(node.gateway, 80)
    assert cast.server.reaches("203.0.113.200", 80)


def test_revoked_allow_stops_an_established_connection(node: Node, cast: Cast) -> None:
    """A connection opened while it was allowed hears nothing once it is not; others go on."""
    address = cast.server.address
    kept = cast.stranger.outside.call("tcp_open", address=address, port=80)
    friendly = cast.friend.outside.call("tcp_open", address=address, port=80)
    policy = cilium_policy("server", {"endpointSelector": SERVER, "ingress": [{"fromEndpoints": [FRIEND]}]})
    with in_force(node, policy):
        stopped = cast.stranger.outside.call("tcp_say", handle=kept["handle"], timeout=0.4)
        going_on = cast.friend.outside.call("tcp_say", handle=friendly["handle"])

        assert stopped["outcome"] == "timeout"
        assert going_on["outcome"] == "answered"
    cast.stranger.outside.call("tcp_stop", handle=kept["handle"])
    cast.friend.outside.call("tcp_stop", handle=friendly["handle"])


def test_changed_labels_change_what_a_pod_may_do(node: Node, cast: Cast) -> None:
    """A stranger that becomes a friend is let in, and out again."""
    policy = cilium_policy("server", {"endpointSelector": SERVER, "ingress": [{"fromEndpoints": [FRIEND]}]})
    reaches = lambda: cast.stranger.reaches(cast.server.address, 80)  # noqa: E731 - polled below
    with in_force(node, policy):
        assert not reaches()
        node.apply("pod-default-stranger", manifests.pod("stranger", {"app": "friend"}))
        eventually(reaches, "the new friend is let in")
        node.apply("pod-default-stranger", manifests.pod("stranger", {"app": "stranger"}))
        eventually(lambda: not reaches(), "the stranger is shut out")


def test_changed_policy_is_swapped_as_a_whole(node: Node, cast: Cast) -> None:
    """While a policy is edited, what both versions allow is never lost and what both deny never seen."""
    address = cast.server.address

    def policy(*ports: tuple[int, str]) -> manifests.Object:
        return cilium_policy(
            "server",
            {
                "endpointSelector": SERVER,
                "ingress": [{"fromEndpoints": [FRIEND], "toPorts": to_ports(*ports)}],
            },
        )

    allowed: list[dict[str, Any]] = []
    denied: list[dict[str, Any]] = []
    with in_force(node, policy((53, "UDP"))):
        for number in range(6):
            node.apply_policy(
                "policy", policy((53, "UDP"), (80, "TCP")) if number % 2 else policy((53, "UDP"), (81, "TCP"))
            )
            allowed += [cast.friend.udp(address, 53, timeout=1.0) for _ in range(20)]
            denied += [cast.stranger.udp(address, 53, timeout=0.02) for _ in range(5)]

    assert {one["outcome"] for one in allowed} == {"answered"}
    assert {one["outcome"] for one in denied} == {"timeout"}


HTTP_RULES = {"ports": [{"port": "80", "protocol": "TCP"}], "rules": {"http": [{"method": "GET"}]}}


def test_policy_with_http_rules_is_rejected_as_a_whole(node: Node, cast: Cast) -> None:
    """A field that is not enforced rejects the policy: nothing of it is applied, the field is named."""
    policy = cilium_policy(
        "layer-seven",
        {"endpointSelector": SERVER, "ingress": [{"fromEndpoints": [FRIEND], "toPorts": [HTTP_RULES]}]},
    )
    path = node.apply("rejected", policy)
    (problem,) = eventually(
        lambda: [one for one in node.problems() if one["name"] == "layer-seven"], "the problem is listed"
    )
    listed = node.agent.cli("policy", "get")
    reached = who_reaches(cast, 80)
    node.delete("rejected")

    assert problem["kind"] == "CiliumNetworkPolicy"
    assert "rules.http" in problem["field"]
    assert problem["file"].startswith(path.name)
    assert "layer-seven" not in listed.stdout
    assert "layer-seven" in listed.stderr
    assert reached == EVERYBODY
    eventually(lambda: not node.problems(), "the problem goes with the file")
