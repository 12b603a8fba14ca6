# SPDX-License-Identifier: Apache-2.0
"""NetworkPolicy: defaults, namespaces and errors as Kubernetes defines them."""

from ipaddress import ip_network

import pytest

from ciliumd.model.identity import Reserved, reserved_labels
from ciliumd.model.labels import Labels, pod_labels
from ciliumd.model.policy import Direction, PeerCIDR, PeerSelector, PortRule
from unit.resources.documents import knp_document, policy, refusal

pytestmark = pytest.mark.unit


def pod(app: str, namespace: str = "shop", **namespace_labels: str) -> Labels:
    """Labels of a pod."""
    return pod_labels(namespace, {"app": app}, namespace_labels, "default")


WORLD = reserved_labels(Reserved.WORLD)
HOST = reserved_labels(Reserved.HOST)


@pytest.mark.parametrize(
    ("spec", "ingress", "egress"),
    [
        ("{podSelector: {}}", True, False),
        ("{podSelector: {}, egress: []}", True, False),
        ("{podSelector: {}, egress: [{}]}", True, True),
        ("{podSelector: {}, policyTypes: [Ingress], egress: [{}]}", True, False),
        ("{podSelector: {}, policyTypes: [Egress], ingress: [{}]}", False, True),
        ("{podSelector: {}, policyTypes: [Ingress, Egress]}", True, True),
        ("{podSelector: {}, policyTypes: []}", True, False),
    ],
)
def test_policy_types_decide_the_isolated_directions(spec: str, *, ingress: bool, egress: bool) -> None:
    """Ingress always, egress when there are egress rules, unless listed; rules of others do not count."""
    row = policy(knp_document(spec))

    assert (row.default_deny_ingress, row.default_deny_egress) == (ingress, egress)
    assert {rule.direction for rule in row.rules} <= (
        ({Direction.INGRESS} if ingress else set()) | ({Direction.EGRESS} if egress else set())
    )


def test_subject_is_confined_to_the_policys_namespace() -> None:
    """An empty selector means every pod of the namespace and nobody else."""
    for spec in ("{podSelector: {}}", "{}"):
        subject = policy(knp_document(spec)).subject

        assert subject.matches(pod("web"))
        assert not subject.matches(pod("web", "other"))
        assert not subject.matches(HOST)


def test_rule_without_peers_allows_everybody() -> None:
    """A missing and an empty list of peers both mean no restriction; of ports likewise."""
    row = policy(knp_document("{podSelector: {}, ingress: [{}, {from: [], ports: []}], egress: [{to: []}]}"))

    assert [(rule.peers, rule.ports) for rule in row.rules] == [(None, None)] * 3


def test_pod_selector_alone_means_the_policys_namespace() -> None:
    """Peers by pod labels are neighbours."""
    row = policy(
        knp_document("{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]}")
    )
    peer = row.rules[0].peers[0]  # type: ignore[index]

    assert isinstance(peer, PeerSelector)
    assert peer.selector.matches(pod("web"))
    assert not peer.selector.matches(pod("db"))
    assert not peer.selector.matches(pod("web", "other"))


def test_empty_namespace_selector_means_all_pods_and_only_pods() -> None:
    """Every namespace, but no node and not the world."""
    row = policy(knp_document("{podSelector: {}, ingress: [{from: [{namespaceSelector: {}}]}]}"))
    peer = row.rules[0].peers[0]  # type: ignore[index]

    assert isinstance(peer, PeerSelector)
    assert peer.selector.matches(pod("web", "other"))
    assert not peer.selector.matches(HOST)
    assert not peer.selector.matches(WORLD)


def test_namespace_selector_that_excludes_does_not_let_the_world_in() -> None:
    """The world has no namespace that could be excluded; still it is no pod."""
    row = policy(
        knp_document(
            "{podSelector: {}, ingress: [{from: [{namespaceSelector: "
            "{matchExpressions: [{key: env, operator: NotIn, values: [test]}]}}]}]}"
        )
    )
    peer = row.rules[0].peers[0]  # type: ignore[index]

    assert isinstance(peer, PeerSelector)
    assert peer.selector.matches(pod("web", "other", env="prod"))
    assert peer.selector.matches(pod("web", "other"))
    assert not peer.selector.matches(pod("web", "other", env="test"))
    assert not peer.selector.matches(WORLD)


def test_both_selectors_of_a_peer_must_match() -> None:
    """Pods by label in the selected namespaces."""
    row = policy(
        knp_document(
            "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {env: prod}}, "
            "podSelector: {matchExpressions: [{key: app, operator: In, values: [web, api]}]}}]}]}"
        )
    )
    peer = row.rules[0].peers[0]  # type: ignore[index]

    assert isinstance(peer, PeerSelector)
    assert peer.selector.matches(pod("api", "other", env="prod"))
    assert not peer.selector.matches(pod("api", "other", env="test"))
    assert not peer.selector.matches(pod("db", "other", env="prod"))


def test_ip_block_keeps_its_exceptions() -> None:
    """Bits beyond the prefix length are cut off."""
    row = policy(
        knp_document(
            "{podSelector: {}, egress: [{to: [{ipBlock: {cidr: 10.0.0.1/8, except: [10.1.0.0/16]}}, "
            "{ipBlock: {cidr: 'fd00::/8'}}]}]}"
        )
    )

    assert row.rules[0].peers == (
        PeerCIDR(ip_network("10.0.0.0/8"), (ip_network("10.1.0.0/16"),)),
        PeerCIDR(ip_network("fd00::/8")),
    )


def test_ports_of_every_form_are_understood() -> None:
    """Number, range, name, and every port of a protocol; TCP unless said otherwise."""
    row = policy(
        knp_document(
            "{podSelector: {}, ingress: [{ports: [{port: 80}, {port: 8000, endPort: 8010, protocol: UDP}, "
            "{port: http}, {protocol: SCTP}, {}]}]}"
        )
    )

    assert row.rules[0].ports == (
        PortRule("TCP", 80),
        PortRule("UDP", 8000, 8010),
        PortRule("TCP", name="http"),
        PortRule("SCTP"),
        PortRule("TCP"),
    )


def test_rules_say_where_they_are_written() -> None:
    """Verdicts and drops name the rule by its place."""
    row = policy(knp_document("{podSelector: {}, ingress: [{}, {}], egress: [{}]}"))

    assert row.origin == "knp:shop/rule1"
    assert [rule.origin for rule in row.rules] == [
        "knp:shop/rule1/ingress/0",
        "knp:shop/rule1/ingress/1",
        "knp:shop/rule1/egress/0",
    ]
    assert not any(rule.deny for rule in row.rules)


RULE = "{{podSelector: {{}}, ingress: [{}]}}"


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ("{podSelector: {}, ingres: []}", "spec.ingres"),
        ("{podSelector: {}, policyTypes: [ingress]}", "spec.policyTypes[0]"),
        ("{podSelector: {matchLabels: {a b: c}}}", 'spec.podSelector.matchLabels["a b"]'),
        (
            "{podSelector: {matchLabels: {io.kubernetes.pod.namespace: x}}}",
            'spec.podSelector.matchLabels["io.kubernetes.pod.namespace"]',
        ),
        (
            "{podSelector: {matchExpressions: [{key: a, operator: Equals, values: [b]}]}}",
            "spec.podSelector.matchExpressions[0].operator",
        ),
        (
            "{podSelector: {matchExpressions: [{key: a, operator: In}]}}",
            "spec.podSelector.matchExpressions[0].values",
        ),
        (
            "{podSelector: {matchExpressions: [{key: a, operator: Exists, values: [b]}]}}",
            "spec.podSelector.matchExpressions[0].values",
        ),
        (RULE.format("{from: [{}]}"), "spec.ingress[0].from[0]"),
        (RULE.format("{to: [{podSelector: {}}]}"), "spec.ingress[0].to"),
        (
            RULE.format("{from: [{ipBlock: {cidr: 10.0.0.0/8}, podSelector: {}}]}"),
            "spec.ingress[0].from[0]",
        ),
        (RULE.format("{from: [{ipBlock: {cidr: 10.0.0.0}}]}"), "spec.ingress[0].from[0].ipBlock.cidr"),
        (RULE.format("{from: [{ipBlock: {cidr: 10.0.0.0/33}}]}"), "spec.ingress[0].from[0].ipBlock.cidr"),
        (
            RULE.format("{from: [{ipBlock: {cidr: 10.0.0.0/255.0.0.0}}]}"),
            "spec.ingress[0].from[0].ipBlock.cidr",
        ),
        (
            RULE.format("{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/16]}}]}"),
            "spec.ingress[0].from[0].ipBlock.except",
        ),
        (
            RULE.format("{from: [{ipBlock: {cidr: 10.0.0.0/8, except: ['fd00::/16']}}]}"),
            "spec.ingress[0].from[0].ipBlock.except",
        ),
        (RULE.format("{ports: [{port: 0}]}"), "spec.ingress[0].ports[0].port"),
        (RULE.format("{ports: [{port: 65536}]}"), "spec.ingress[0].ports[0].port"),
        (RULE.format("{ports: [{port: a--b}]}"), "spec.ingress[0].ports[0].port"),
        (RULE.format("{ports: [{port: 80, endPort: 79}]}"), "spec.ingress[0].ports[0].endPort"),
        (RULE.format("{ports: [{port: http, endPort: 90}]}"), "spec.ingress[0].ports[0].endPort"),
        (RULE.format("{ports: [{endPort: 90}]}"), "spec.ingress[0].ports[0].endPort"),
        (RULE.format("{ports: [{port: 80, protocol: ICMP}]}"), "spec.ingress[0].ports[0].protocol"),
        (RULE.format("null"), "spec.ingress[0]"),
    ],
)
def test_policy_that_cannot_be_is_refused_by_field(spec: str, field: str) -> None:
    """Each mistake leads to its line; nothing of the policy is kept."""
    assert list(refusal(knp_document(spec))) == [field]
