# SPDX-License-Identifier: Apache-2.0
"""``fromRequires`` and ``toRequires``: what one rule demands of the peers of all."""

from dataclasses import replace
from itertools import permutations
from typing import Any

import pytest

from ciliumd.desired.policy import select
from ciliumd.model.labels import pod_labels
from ciliumd.model.policy import Direction, PeerCIDR, PeerEntity, PeerSelector, Policy
from ciliumd.resources import parse
from unit.resources.documents import ccnp_document, cnp_document, policy

pytestmark = pytest.mark.unit

WEB = pod_labels("shop", {"app": "web"}, {}, "default")
RED = pod_labels("shop", {"app": "db", "team": "red"}, {}, "default")
BLUE = pod_labels("shop", {"app": "db", "team": "blue"}, {}, "default")
ELSEWHERE = pod_labels("other", {"app": "db", "team": "red"}, {}, "default")
FROM_DB = "ingress: [{fromEndpoints: [{matchLabels: {app: db}}]}]"
ONLY_RED = "ingress: [{fromRequires: [{matchLabels: {team: red}}]}]"


def named(name: str, text: str, *, subject: str = "{}", make: Any = cnp_document) -> Policy:
    """A policy of its own name."""
    document = make(f"{{endpointSelector: {subject}, {text}}}")
    document["metadata"]["name"] = name
    return policy(document)


def selected(*policies: Policy, direction: Direction = Direction.INGRESS) -> list[PeerSelector]:
    """Whom the rules of the web pod select by labels."""
    rules = select(policies, WEB).of(direction)
    return [peer for rule in rules for peer in rule.peers or () if isinstance(peer, PeerSelector)]


def test_a_requirement_narrows_the_peers_of_other_policies() -> None:
    """Whoever is selected must be what is required, too."""
    (peer,) = selected(named("db", FROM_DB), named("red", ONLY_RED))
    assert peer.selector.matches(RED)
    assert not peer.selector.matches(BLUE)
    assert not peer.selector.matches(ELSEWHERE)


def test_a_requirement_narrows_the_peers_of_kubernetes_policies() -> None:
    """A NetworkPolicy's pods are selected by labels, too."""
    document = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "db", "namespace": "shop"},
        "spec": {"podSelector": {}, "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "db"}}}]}]},
    }
    ((_, _, kubernetes),) = parse(document).rows()
    (peer,) = selected(kubernetes, named("red", ONLY_RED))
    assert peer.selector.matches(RED)
    assert not peer.selector.matches(BLUE)


def test_a_requirement_allows_nobody_but_isolates() -> None:
    """Not on its ports either."""
    text = "ingress: [{fromRequires: [{}], toPorts: [{ports: [{port: '80'}]}]}]"
    found = select([named("red", text)], WEB)
    assert found.rules == ()
    assert found.ingress_enforced


def test_an_empty_list_requires_nothing() -> None:
    """A rule with ports alone is for everybody then, as without it."""
    text = "ingress: [{fromRequires: [], toPorts: [{ports: [{port: '80'}]}]}]"
    (rule,) = select([named("ports", text)], WEB).rules
    assert rule.peers is None


def test_addresses_entities_and_everybody_are_not_narrowed() -> None:
    """They have no labels that could be required."""
    everybody = "{toPorts: [{ports: [{port: '80'}]}]}"
    text = f"ingress: [{{fromCIDR: [10.0.0.0/8]}}, {{fromEntities: [host]}}, {everybody}]"
    peers = [rule.peers for rule in select([named("rest", text), named("red", ONLY_RED)], WEB).rules]
    kinds = [None if found is None else type(found[0]) for found in peers]
    assert kinds == [PeerCIDR, PeerEntity, None]


def test_denials_and_the_other_direction_are_not_narrowed() -> None:
    """A requirement can only take away what is allowed."""
    denies = named("deny", "ingressDeny: [{fromEndpoints: [{matchLabels: {app: db}}]}]")
    egress = named("egress", "egress: [{toEndpoints: [{matchLabels: {app: db}}]}]")
    required = named("red", ONLY_RED)
    (denied,) = selected(denies, required)
    (reached,) = selected(egress, required, direction=Direction.EGRESS)
    assert denied.selector.matches(BLUE)
    assert reached.selector.matches(BLUE)


def test_only_endpoints_that_the_policy_selects_are_under_its_requirements() -> None:
    """Others go on as before."""
    (peer,) = selected(named("db", FROM_DB), named("red", ONLY_RED, subject="{matchLabels: {app: db}}"))
    assert peer.selector.matches(BLUE)


def test_a_requirement_is_confined_to_the_namespace_of_its_policy() -> None:
    """One of the whole cluster is not; toRequires likewise."""
    to_db = "egress: [{toEndpoints: [{matchLabels: {app: db, 'k8s:io.kubernetes.pod.namespace': other}}]}]"
    text = "egress: [{toRequires: [{matchLabels: {team: red}}]}]"
    out = Direction.EGRESS
    (inside,) = selected(named("db", to_db), named("red", text), direction=out)
    assert not inside.selector.matches(ELSEWHERE)
    (anywhere,) = selected(named("db", to_db), named("red", text, make=ccnp_document), direction=out)
    assert anywhere.selector.matches(ELSEWHERE)


def test_the_order_of_requirements_does_not_matter() -> None:
    """Endpoints under the same rules share a version: the rules must be equal."""
    texts = [
        f"ingress: [{{fromRequires: [{{matchExpressions: [{{key: {key}, operator: Exists}}]}}]}}]"
        for key in ("team", "app")
    ]
    policies = [named("db", FROM_DB), *(named(f"r{i}", text) for i, text in enumerate(texts))]
    found = {select(order, WEB) for order in permutations(policies)}
    assert len(found) == 1
    assert all(replace(rule, requires=()) == rule for one in found for rule in one.rules)
