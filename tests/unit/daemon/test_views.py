# SPDX-License-Identifier: Apache-2.0
"""What users read: policies as people write them, endpoints and explanations in Cilium's shapes."""

import json

import pytest

from ciliumd.daemon import views
from ciliumd.daemon.suggestion import Suggestion
from ciliumd.desired.policy import EndpointRules, Party, explain, select
from ciliumd.model.endpoint import HEALTH_POD
from ciliumd.model.identity import Reserved, reserved_labels
from ciliumd.model.labels import ANY, K8S, Label
from ciliumd.model.policy import Operator, PeerSelector, PortRule, Requirement, Selector
from ciliumd.tables import Problem
from unit.daemon import nodes


def requirement(op, *values, source=ANY, key="class"):
    """A term of matchExpressions."""
    return Requirement(source, key, op, frozenset(values))


@pytest.mark.parametrize(
    ("peer", "text"),
    [
        (nodes.app("foo"), "k8s:app=foo"),
        (
            PeerSelector(
                Selector(frozenset({(K8S, "app", "foo")}), (requirement(Operator.IN, "b", "a"),)),
            ),
            "k8s:app=foo, any:class in (a, b)",
        ),
        (PeerSelector(Selector(expressions=(requirement(Operator.NOT_IN, "a"),))), "any:class notin (a)"),
        (PeerSelector(Selector(expressions=(requirement(Operator.EXISTS),))), "any:class"),
        (PeerSelector(Selector(expressions=(requirement(Operator.DOES_NOT_EXIST),))), "!any:class"),
        (PeerSelector(Selector(frozenset({(K8S, "b", ""), (ANY, "a", "1")}))), "any:a=1, k8s:b="),
        (PeerSelector(Selector()), "every endpoint"),
        (nodes.cidr("10.0.0.0/8"), "10.0.0.0/8"),
        (nodes.cidr("10.0.0.0/8", "10.1.0.0/16"), "10.0.0.0/8 except 10.1.0.0/16"),
        (nodes.cidr("fd00::/8", "fd00::/16", "fd01::/16"), "fd00::/8 except fd00::/16, fd01::/16"),
        (nodes.entity("world"), "entity world"),
    ],
)
def test_a_peer_is_shown_as_people_write_it(peer, text):
    """Labels with their sources, prefixes with what they leave out, entities by name."""
    assert views.peer_text(peer) == text


@pytest.mark.parametrize(
    ("port", "text"),
    [
        (PortRule("TCP", 80), "80/TCP"),
        (PortRule("TCP", 8080, 8090), "8080-8090/TCP"),
        (PortRule("TCP", name="http"), "http/TCP"),
        (PortRule("UDP"), "any/UDP"),
        (PortRule(), "any/ANY"),
        (PortRule("ANY", 53), "53/ANY"),
    ],
)
def test_a_port_is_shown_as_people_write_it(port, text):
    """Number, range, name; and the protocol."""
    assert views.port_text(port) == text


def test_a_policy_shows_subject_rules_and_default_deny():
    """Unrestricted is None, so that no reader mistakes it for nothing."""
    made = nodes.policy(
        "web",
        nodes.rule(nodes.app("db"), ports=(nodes.port(80),)),
        nodes.rule(direction=nodes.EGRESS, deny=True),
        subject=nodes.subject(app="web"),
    )
    model = views.policy_model(made)
    assert model["subject"] == "k8s:app=web, k8s:io.kubernetes.pod.namespace=shop"
    assert model["default-deny"] == {"ingress": True, "egress": False}
    assert model["rules"] == [
        {
            "origin": "cnp:shop/web/ingress/0",
            "direction": "ingress",
            "deny": False,
            "peers": ["k8s:app=db"],
            "ports": ["80/TCP"],
        },
        {
            "origin": "cnp:shop/web/egress/1",
            "direction": "egress",
            "deny": True,
            "peers": None,
            "ports": None,
        },
    ]


def test_policies_and_problems_are_listed_in_order():
    """By kind, namespace and name; everything is JSON."""
    policies = [nodes.policy(name) for name in ("b", "a")]
    problems = {("Pod", "shop", "x"): Problem("spec.x", "is wrong", "x.yaml:3")}
    answer = views.policy_answer(policies, problems, revision=7, cookies={9: ("a", "b")})
    assert [one["name"] for one in answer["policy"]] == ["a", "b"]
    assert answer["problems"] == [
        {
            "kind": "Pod",
            "namespace": "shop",
            "name": "x",
            "field": "spec.x",
            "message": "is wrong",
            "file": "x.yaml:3",
        }
    ]
    assert answer["rule-cookies"] == {"9": ["a", "b"]}
    assert json.loads(json.dumps(answer)) == answer


@pytest.mark.parametrize(
    ("rules", "word"),
    [
        (None, "none"),
        (EndpointRules(), "none"),
        (EndpointRules((), ("a",)), "ingress"),
        (EndpointRules((), (), ("a",)), "egress"),
        (EndpointRules((), ("a",), ("a",)), "both"),
    ],
)
def test_enforcement_is_one_word(rules, word):
    """As ``endpoint list`` shows it."""
    assert views.enforcement(rules) == word


@pytest.mark.parametrize(
    ("rules", "word"),
    [
        (None, "none"),
        (EndpointRules(), "none"),
        (EndpointRules((), ("a",), ()), "audit-ingress"),
        (EndpointRules((), (), ("a",)), "audit-egress"),
        (EndpointRules((), ("a",), ("a",)), "audit-both"),
        (EndpointRules((nodes.rule(),)), "none"),
        (EndpointRules((nodes.rule(deny=True),)), "audit-ingress"),
        (EndpointRules((nodes.rule(direction=nodes.EGRESS, deny=True),), ("a",)), "audit-both"),
    ],
)
def test_audit_is_shown_where_something_would_be_dropped(rules, word):
    """A deny rule drops without default deny, too."""
    assert views.enforcement(rules, audit=True) == word


def test_an_endpoint_without_anything_yet_is_shown():
    """No identity, no policy, one address."""
    model = views.endpoint_model(
        nodes.endpoint(7),
        state="restoring",
        identity=None,
        labels=frozenset(),
        rules=None,
        version=None,
        revision=0,
        audit=False,
    )
    assert model["id"] == 7
    assert model["spec"] == {"options": {"PolicyAuditMode": "Disabled"}}
    assert model["status"]["identity"] == {"id": 0, "labels": []}
    assert model["status"]["networking"]["addressing"] == [{"ipv4": "10.0.0.9", "ipv6": ""}]
    assert model["status"]["external-identifiers"]["pod-name"] == "shop/pod-7"
    assert json.loads(json.dumps(model)) == model


def test_the_health_endpoint_is_no_pod():
    """It is called by its container, and no pod's name is made up for it."""
    model = views.endpoint_model(
        nodes.endpoint(7, namespace=HEALTH_POD[0], pod=HEALTH_POD[1]),
        state="ready",
        identity=4,
        labels=reserved_labels(Reserved.HEALTH),
        rules=None,
        version=1,
        revision=1,
        audit=True,
    )
    assert model["status"]["external-identifiers"] == {
        "container-name": "cilium-health",
        "container-id": "",
        "netns": "/run/netns/pod-7",
    }
    assert model["spec"] == model["status"]["realized"] == {"options": {"PolicyAuditMode": "Enabled"}}
    assert model["status"]["identity"] == {"id": 4, "labels": ["reserved:health"]}
    assert model["status"]["health"]["overallHealth"] == "OK"


def test_identities_are_listed_by_number():
    """Labels in a stable order."""
    labels = frozenset({Label(K8S, "b", "1"), Label(K8S, "a", "1")})
    assert views.identity_models({300: labels, 1: reserved_labels(Reserved.HOST)}) == [
        {"id": 1, "labels": ["reserved:host"]},
        {"id": 300, "labels": ["k8s:a=1", "k8s:b=1"]},
    ]


@pytest.mark.parametrize(
    ("port", "verdict", "word"),
    [(80, "allowed", "allow"), (81, "denied", "default-deny"), (82, "denied", "deny")],
)
def test_an_explanation_names_verdict_rules_and_row(port, verdict, word):
    """The row is the one the datapath goes by, its verdict in words."""
    web = frozenset({Label(K8S, "app", "web"), Label(K8S, "io.kubernetes.pod.namespace", "shop")})
    made = nodes.policy(
        "web",
        nodes.rule(nodes.entity("world"), ports=(nodes.port(80),)),
        nodes.rule(nodes.entity("world"), ports=(nodes.port(82),), deny=True),
        subject=nodes.subject(app="web"),
    )
    assert select([made], web).ingress_enforced
    found = explain(
        [made],
        source=Party(2, reserved_labels(Reserved.WORLD), is_endpoint=False),
        destination=Party(300, web),
        protocol="TCP",
        port=port,
    )
    answer = views.explanation(found, Suggestion(note="why not"), source="world", destination="shop/web")
    (one,) = answer["directions"]
    assert answer["verdict"] == verdict
    assert (one["direction"], one["endpoint"], one["verdict"]) == ("ingress", "shop/web", word)
    assert not one["audited"]
    audited = views.explanation(
        found, Suggestion(), source="world", destination="shop/web", audited=["shop/web"]
    )
    assert audited["verdict"] == verdict, "what the policy says"
    assert audited["directions"][0]["audited"]
    assert one["row"].endswith(f"-> {word}")
    assert all(origin.startswith("cnp:shop/web") for origin in one["origins"])
    assert answer["suggestion"] == {"documents": [], "note": "why not"}
