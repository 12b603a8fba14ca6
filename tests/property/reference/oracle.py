# SPDX-License-Identifier: Apache-2.0
"""
What the documents say, read off the documents: the slow and obvious judge of policy.

Takes policies as the YAML mappings users write and answers for one packet at a time, by walking every
rule of every policy.  Shares nothing with the code it judges and knows no identities, classes or maps.

Semantics (Kubernetes NetworkPolicy v1, CiliumNetworkPolicy v2):

- A policy concerns pods of its own namespace only.
- A pod is isolated in a direction if a policy that selects it covers the direction: policyTypes for
  NetworkPolicy; a section that is not empty, or enableDefaultDeny, for CiliumNetworkPolicy.
- Denied if any deny rule matches; else allowed if any allow rule matches or the pod is not isolated.
- The node may always reach its own pods, unless a deny rule matches it.
- Addresses in rules mean what is outside the cluster, never pods or nodes.
- NetworkPolicy: no peers, or an empty list, is everybody.  CiliumNetworkPolicy: no peers is everybody
  if there are ports, nobody otherwise; an empty list is nobody.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any

Document = Mapping[str, Any]
Lookup = Callable[[str], "str | None"]

INGRESS, EGRESS = "ingress", "egress"
ALLOW, DENY, DEFAULT_DENY = "ALLOW", "DENY", "DEFAULT_DENY"

_NAMESPACE = "io.kubernetes.pod.namespace"
_NAMESPACE_LABELS = "io.cilium.k8s.namespace.labels."
_SERVICE_ACCOUNT = "io.cilium.k8s.policy.serviceaccount"
_CLUSTER = "io.cilium.k8s.policy.cluster"
_NODES = frozenset({"host", "remote-node", "health", "init", "unmanaged", "ingress", "kube-apiserver"})


@dataclass(frozen=True)
class Pod:
    """A pod, its namespace's labels, and its named ports as name -> (protocol, port)."""

    namespace: str
    name: str
    labels: Mapping[str, str] = field(default_factory=dict)
    namespace_labels: Mapping[str, str] = field(default_factory=dict)
    service_account: str = "default"
    ports: Mapping[str, tuple[str, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Node:
    """Something of the cluster that is no pod: host, remote-node, health, init, unmanaged."""

    reserved: str


@dataclass(frozen=True)
class Address:
    """Something outside the cluster."""

    ip: str


@dataclass(frozen=True)
class Stranger:
    """A peer nothing is known about yet: only rules for everybody apply to it."""


Peer = Pod | Node | Address | Stranger


@dataclass(frozen=True)
class Packet:
    """The first packet of a flow as the judged pod sees it: who is at the other end, and whither."""

    direction: str
    peer: Peer
    protocol: str
    port: int


def verdict(documents: Iterable[Document], pod: Pod, packet: Packet) -> str:
    """Judge *packet* from or to *pod*: ALLOW, DENY (by a deny rule) or DEFAULT_DENY."""
    isolated = allowed = denied = False
    for policy in documents:
        for part in _parts(policy):
            if part.namespace != pod.namespace or not part.selects(pod):
                continue
            isolated |= part.isolates(packet.direction)
            allowed |= part.matches(pod, packet, deny=False)
            denied |= part.matches(pod, packet, deny=True)
    if packet.direction == INGRESS and packet.peer == Node("host"):
        allowed = True
    if denied:
        return DENY
    return ALLOW if allowed or not isolated else DEFAULT_DENY


def _parts(policy: Document) -> Iterator["_Cilium | _Kubernetes"]:
    namespace = policy["metadata"].get("namespace") or "default"
    if policy["kind"] == "NetworkPolicy":
        yield _Kubernetes(namespace, policy["spec"])
        return
    for spec in [policy.get("spec"), *(policy.get("specs") or [])]:
        if spec is not None:
            yield _Cilium(namespace, spec)


# ---- Kubernetes ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Kubernetes:
    namespace: str
    spec: Document

    def selects(self, pod: Pod) -> bool:
        return _selected(self.spec.get("podSelector"), _own_labels(pod))

    def isolates(self, direction: str) -> bool:
        listed = self.spec.get("policyTypes")
        if listed:
            return direction.capitalize() in listed
        return direction == INGRESS or bool(self.spec.get("egress"))

    def matches(self, pod: Pod, packet: Packet, *, deny: bool) -> bool:
        if deny or not self.isolates(packet.direction):
            return False
        side = "from" if packet.direction == INGRESS else "to"
        return any(
            self._peers_match(rule.get(side), packet.peer)
            and self._ports_match(rule.get("ports"), pod, packet)
            for rule in self.spec.get(packet.direction) or []
        )

    def _peers_match(self, peers: Sequence[Document] | None, peer: Peer) -> bool:
        return not peers or any(self._peer_matches(written, peer) for written in peers)

    def _peer_matches(self, written: Document, peer: Peer) -> bool:
        if written.get("ipBlock") is not None:
            return _in_cidr(written["ipBlock"]["cidr"], written["ipBlock"].get("except"), peer)
        if not isinstance(peer, Pod):
            return False
        if written.get("namespaceSelector") is None:
            in_scope = peer.namespace == self.namespace
        else:
            in_scope = _selected(written["namespaceSelector"], _namespace_labels(peer).get)
        return in_scope and _selected(written.get("podSelector"), _own_labels(peer))

    def _ports_match(self, ports: Sequence[Document] | None, pod: Pod, packet: Packet) -> bool:
        return not ports or any(
            _port_matches(
                written.get("port", 0), written.get("endPort"), written.get("protocol") or "TCP", pod, packet
            )
            for written in ports
        )


# ---- Cilium ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Cilium:
    namespace: str
    spec: Document

    def selects(self, pod: Pod) -> bool:
        return _selected(self.spec["endpointSelector"], _cilium_labels(pod))

    def isolates(self, direction: str) -> bool:
        chosen = (self.spec.get("enableDefaultDeny") or {}).get(direction)
        if chosen is not None:
            return bool(chosen)
        return bool(self.spec.get(direction) or self.spec.get(direction + "Deny"))

    def matches(self, pod: Pod, packet: Packet, *, deny: bool) -> bool:
        section = packet.direction + ("Deny" if deny else "")
        return any(
            self._peers_match(rule, packet, deny=deny) and self._ports_match(rule, pod, packet)
            for rule in self.spec.get(section) or []
        )

    def _peers_match(self, rule: Document, packet: Packet, *, deny: bool) -> bool:
        side = "from" if packet.direction == INGRESS else "to"
        lists = {
            kind: rule.get(side + kind)
            for kind in ("Endpoints", "CIDR", "CIDRSet", "Entities")
            if rule.get(side + kind) is not None
        }
        if not lists:
            return bool(rule.get("toPorts"))
        return (
            any(self._endpoint_matches(s, packet.peer, deny=deny) for s in lists.get("Endpoints", ()))
            or any(_in_cidr(cidr, None, packet.peer) for cidr in lists.get("CIDR", ()))
            or any(_in_cidr(s["cidr"], s.get("except"), packet.peer) for s in lists.get("CIDRSet", ()))
            or any(_is_entity(name, packet.peer) for name in lists.get("Entities", ()))
        )

    def _endpoint_matches(self, selector: Document, peer: Peer, *, deny: bool) -> bool:
        if isinstance(peer, Stranger) or not _selected(selector, _cilium_labels(peer)):
            return False
        # What a selector does not say about namespaces is filled in: the policy's own.
        demanded = [_without_source(key) for key in _demanded(selector)]
        if any(key.startswith("reserved:") for key in _demanded(selector)):
            return True
        if any(_speaks_of_namespaces(key) for key in demanded):
            return True
        if any(_speaks_of_namespaces(_without_source(key)) for key in _mentioned(selector)):
            # It only excludes namespaces: an allow then still means pods, a deny all the rest.
            return deny or isinstance(peer, Pod)
        return isinstance(peer, Pod) and peer.namespace == self.namespace

    def _ports_match(self, rule: Document, pod: Pod, packet: Packet) -> bool:
        if not rule.get("toPorts"):
            return True
        for written in (port for entry in rule["toPorts"] for port in entry["ports"]):
            named = not written["port"].isdigit()
            port = written["port"] if named else int(written["port"])
            if _port_matches(port, written.get("endPort"), written.get("protocol") or "ANY", pod, packet):
                return True
        return False


def _is_entity(name: str, peer: Peer) -> bool:
    if name == "all":
        return True
    if name == "world":
        return isinstance(peer, Address)
    if name == "cluster":
        return isinstance(peer, Pod) or (isinstance(peer, Node) and peer.reserved in _NODES)
    return isinstance(peer, Node) and peer.reserved == name


# ---- both ------------------------------------------------------------------------------------


def _port_matches(port: int | str, end: int | None, protocol: str, pod: Pod, packet: Packet) -> bool:
    if packet.protocol not in ({"TCP", "UDP", "SCTP"} if protocol == "ANY" else {protocol}):
        return False
    if isinstance(port, str):
        # A named port is one of the pod that is being connected to.
        target = pod if packet.direction == INGRESS else packet.peer
        return isinstance(target, Pod) and target.ports.get(port) == (packet.protocol, packet.port)
    return port == 0 or port <= packet.port <= (end or port)


def _in_cidr(cidr: str, excepts: Sequence[str] | None, peer: Peer) -> bool:
    if not isinstance(peer, Address):
        return False
    address = ip_address(peer.ip)
    return address in ip_network(cidr, strict=False) and not any(
        address in ip_network(excluded, strict=False) for excluded in excepts or []
    )


def _selected(selector: Document | None, lookup: Lookup) -> bool:
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


def _own_labels(pod: Pod) -> Lookup:
    """Labels of the pod itself; those the agent sets cannot be claimed by a pod."""
    claimed = {
        key: value
        for key, value in pod.labels.items()
        if key != _NAMESPACE and not key.startswith("io.cilium.k8s.")
    }
    return claimed.get


def _namespace_labels(pod: Pod) -> dict[str, str]:
    return {**pod.namespace_labels, "kubernetes.io/metadata.name": pod.namespace}


def _cilium_labels(peer: Peer) -> Lookup:
    """Labels as a Cilium selector names them: ``app``, ``k8s:app``, ``any:app``, ``reserved:host``."""

    def lookup(text: str) -> str | None:
        source, colon, key = text.partition(":")
        if not colon:
            source, key = "any", text
        if isinstance(peer, Pod) and source in ("k8s", "any"):
            return _pod_label(peer, key)
        reserved = peer.reserved if isinstance(peer, Node) else "world" if isinstance(peer, Address) else None
        return "" if source in ("reserved", "any") and key == reserved else None

    return lookup


def _pod_label(pod: Pod, key: str) -> str | None:
    if key == _NAMESPACE:
        return pod.namespace
    if key == _SERVICE_ACCOUNT:
        return pod.service_account
    if key == _CLUSTER:
        return "default"
    if key.startswith(_NAMESPACE_LABELS):
        return _namespace_labels(pod).get(key.removeprefix(_NAMESPACE_LABELS))
    return _own_labels(pod)(key)


def _demanded(selector: Document) -> Iterator[str]:
    yield from selector.get("matchLabels") or {}
    for term in selector.get("matchExpressions") or []:
        if term["operator"] in ("In", "Exists"):
            yield term["key"]


def _mentioned(selector: Document) -> Iterator[str]:
    yield from selector.get("matchLabels") or {}
    for term in selector.get("matchExpressions") or []:
        yield term["key"]


def _without_source(key: str) -> str:
    return key if key.startswith("reserved:") else key.rpartition(":")[2]


def _speaks_of_namespaces(key: str) -> bool:
    return key == _NAMESPACE or key.startswith(_NAMESPACE_LABELS)
