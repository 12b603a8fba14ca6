# SPDX-License-Identifier: Apache-2.0
"""
Identities of nodes by their labels: which number every other node has, and what the numbers stand for.

A number is a node's by its name, from before any policy selects it until nobody knows the number any more;
labels that change are the identity's from the next round on, under the same number.  Only this node knows
the numbers: what the tunnel carries says no more than that it is a node.

See docs/decisions/0023-nodes-by-their-labels.md.
"""

from collections.abc import Mapping

from ciliumd.desired import identities as identity_stage
from ciliumd.desired.cluster import labels_of_node, labels_of_this_node
from ciliumd.model.identity import NamedNode, NumericIdentity, Reserved, lost_node, reserved_labels
from ciliumd.model.label_filter import LabelFilter
from ciliumd.model.labels import Labels
from ciliumd.model.net import Addr
from ciliumd.tables.schema import ObjectKey, Problem, Tables


class NodeIdentities:
    """
    *labels* are those of every identity by number, this node's ``host`` among them; *revision* grows when
    they change.

    *relevant* are the labels that count, None where nodes have no identities of their own.  *wanted* are the
    nodes there are.
    """

    def __init__(self, tables: Tables, relevant: LabelFilter | None) -> None:
        self.labels: Mapping[NumericIdentity, Labels] = {}
        self.wanted: frozenset[NamedNode] = frozenset()
        self.revision = 0
        self._tables = tables
        self._relevant = relevant
        self._found: dict[Addr, NumericIdentity] = {}
        self._refused: tuple[NamedNode, ...] = ()

    def restore(self, found: Mapping[Addr, NumericIdentity]) -> None:
        """Start from the numbers that an earlier agent gave, by the nodes' addresses."""
        self._found = dict(found)

    def assign(self, holders: Mapping[Addr, NamedNode], *, this: str) -> None:
        """Give every other node its number, by who has which address; who is gone keeps it for a while."""
        table = self._tables.node_identities
        self._take_over(holders)
        self.wanted = frozenset(holders.values())
        allocation = identity_stage.allocate_nodes(table.view(), self.wanted)
        for node, number in allocation.assigned.items():
            table.set(node, number)
        self._refused = allocation.refused
        labels = {number: self._labels_of(node, number) for node, number in table.items()}
        if self._relevant is not None:
            row = self._tables.nodes.get(this)
            labels[int(Reserved.HOST)] = labels_of_this_node(this, row, self._relevant)
        if labels != self.labels:
            self.labels = labels
            self.revision += 1

    @property
    def numbers(self) -> dict[NamedNode, NumericIdentity]:
        """The identity of every node there is that has one."""
        return {node: number for node, number in self._tables.node_identities.items() if node in self.wanted}

    def problems(self) -> dict[ObjectKey, Problem]:
        """What is to be told of nodes without a number."""
        text = "no identity is left: rules that select nodes do not apply to it"
        return {("CiliumNode", "", node.name): Problem("", text) for node in self._refused}

    def _take_over(self, holders: Mapping[Addr, NamedNode]) -> None:
        """Numbers of an earlier agent become those of the nodes whose addresses had them."""
        table = self._tables.node_identities
        for addr in sorted(self._found.keys() & holders.keys(), key=lambda one: (one.version, int(one))):
            number, node = self._found.pop(addr), holders[addr]
            lost = lost_node(number)
            if lost in table and node not in table and lost.api_server == node.api_server:
                table.delete(lost)
                table.set(node, number)

    def _labels_of(self, node: NamedNode, number: NumericIdentity) -> Labels:
        """Those of a node that is gone are the last that were known; before that it is just a node."""
        if self._relevant is not None and node in self.wanted:
            return labels_of_node(node, self._tables.nodes.get(node.name), self._relevant)
        known = self.labels.get(number)
        if known is not None:
            return known
        return reserved_labels(Reserved.KUBE_APISERVER if node.api_server else Reserved.REMOTE_NODE)
