# SPDX-License-Identifier: Apache-2.0
"""A suggestion, read and resolved as any policy, lets just the traffic pass that was asked about."""

from dataclasses import replace
from ipaddress import ip_address

import pytest

from ciliumd.daemon.suggestion import Side, suggestion
from ciliumd.desired.policy import Outside, Party, cidrs, explain
from ciliumd.model.identity import Reserved, reserved_labels
from ciliumd.model.labels import K8S, Label, pod_labels
from ciliumd.model.policy import Enforcement
from ciliumd.resources import parse

pytestmark = pytest.mark.unit


def pod(name, namespace="shop", **labels):
    """A pod of the cluster."""
    made = pod_labels(namespace, labels or {"app": name}, {"team": "x"}, "default")
    return Side(f"{namespace}/{name}", Party(hash(name) % 1000 + 256, made))


def reserved(one, text=""):
    """A reserved identity, asked for by its name or an address."""
    party = Party(int(one), reserved_labels(one), is_endpoint=False)
    return Side(text or one.label, party, (ip_address(text),) if text else ())


WEB, DB = pod("web"), pod("db", app="db", tier="back")
ELSEWHERE = pod("far", namespace="prod")
PLAIN = Side("shop/plain", Party(700, pod_labels("shop", {}, {}, "robot")))
HEALTH = Side("health", Party(4, reserved_labels(Reserved.HEALTH)))


def policies(*documents):
    """Policies as tables have them."""
    return {key: row for document in documents for _, key, row in parse(document).rows()}


def isolating(**spec):
    """Everybody in default deny, in both directions; of the cluster."""
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumClusterwideNetworkPolicy",
        "metadata": {"name": "isolate"},
        "spec": {"endpointSelector": {}, "ingress": [{}], "egress": [{}], **spec},
    }


ISOLATED = policies(isolating())


def ask(known, source, destination, *, protocol="TCP", port=80):
    """The explanation, with addresses outside as these policies tell them apart."""
    outside = Outside(cidrs(known.values()))

    def party(side):
        if not side.addresses or Reserved.WORLD.label not in {one.key for one in side.party.labels}:
            return side.party
        return replace(side.party, labels=outside.labels(side.addresses[0]))

    return explain(
        known.values(),
        source=party(source),
        destination=party(destination),
        protocol=protocol,
        port=port,
    )


def suggested(known, source, destination, **traffic):
    """What is suggested."""
    return suggestion(ask(known, source, destination, **traffic), source, destination, policies=known)


@pytest.mark.parametrize(
    ("source", "destination"),
    [
        (WEB, DB),
        (ELSEWHERE, DB),
        (DB, ELSEWHERE),
        (PLAIN, WEB),
        (reserved(Reserved.WORLD), WEB),
        (WEB, reserved(Reserved.WORLD)),
        (WEB, reserved(Reserved.WORLD, "192.0.2.7")),
        (reserved(Reserved.WORLD, "192.0.2.7"), WEB),
        (WEB, reserved(Reserved.HOST)),
        (WEB, reserved(Reserved.REMOTE_NODE, "10.9.0.1")),
        (WEB, reserved(Reserved.KUBE_APISERVER)),
        (HEALTH, WEB),
        (reserved(Reserved.REMOTE_NODE), HEALTH),
    ],
    ids=lambda side: side.text,
)
@pytest.mark.parametrize(
    ("protocol", "port", "other"), [("TCP", 80, 81), ("UDP", 53, 54), ("ICMP", 8, 0), ("ICMPV6", 128, 129)]
)
def test_applied_it_allows_that_and_nothing_else(source, destination, protocol, port, other):
    """The same peer on another port or protocol is denied as before, and so is anybody else."""
    traffic = {"protocol": protocol, "port": port}
    assert not ask(ISOLATED, source, destination, **traffic).allowed

    found = suggested(ISOLATED, source, destination, **traffic)

    assert found.note == ""
    applied = {**ISOLATED, **policies(*found.documents)}
    assert len(applied) == len(ISOLATED) + len(found.documents)
    assert ask(applied, source, destination, **traffic).allowed
    for one, two, asked in (
        (source, destination, {"protocol": protocol, "port": other}),
        (source, destination, {"protocol": "SCTP", "port": port}),
        (destination, source, traffic),
        (source, pod("somebody"), traffic),
        (pod("somebody"), destination, traffic),
    ):
        before, after = (
            [hop.verdict for hop in ask(known, one, two, **asked).directions] for known in (ISOLATED, applied)
        )
        assert after == before, (one.text, two.text, asked)


def test_it_is_written_as_people_write_it():
    """Labels the pod was given, the namespace where it is another one, a prefix of one address."""
    out, into = suggested(ISOLATED, ELSEWHERE, DB).documents
    assert into == {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": {"name": "allow-ingress-far-to-db-80-tcp", "namespace": "shop"},
        "spec": {
            "endpointSelector": {"matchLabels": {"app": "db", "tier": "back"}},
            "enableDefaultDeny": {"ingress": False},
            "ingress": [
                {
                    "fromEndpoints": [
                        {"matchLabels": {"k8s:io.kubernetes.pod.namespace": "prod", "app": "far"}}
                    ],
                    "toPorts": [{"ports": [{"port": "80", "protocol": "TCP"}]}],
                }
            ],
        },
    }
    assert out["metadata"] == {"name": "allow-egress-far-to-db-80-tcp", "namespace": "prod"}
    (to,) = suggested(ISOLATED, WEB, reserved(Reserved.WORLD, "2001:db8::1")).documents
    assert to["spec"]["egress"][0]["toCIDR"] == ["2001:db8::1/128"]
    (ping,) = suggested(ISOLATED, WEB, reserved(Reserved.HOST), protocol="ICMP", port=8).documents
    assert ping["spec"]["egress"] == [
        {"toEntities": ["host"], "icmps": [{"fields": [{"family": "IPv4", "type": 8}]}]}
    ]
    (health,) = suggested(ISOLATED, reserved(Reserved.REMOTE_NODE), HEALTH).documents
    assert health["kind"] == "CiliumClusterwideNetworkPolicy"
    assert health["spec"]["endpointSelector"] == {"matchLabels": {"reserved:health": ""}}


def test_only_what_denies_gets_a_rule():
    """One direction that allows needs none, and traffic that passes nothing."""
    known = policies(isolating(egress=None))
    (one,) = suggested(known, WEB, DB).documents
    assert "ingress" in one["spec"]
    assert suggested({}, WEB, DB) == suggestion(ask({}, WEB, DB), WEB, DB, policies={})
    assert suggested({}, WEB, DB).documents == ()
    assert suggested({}, WEB, DB).note == ""


def test_it_takes_nobody_into_default_deny():
    """Who has more labels than the pod may not be in it, and must not be for this."""
    narrow = isolating(endpointSelector={"matchExpressions": [{"key": "tier", "operator": "DoesNotExist"}]})
    known = policies(narrow)
    cousin = pod("cousin", app="web", tier="front")
    assert ask(known, DB, cousin).allowed
    applied = {**known, **policies(*suggested(known, DB, WEB).documents)}
    assert ask(applied, DB, WEB).allowed
    assert ask(applied, ELSEWHERE, cousin, port=1).allowed is ask(known, ELSEWHERE, cousin, port=1).allowed


def test_no_policy_in_force_is_replaced():
    """A name that is taken gets a number, also of a policy that has ``specs`` only."""
    (one,) = suggested(ISOLATED, WEB, reserved(Reserved.HOST)).documents
    spec = one["spec"]
    taken = {**one, "spec": {**spec, "egress": [{}]}}
    known = {**ISOLATED, **policies(taken)}
    (two,) = suggested(known, WEB, reserved(Reserved.HOST)).documents
    assert two["metadata"]["name"] == f"{one['metadata']['name']}-2"
    several = {**{key: one[key] for key in ("apiVersion", "kind", "metadata")}, "specs": [taken["spec"]]}
    (two,) = suggested({**ISOLATED, **policies(several)}, WEB, reserved(Reserved.HOST)).documents
    assert two["metadata"]["name"] == f"{one['metadata']['name']}-2"


def test_against_a_deny_rule_no_rule_helps():
    """It is named, whatever else denies."""
    known = policies(isolating(ingressDeny=[{"fromEndpoints": [{"matchLabels": {"app": "web"}}]}]))
    found = suggested(known, WEB, DB)
    assert found.documents == ()
    assert found.note == (
        "no rule that allows it helps: ccnp:isolate/ingressDeny/0 denies it, whatever others allow"
    )


def test_what_no_rule_can_say_is_not_suggested():
    """Port 0, and an identity whose labels nobody knows."""
    assert "port 0 stands for every port" in suggested(ISOLATED, WEB, DB, port=0).note
    lost = Side("10.9.9.9", Party(999, frozenset({Label("unspec", "lost-identity-999")}), is_endpoint=False))
    found = suggested(ISOLATED, WEB, lost)
    assert (found.documents, found.note) == (
        (),
        "no rule allows just that: 10.9.9.9 is nobody whom rules can name",
    )


def test_what_others_require_is_not_promised_away():
    """fromRequires narrows every allow rule, so the suggestion would not help."""
    known = policies(isolating(ingress=[{"fromRequires": [{"matchLabels": {"app": "other"}}]}], egress=None))
    found = suggested(known, WEB, DB)
    assert found.documents == ()
    assert "fromRequires" in found.note


def test_the_nodes_enforcement_is_what_denies():
    """Where policy is always enforced a suggestion helps as well."""
    found = explain(
        [],
        source=WEB.party,
        destination=DB.party,
        protocol="TCP",
        port=80,
        enforcement=Enforcement.ALWAYS,
    )
    both = suggestion(found, WEB, DB, policies={}, enforcement=Enforcement.ALWAYS)
    assert [next(iter(one["spec"]["enableDefaultDeny"])) for one in both.documents] == ["egress", "ingress"]


def test_labels_that_pods_cannot_be_selected_by_are_left_out():
    """Those ciliumd sets; a pod without any label is named by its service account."""
    (one, _) = suggested(ISOLATED, PLAIN, WEB).documents
    assert one["spec"]["endpointSelector"] == {
        "matchLabels": {f"{K8S}:io.cilium.k8s.policy.serviceaccount": "robot"}
    }
