# SPDX-License-Identifier: Apache-2.0
"""What the agent says about endpoints and traffic, over parts in memory."""

import asyncio
from dataclasses import replace
from ipaddress import ip_address
from types import SimpleNamespace

import pytest

from ciliumd import abi
from ciliumd.daemon import stages
from ciliumd.daemon.answers import Answers
from ciliumd.daemon.api import EndpointOptions, RequestRefused
from ciliumd.daemon.membership import _facts
from ciliumd.desired.policy import cookie
from ciliumd.flows.record import FlowRecord
from ciliumd.flows.ring import RingStats
from ciliumd.model.labels import pod_labels
from ciliumd.model.net import addr16
from ciliumd.model.objects import RemoteEndpointRow
from unit.daemon import nodes
from unit.flows.samples import OFFSET_NS, VERDICT, record

pytestmark = pytest.mark.unit


class Ring:
    """What events told so far; some were lost."""

    def __init__(self):
        self.record = FlowRecord()

    def recorded(self):
        """The flows."""
        return self.record.flows(offset_ns=OFFSET_NS)

    def stats(self):
        """Seven events were lost."""
        return RingStats(0, 0, 7, 0, 0, 0)


@pytest.fixture
def answers(agent):
    """Answers of that agent."""
    agent.ring = Ring()
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
    with pytest.raises(RequestRefused, match="shop/nobody is no pod we know") as caught:
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


def test_explain_counts_what_the_row_decided_and_what_was_this_traffic(kernel, agent, answers):
    """The row of the version in force: what its predecessor decided counts for the traffic only."""
    plan = kernel.node.plan
    event = {
        **VERDICT,
        "endpoint_id": 1,
        "policy_version": plan.policy.versions[1],
        "rule_cookie": cookie("cnp:shop/web/ingress/0"),
        "src": addr16(ip_address("10.0.0.4")),
        "dst": addr16(ip_address("10.0.0.3")),
        "src_identity": plan.identities[2],
        "dst_identity": plan.identities[1],
    }
    agent.ring.record.take(
        record(**event)
        + record(**event, dport=81)
        + record(**{**event, "policy_version": 1, "timestamp": 9_000_000_000})
        + record(**{**event, "reason": 3})
    )

    answer = answers.explain("shop/pod-2", "shop/pod-1", "80/TCP")

    egress, ingress = answer["directions"]
    assert egress["counter"] == {"row": 0, "traffic": 0, "last-seen": ""}
    assert ingress["counter"] == {
        "row": 2,
        "traffic": 2,
        "last-seen": "2023-11-14T22:13:29.000000000Z",
    }
    assert answer["events-lost"] == 7
    by_address = answers.explain("10.0.0.4", "10.0.0.3", "81")
    assert by_address["directions"][1]["counter"]["traffic"] == 1


def test_explain_counts_an_entity_by_its_identity(agent, answers):
    """Whatever address it had."""
    outside = {"src": addr16(ip_address("192.0.2.1")), "src_identity": 2, "endpoint_id": 1}
    agent.ring.record.take(record(**outside, dst=addr16(ip_address("10.0.0.3"))))
    (ingress,) = answers.explain("world", "shop/pod-1", "80")["directions"]
    assert ingress["counter"]["traffic"] == 1


def test_explain_suggests_a_rule_for_what_default_deny_takes(answers):
    """And nothing where traffic passes."""
    denied = answers.explain("192.0.2.1", "shop/pod-1", "80")
    (document,) = denied["suggestion"]["documents"]
    assert document["spec"]["ingress"][0]["fromCIDR"] == ["192.0.2.1/32"]
    allowed = answers.explain("shop/pod-2", "shop/pod-1", "80")
    assert allowed["suggestion"] == {"documents": [], "note": ""}


def test_explain_knows_pods_of_other_nodes(kernel, answers):
    """By name and by address, with their labels and named ports."""
    labels = pod_labels("shop", {"app": "far"}, {}, "default")
    kernel.tables.cluster_identities.set(50000, labels)
    kernel.tables.remote_endpoints.set(
        ("shop", "far"),
        RemoteEndpointRow("shop", "far", 50000, (ip_address("10.1.0.9"),), None, {"http": ("TCP", 8080)}),
    )
    to_far = nodes.rule(nodes.app("far"), direction=nodes.EGRESS, ports=(nodes.port(name="http"),))
    nodes.add_policy(
        kernel.tables,
        nodes.policy("out", to_far, subject=nodes.subject(app="db"), ingress=False, egress=True),
    )
    kernel.round()
    for text in ("shop/far", "10.1.0.9"):
        answer = answers.explain("shop/pod-2", text, "8080")
        assert answer["verdict"] == "allowed"
        assert answer["directions"][0]["origins"] == ["cnp:shop/out/egress/0"]
        denied = answers.explain("shop/pod-2", text, "80")
        (document,) = denied["suggestion"]["documents"]
        assert document["spec"]["egress"][0]["toEndpoints"] == [{"matchLabels": {"app": "far"}}]
