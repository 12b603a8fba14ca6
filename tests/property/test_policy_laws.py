# SPDX-License-Identifier: Apache-2.0
"""Laws of policy that hold whatever the documents say, checked on the computed maps alone."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from property.computed import InterpreterJudge, Node, verdict_name
from property.documents import CILIUM_RULES
from property.reference.oracle import ALLOW, DEFAULT, DENY, EGRESS, INGRESS, Pod
from property.strategies import cases
from property.worlds import Case, Document

pytestmark = pytest.mark.property

few = settings(max_examples=settings().max_examples // 5)

Verdicts = dict[tuple[str, str], str]


def _verdicts(case: Case, policies: tuple[Document, ...]) -> Verdicts:
    node = Node(case.with_policies(*policies))
    judge = InterpreterJudge()
    found: Verdicts = {}
    for subject in case.subjects():
        judge.load(node.state(subject))
        for packet in case.packets():
            found[repr(subject), repr(packet)] = verdict_name(node, judge, packet)
    return found


def _policy(name: str, **spec: Any) -> Document:
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": {"name": name, "namespace": "blue"},
        "spec": {"endpointSelector": {}, **spec},
    }


CLOSED = _policy("closed", enableDefaultDeny={"ingress": True, "egress": True})


@few
@given(case=cases(), ingress=CILIUM_RULES[INGRESS], egress=CILIUM_RULES[EGRESS])
def test_allow_rule_in_default_deny_never_removes_reachability(
    case: Case, ingress: Document, egress: Document
) -> None:
    """What passed before passes after, for pods that are in default deny already."""
    before = (*case.policies, CLOSED)
    after = (*before, _policy("more", ingress=[ingress], egress=[egress]))

    reachable = {key for key, said in _verdicts(case, before).items() if said == ALLOW}

    assert reachable <= {key for key, said in _verdicts(case, after).items() if said == ALLOW}


@few
@given(case=cases(), ingress=CILIUM_RULES[INGRESS], egress=CILIUM_RULES[EGRESS])
def test_deny_wins_and_takes_nothing_else(case: Case, ingress: Document, egress: Document) -> None:
    """A deny rule denies what it covers whatever else is allowed, and leaves the rest as it was."""
    deny = _policy(
        "deny",
        ingressDeny=[ingress],
        egressDeny=[egress],
        enableDefaultDeny={"ingress": False, "egress": False},
    )
    alone, before = _verdicts(case, (deny,)), _verdicts(case, case.policies)

    expected = {key: DENY if alone[key] == DENY else said for key, said in before.items()}

    assert expected == _verdicts(case, (*case.policies, deny))


@few
@given(case=cases(), data=st.data())
def test_order_is_irrelevant(case: Case, data: st.DataObject) -> None:
    """Policies in any order give the very same maps; rules in any order the same verdicts."""
    policies = tuple(data.draw(st.permutations(case.policies)))
    shuffled = case.with_policies(*policies)
    for subject in case.subjects():
        assert Node(case).state(subject) == Node(shuffled).state(subject)

    assert _verdicts(case, case.policies) == _verdicts(case, tuple(map(_reversed_rules, policies)))


@few
@given(case=cases())
def test_empty_selector_takes_everything_in_scope_and_empty_list_nothing(case: Case) -> None:
    """``fromEndpoints: [{}]`` is every pod of the namespace and nobody else; ``[]`` is nobody."""
    everything = _policy("all", ingress=[{"fromEndpoints": [{}]}], egress=[{"toEndpoints": [{}]}])
    nothing = _policy("none", ingress=[{"fromEndpoints": []}], egress=[{"toEndpoints": []}])
    judge = InterpreterJudge()
    for policy in (everything, nothing):
        world = replace(case.with_policies(policy), enforcement=DEFAULT)
        node = Node(world)
        for subject in world.subjects():
            if not isinstance(subject, Pod) or subject.namespace != "blue":
                continue
            judge.load(node.state(subject))
            for packet in case.packets():
                in_scope = isinstance(packet.peer, Pod) and packet.peer.namespace == "blue"
                is_host = packet.direction == INGRESS and getattr(packet.peer, "reserved", "") == "host"
                expected = is_host or (in_scope and policy is everything)

                assert expected == (verdict_name(node, judge, packet) == ALLOW)


def _reversed_rules(policy: Document) -> Document:
    def turned(spec: Document) -> Document:
        return {key: value[::-1] if isinstance(value, list) else value for key, value in spec.items()}

    parts: dict[str, Any] = {}
    if "spec" in policy:
        parts["spec"] = turned(policy["spec"])
    if "specs" in policy:
        parts["specs"] = [turned(spec) for spec in policy["specs"]][::-1]
    return {**policy, **parts}
