# SPDX-License-Identifier: Apache-2.0
"""
The computed side of the policy property tests: documents through the real parser to real map rows.

:class:`Node` stands for one agent that was told a case's documents; judges look at what it would write.
"""

from collections.abc import Iterable
from ipaddress import ip_address, ip_network
from typing import Any, Protocol

from ciliumd import abi
from ciliumd.daemon.parts import Parts
from ciliumd.daemon.references import References
from ciliumd.daemon.remote_pods import RemotePods
from ciliumd.desired.cluster import labels_of_node, labels_of_this_node
from ciliumd.desired.identities import (
    adopt_identities,
    allocate_identities,
    allocate_nodes,
    allocate_prefixes,
    known_identities,
    labels_of_pod,
    named_ports_of_pod,
)
from ciliumd.desired.policy import (
    EndpointRules,
    MapState,
    NamedPorts,
    blocks,
    cidrs,
    classify,
    lookup,
    resolve,
    select,
)
from ciliumd.desired.policy.rules import PROTOCOL_NUMBERS
from ciliumd.model.identity import NamedNode, NumericIdentity, Reserved
from ciliumd.model.label_filter import EVERY_LABEL
from ciliumd.model.labels import Labels, labels_text
from ciliumd.model.net import Prefix
from ciliumd.model.objects import NamespacedName, NodeRow, PodRow, RemoteEndpointRow
from ciliumd.model.policy import Direction, Enforcement, Policy
from ciliumd.resources import parser
from ciliumd.tables import Tables
from ciliumd.tables.table import Table
from property.reference import oracle
from property.worlds import MACHINES, POD_NETWORKS, Case, Document, addresses_of

_parse = parser(node_selectors=True)
STRANGER: NumericIdentity = 60000
REMOTE_FIRST: NumericIdentity = 50000
"""The lowest number of an identity of pods on the other node."""


class Judge(Protocol):
    """Whoever can say what becomes of a packet, given the content of a policy version."""

    name: str

    def load(self, state: MapState) -> None:
        """Take *state* as the policy in force."""

    def verdict(
        self, identity: NumericIdentity, direction: Direction, protocol: int, port: int
    ) -> abi.PolicyVerdict:
        """Judge one packet."""


class InterpreterJudge:
    """Judges by scanning the computed rows."""

    name = "interpreter"

    def __init__(self) -> None:
        self._state = MapState()

    def load(self, state: MapState) -> None:
        """Keep *state* to look at."""
        self._state = state

    def verdict(
        self, identity: NumericIdentity, direction: Direction, protocol: int, port: int
    ) -> abi.PolicyVerdict:
        """Look the packet up."""
        return lookup(self._state, identity, direction, protocol, port)[0]


class _NoneBefore:
    """No rules but those in force."""

    def named(self) -> set[Prefix]:
        """Nothing."""
        return set()

    def parts(self) -> set[Prefix]:
        """Nothing."""
        return set()

    def tell_apart(self, _one: NumericIdentity, _other: NumericIdentity) -> bool:
        """Nobody."""
        return False


class Node:
    """What an agent makes of a case's documents."""

    def __init__(self, case: Case) -> None:
        self.policies = policies_in_force(case)
        self._enforcement = Enforcement(case.enforcement)
        namespaces = {key: row for _, key, row in _rows(case.namespaces)}
        here = {key: row for _, key, row in _rows(case.local_pods)}
        there = {key: row for _, key, row in _rows(case.remote_pods)}
        pods = here | there
        self._pod_labels = {key: labels_of_pod(row, namespaces[row.namespace]) for key, row in pods.items()}
        self._pod_ports = {key: named_ports_of_pod(row) for key, row in pods.items()}
        remote = sorted({self._pod_labels[key] for key in there}, key=labels_text)
        cluster = dict(enumerate(remote, REMOTE_FIRST))
        adoption = adopt_identities({}, cluster, self._pod_labels.values())
        self._numbers = adoption.numbers | allocate_identities({}, adoption.missing).assigned
        self._prefixes = allocate_prefixes({}, cidrs(self.policies)).assigned
        self._nodes = allocate_nodes({}, _machines(case)).assigned
        known = known_identities(self._numbers, self._prefixes, cluster, self._labels_of(case))
        self._parts = self._parts_of(case)
        self.identities = known | self._parts.known(known)
        self.named_ports = self._remote_ports(there.values())
        for key in here:
            number = self._numbers[self._pod_labels[key]]
            self.named_ports[number] = self.named_ports.get(number, frozenset()) | self._pod_ports[key]
        self.named_ports |= self._parts.named_ports(self.named_ports)

    def _remote_ports(self, pods: Iterable[PodRow]) -> dict[NumericIdentity, NamedPorts]:
        """As they are told by the objects that other nodes publish."""
        table: Table[NamespacedName, RemoteEndpointRow] = Table("remote_endpoints")
        for pod in pods:
            row = self._published(pod)
            table.set(row.key, row)
        remote = RemotePods(table)
        remote.refresh()
        return dict(remote.named_ports)

    def _parts_of(self, case: Case) -> Parts:
        """Which number every pod is judged by at its addresses."""
        owners = {
            ip_address(address): self._numbers[self._pod_labels[key]]
            for document in case.pods
            for key in [(document["metadata"]["namespace"], document["metadata"]["name"])]
            for address in addresses_of(document)
        }
        parts = Parts(Tables(), lambda _addr: ())
        parts.look(blocks(self.policies), lambda: owners, of=case)
        parts.settle(_NoneBefore())
        return parts

    def _published(self, row: PodRow) -> RemoteEndpointRow:
        """A pod of the other node as that publishes it."""
        key = row.namespace, row.name
        return RemoteEndpointRow(*key, self._numbers[self._pod_labels[key]], (), None, row.named_ports)

    def _labels_of(self, case: Case) -> dict[NumericIdentity, Labels]:
        """Of every node that is known by name, this one included."""
        rows = {name: NodeRow(name=name, labels=dict(labels)) for name, labels in case.machines.items()}
        found = {
            number: labels_of_node(node, rows[node.name], EVERY_LABEL) for node, number in self._nodes.items()
        }
        here = {name for reserved, name in MACHINES if reserved == "host"} & rows.keys()
        return found | {
            int(Reserved.HOST): labels_of_this_node(name, rows[name], EVERY_LABEL) for name in here
        }

    def endpoint(self, subject: oracle.Subject) -> tuple[Labels, NamedPorts]:
        """The labels and named ports that decide about the rules of *subject*."""
        match subject:
            case oracle.Pod():
                key = subject.namespace, subject.name
                return self._pod_labels[key], self._pod_ports[key]
            case oracle.Node():
                return self.identities[self.identity(subject)], frozenset()

    def rules(self, subject: oracle.Subject) -> EndpointRules:
        """What *subject* is under."""
        labels, ports = self.endpoint(subject)
        return select(self.policies, labels, named_ports=ports, enforcement=self._enforcement)

    def state(self, subject: oracle.Subject) -> MapState:
        """The content of the version *subject* runs under."""
        return resolve(self.rules(subject), self.identities, named_ports=self.named_ports)

    def grown_state(self, subject: oracle.Subject, late: Iterable[NumericIdentity]) -> MapState:
        """The same when *late* identities turned up one by one after the version was made."""
        rules, late = self.rules(subject), [number for number in late if number in self.identities]
        first = {number: labels for number, labels in self.identities.items() if number not in late}
        state = resolve(rules, first, named_ports=self.named_ports)
        for number in late:
            known = {number: self.identities[number]}
            state = state.with_added(classify(rules, known, state, named_ports=self.named_ports))
        return state

    def judged_as(self, peer: oracle.Peer) -> NumericIdentity:
        """What policies judge packets from or to *peer* by: its identity, or that of its part."""
        identity = self.identity(peer)
        if not isinstance(peer, oracle.Pod) or not peer.address:
            return identity
        return self._parts.judged.get(ip_address(peer.address), identity)

    def identity(self, peer: oracle.Peer) -> NumericIdentity:
        """The identity packets from or to *peer* carry: what ipcache gives for its address."""
        match peer:
            case oracle.Pod():
                return self._numbers[self._pod_labels[peer.namespace, peer.name]]
            case oracle.Node(("remote-node" | "kube-apiserver") as reserved, name) if name:
                return self._nodes[NamedNode(name, reserved == "kube-apiserver")]
            case oracle.Node(reserved):
                return int(Reserved[reserved.upper().replace("-", "_")])
            case oracle.Address(ip):
                address = ip_address(ip)
                holders = [prefix for prefix in self._prefixes if address in prefix]
                if holders:
                    return self._prefixes[max(holders, key=lambda prefix: prefix.prefixlen)]
                return int(Reserved.WORLD if address.version == 4 else Reserved.WORLD_IPV6)
            case oracle.Stranger():
                return STRANGER


def verdict_name(node: Node, judge: Judge, packet: oracle.Packet) -> str:
    """What *judge* says about *packet*, in the oracle's words."""
    verdict = judge.verdict(
        node.judged_as(packet.peer),
        Direction[packet.direction.upper()],
        PROTOCOL_NUMBERS[packet.protocol],
        packet.port,
    )
    return verdict.name.removeprefix("POLICY_VERDICT_")


def policies_in_force(case: Case) -> list[Policy]:
    """The policies of *case*, with what they refer to filled in."""
    tables = Tables()
    for name, key, row in _rows([*case.policies, *case.objects]):
        getattr(tables, name).set(key, row)
    references = References(tables)
    references.set_pods(frozenset(ip_network(one) for nets in POD_NETWORKS.values() for one in nets.values()))
    references.refresh()
    return list(references.policies.values())


def _machines(case: Case) -> list[NamedNode]:
    return [
        NamedNode(name, reserved == "kube-apiserver")
        for reserved, name in MACHINES
        if name in case.machines and reserved != "host"
    ]


def policies_of(documents: Iterable[Document]) -> list[Policy]:
    """The policies the parser makes of *documents*."""
    return [row for table, _, row in _rows(documents) if table == "policies"]


def _rows(documents: Iterable[Document]) -> list[tuple[str, Any, Any]]:
    return [row for document in documents for row in _parse(document).rows()]
