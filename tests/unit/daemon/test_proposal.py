# SPDX-License-Identifier: Apache-2.0
"""Proposed policies are judged by recorded flows: nothing comes into force, and nothing else is guessed."""

import asyncio
from ipaddress import ip_address, ip_network

import pytest

from ciliumd.daemon.answers import Answers
from ciliumd.daemon.api import RequestRefused
from ciliumd.daemon.proposal import ProposalError, copied, propose
from ciliumd.flows.record import RecordedFlow
from ciliumd.flows.ring import RingStats
from ciliumd.model.identity import LOCAL_MIN
from ciliumd.model.objects import CIDRGroupRow
from ciliumd.resources import parse

pytestmark = pytest.mark.unit

INGRESS, EGRESS = 1, 2
ALLOW, DEFAULT_DENY = 1, 3
WEB, DB = ip_address("10.0.0.3"), ip_address("10.0.0.4")
OUTSIDE = ip_address("192.0.2.7")
WORLD = 2


class Ring:
    """The flows that were recorded, and how many events were lost."""

    def __init__(self):
        self.flows = []

    def recorded(self):
        """All of them."""
        return self.flows

    def stats(self):
        """None were lost."""
        return RingStats(0, 0, 0, 0, 0, 0)


@pytest.fixture
def ring():
    """Nothing was recorded yet."""
    return Ring()


@pytest.fixture
def kernel(kernel):
    """The policy that is in force is one that was read from a document."""
    for key in kernel.tables.policies:
        kernel.tables.policies.delete(key)
    for _, key, row in parse(document(ingress=[FROM_DB])).rows():
        kernel.tables.policies.set(key, row)
    kernel.round()
    return kernel


@pytest.fixture
def answers(agent, ring):
    """Answers of an agent with two pods; web may be reached by db only."""
    agent.ring = ring
    return Answers(agent)


@pytest.fixture
def identity(kernel):
    """The identity of an endpoint."""
    return kernel.node.plan.identities.get


def flow(source, destination, *, endpoint, direction, peer, port=80, protocol=6, times=1, verdict=ALLOW):
    """A recorded flow."""
    return RecordedFlow(
        endpoint, direction, source, destination, peer, protocol, port, verdict, 0, times, 10**18
    )


def document(name="web", kind="CiliumNetworkPolicy", namespace="shop", **spec):
    """A policy for the web pod."""
    metadata = {"name": name, **({"namespace": namespace} if namespace else {})}
    selector = {"endpointSelector": {"matchLabels": {"app": "web"}}}
    return {"apiVersion": "cilium.io/v2", "kind": kind, "metadata": metadata, "spec": {**selector, **spec}}


def ports(*numbers):
    """TCP ports of a rule."""
    return [{"ports": [{"port": str(number), "protocol": "TCP"} for number in numbers]}]


def diff(answers, documents, delete):
    """What the agent answers."""
    return asyncio.run(answers.policy_diff(documents, delete))


def other(kind):
    """An object that is no policy."""
    return {"apiVersion": "v1", "kind": kind, "metadata": {"name": "a"}}


FROM_DB = {"fromEndpoints": [{"matchLabels": {"app": "db"}}]}


@pytest.fixture
def db_to_web(ring, identity):
    """Two connections of db to web, as both ends' policies judged them."""
    ring.flows = [
        flow(DB, WEB, endpoint=1, direction=INGRESS, peer=identity(2), port=port, times=2)
        for port in (443, 80)
    ] + [flow(DB, WEB, endpoint=2, direction=EGRESS, peer=identity(1), port=80, times=3)]


@pytest.mark.usefixtures("db_to_web")
def test_a_flow_that_would_be_denied_is_told_with_both_rules(kernel, answers):
    """The other one is not; nothing has come into force."""
    before = kernel.tables.policies.view()
    assert diff(answers, [document(ingress=[FROM_DB])], [])["changes"] == []

    answer = diff(answers, [document(ingress=[{**FROM_DB, "toPorts": ports(443)}])], [])

    assert answer["flows"] == 2
    (change,) = answer["changes"]
    assert change == {
        "from": "shop/pod-2",
        "to": "shop/pod-1",
        "protocol": "TCP",
        "port": 80,
        "times": 3,
        "last-seen": "2001-09-09T01:46:40.000000000Z",
        "verdict": "allowed",
        "proposed-verdict": "denied",
        "directions": [
            {
                "direction": "egress",
                "endpoint": "shop/pod-2",
                "verdict": "allow",
                "origins": [],
                "proposed-verdict": "allow",
                "proposed-origins": [],
            },
            {
                "direction": "ingress",
                "endpoint": "shop/pod-1",
                "verdict": "allow",
                "origins": ["cnp:shop/web/ingress/0"],
                "proposed-verdict": "default-deny",
                "proposed-origins": ["cnp:shop/web"],
            },
        ],
    }
    assert kernel.tables.policies.view() == before


@pytest.mark.usefixtures("db_to_web")
def test_a_policy_that_is_to_go_takes_its_default_deny_along(answers, ring, identity):
    """What it denied would pass."""
    ring.flows.append(flow(OUTSIDE, WEB, endpoint=1, direction=INGRESS, peer=WORLD, verdict=DEFAULT_DENY))

    (change,) = diff(answers, [], ["cnp:shop/web"])["changes"]

    assert (change["from"], change["proposed-verdict"]) == ("192.0.2.7", "allowed")
    assert change["directions"][0]["proposed-origins"] == []


def test_addresses_outside_are_judged_by_the_proposed_prefixes(answers, ring):
    """They had the world's identity, as no rule named them."""
    ring.flows = [
        flow(OUTSIDE, WEB, endpoint=1, direction=INGRESS, peer=WORLD, verdict=DEFAULT_DENY),
        flow(ip_address("198.51.100.1"), WEB, endpoint=1, direction=INGRESS, peer=WORLD),
    ]

    answer = diff(answers, [document(ingress=[{"fromCIDR": ["192.0.2.0/24"]}])], [])

    (change,) = answer["changes"]
    assert (change["from"], change["verdict"], change["proposed-verdict"]) == (
        "192.0.2.7",
        "denied",
        "allowed",
    )
    assert change["directions"][0]["origins"] == ["cnp:shop/web"]


def test_the_identity_of_a_prefix_is_an_address_also_once_it_is_gone(answers, ring):
    """It came and went with the rules that named it."""
    gone = LOCAL_MIN + 77
    ring.flows = [flow(OUTSIDE, WEB, endpoint=1, direction=INGRESS, peer=gone, verdict=DEFAULT_DENY)]
    (change,) = diff(answers, [document(ingress=[{"fromCIDR": ["192.0.2.0/24"]}])], [])["changes"]
    assert change["proposed-verdict"] == "allowed"


@pytest.mark.parametrize(
    "changed",
    [
        {"endpoint": 9, "direction": INGRESS, "peer": WORLD},  # a pod that is gone had the address
        {"endpoint": 1, "direction": INGRESS, "peer": 60000},  # a peer whose identity nobody knows
    ],
)
def test_flows_whose_ends_are_no_longer_who_they_were_are_left_out(answers, ring, changed):
    """And counted."""
    ring.flows = [flow(OUTSIDE, WEB, **changed)]
    answer = diff(answers, [document(ingressDeny=[{"fromEntities": ["all"]}])], [])
    assert (answer["flows"], answer["flows-left-out"], answer["changes"]) == (1, 1, [])


def test_a_local_peer_that_got_another_identity_is_left_out(answers, ring, identity):
    """What its policy would say is about another pod."""
    ring.flows = [flow(DB, WEB, endpoint=2, direction=EGRESS, peer=identity(1) + 1)]
    assert diff(answers, [document(ingress=[{}])], [])["flows-left-out"] == 1


def test_an_end_that_was_never_asked_is_asked_now(answers, ring, identity):
    """What its source dropped never came to the destination; both must let it through."""
    ring.flows = [flow(WEB, DB, endpoint=1, direction=EGRESS, peer=identity(2))]
    deny = document("db", ingressDeny=[{"fromEndpoints": [{}]}])
    deny["spec"]["endpointSelector"]["matchLabels"]["app"] = "db"

    (change,) = diff(answers, [deny], [])["changes"]

    assert [one["direction"] for one in change["directions"]] == ["egress", "ingress"]
    assert change["directions"][1]["proposed-origins"] == ["cnp:shop/db/ingressDeny/0"]


def test_a_document_replaces_the_one_of_its_name(kernel):
    """Also all parts of one with ``specs``; others stay the same objects."""
    tables = kernel.tables
    spec = {"endpointSelector": {}, "ingress": [{}]}
    several = {**document("many"), "specs": [spec, spec]}
    first = propose(copied(tables), [several])
    assert {key[2] for key in first.policies if key[2] != "web"} == {
        "many",
        "many/specs/0",
        "many/specs/1",
    }
    for key, policy in first.policies.items():
        tables.policies.set(key, policy)

    second = propose(copied(tables), [document("many", egress=[{}])])

    assert {key[2] for key in second.policies if key[2] != "web"} == {"many"}
    gone = propose(copied(tables), [], ["cnp:shop/many"])
    (kept,) = gone.policies
    assert gone.policies[kept] is tables.policies.get(kept)


def test_groups_are_filled_in_and_missing_ones_told(kernel):
    """A proposed group changes what policies in force mean; one that is not there is nobody."""
    tables = kernel.tables
    written = document(ingress=[{"fromCIDRSet": [{"cidrGroupRef": "office"}]}])
    alone = propose(copied(tables), [written])
    assert "office, which does not exist" in alone.problems["CiliumNetworkPolicy", "shop", "web"].message

    tables.cidr_groups.set("office", CIDRGroupRow("office", frozenset(), (ip_network("192.0.2.0/24"),)))
    group = {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumCIDRGroup",
        "metadata": {"name": "office"},
        "spec": {"externalCIDRs": ["198.51.100.0/24"]},
    }
    both = propose(copied(tables), [written, group])
    assert both.problems == {}
    (rule,) = both.policies["CiliumNetworkPolicy", "shop", "web"].rules
    assert [str(peer.prefix) for peer in rule.peers] == ["198.51.100.0/24"]


@pytest.mark.parametrize(
    ("documents", "delete", "said"),
    [
        (
            [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a"}}],
            [],
            "Namespace/a is no policy",
        ),
        (
            [{"apiVersion": "v1", "kind": "Gizmo", "metadata": {"name": "a"}}],
            [],
            "not a kind this agent reads",
        ),
        ([document(ingress=1)], [], "shop/web: spec.ingress must be a list"),
        (["text"], [], "is not an object"),
        ([], ["cnp:shop/none"], "there is no policy cnp:shop/none"),
        ([], ["shop/web"], "names no policy"),
        ([], ["cnp:shop/web/ingress/0"], "names no policy"),
    ],
)
def test_what_cannot_be_judged_is_refused(kernel, answers, documents, delete, said):
    """With the object, the field and what is wrong."""
    with pytest.raises(ProposalError, match=said):
        propose(copied(kernel.tables), documents, delete)
    with pytest.raises(RequestRefused, match=said) as caught:
        diff(answers, documents, delete)
    assert caught.value.status == 400
