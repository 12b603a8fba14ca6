# SPDX-License-Identifier: Apache-2.0
"""``fromNodes`` and ``toNodes``: which nodes a policy selects, and without which option none."""

from typing import Any

import pytest

from ciliumd.model.labels import NODE
from ciliumd.model.policy import Operator, PeerEntity, PeerNodes, Requirement, Rule, Selector
from ciliumd.resources import InvalidResource, parse, parser
from unit.resources.documents import ccnp_document, cnp_document

pytestmark = pytest.mark.unit

SELECT_ALL = "{endpointSelector: {}, "
SECTIONS = [
    ("ingress", "fromNodes"),
    ("ingressDeny", "fromNodes"),
    ("egress", "toNodes"),
    ("egressDeny", "toNodes"),
]
BOTH = pytest.mark.parametrize("document", [cnp_document, ccnp_document], ids=["namespaced", "clusterwide"])
EVERYWHERE = pytest.mark.parametrize(("section", "field"), SECTIONS, ids=[name for name, _ in SECTIONS])


def rules(document: dict[str, Any]) -> tuple[Rule, ...]:
    """What a document says to an agent with the option."""
    ((_, _, policy),) = parser(node_selectors=True)(document).rows()
    found: tuple[Rule, ...] = policy.rules
    return found


def refused(document: dict[str, Any], *, node_selectors: bool = True) -> dict[str, str]:
    """What is wrong with a document, by field."""
    with pytest.raises(InvalidResource) as error:
        parser(node_selectors=node_selectors)(document)
    return dict(error.value.problems)


@BOTH
@EVERYWHERE
def test_nodes_are_selected_by_labels(section: str, field: str, document: Any) -> None:
    """Of source node, whether that is written or not; whose policy it is does not confine them."""
    text = f"""{section}: [{{{field}: [
        {{matchLabels: {{role: edge, 'node:topology.kubernetes.io/zone': a, 'any:disk': ''}}}},
        {{matchExpressions: [{{key: role, operator: NotIn, values: [edge]}}]}},
        {{}},
    ]}}]"""
    (rule,) = rules(document(f"{SELECT_ALL}{text}}}"))
    assert rule.deny is section.endswith("Deny")
    assert rule.peers == (
        PeerNodes(
            Selector(
                frozenset(
                    {(NODE, "role", "edge"), (NODE, "topology.kubernetes.io/zone", "a"), (NODE, "disk", "")}
                )
            )
        ),
        PeerNodes(Selector(expressions=(Requirement(NODE, "role", Operator.NOT_IN, frozenset({"edge"})),))),
        PeerNodes(Selector()),
    )


@EVERYWHERE
def test_nodes_stand_beside_other_peers(section: str, field: str) -> None:
    """Lists of peers are alternatives."""
    entities = "fromEntities" if section.startswith("ingress") else "toEntities"
    text = f"{section}: [{{{entities}: [world], {field}: [{{matchLabels: {{role: edge}}}}]}}]"
    (rule,) = rules(cnp_document(f"{SELECT_ALL}{text}}}"))
    assert rule.peers == (
        PeerEntity("world"),
        PeerNodes(Selector(frozenset({(NODE, "role", "edge")}))),
    )


@EVERYWHERE
def test_an_empty_list_is_nobody(section: str, field: str) -> None:
    """Also with ports: it must not become a rule for everybody."""
    ports = "toPorts: [{ports: [{port: '80'}]}]"
    (rule,) = rules(cnp_document(f"{SELECT_ALL}{section}: [{{{field}: [], {ports}}}]}}"))
    assert rule.peers == ()


@BOTH
@EVERYWHERE
@pytest.mark.parametrize("written", ["[{}]", "[]", "[{matchLabels: {role: edge}}]", "7"])
def test_without_the_option_the_policy_is_refused(
    section: str, field: str, written: str, document: Any
) -> None:
    """The field is named, and the option that is missing, whatever is written there."""
    found = refused(document(f"{SELECT_ALL}{section}: [{{{field}: {written}}}]}}"), node_selectors=False)
    assert found == {
        f"spec.{section}[0].{field}": "is not enforced without enable-node-selector-labels: true in the "
        "ConfigMap cilium-config (value nodeSelectorLabels of the chart)"
    }


def test_null_is_no_list() -> None:
    """As of every field: it says nothing, and needs no option."""
    document = cnp_document(f"{SELECT_ALL}ingress: [{{fromNodes: null, fromEntities: [all]}}]}}")
    ((_, _, policy),) = parse(document).rows()
    assert policy.rules[0].peers == (PeerEntity("all"),)


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("k8s:role", "labels of nodes have source node or any, not 'k8s'"),
        ("reserved:host", "labels of nodes have source node or any, not 'reserved'"),
        ("cidr:10.0.0.0/8", "labels of nodes have source node or any, not 'cidr'"),
        ("node:a b", "is not a label key"),
    ],
)
def test_a_key_no_node_can_have_is_refused(key: str, reason: str) -> None:
    """In both ways to write a selector."""
    for selector in (
        {"matchLabels": {key: "x"}},
        {"matchExpressions": [{"key": key, "operator": "Exists"}]},
    ):
        document = cnp_document("{endpointSelector: {}}")
        document["spec"]["ingress"] = [{"fromNodes": [selector]}]
        (found,) = refused(document).values()
        assert reason in found


@pytest.mark.parametrize("source", ["node", "reserved"])
def test_no_object_gives_an_identity_the_labels_of_a_node(source: str) -> None:
    """A CiliumIdentity is about pods."""
    document = {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumIdentity",
        "metadata": {"name": "1000"},
        "security-labels": {"k8s:app": "web", f"{source}:role": "edge"},
    }
    assert list(refused(document)) == [f'security-labels["{source}:role"]']


def test_selectors_of_endpoints_do_not_know_the_source_of_nodes() -> None:
    """It would select no endpoint."""
    document = cnp_document(f"{SELECT_ALL}ingress: [{{fromEndpoints: [{{matchLabels: {{'node:a': b}}}}]}}]}}")
    assert list(refused(document)) == ['spec.ingress[0].fromEndpoints[0].matchLabels["node:a"]']
