# SPDX-License-Identifier: Apache-2.0
"""``toServices``: which services a policy refers to, and what is refused."""

from typing import Any

import pytest

from ciliumd.model.labels import K8S, Label
from ciliumd.model.policy import PeerEntity, Selector, ServiceReference
from ciliumd.model.service import Service
from unit.resources.documents import ccnp_document, cnp_document, policy, refusal, rows

pytestmark = pytest.mark.unit

SELECT_ALL = "{endpointSelector: {}, "


def test_services_are_named_or_selected() -> None:
    """In one namespace or in all; other peers of the rule stay."""
    text = """egress: [{toEntities: [world], toServices: [
        {k8sService: {serviceName: db, namespace: shop}},
        {k8sService: {serviceName: db}},
        {k8sServiceSelector: {selector: {matchLabels: {tier: back}}, namespace: blue}},
        {k8sServiceSelector: {selector: {}}},
    ]}]"""
    (rule,) = policy(cnp_document(f"{SELECT_ALL}{text}}}")).rules
    assert rule.peers == (PeerEntity("world"),)
    assert rule.refers == (
        ServiceReference("shop", "db"),
        ServiceReference("", "db"),
        ServiceReference("blue", "", Selector(frozenset({(K8S, "tier", "back")}))),
        ServiceReference("", "", Selector()),
    )


@pytest.mark.parametrize("services", ["[]", "[{k8sService: {serviceName: db}}]"])
def test_a_rule_with_services_alone_is_not_for_everybody(services: str) -> None:
    """Not even with ports, and in a deny as in an allow."""
    ports = "toPorts: [{ports: [{port: '80'}]}]"
    for section in ("egress", "egressDeny"):
        (rule,) = policy(
            ccnp_document(f"{SELECT_ALL}{section}: [{{toServices: {services}, {ports}}}]}}")
        ).rules
        assert rule.peers == ()


@pytest.mark.parametrize("document", [cnp_document, ccnp_document], ids=["namespaced", "clusterwide"])
@pytest.mark.parametrize(
    ("written", "field"),
    [
        ("{}", "toServices[0]"),
        ("{k8sService: {serviceName: a}, k8sServiceSelector: {selector: {}}}", "toServices[0]"),
        ("{k8sService: {namespace: a}}", "toServices[0].k8sService.serviceName"),
        ("{k8sServiceSelector: {namespace: a}}", "toServices[0].k8sServiceSelector.selector"),
        ("{k8sService: {serviceName: a, port: 80}}", "toServices[0].k8sService.port"),
    ],
)
def test_half_a_reference_is_refused(written: str, field: str, document: Any) -> None:
    """Where it is written."""
    found = refusal(document(f"{SELECT_ALL}egress: [{{toServices: [{written}]}}]}}"))
    assert list(found) == [f"spec.egress[0].{field}"]


def test_nobody_comes_from_a_service() -> None:
    """The field is one of egress only."""
    assert refusal(cnp_document(f"{SELECT_ALL}ingress: [{{fromServices: []}}]}}")) == {
        "spec.ingress[0].fromServices": "is not a known field"
    }


def test_a_service_has_the_labels_that_select_it() -> None:
    """Its own; what it selects is something else."""
    text = """
    apiVersion: v1
    kind: Service
    metadata: {name: db, namespace: shop, labels: {tier: back, a: b}}
    spec: {clusterIP: None, ports: [{port: 80}], selector: {app: db}}
    """
    ((_, _, row),) = rows(text)
    assert isinstance(row, Service)
    assert row.labels == {Label(K8S, "a", "b"), Label(K8S, "tier", "back")}
    assert row.selector == (("app", "db"),)
