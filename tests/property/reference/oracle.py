# SPDX-License-Identifier: Apache-2.0
"""
What the documents say, read off the documents: the slow and obvious judge of policy.

Takes policies as the YAML mappings users write and answers for one packet at a time, by walking every
rule of every policy.  Shares nothing with the code it judges and knows no identities, classes or maps.

Semantics (Kubernetes NetworkPolicy v1, CiliumNetworkPolicy and CiliumClusterwideNetworkPolicy v2):

- A policy concerns pods of its own namespace only; one of the cluster every endpoint, the health
  endpoint and pods not yet known (init) included.
- An endpoint is isolated in a direction if a policy that selects it covers the direction: policyTypes for
  NetworkPolicy; a section that is not empty, or enableDefaultDeny, for Cilium's kinds.  A pod not yet
  known is isolated in both; so is everybody where policy is always enforced.
- Denied if any deny rule matches; else allowed if any allow rule matches or the endpoint is not isolated.
- The node may always reach its own pods, unless a deny rule matches it.
- Addresses in rules of Cilium's kinds mean what is outside the cluster, never pods or nodes.  A block of
  NetworkPolicy (ipBlock) means pods as well: those whose address, the one that the packet names, lies in it
  and in no exception.  Never nodes, nor health endpoints.
- A CiliumCIDRGroup stands for its prefixes, by name or by its labels; one that does not exist for nobody.
- A service stands for the pods it selects, by their own labels in its namespace; without a selector for the
  addresses of its endpoints outside the cluster, and default/kubernetes for the API server as well.  Where
  no namespace is given, services of all of them are meant.
- Nodes in rules are machines of the cluster by the labels of their Node objects, the one that judges among
  them; nothing else is ever meant, and nobody else's selectors look at these labels.
- What an allow rule requires (fromRequires, toRequires) is required of every peer that an allow rule of the
  direction selects by labels, in any policy of the endpoint, and not of those in a block; by itself it
  allows nobody.
- NetworkPolicy: no peers, or an empty list, is everybody.  Cilium's kinds: no peers is everybody if there
  are ports or ICMP types, nobody otherwise; an empty list is nobody.
- Ports are those of TCP, UDP and SCTP; a rule without ports or ICMP types is all traffic.
- Where policy is never enforced everything is allowed.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import ip_address

from property.reference.matching import (
    EGRESS,
    INGRESS,
    Address,
    Document,
    Node,
    Packet,
    Peer,
    Pod,
    Stranger,
    Subject,
    cilium_labels,
    demanded,
    in_block,
    in_cidr,
    is_reserved,
    is_selected_node,
    mentioned,
    namespace_labels,
    own_labels,
    port_matches,
    selected,
    speaks_of_namespaces,
    without_source,
)

__all__ = ["EGRESS", "INGRESS", "Address", "Node", "Packet", "Peer", "Pod", "Stranger", "Subject", "verdict"]

ALLOW, DENY, DEFAULT_DENY = "ALLOW", "DENY", "DEFAULT_DENY"
DEFAULT, ALWAYS, NEVER = "default", "always", "never"

_POLICIES = ("NetworkPolicy", "CiliumNetworkPolicy", "CiliumClusterwideNetworkPolicy")
_ICMP_NAMES = {"IPv4": {"EchoReply": 0, "EchoRequest": 8}, "IPv6": {"EchoRequest": 128}}


def verdict(
    documents: Iterable[Document], subject: Subject, packet: Packet, *, enforcement: str = DEFAULT
) -> str:
    """
    Judge *packet* from or to *subject*: ALLOW, DENY (by a deny rule) or DEFAULT_DENY.

    Among the *documents* are the objects that policies refer to.
    """
    if enforcement == NEVER:
        return ALLOW
    isolated = enforcement == ALWAYS or subject == Node("init")
    allowed = denied = False
    documents = list(documents)
    parts = [part for policy in documents for part in _parts(policy, documents) if part.selects(subject)]
    fulfils = all(part.is_fulfilled(packet) for part in parts)
    for part in parts:
        isolated |= part.isolates(packet.direction)
        allowed |= part.matches(subject, packet, deny=False, fulfils=fulfils)
        denied |= part.matches(subject, packet, deny=True, fulfils=True)
    if packet.direction == INGRESS and is_reserved("host", packet.peer):
        allowed = True
    if denied:
        return DENY
    return ALLOW if allowed or not isolated else DEFAULT_DENY


def _parts(policy: Document, documents: Sequence[Document]) -> Iterator["_Cilium | _Kubernetes"]:
    if policy["kind"] not in _POLICIES:
        return
    is_clusterwide = policy["kind"] == "CiliumClusterwideNetworkPolicy"
    namespace = policy["metadata"].get("namespace") or "default"
    if policy["kind"] == "NetworkPolicy":
        yield _Kubernetes(namespace, policy["spec"])
        return
    for spec in [policy.get("spec"), *(policy.get("specs") or [])]:
        if spec is not None:
            yield _Cilium(None if is_clusterwide else namespace, spec, documents)


@dataclass(frozen=True)
class _Kubernetes:
    namespace: str
    spec: Document

    def selects(self, subject: Subject) -> bool:
        return (
            isinstance(subject, Pod)
            and subject.namespace == self.namespace
            and selected(self.spec.get("podSelector"), own_labels(subject).get)
        )

    def isolates(self, direction: str) -> bool:
        listed = self.spec.get("policyTypes")
        if listed:
            return direction.capitalize() in listed
        return direction == INGRESS or bool(self.spec.get("egress"))

    def is_fulfilled(self, _packet: Packet) -> bool:
        return True

    def matches(self, subject: Subject, packet: Packet, *, deny: bool, fulfils: bool) -> bool:
        if deny or not self.isolates(packet.direction):
            return False
        side = "from" if packet.direction == INGRESS else "to"
        return any(
            self._peers_match(rule.get(side), packet.peer, fulfils=fulfils)
            and self._ports_match(rule.get("ports"), subject, packet)
            for rule in self.spec.get(packet.direction) or []
        )

    def _peers_match(self, peers: Sequence[Document] | None, peer: Peer, *, fulfils: bool) -> bool:
        return not peers or any(
            self._peer_matches(written, peer) and (fulfils or written.get("ipBlock") is not None)
            for written in peers
        )

    def _peer_matches(self, written: Document, peer: Peer) -> bool:
        if written.get("ipBlock") is not None:
            return in_block(written["ipBlock"], peer)
        if not isinstance(peer, Pod):
            return False
        if written.get("namespaceSelector") is None:
            in_scope = peer.namespace == self.namespace
        else:
            in_scope = selected(written["namespaceSelector"], namespace_labels(peer).get)
        return in_scope and selected(written.get("podSelector"), own_labels(peer).get)

    def _ports_match(self, ports: Sequence[Document] | None, subject: Subject, packet: Packet) -> bool:
        return not ports or any(
            port_matches(
                written.get("port", 0),
                written.get("endPort"),
                written.get("protocol") or "TCP",
                subject,
                packet,
            )
            for written in ports
        )


@dataclass(frozen=True)
class _Cilium:
    namespace: str | None
    spec: Document
    documents: Sequence[Document]

    def selects(self, subject: Subject) -> bool:
        if self.namespace is not None and getattr(subject, "namespace", None) != self.namespace:
            return False
        return selected(self.spec["endpointSelector"], cilium_labels(subject))

    def isolates(self, direction: str) -> bool:
        chosen = (self.spec.get("enableDefaultDeny") or {}).get(direction)
        if chosen is not None:
            return bool(chosen)
        return bool(self.spec.get(direction) or self.spec.get(direction + "Deny"))

    def is_fulfilled(self, packet: Packet) -> bool:
        """Whether the peer is all that rules of this direction require."""
        side = "from" if packet.direction == INGRESS else "to"
        return all(
            self._endpoint_matches(required, packet.peer, deny=False)
            for rule in self.spec.get(packet.direction) or []
            for required in rule.get(side + "Requires") or []
        )

    def matches(self, subject: Subject, packet: Packet, *, deny: bool, fulfils: bool) -> bool:
        section = packet.direction + ("Deny" if deny else "")
        return any(
            self._peers_match(rule, packet, deny=deny, fulfils=fulfils)
            and self._ports_match(rule, subject, packet)
            for rule in self.spec.get(section) or []
        )

    def _peers_match(self, rule: Document, packet: Packet, *, deny: bool, fulfils: bool) -> bool:
        side = "from" if packet.direction == INGRESS else "to"
        lists = {
            kind: rule.get(side + kind)
            for kind in ("Endpoints", "CIDR", "CIDRSet", "Entities", "Nodes", "Services")
            if rule.get(side + kind) is not None
        }
        if not lists and rule.get(side + "Requires"):
            return False
        if not lists:
            return bool(rule.get("toPorts") or rule.get("icmps"))
        return (
            (
                fulfils
                and any(self._endpoint_matches(s, packet.peer, deny=deny) for s in lists.get("Endpoints", ()))
            )
            or any(in_cidr(cidr, None, packet.peer) for cidr in lists.get("CIDR", ()))
            or any(
                in_cidr(cidr, s.get("except"), packet.peer)
                for s in lists.get("CIDRSet", ())
                for cidr in self._cidrs(s)
            )
            or any(_is_entity(name, packet.peer) for name in lists.get("Entities", ()))
            or any(is_selected_node(selector, packet.peer) for selector in lists.get("Nodes", ()))
            or any(
                self._is_behind(written, packet.peer) and (fulfils or not isinstance(packet.peer, Pod))
                for written in lists.get("Services", ())
            )
        )

    def _is_behind(self, written: Document, peer: Peer) -> bool:
        for service in self.documents:
            if service["kind"] != "Service":
                continue
            meta = service["metadata"]
            named, chosen = written.get("k8sService"), written.get("k8sServiceSelector")
            if (named or chosen).get("namespace") not in (None, meta["namespace"]):
                continue
            if named is not None and named["serviceName"] != meta["name"]:
                continue
            if chosen is not None and not selected(chosen["selector"], (meta.get("labels") or {}).get):
                continue
            if self._has_behind(service, peer):
                return True
        return False

    def _has_behind(self, service: Document, peer: Peer) -> bool:
        meta, selector = service["metadata"], service["spec"].get("selector")
        if selector:
            return (
                isinstance(peer, Pod)
                and peer.namespace == meta["namespace"]
                and selected({"matchLabels": selector}, own_labels(peer).get)
            )
        if (meta["namespace"], meta["name"]) == ("default", "kubernetes") and is_reserved(
            "kube-apiserver", peer
        ):
            return True
        return isinstance(peer, Address) and any(
            peer.ip in endpoint["addresses"]
            for one in self.documents
            if one["kind"] == "EndpointSlice"
            and one["metadata"]["namespace"] == meta["namespace"]
            and one["metadata"]["labels"]["kubernetes.io/service-name"] == meta["name"]
            for endpoint in one["endpoints"]
        )

    def _cidrs(self, written: Document) -> Iterator[str]:
        if written.get("cidr") is not None:
            yield written["cidr"]
        for group in self.documents:
            if group["kind"] != "CiliumCIDRGroup":
                continue
            labels = group["metadata"].get("labels") or {}
            if written.get("cidrGroupRef") == group["metadata"]["name"] or (
                written.get("cidrGroupSelector") is not None
                and selected(written["cidrGroupSelector"], labels.get)
            ):
                yield from group["spec"]["externalCIDRs"]

    def _endpoint_matches(self, selector: Document, peer: Peer, *, deny: bool) -> bool:
        if isinstance(peer, Stranger) or not selected(selector, cilium_labels(peer)):
            return False
        # What a selector does not say about namespaces is filled in: the policy's own.
        wanted = list(demanded(selector))
        if any(key.startswith("reserved:") for key in wanted):
            return True
        if any(speaks_of_namespaces(without_source(key)) for key in wanted):
            return True
        if any(speaks_of_namespaces(without_source(key)) for key in mentioned(selector)):
            # It only excludes namespaces: an allow then still means pods, a deny all the rest.
            return deny or isinstance(peer, Pod)
        if self.namespace is None:
            # A policy for pods that have no namespace yet may mean others without one.
            return isinstance(peer, Pod) or "reserved:init" in demanded(self.spec["endpointSelector"])
        return isinstance(peer, Pod) and peer.namespace == self.namespace

    def _ports_match(self, rule: Document, subject: Subject, packet: Packet) -> bool:
        if rule.get("icmps"):
            return any(
                _icmp_matches(written, packet) for entry in rule["icmps"] for written in entry["fields"]
            )
        if not rule.get("toPorts"):
            return True
        for written in (port for entry in rule["toPorts"] for port in entry["ports"]):
            named = not written["port"].isdigit()
            port = written["port"] if named else int(written["port"])
            if port_matches(port, written.get("endPort"), written.get("protocol") or "ANY", subject, packet):
                return True
        return False


def _icmp_matches(written: Document, packet: Packet) -> bool:
    family, kind = written.get("family") or "IPv4", written["type"]
    number = _ICMP_NAMES[family][kind] if kind in _ICMP_NAMES[family] else int(kind)
    return packet.protocol == {"IPv4": "ICMP", "IPv6": "ICMPV6"}[family] and packet.port == number


def _is_entity(name: str, peer: Peer) -> bool:
    match name, peer:
        case "all", _:
            return True
        case "world", Address():
            return True
        case (("world-ipv4" | "world-ipv6"), Address(ip)):
            return ip_address(ip).version == int(name[-1])
        case "cluster", (Pod() | Node()):
            return True
        case _, Node():
            return name in peer.names
    return False
