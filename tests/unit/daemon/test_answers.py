# SPDX-License-Identifier: Apache-2.0
"""What the agent says about endpoints and traffic, over parts in memory."""

import asyncio
from dataclasses import replace
from types import SimpleNamespace

import pytest

from ciliumd import abi
from ciliumd.daemon import stages
from ciliumd.daemon.answers import Answers
from ciliumd.daemon.api import EndpointOptions, RequestRefused
from ciliumd.daemon.membership import _facts
from unit.daemon import nodes

pytestmark = pytest.mark.unit


@pytest.fixture
def answers(agent):
    """Answers of that agent; nobody asks for flows."""
    agent.ring = None
    return Answers(agent)


@pytest.mark.parametrize("dport", ["", "x", "65536", "99999/TCP", "-1", "80/GRE", "/TCP", "8 0"])
def test_explain_refuses_what_is_no_port(answers, dport):
    """400, with how to write one."""
    with pytest.raises(RequestRefused, match="write 80/TCP") as caught:
        answers.explain("shop/pod-2", "shop/pod-1", dport)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("source", "verdict"),
    [("shop/pod-2", "allowed"), ("10.0.0.4", "allowed"), ("world", "denied"), ("1.1.1.1", "denied")],
)
def test_explain_takes_pods_addresses_and_entities(answers, source, verdict):
    """The port without a protocol is TCP."""
    answer = answers.explain(source, "shop/pod-1", "80")
    assert answer["verdict"] == verdict
    assert answer["protocol"] == "TCP"


def test_explain_works_while_an_endpoint_has_no_version(kernel, answers):
    """One endpoint whose rules do not fit takes nobody's explanations away."""
    kernel.node.plan.policy.versions.pop(2)
    assert answers.explain("shop/pod-2", "shop/pod-1", "80/TCP")["verdict"] == "allowed"


def test_rules_that_wait_for_a_prefix_are_not_in_force_yet(kernel, agent, answers):
    """The endpoint has not reached the revision, and traffic is explained by the rules it is under."""
    kernel.round()
    assert answers.endpoints()[0]["status"]["policy"]["realized"]["policy-revision"] > 0
    nodes.add_policy(
        kernel.tables,
        nodes.policy("world", nodes.rule(nodes.cidr("192.0.2.0/24")), subject=nodes.subject(app="web")),
    )
    kernel.round()
    one = answers.endpoints()[0]["status"]
    assert one["state"] == "regenerating"
    assert one["policy"]["realized"]["policy-revision"] == 0
    assert answers.explain("192.0.2.1", "shop/pod-1", "80/TCP")["verdict"] == "denied"

    kernel.round()
    one = answers.endpoints()[0]["status"]
    assert one["state"] == "ready"
    assert one["policy"]["realized"]["policy-revision"] == answers.policy()["revision"]
    assert answers.explain("192.0.2.1", "shop/pod-1", "80/TCP")["verdict"] == "allowed"


def test_explain_of_nobody_is_404(answers):
    """The name is in the answer."""
    with pytest.raises(RequestRefused, match="shop/nobody is no pod") as caught:
        answers.explain("shop/nobody", "world", "80/TCP")
    assert caught.value.status == 404


def test_endpoints_are_found_by_number_and_pod(answers):
    """And only those there are."""
    assert answers.endpoint_number("1") == 1
    assert answers.endpoint_number("pod:shop/pod-2") == 2
    for key in ("9", "x", "", "pod:shop/nobody", "pod:", "-1"):
        assert answers.endpoint_number(key) is None


@pytest.mark.parametrize("node", [False, True])
def test_an_endpoint_is_audited_as_it_was_set_or_as_the_node_is(kernel, agent, answers, node):
    """What is as on the node follows the node; what differs is the endpoint's own."""
    plan = agent.plan
    plan.node = replace(plan.node, audit=node)
    own, same = ("Disabled", "Enabled") if node else ("Enabled", "Disabled")
    asked = []

    async def set_audit(number, audit):
        asked.append((number, audit))
        agent.tables.endpoints.set(number, replace(agent.tables.endpoints.get(number), audit=audit))

    agent.endpoints_owner = SimpleNamespace(set_audit=set_audit)

    def shown():
        kernel.round()
        return [
            (one["spec"]["options"]["PolicyAuditMode"], one["status"]["policy"]["realized"]["policy-enabled"])
            for one in answers.endpoints()
        ]

    def word(audit):
        return "audit-ingress" if audit == "Enabled" else "ingress"

    assert shown() == [(same, word(same)), (same, "none")]
    asyncio.run(answers.configure_endpoint(1, EndpointOptions(PolicyAuditMode=own)))
    assert shown() == [(own, word(own)), (same, "none")]
    facts = kernel.maps[stages.FACTS].rows
    flags = [abi.Endpoint.unpack(facts[slot]).flags for slot in sorted(facts)]
    assert flags == [int(own == "Enabled"), int(same == "Enabled")]
    asyncio.run(answers.configure_endpoint(1, EndpointOptions(PolicyAuditMode=same)))
    asyncio.run(answers.configure_endpoint(1, EndpointOptions()))
    assert shown() == [(same, word(same)), (same, "none")]
    assert asked == [(1, not node), (1, None)]


def test_explain_tells_that_what_is_denied_passes(agent, answers):
    """Of the endpoint whose policy denies."""
    agent.tables.endpoints.set(1, replace(agent.tables.endpoints.get(1), audit=True))
    (one,) = answers.explain("world", "shop/pod-1", "80")["directions"]
    assert (one["verdict"], one["audited"]) == ("default-deny", True)


def test_metrics_count_audited_endpoints_apart(agent):
    """By the word that `endpoint list` goes by."""
    assert agent._enforcement() == {"ingress": 1, "none": 1}
    agent.tables.endpoints.set(1, replace(agent.tables.endpoints.get(1), audit=True))
    assert agent._enforcement() == {"audit-ingress": 1, "none": 1}


def test_the_cluster_is_told_that_an_audited_endpoint_enforces_nothing(agent):
    """As CiliumEndpoints say it."""
    endpoint = agent.tables.endpoints.get(1)
    assert (_facts(agent, endpoint).ingress, _facts(agent, endpoint).egress) == (True, False)
    audited = replace(endpoint, audit=True)
    assert (_facts(agent, audited).ingress, _facts(agent, audited).egress) == (False, False)


def test_selectors_name_policies_and_identities(kernel, answers):
    """In the shape of Cilium's API, with the rules besides."""
    (one,) = answers.selectors()
    assert one == {
        "selector": "k8s:app=db",
        "identities": [kernel.node.plan.identities[2]],
        "users": 1,
        "labels": [
            [
                {
                    "key": "io.cilium.k8s.policy.derived-from",
                    "value": "CiliumNetworkPolicy",
                    "source": "k8s",
                },
                {"key": "io.cilium.k8s.policy.name", "value": "web", "source": "k8s"},
                {"key": "io.cilium.k8s.policy.namespace", "value": "shop", "source": "k8s"},
            ]
        ],
        "rules": ["cnp:shop/web/ingress/0"],
    }
