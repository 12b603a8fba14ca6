# SPDX-License-Identifier: Apache-2.0
"""
Who is meant and which ports: the small questions of the oracle, answered by the letter of the documents.

A pod's labels are its own, its namespace's and those the agent sets; nothing else of the cluster has any
but its reserved names.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any

Document = Mapping[str, Any]
Lookup = Callable[[str], "str | None"]

INGRESS, EGRESS = "ingress", "egress"

_NAMESPACE = "io.kubernetes.pod.namespace"
_NAMESPACE_LABELS = "io.cilium.k8s.namespace.labels."
_SERVICE_ACCOUNT = "io.cilium.k8s.policy.serviceaccount"
_CLUSTER = "io.cilium.k8s.policy.cluster"


@dataclass(frozen=True)
class Pod:
    """
    A pod, its namespace's labels, and its named ports as name -> {(protocol, port)}.

    As a peer *address* is the one of its addresses that the packet names: of two families it is two peers.
    """

    namespace: str
    name: str
    labels: Mapping[str, str] = field(default_factory=dict)
    namespace_labels: Mapping[str, str] = field(default_factory=dict)
    service_account: str = "default"
    ports: Mapping[str, frozenset[tuple[str, int]]] = field(default_factory=dict)
    address: str = ""

    def is_like(self, other: "Pod") -> bool:
        """Whether no label that counts tells the two apart."""
        return (
            self.namespace == other.namespace
            and self.service_account == other.service_account
            and own_labels(self) == own_labels(other)
        )


@dataclass(frozen=True)
class Node:
    """
    Something of the cluster that is no pod: host, remote-node, health, init, unmanaged, ...

    Of a machine of the cluster whose Node is known *labels* are those of it; None: nobody knows which it is.
    """

    reserved: str
    name: str = ""
    labels: Mapping[str, str] | None = None

    @property
    def names(self) -> frozenset[str]:
        """The reserved labels it carries: the API server is on a node, beside its own name."""
        more = {"remote-node"} if self.reserved == "kube-apiserver" else set()
        return frozenset({self.reserved} | more)


@dataclass(frozen=True)
class Address:
    """Something outside the cluster."""

    ip: str


@dataclass(frozen=True)
class Stranger:
    """A peer nothing is known about yet: only rules for everybody apply to it."""


Peer = Pod | Node | Address | Stranger
Subject = Pod | Node


@dataclass(frozen=True)
class Packet:
    """The first packet of a flow as the judged pod sees it: who is at the other end, and whither."""

    direction: str
    peer: Peer
    protocol: str
    port: int


def port_matches(port: int | str, end: int | None, protocol: str, subject: Subject, packet: Packet) -> bool:
    """Whether the packet goes to *port*, a range up to *end*, or a port of that name."""
    if packet.protocol not in ({"TCP", "UDP", "SCTP"} if protocol == "ANY" else {protocol}):
        return False
    if isinstance(port, str):
        # A named port is one of the pod that is being connected to.
        target = subject if packet.direction == INGRESS else packet.peer
        return isinstance(target, Pod) and (packet.protocol, packet.port) in target.ports.get(port, ())
    return port == 0 or port <= packet.port <= (end or port)


def in_cidr(cidr: str, excepts: Sequence[str] | None, peer: Peer) -> bool:
    """Whether the peer is an address outside the cluster that lies in *cidr* and in no exception."""
    return isinstance(peer, Address) and lies_in(cidr, excepts, peer.ip)


def in_block(block: Document, peer: Peer) -> bool:
    """Whether the peer is outside the cluster or a pod, and its address lies in a block."""
    address = peer.ip if isinstance(peer, Address) else peer.address if isinstance(peer, Pod) else ""
    return bool(address) and lies_in(block["cidr"], block.get("except"), address)


def lies_in(cidr: str, excepts: Sequence[str] | None, text: str) -> bool:
    """Whether an address lies in *cidr* and in no exception."""
    address = ip_address(text)
    return address in ip_network(cidr, strict=False) and not any(
        address in ip_network(excluded, strict=False) for excluded in excepts or []
    )


def selected(selector: Document | None, lookup: Lookup) -> bool:
    """Whether labels, by key, fulfil every term of a selector."""
    selector = selector or {}
    for key, value in (selector.get("matchLabels") or {}).items():
        if lookup(key) != value:
            return False
    for term in selector.get("matchExpressions") or []:
        value, listed = lookup(term["key"]), term.get("values") or []
        holds = {
            "In": value is not None and value in listed,
            "NotIn": value is None or value not in listed,
            "Exists": value is not None,
            "DoesNotExist": value is None,
        }[term["operator"]]
        if not holds:
            return False
    return True


def own_labels(pod: Pod) -> dict[str, str]:
    """Labels of the pod itself; those the agent sets cannot be claimed by a pod."""
    return {
        key: value
        for key, value in pod.labels.items()
        if key != _NAMESPACE and not key.startswith("io.cilium.k8s.")
    }


def namespace_labels(pod: Pod) -> dict[str, str]:
    """Labels of the pod's namespace, its name among them."""
    return {**pod.namespace_labels, "kubernetes.io/metadata.name": pod.namespace}


def cilium_labels(peer: Peer) -> Lookup:
    """Labels as a Cilium selector names them: ``app``, ``k8s:app``, ``any:app``, ``reserved:host``."""

    def lookup(text: str) -> str | None:
        source, colon, key = text.partition(":")
        if not colon:
            source, key = "any", text
        if isinstance(peer, Pod) and source in ("k8s", "any"):
            return _pod_label(peer, key)
        reserved = peer.names if isinstance(peer, Node) else {"world"} if isinstance(peer, Address) else ()
        return "" if source in ("reserved", "any") and key in reserved else None

    return lookup


def is_selected_node(selector: Document, peer: Peer) -> bool:
    """Whether the peer is a machine of the cluster with such labels, written with their source or without."""

    def lookup(text: str) -> str | None:
        source, colon, key = text.rpartition(":")
        return labels.get(key) if not colon or source in ("node", "any") else None

    if not isinstance(peer, Node) or peer.labels is None:
        return False
    labels = peer.labels
    return selected(selector, lookup)


def is_reserved(name: str, peer: Peer) -> bool:
    """Whether the peer is the one that is called so, whatever labels it has."""
    return isinstance(peer, Node) and peer.reserved == name


def _pod_label(pod: Pod, key: str) -> str | None:
    if key == _NAMESPACE:
        return pod.namespace
    if key == _SERVICE_ACCOUNT:
        return pod.service_account
    if key == _CLUSTER:
        return "default"
    if key.startswith(_NAMESPACE_LABELS):
        return namespace_labels(pod).get(key.removeprefix(_NAMESPACE_LABELS))
    return own_labels(pod).get(key)


def demanded(selector: Document) -> Iterator[str]:
    """Keys a selector wants to be there."""
    yield from selector.get("matchLabels") or {}
    for term in selector.get("matchExpressions") or []:
        if term["operator"] in ("In", "Exists"):
            yield term["key"]


def mentioned(selector: Document) -> Iterator[str]:
    """Keys a selector says anything about."""
    yield from selector.get("matchLabels") or {}
    for term in selector.get("matchExpressions") or []:
        yield term["key"]


def without_source(key: str) -> str:
    """The key as the pod has it."""
    return key if key.startswith("reserved:") else key.rpartition(":")[2]


def speaks_of_namespaces(key: str) -> bool:
    """Whether a key is the pod's namespace, or a label of that."""
    return key == _NAMESPACE or key.startswith(_NAMESPACE_LABELS)
