# SPDX-License-Identifier: Apache-2.0
"""Nodes as peers: whom a selector of their labels means, and above all whom it never does."""

from ipaddress import ip_network

import pytest

from ciliumd.desired.cluster import labels_of_node, labels_of_this_node
from ciliumd.desired.policy import resolve, select
from ciliumd.desired.policy.rules import peer_matches
from ciliumd.model.identity import (
    NamedNode,
    Reserved,
    cidr_labels,
    lost_labels,
    reserved_identities,
    reserved_labels,
)
from ciliumd.model.label_filter import EVERY_LABEL, parse_label_filter
from ciliumd.model.labels import NODE, NODE_NAME, Label, Labels, pod_labels
from ciliumd.model.objects import NodeRow
from ciliumd.model.policy import (
    ENTITIES,
    Operator,
    PeerCIDR,
    PeerEntity,
    PeerNodes,
    PeerSelector,
    Requirement,
    Selector,
)
from unit.policy.builders import HOST, REMOTE_NODE, TCP, WEB, identities, pod, policy, rule, verdicts

pytestmark = pytest.mark.unit

EDGE, CORE, MASTER = 2 << 24, (2 << 24) + 1, (2 << 24) + 0x10000


def row(name: str, **labels: str) -> NodeRow:
    """A node with labels."""
    return NodeRow(name=name, labels=labels)


def remote(name: str, *, api_server: bool = False, **labels: str) -> Labels:
    """The labels of the identity of another node."""
    return labels_of_node(NamedNode(name, api_server), row(name, **labels), EVERY_LABEL)


def nodes(**labels: str) -> PeerNodes:
    """Nodes with these labels."""
    return PeerNodes(Selector(frozenset((NODE, key, value) for key, value in labels.items())))


def without(key: str) -> PeerNodes:
    """Nodes that lack a label."""
    return PeerNodes(Selector(expressions=(Requirement(NODE, key, Operator.DOES_NOT_EXIST),)))


EVERY = PeerNodes(Selector())
EACH = pytest.mark.parametrize(
    "peer", [EVERY, nodes(role="edge"), without("nothing")], ids=["all", "role", "lacks"]
)


def test_a_node_has_its_own_labels_and_its_name() -> None:
    """Beside the names that nodes share, which entities go by."""
    assert remote("edge-1", role="edge") == {
        Label("reserved", "remote-node"),
        Label(NODE, "role", "edge"),
        Label(NODE, NODE_NAME, "edge-1"),
    }
    assert remote("edge-1", api_server=True) >= reserved_labels(Reserved.KUBE_APISERVER)
    assert labels_of_this_node("here", row("here", role="edge"), EVERY_LABEL) == {
        Label("reserved", "host"),
        Label(NODE, "role", "edge"),
        Label(NODE, NODE_NAME, "here"),
    }


def test_a_node_cannot_take_another_ones_name() -> None:
    """Keys that the agent sets are its own."""
    labels = labels_of_node(
        NamedNode("edge-1"), NodeRow(name="edge-1", labels={NODE_NAME: "edge-2"}), EVERY_LABEL
    )
    assert [label.value for label in labels if label.key == NODE_NAME] == ["edge-1"]


def test_the_filter_of_labels_leaves_the_name_alone() -> None:
    """What is left out selects nothing, and the node is still one."""
    relevant = parse_label_filter("role", before=())
    labels = labels_of_node(NamedNode("edge-1"), row("edge-1", role="edge", disk="ssd"), relevant)
    assert peer_matches(nodes(role="edge"), labels)
    assert not peer_matches(nodes(disk="ssd"), labels)
    assert peer_matches(without("disk"), labels)
    bare = labels_of_node(NamedNode("core-1"), row("core-1", disk="ssd"), relevant)
    assert peer_matches(EVERY, bare)
    assert peer_matches(without("role"), bare)


@pytest.mark.parametrize("source", ["", "node:", "any:", "k8s:", "reserved:", "node.", "NODE:"])
@pytest.mark.parametrize(
    "peer", [EVERY, nodes(role="edge"), without("nothing")], ids=["all", "role", "lacks"]
)
def test_no_pod_passes_for_a_node(source: str, peer: PeerNodes) -> None:
    """CVE-2025-30163: whatever a pod, its namespace and its account are called, it is no node."""
    claimed = {
        f"{source}role": "edge",
        f"{source}{NODE_NAME}": "edge-1",
        f"{source}remote-node": "",
        f"{source}host": "",
        "reserved:remote-node": "",
    }
    labels = pod_labels("node", claimed, claimed, "node:edge-1", "node")
    assert not peer_matches(peer, labels)


@pytest.mark.parametrize(
    "peer", [EVERY, nodes(role="edge"), without("nothing")], ids=["all", "role", "lacks"]
)
def test_nobody_else_passes_for_a_node(peer: PeerNodes) -> None:
    """No prefix, not the world, and no node that nobody knows: an API server outside the cluster is none."""
    others = [cidr_labels(ip_network("192.0.2.1/32")), lost_labels(300), *reserved_identities().values()]
    assert not any(peer_matches(peer, labels) for labels in others)


def test_a_label_of_a_node_alone_does_not_make_one() -> None:
    """Nor its reserved name alone: only the agent gives both."""
    assert not peer_matches(EVERY, frozenset({Label(NODE, "role", "edge"), Label("k8s", "remote-node")}))
    assert not peer_matches(EVERY, reserved_labels(Reserved.REMOTE_NODE))


def test_selectors_of_endpoints_do_not_see_labels_of_nodes() -> None:
    """With the option or without it they mean the same, also those of any source and those that exclude."""
    labels = remote("edge-1", role="edge")
    for source in ("any", "k8s"):
        demand = Selector(frozenset({(source, "role", "edge")}))
        assert not peer_matches(PeerSelector(demand), labels)
        for operator in (Operator.NOT_IN, Operator.DOES_NOT_EXIST):
            values = frozenset({"edge"}) if operator is Operator.NOT_IN else frozenset[str]()
            excluding = Selector(expressions=(Requirement(source, "role", operator, values),))
            assert peer_matches(PeerSelector(excluding), labels)


@pytest.mark.parametrize("name", sorted(ENTITIES))
def test_entities_mean_the_same_of_nodes_with_labels(name: str) -> None:
    """As of the identities that all nodes share."""
    for labels, shared in (
        (remote("edge-1", role="edge"), Reserved.REMOTE_NODE),
        (remote("master", api_server=True), Reserved.KUBE_APISERVER),
        (labels_of_this_node("here", None, EVERY_LABEL), Reserved.HOST),
    ):
        assert peer_matches(PeerEntity(name), labels) == peer_matches(
            PeerEntity(name), reserved_labels(shared)
        )


def test_a_prefix_never_means_a_node() -> None:
    """Not even the whole of a family."""
    for prefix in ("0.0.0.0/0", "::/0", "192.0.2.1/32"):
        assert not peer_matches(PeerCIDR(ip_network(prefix)), remote("edge-1", role="edge"))


def world() -> dict[int, Labels]:
    """Three nodes with labels beside everything else, and this one."""
    return {
        **identities(),
        HOST: labels_of_this_node("here", row("here", role="edge"), EVERY_LABEL),
        EDGE: remote("edge-1", role="edge"),
        CORE: remote("core-1", role="core"),
        MASTER: remote("core-1", api_server=True, role="core"),
    }


def test_verdicts_of_allow_and_deny() -> None:
    """The node itself reaches its pods anyway, unless a deny means it."""
    peers = (HOST, EDGE, CORE, MASTER, REMOTE_NODE, WEB)
    allowed = select([policy(rule(nodes(role="edge")))], pod("web"))
    found = verdicts(resolve(allowed, world()), peers, (TCP, 80))
    assert {peer for peer, (verdict,) in found.items() if verdict == "ALLOW"} == {HOST, EDGE}

    denied = select([policy(rule(anybody=True), rule(nodes(role="edge"), deny=True))], pod("web"))
    found = verdicts(resolve(denied, world()), peers, (TCP, 80))
    assert {peer for peer, (verdict,) in found.items() if verdict == "DENY"} == {HOST, EDGE}


def test_requirements_are_about_endpoints() -> None:
    """A node has no labels that one could ask for: it is meant as an entity is."""
    required = Selector(frozenset({("k8s", "team", "red")}))
    narrow = rule()
    rules = select(
        [
            policy(rule(nodes(role="edge"))),
            policy(type(narrow)(narrow.direction, narrow.deny, (), None, "cnp:default/q", (), (required,))),
        ],
        pod("web"),
    )
    found = verdicts(resolve(rules, world()), (EDGE, CORE), (TCP, 80))
    assert found == {EDGE: ("ALLOW",), CORE: ("DEFAULT_DENY",)}
