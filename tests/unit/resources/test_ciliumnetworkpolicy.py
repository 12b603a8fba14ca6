# SPDX-License-Identifier: Apache-2.0
"""CiliumNetworkPolicy: what it means, what is refused, and whom its selectors can never reach."""

from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ciliumd.model.identity import Reserved, cidr_labels, reserved_labels
from ciliumd.model.labels import Labels, pod_labels
from ciliumd.model.policy import Direction, PeerCIDR, PeerEntity, PeerSelector, PortRule, Rule, Selector
from ciliumd.resources import parse
from unit.resources.documents import cnp_document, policy, refusal

pytestmark = pytest.mark.unit

SELECT_ALL = "{endpointSelector: {}, "
OUTSIDERS = [
    *(reserved_labels(reserved) for reserved in Reserved if reserved),
    cidr_labels(ip_network("192.0.2.0/24")),
]


def pod(app: str, namespace: str = "shop", **namespace_labels: str) -> Labels:
    """Labels of a pod."""
    return pod_labels(namespace, {"app": app}, namespace_labels, "default")


def rule(text: str, *, section: str = "ingress") -> Rule:
    """The one rule of a policy for every endpoint of namespace shop."""
    (only,) = policy(cnp_document(f"{SELECT_ALL}{section}: [{text}]}}")).rules
    return only


def peer_selector(selector: str, *, section: str = "ingress") -> Selector:
    """The selector of the one peer of a policy in namespace shop."""
    side = "fromEndpoints" if section.startswith("ingress") else "toEndpoints"
    (peer,) = rule(f"{{{side}: [{selector}]}}", section=section).peers or ()
    assert isinstance(peer, PeerSelector)
    return peer.selector


@pytest.mark.parametrize(
    ("sections", "ingress", "egress"),
    [
        ("", False, False),
        ("ingress: [], egress: null", False, False),
        ("ingress: [{}]", True, False),
        ("ingressDeny: [{fromEntities: [world]}]", True, False),
        ("egress: [{}]", False, True),
        ("egressDeny: [{}]", False, True),
        ("ingress: [{}], enableDefaultDeny: {ingress: false}", False, False),
        ("enableDefaultDeny: {egress: true}", False, True),
        ("ingress: [{}], enableDefaultDeny: {egress: true}", True, True),
    ],
)
def test_default_deny_follows_rules_unless_said_otherwise(
    sections: str, *, ingress: bool, egress: bool
) -> None:
    """A direction with rules is isolated, one without is not; enableDefaultDeny overrides each."""
    row = policy(cnp_document(f"{SELECT_ALL}{sections}}}"))

    assert (row.default_deny_ingress, row.default_deny_egress) == (ingress, egress)


@pytest.mark.parametrize(
    ("text", "peers", "ports"),
    [
        ("{}", (), None),
        ("{fromEndpoints: []}", (), None),
        ("{fromEntities: [], toPorts: [{ports: [{port: '80'}]}]}", (), (PortRule("ANY", 80),)),
        ("{fromCIDR: []}", (), None),
        ("{toPorts: [{ports: [{port: '80'}]}]}", None, (PortRule("ANY", 80),)),
        ("{fromEndpoints: null, toPorts: [{ports: [{port: '80'}]}]}", None, (PortRule("ANY", 80),)),
        ("{fromEntities: [all], toPorts: []}", (PeerEntity("all"),), None),
    ],
)
def test_nobody_and_anybody_are_told_apart(
    text: str, peers: tuple[object, ...] | None, ports: tuple[PortRule, ...] | None
) -> None:
    """An empty list is nobody; no list at all leaves it to the ports; with neither there is nobody."""
    only = rule(text)

    assert (only.peers, only.ports) == (peers, ports)


def test_peers_of_one_rule_are_alternatives() -> None:
    """Selectors, CIDRs, CIDR sets and entities of one rule add up."""
    only = rule(
        "{toCIDR: [10.0.0.0/8, 192.0.2.7], toCIDRSet: [{cidr: 172.16.0.0/12, except: [172.16.1.0/24]}], "
        "toEntities: [world, host]}",
        section="egress",
    )

    assert only.peers == (
        PeerCIDR(ip_network("10.0.0.0/8")),
        PeerCIDR(ip_network("192.0.2.7/32")),
        PeerCIDR(ip_network("172.16.0.0/12"), (ip_network("172.16.1.0/24"),)),
        PeerEntity("world"),
        PeerEntity("host"),
    )


def test_ports_of_every_form_are_understood() -> None:
    """Number, range, name without case, every port; ANY unless said otherwise; lists add up."""
    only = rule(
        "{toPorts: [{ports: [{port: '80', protocol: TCP}, {port: '8000', endPort: 8010, protocol: UDP}]}, "
        "{ports: [{port: HTTP, protocol: TCP}, {port: '0', protocol: SCTP}, {port: '53'}]}]}"
    )

    assert only.ports == (
        PortRule("TCP", 80),
        PortRule("UDP", 8000, 8010),
        PortRule("TCP", name="http"),
        PortRule("SCTP"),
        PortRule("ANY", 53),
    )


def test_rules_say_where_they_are_written() -> None:
    """All four sections, each with its own count."""
    row = policy(
        cnp_document(
            f"{SELECT_ALL}ingress: [{{}}, {{}}], ingressDeny: [{{}}], egress: [{{}}], egressDeny: [{{}}]}}"
        )
    )

    assert [(rule.origin, rule.direction, rule.deny) for rule in row.rules] == [
        ("cnp:shop/rule1/ingress/0", Direction.INGRESS, False),
        ("cnp:shop/rule1/ingress/1", Direction.INGRESS, False),
        ("cnp:shop/rule1/ingressDeny/0", Direction.INGRESS, True),
        ("cnp:shop/rule1/egress/0", Direction.EGRESS, False),
        ("cnp:shop/rule1/egressDeny/0", Direction.EGRESS, True),
    ]


def test_specs_are_policies_of_their_own() -> None:
    """The spec and every one of specs has its own subject, key and origin."""
    document = cnp_document("{endpointSelector: {matchLabels: {app: web}}, ingress: [{}]}")
    document["specs"] = [{"endpointSelector": {"matchLabels": {"app": "db"}}, "egress": [{}]}]

    rows = parse(document).rows()

    assert [key for _, key, _ in rows] == [
        ("CiliumNetworkPolicy", "shop", "rule1"),
        ("CiliumNetworkPolicy", "shop", "rule1/specs/0"),
    ]
    first, second = (row for _, _, row in rows)
    assert first.subject.matches(pod("web"))
    assert not first.subject.matches(pod("db"))
    assert second.subject.matches(pod("db"))
    assert second.rules[0].origin == "cnp:shop/rule1/specs/0/egress/0"
    assert second.name == "rule1"


@pytest.mark.parametrize(
    "selector",
    [
        "{}",
        "{matchLabels: {app: web}}",
        "{matchLabels: {'k8s:app': web}}",
        "{matchLabels: {'any:app': web}}",
        "{matchExpressions: [{key: 'reserved:host', operator: DoesNotExist}]}",
        "{matchExpressions: [{key: 'reserved:host', operator: NotIn, values: [x]}]}",
        "{matchExpressions: [{key: io.kubernetes.pod.namespace, operator: Exists}]}",
        "{matchExpressions: [{key: io.kubernetes.pod.namespace, operator: NotIn, values: [kube-system]}]}",
        "{matchLabels: {'k8s:io.kubernetes.pod.namespace': shop}}",
        "{matchLabels: {'k8s:io.cilium.k8s.namespace.labels.env': prod}}",
    ],
)
def test_subjects_are_only_ever_in_the_policys_namespace(selector: str) -> None:
    """No form of endpointSelector reaches a pod of another namespace, a node or the world."""
    subject = policy(cnp_document(f"{{endpointSelector: {selector}, ingress: [{{}}]}}")).subject

    assert subject.matches(pod("web", env="prod"))
    assert not subject.matches(pod("web", "other", env="prod"))
    assert not any(subject.matches(labels) for labels in OUTSIDERS)


@pytest.mark.parametrize("key", ["k8s:io.kubernetes.pod.namespace", "io.kubernetes.pod.namespace"])
def test_subject_in_another_namespace_is_refused(key: str) -> None:
    """Such a policy could select nobody: its author should hear of it."""
    found = refusal(cnp_document(f"{{endpointSelector: {{matchLabels: {{'{key}': kube-system}}}}}}"))

    assert found == {
        f'spec.endpointSelector.matchLabels["{key}"]': (
            "names namespace 'kube-system': a policy selects in its own, 'shop'"
        )
    }


@pytest.mark.parametrize("section", ["ingress", "ingressDeny", "egress", "egressDeny"])
@pytest.mark.parametrize(
    "selector",
    [
        "{}",
        "{matchLabels: {app: web}}",
        "{matchExpressions: [{key: app, operator: NotIn, values: [db]}]}",
        "{matchExpressions: [{key: 'reserved:host', operator: DoesNotExist}]}",
        "{matchExpressions: [{key: 'reserved:host', operator: NotIn, values: [x]}]}",
    ],
)
def test_peers_are_neighbours_unless_the_selector_speaks_of_namespaces(selector: str, section: str) -> None:
    """The absence of a reserved label is no way out of the namespace."""
    peers = peer_selector(selector, section=section)

    assert peers.matches(pod("web"))
    assert not peers.matches(pod("web", "other"))
    assert not any(peers.matches(labels) for labels in OUTSIDERS)


@pytest.mark.parametrize(
    "selector",
    [
        "{matchLabels: {'k8s:io.kubernetes.pod.namespace': other}}",
        "{matchLabels: {io.kubernetes.pod.namespace: other, app: web}}",
        "{matchExpressions: [{key: 'any:io.kubernetes.pod.namespace', operator: In, values: [other, more]}]}",
        "{matchLabels: {'k8s:io.cilium.k8s.namespace.labels.env': prod}}",
        "{matchLabels: {'k8s:io.cilium.k8s.namespace.labels.example.org/tier': gold}}",
    ],
)
def test_peers_in_other_namespaces_can_be_named(selector: str) -> None:
    """By the namespace's name or its labels; then the policy's own namespace is not implied."""
    peers = peer_selector(selector)

    labels = {"env": "prod", "example.org/tier": "gold"}
    assert peers.matches(pod("web", "other", **labels))
    assert not peers.matches(pod("web", "third"))
    assert not peers.matches(pod("web"))


@pytest.mark.parametrize("operator", ["NotIn", "DoesNotExist"])
@pytest.mark.parametrize("key", ["io.kubernetes.pod.namespace", "k8s:io.cilium.k8s.namespace.labels.env"])
def test_excluding_namespaces_never_lets_nodes_or_the_world_in(operator: str, key: str) -> None:
    """Who has no namespace is not in an excluded one; an allow stays with pods, a deny stays wide."""
    values = ", values: [prod]" if operator == "NotIn" else ""
    selector = f"{{matchExpressions: [{{key: '{key}', operator: {operator}{values}}}]}}"

    assert not any(peer_selector(selector).matches(labels) for labels in OUTSIDERS)
    assert all(peer_selector(selector, section="ingressDeny").matches(labels) for labels in OUTSIDERS)


def test_reserved_labels_can_be_demanded() -> None:
    """A selector that demands reserved:host means the node and no pod."""
    for selector in (
        "{matchLabels: {'reserved:host': ''}}",
        "{matchExpressions: [{key: 'reserved:host', operator: Exists}]}",
    ):
        peers = peer_selector(selector)

        assert peers.matches(reserved_labels(Reserved.HOST))
        assert not peers.matches(reserved_labels(Reserved.WORLD))
        assert not peers.matches(pod("web"))


KEYS = st.sampled_from(
    ["app", "k8s:app", "any:app", "reserved:host", "reserved:world", "k8s:io.cilium.k8s.policy.cluster"]
)
TERMS = st.one_of(
    st.fixed_dictionaries(
        {
            "key": KEYS,
            "operator": st.sampled_from(["In", "NotIn"]),
            "values": st.lists(st.sampled_from(["web", "db", "default"]), min_size=1, max_size=2),
        }
    ),
    st.fixed_dictionaries({"key": KEYS, "operator": st.sampled_from(["Exists", "DoesNotExist"])}),
)


@given(st.lists(TERMS, max_size=3), st.sampled_from(["ingress", "ingressDeny"]))
def test_no_selector_silent_about_namespaces_reaches_a_pod_of_another(
    terms: list[dict[str, object]], section: str
) -> None:
    """Whatever the selector says about labels, pods elsewhere and the world beyond it are not meant."""
    document = cnp_document("{endpointSelector: {}}")
    document["spec"][section] = [{"fromEndpoints": [{"matchExpressions": terms}]}]
    (peer,) = policy(document).rules[0].peers or ()
    assert isinstance(peer, PeerSelector)

    assert not any(peer.selector.matches(pod(app, "other")) for app in ("web", "db", "x"))
    assert not peer.selector.matches(reserved_labels(Reserved.UNMANAGED))
