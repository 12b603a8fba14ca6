# SPDX-License-Identifier: Apache-2.0
"""Events get names from the lookups, and say nothing the lookups do not know."""

from ipaddress import ip_address

import pytest

from ciliumd.flows.decode import decode
from ciliumd.flows.enrich import FlowEndpoint, Lookups, PolicyName, Verdict, enrich, parse_origin
from ciliumd.model.net import addr16
from unit.flows.samples import OFFSET_NS, TRACE, VERDICT, flow, record


def test_both_sides_are_named():
    """Endpoint id, pod, namespace and sorted labels of each side."""
    named = flow()

    assert named.source == FlowEndpoint(7, 256, "default", ("k8s:class=xwing", "k8s:org=alliance"), "xwing")
    assert named.destination.pod_name == "deathstar"
    assert (named.interface, named.node_name) == ("lxc12", "kind/node1")


def test_address_nobody_knows_has_only_its_identity():
    """The world has no pod name, and an unknown device is its number."""
    named = flow(src=addr16(ip_address("192.0.2.1")), src_identity=2, ifindex=99)

    assert named.source == FlowEndpoint(0, 2)
    assert named.interface == "99"


def test_rule_cookie_names_the_policy():
    """The policy behind the cookie, with the rule."""
    assert flow().policies == (PolicyName("CiliumNetworkPolicy", "default", "rule1", "ingress/0"),)


def test_no_cookie_asks_nobody():
    """Cookie 0 means no rule; it is not looked up."""
    event = decode(record(rule_cookie=0), offset_ns=OFFSET_NS)
    empty = Lookups(labels={}.get, pod={}.get, origins={}.__getitem__, interface={}.get)

    assert enrich(event, empty).policies == ()


@pytest.mark.parametrize(
    ("origin", "policy", "text"),
    [
        (
            "cnp:default/rule1/ingress/0",
            PolicyName("CiliumNetworkPolicy", "default", "rule1", "ingress/0"),
            "cnp default/rule1",
        ),
        ("cnp:default/rule1", PolicyName("CiliumNetworkPolicy", "default", "rule1"), "cnp default/rule1"),
        (
            "cnp:default/ingress/specs/1/egress/2",
            PolicyName("CiliumNetworkPolicy", "default", "ingress", "specs/1/egress/2"),
            "cnp default/ingress",
        ),
        (
            "ccnp:lockdown/ingress/0",
            PolicyName("CiliumClusterwideNetworkPolicy", "", "lockdown", "ingress/0"),
            "ccnp lockdown",
        ),
        ("knp:shop/deny-all", PolicyName("NetworkPolicy", "shop", "deny-all"), "knp shop/deny-all"),
        (
            "reserved:allow-localhost-ingress",
            PolicyName("reserved", "", "allow-localhost-ingress"),
            "reserved allow-localhost-ingress",
        ),
    ],
)
def test_origin_is_read_by_its_kind(origin, policy, text):
    """A policy may be called like a direction; only its kind says where the name ends."""
    assert parse_origin(origin) == policy
    assert str(policy) == text


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, Verdict.DROPPED),
        ({"audit": 1}, Verdict.AUDIT),
        (VERDICT, Verdict.FORWARDED),
        ({**VERDICT, "reason": 2}, Verdict.DROPPED),
        ({**VERDICT, "reason": 3}, Verdict.DROPPED),
        ({**VERDICT, "reason": 3, "audit": 1}, Verdict.AUDIT),
        (TRACE, Verdict.FORWARDED),
        ({**TRACE, "trace_point": 1}, Verdict.REDIRECTED),
    ],
)
def test_verdict_in_hubble_words(changes, verdict):
    """Drops and denials are dropped, in audit mode audit; what goes to the proxy is redirected."""
    assert flow(**changes).verdict is verdict
