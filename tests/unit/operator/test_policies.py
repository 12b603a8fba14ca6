# SPDX-License-Identifier: Apache-2.0
"""What the operator says of a policy is what agents make of it, with the options that both have."""

import pytest

from ciliumd.operator.policies import judge
from ciliumd.resources import parser
from unit.resources.documents import cnp_document

pytestmark = pytest.mark.unit

NODES = "{endpointSelector: {}, ingress: [{fromNodes: [{matchLabels: {role: edge}}]}]}"


def test_nodes_are_selected_where_agents_know_them_by_labels() -> None:
    """Otherwise the author is told which option is missing."""
    problem, rows = judge(cnp_document(NODES), parse=parser(node_selectors=True))
    assert (problem, len(rows)) == ("", 1)
    problem, rows = judge(cnp_document(NODES), parse=parser(node_selectors=False))
    assert problem.startswith("spec.ingress[0].fromNodes is not enforced without enable-node-selector-labels")
    assert rows == []
