# SPDX-License-Identifier: Apache-2.0
"""What the agent says about endpoints and traffic, over parts in memory."""

import pytest

from ciliumd.daemon.answers import Answers
from ciliumd.daemon.api import RequestRefused
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
