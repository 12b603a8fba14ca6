# SPDX-License-Identifier: Apache-2.0
"""Documents for resource tests: YAML in, the rows or the problems out."""

from typing import Any

import yaml

from ciliumd.model.policy import Policy
from ciliumd.resources import InvalidResource, parse


def rows(text: str) -> list[tuple[str, Any, Any]]:
    """The rows of one document."""
    return parse(yaml.safe_load(text)).rows()


def problems(text: str) -> dict[str, str]:
    """What is wrong with one document, by field."""
    try:
        parse(yaml.safe_load(text))
    except InvalidResource as error:
        return dict(error.problems)
    return {}


def cnp_document(spec: str, *, namespace: str = "shop") -> dict[str, Any]:
    """A CiliumNetworkPolicy whose spec is written in YAML."""
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": {"name": "rule1", "namespace": namespace},
        "spec": yaml.safe_load(spec),
    }


def ccnp_document(spec: str) -> dict[str, Any]:
    """A CiliumClusterwideNetworkPolicy whose spec is written in YAML."""
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumClusterwideNetworkPolicy",
        "metadata": {"name": "rule1"},
        "spec": yaml.safe_load(spec),
    }


def knp_document(spec: str, *, namespace: str = "shop") -> dict[str, Any]:
    """A NetworkPolicy whose spec is written in YAML."""
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "rule1", "namespace": namespace},
        "spec": yaml.safe_load(spec),
    }


def policy(document: dict[str, Any]) -> Policy:
    """The one policy of a valid document."""
    ((table, _, row),) = parse(document).rows()
    assert table == "policies"
    assert isinstance(row, Policy)
    return row


def refusal(document: dict[str, Any]) -> dict[str, str]:
    """What is wrong with a document that must be refused, by field."""
    try:
        parse(document)
    except InvalidResource as error:
        return dict(error.problems)
    raise AssertionError("the document was accepted")
