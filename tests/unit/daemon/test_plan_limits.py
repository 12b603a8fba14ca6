# SPDX-License-Identifier: Apache-2.0
"""The plan at its limits: rules and numbers that do not fit, a large node, a long life."""

import time
from dataclasses import replace

from ciliumd import abi
from ciliumd.daemon.policy_versions import RETIRE_AFTER
from ciliumd.desired.identities import named_ports_by_identity
from ciliumd.desired.policy import resolve
from ciliumd.model.identity import CLUSTER_MAX, CLUSTER_MIN
from ciliumd.model.labels import Label
from unit.daemon import nodes
from unit.daemon.nodes import EGRESS, says, two_pods


def test_rules_that_do_not_fit_keep_their_endpoint_shut_or_as_it_was_after_a_restart(monkeypatch):
    """The version in force is known from the kernel; who has none gets one that lets nobody in or out."""
    node = two_pods()
    kept = node.plan.policy.versions[1]
    classes = abi.MAPS["cilium_policy_classes_v1"]
    small = replace(classes, inner=replace(classes.inner, max_entries=1))
    monkeypatch.setitem(abi.MAPS, "cilium_policy_classes_v1", small)
    again = node.restarted()
    again.refresh()
    assert again.plan.policy.versions[1] == kept
    assert "at most 1 fit" in again.tables.problems.get(("Endpoint", "shop", "pod-1")).message
    nodes.add_pod(again.tables, 3, {"app": "web"})
    again.refresh()
    peer = again.plan.identities[2]
    assert says(again, 3, peer) == says(again, 3, peer, direction=EGRESS) == "DEFAULT_DENY"


def test_an_endpoint_whose_rules_do_not_fit_is_no_more_open_than_they_are(monkeypatch):
    """Shut if what it has lets more through, else as it was; nobody else waits, and it passes."""
    node = two_pods()
    before, peer = node.plan.policy.versions[1], node.plan.identities[2]
    inner = abi.MAPS["cilium_policy_rules_v1"].inner
    small = replace(abi.MAPS["cilium_policy_rules_v1"], inner=replace(inner, max_entries=8))
    monkeypatch.setitem(abi.MAPS, "cilium_policy_rules_v1", small)
    many = tuple(nodes.port(number) for number in range(1, 40, 2))
    nodes.add_policy(node.tables, nodes.policy("db", subject=nodes.subject(app="db")))
    for deny, word, said in ((False, "ALLOW", "rules of before"), (True, "DEFAULT_DENY", "nothing passes")):
        many_rows = nodes.rule(nodes.app("db"), ports=many, deny=deny)
        nodes.add_policy(node.tables, nodes.policy("many", many_rows, subject=nodes.subject(app="web")))
        node.refresh()
        problem = node.tables.problems.get(("Endpoint", "shop", "pod-1"))
        assert "cilium_policy_rules_v1 than there are: at most 8 fit" in problem.message
        assert said in problem.message
        assert says(node, 1, peer) == word
        assert node.plan.policy.versions[1] not in node.plan._policies._versions._retired
        assert says(node, 2, node.plan.identities[1]) == "DEFAULT_DENY"

    node.tables.policies.delete(("CNP", "shop", "many"))
    node.refresh()
    assert node.tables.problems.get(("Endpoint", "shop", "pod-1")) is None
    assert node.plan.policy.versions[1] == before


def test_growth_that_does_not_fit_makes_another_version(monkeypatch):
    """Rows of classes nobody is in any more stay behind in the old one."""
    node = nodes.Planned(nodes.filled())
    nodes.add_pod(node.tables, 1, {"app": "web"})
    nodes.add_pod(node.tables, 2, {"app": "db"})
    rules = (
        nodes.rule(nodes.app(name), ports=(nodes.port(80 + i),)) for i, name in enumerate(("db", "cache"))
    )
    nodes.add_policy(node.tables, nodes.policy("web", *rules, subject=nodes.subject(app="web")))
    node.refresh()
    before = node.plan.policy.versions[1]
    full = replace(
        abi.MAPS["cilium_policy_rules_v1"].inner, max_entries=len(node.plan.policy.states[before].entries)
    )
    monkeypatch.setitem(
        abi.MAPS, "cilium_policy_rules_v1", replace(abi.MAPS["cilium_policy_rules_v1"], inner=full)
    )

    node.tables.endpoints.delete(2)
    node.refresh()
    node.tables.identities.delete(
        next(k for k, _ in node.tables.identities.items() if Label("k8s", "app", "db") in k)
    )
    nodes.add_pod(node.tables, 3, {"app": "cache"})
    node.refresh()
    after = node.plan.policy.versions[1]
    assert after > before
    assert len(node.plan.policy.states[after].entries) == full.max_entries
    assert says(node, 1, node.plan.identities[3], port=81) == "ALLOW"
    assert node.tables.problems.get(("Endpoint", "shop", "pod-1")) is None


def test_an_endpoint_no_identity_is_left_for_is_told(monkeypatch):
    """It has no rows, so nothing passes; when a number is released it gets one."""
    node = two_pods()
    for number in range(CLUSTER_MIN, CLUSTER_MAX + 1):
        node.tables.identities.set(frozenset({Label("k8s", "full", str(number))}), number)
    nodes.add_pod(node.tables, 3, {"app": "db", "revision": "2"})
    node.refresh()
    assert node.tables.problems.get(("Endpoint", "shop", "pod-3")).field == "identity"
    assert 3 not in node.plan.policy.versions

    node.tables.identities.delete(frozenset({Label("k8s", "full", "400")}))
    node.refresh()
    assert node.plan.identities[3] == 400
    assert node.tables.problems.get(("Endpoint", "shop", "pod-3")) is None


def test_a_change_on_a_large_node_costs_what_it_touches(capsys):
    """200 endpoints, 200 policies, 2000 identities: figures are printed, the result is judged."""
    node = nodes.Planned(nodes.filled())
    for number in range(1, 201):
        nodes.add_pod(node.tables, number, {"app": f"app-{number}", "tier": f"tier-{number % 20}"})
    for number in range(200):
        block = nodes.cidr(f"{20 + number}.0.0.0/8")
        peers = [nodes.app(f"app-{(number * 7 + step) % 200}") for step in range(3)]
        made = nodes.policy(
            f"policy-{number}",
            nodes.rule(*peers, ports=(nodes.port(80 + number), nodes.port(name="http"))),
            nodes.rule(block, direction=EGRESS),
            subject=nodes.subject(tier=f"tier-{number % 20}"),
            egress=True,
        )
        nodes.add_policy(node.tables, made)
    for number in range(1600):
        labels = frozenset({Label("k8s", "app", f"app-{number % 200}"), Label("k8s", "pod", str(number))})
        node.tables.identities.set(labels, 1000 + number)
    figures = {"everything": timed(node)}
    assert len(node.plan.known_identities) > 2000
    nodes.add_pod(node.tables, 201, {"app": "app-3", "tier": "tier-3", "revision": "2"})
    figures["a pod"] = timed(node)
    node.tables.policies.delete(("CNP", "shop", "policy-7"))
    figures["a policy"] = timed(node)
    with capsys.disabled():
        print(
            "\nplan of a large node:",
            ", ".join(f"{what} {1000 * took:.0f} ms" for what, took in figures.items()),
        )

    tables, plan = node.tables, node.plan
    named = named_ports_by_identity(tables.endpoints.values(), tables.pods.view(), plan.identities)
    for number in (3, 7, 201):
        scratch = resolve(plan.policy.rules[number], plan.known_identities, named_ports=named)
        assert plan.policy.states[plan.policy.versions[number]].meaning() == scratch.meaning()


def timed(node):
    """Seconds a refresh takes."""
    began = time.perf_counter()
    node.refresh()
    return time.perf_counter() - began


def test_what_is_remembered_does_not_grow_with_time():
    """A thousand changes later, versions, rules and peers of long ago have left nothing behind."""
    node = two_pods()
    for turn in range(60):
        nodes.add_policy(
            node.tables,
            nodes.policy("web", nodes.rule(nodes.app(f"db-{turn}")), subject=nodes.subject(app="web")),
        )
        nodes.add_pod(node.tables, 2, {"app": "db", "revision": str(turn)})
        node.refresh()
        node.clock.now += RETIRE_AFTER
        node.refresh()
    rows, kept = node.plan._policies, node.plan._policies._versions
    assert len(rows.states) == len(rows._packed) == len(kept._contents) == 2
    assert len(kept._sets) == len(kept._selected) == 2
    assert len(kept._cache._matching) == len(kept._cache._interested) == 1
    assert kept._cache._labels == node.plan.known_identities
