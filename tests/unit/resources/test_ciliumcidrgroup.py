# SPDX-License-Identifier: Apache-2.0
"""CiliumCIDRGroup, and how policies refer to one."""

from ipaddress import ip_network
from typing import Any

import pytest

from ciliumd.model.labels import K8S, Label
from ciliumd.model.objects import CIDRGroupRow
from ciliumd.model.policy import GroupReference, Operator, PeerCIDR, Requirement, Selector
from unit.resources.documents import ccnp_document, cnp_document, policy, problems, refusal, rows

pytestmark = pytest.mark.unit

GROUP = """
apiVersion: cilium.io/{version}
kind: CiliumCIDRGroup
metadata: {{name: office, labels: {{site: here}}}}
spec: {spec}
"""
SELECT_ALL = "{endpointSelector: {}, "


def group(spec: str, version: str = "v2") -> str:
    """A group whose spec is written in YAML."""
    return GROUP.format(spec=spec, version=version)


@pytest.mark.parametrize("version", ["v2", "v2alpha1"])
def test_a_group_is_its_prefixes_and_labels(version: str) -> None:
    """In either version, each prefix once; an address alone is a prefix of one."""
    (row,) = rows(group("{externalCIDRs: [192.0.2.1, 10.1.2.3/8, '2001:db8::/32', 192.0.2.1/32]}", version))
    prefixes = tuple(map(ip_network, ("192.0.2.1/32", "10.0.0.0/8", "2001:db8::/32")))
    assert row == (
        "cidr_groups",
        "office",
        CIDRGroupRow("office", frozenset({Label(K8S, "site", "here")}), prefixes),
    )


def test_a_group_may_be_empty() -> None:
    """Then it is nobody."""
    ((_, _, row),) = rows(group("{externalCIDRs: []}"))
    assert row.prefixes == ()


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ("{externalCIDRs: [example.org]}", "spec.externalCIDRs[0]"),
        ("{externalCIDRs: [10.0.0.0/33]}", "spec.externalCIDRs[0]"),
        ("{externalCIDRs: ['::ffff:10.0.0.1/128']}", "spec.externalCIDRs[0]"),
        ("{externalCIDRs: null}", "spec.externalCIDRs"),
        ("{}", "spec.externalCIDRs"),
        ("{externalCIDRs: [], excludedCIDRs: []}", "spec.excludedCIDRs"),
    ],
)
def test_a_bad_group_is_refused_where_it_is_written(spec: str, field: str) -> None:
    """No part of it comes into force."""
    assert list(problems(group(spec))) == [field]


def test_policies_refer_to_groups_beside_prefixes() -> None:
    """By name and by labels, with exceptions; prefixes stay peers of the rule."""
    text = """egress: [{toCIDRSet: [
        {cidr: 10.0.0.0/8, except: [10.1.0.0/16]},
        {cidrGroupRef: office, except: [192.0.2.9/32]},
        {cidrGroupSelector: {matchLabels: {site: here}, matchExpressions: [{key: a/b, operator: Exists}]}},
    ]}]"""
    (rule,) = policy(cnp_document(f"{SELECT_ALL}{text}}}")).rules
    assert rule.peers == (PeerCIDR(ip_network("10.0.0.0/8"), (ip_network("10.1.0.0/16"),)),)
    assert rule.refers == (
        GroupReference("office", excepts=(ip_network("192.0.2.9/32"),)),
        GroupReference(
            "",
            Selector(frozenset({(K8S, "site", "here")}), (Requirement(K8S, "a/b", Operator.EXISTS),)),
        ),
    )


def test_a_rule_with_nothing_but_references_is_not_for_everybody() -> None:
    """Not even with ports: until somebody says whom they mean, nobody is."""
    text = "ingress: [{fromCIDRSet: [{cidrGroupRef: office}], toPorts: [{ports: [{port: '80'}]}]}]"
    (rule,) = policy(ccnp_document(f"{SELECT_ALL}{text}}}")).rules
    assert rule.peers == ()


@pytest.mark.parametrize("document", [cnp_document, ccnp_document], ids=["namespaced", "clusterwide"])
@pytest.mark.parametrize(
    "written",
    [
        "{}",
        "{except: [10.0.0.0/8]}",
        "{cidr: 10.0.0.0/8, cidrGroupRef: a}",
        "{cidrGroupRef: a, cidrGroupSelector: {}}",
    ],
)
def test_one_thing_is_said_at_a_time(written: str, document: Any) -> None:
    """As Cilium's own definition has it."""
    found = refusal(document(f"{SELECT_ALL}ingress: [{{fromCIDRSet: [{written}]}}]}}"))
    assert found == {
        "spec.ingress[0].fromCIDRSet[0]": "must have one of cidr, cidrGroupRef and cidrGroupSelector"
    }
