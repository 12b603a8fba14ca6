# SPDX-License-Identifier: Apache-2.0
"""
What one rule covers: which identities its peers are, which blocks of ports its ports are.

Nodes are never matched by address, and pods only by a peer that is about nothing else: a CIDR peer
selects CIDR identities and, at length 0, the world of its address family.  Precedence between rules is
not decided here, see ``mapstate``.
"""

from collections.abc import Iterator
from functools import lru_cache
from ipaddress import ip_network
from typing import NamedTuple

from ciliumd import abi
from ciliumd.model.identity import Reserved
from ciliumd.model.labels import CIDR, K8S, PART, POD_NAMESPACE, RESERVED, Labels
from ciliumd.model.net import Prefix
from ciliumd.model.policy import (
    ANY_PROTOCOL,
    NamedPort,
    Peer,
    PeerCIDR,
    PeerEntity,
    PeerNodes,
    PeerPart,
    PeerSelector,
    PortRule,
)

PROTOCOL_NUMBERS = {"ICMP": 1, "TCP": 6, "UDP": 17, "ICMPV6": 58, "SCTP": 132}
_ANY_PROTOCOLS = ("TCP", "UDP", "SCTP")

PREFIX_CLASS = int(abi.PolicyPrefix.POLICY_PREFIX_CLASS)
PREFIX_PROTOCOL = int(abi.PolicyPrefix.POLICY_PREFIX_PROTOCOL)
PREFIX_PORT = int(abi.PolicyPrefix.POLICY_PREFIX_PORT)
_PORTS = 1 << 16

NamedPorts = frozenset[NamedPort]

WORLD_NAMES = frozenset(r.label for r in (Reserved.WORLD, Reserved.WORLD_IPV4, Reserved.WORLD_IPV6))
"""Reserved labels of what is outside the cluster."""

_WORLD_OF_VERSION = {
    4: frozenset({Reserved.WORLD.label, Reserved.WORLD_IPV4.label}),
    # The plain world is IPv4's too: matching it here would let ::/0 open or close IPv4.
    6: frozenset({Reserved.WORLD_IPV6.label}),
}
_WORLD_ENTITIES = {"world-ipv4": 4, "world-ipv6": 6}
# As EntityCluster in Cilium's pkg/policy/api/entity.go, where the last one is the label of the cluster's
# name; every pod has a namespace, and no pod of another cluster is known here.
_CLUSTER_NAMES = frozenset(
    r.label
    for r in (
        Reserved.HOST,
        Reserved.REMOTE_NODE,
        Reserved.INIT,
        Reserved.INGRESS,
        Reserved.HEALTH,
        Reserved.UNMANAGED,
        Reserved.KUBE_APISERVER,
    )
)


class PortBlock(NamedTuple):
    """
    A block of traffic as the rules map spells it: the part of its key behind class and direction.

    *dport* is a port, or for ICMP the type.
    """

    prefixlen: int
    protocol: int
    dport: int

    def covers(self, protocol: int, dport: int) -> bool:
        """Tell whether traffic to *dport* of *protocol* lies in this block."""
        if self.prefixlen == PREFIX_CLASS:
            return True
        shift = PREFIX_PORT - self.prefixlen
        return self.protocol == protocol and self.dport >> shift == dport >> shift

    def enclosing(self) -> Iterator["PortBlock"]:
        """Yield every larger block around this one, the smallest first."""
        for prefixlen in range(self.prefixlen - 1, PREFIX_PROTOCOL - 1, -1):
            shift = PREFIX_PORT - prefixlen
            yield PortBlock(prefixlen, self.protocol, self.dport >> shift << shift)
        if self.prefixlen > PREFIX_CLASS:
            yield EVERYTHING


EVERYTHING = PortBlock(PREFIX_CLASS, 0, 0)


def port_range_blocks(protocol: int, first: int, last: int) -> Iterator[PortBlock]:
    """Yield the fewest blocks that together are ports *first* to *last*."""
    port = first
    while port <= last:
        size = port & -port or _PORTS
        while port + size - 1 > last:
            size //= 2
        yield PortBlock(PREFIX_PORT - size.bit_length() + 1, protocol, port)
        port += size


def port_blocks(ports: tuple[PortRule, ...] | None, named: NamedPorts = frozenset()) -> frozenset[PortBlock]:
    """
    Return what *ports* cover, given the named ports of the pod they are on.

    A name the pod does not have, or has for another protocol, covers nothing.
    """
    if ports is None:
        return frozenset({EVERYTHING})
    blocks: set[PortBlock] = set()
    for rule in resolve_names(ports, named):
        for name in _ANY_PROTOCOLS if rule.protocol == ANY_PROTOCOL else (rule.protocol,):
            protocol = PROTOCOL_NUMBERS[name]
            if rule.icmp_type is not None:
                blocks.add(PortBlock(PREFIX_PORT, protocol, rule.icmp_type))
            elif rule.port == 0 and rule.end_port == 0:
                blocks.add(PortBlock(PREFIX_PROTOCOL, protocol, 0))
            else:
                blocks.update(port_range_blocks(protocol, rule.port, max(rule.port, rule.end_port)))
    return frozenset(blocks)


def resolve_names(ports: tuple[PortRule, ...], named: NamedPorts) -> tuple[PortRule, ...]:
    """Return *ports* with every name replaced by the numbers *named* gives it, if any."""
    resolved: list[PortRule] = []
    for rule in ports:
        if rule.name is None:
            resolved.append(rule)
            continue
        resolved.extend(
            PortRule(protocol=port.protocol, port=port.port)
            for port in sorted(named, key=lambda port: (port.protocol, port.port))
            if port.name == rule.name and rule.protocol in (ANY_PROTOCOL, port.protocol)
        )
    return tuple(resolved)


def is_anybody(peers: tuple[Peer, ...] | None) -> bool:
    """Tell whether *peers* include identities nobody has heard of yet."""
    return peers is None or PeerEntity("all") in peers


def peer_matches(peer: Peer, labels: Labels) -> bool:
    """Tell whether the identity with *labels* is one of *peer*."""
    match peer:
        case PeerSelector(selector):
            return selector.matches(labels)
        case PeerCIDR():
            return _cidr_matches(peer, labels)
        case PeerPart(block):
            part = part_of(labels)
            return part is not None and block.covers(part)
        case PeerEntity(name):
            return _entity_matches(name, labels)
        case PeerNodes():
            return peer.matches(labels)


def peers_match(peers: tuple[Peer, ...] | None, labels: Labels) -> bool:
    """Tell whether the identity with *labels* is one of *peers* (None: anybody)."""
    return peers is None or any(peer_matches(peer, labels) for peer in peers)


def prefix_of(labels: Labels) -> Prefix | None:
    """Return the prefix a CIDR identity stands for; None of any other identity."""
    return next((_prefix(label.key) for label in labels if label.source == CIDR), None)


def part_of(labels: Labels) -> Prefix | None:
    """Return the prefix in which the addresses of an identity's pods lie, if they are told apart by that."""
    return next((_prefix(label.key) for label in labels if label.source == PART), None)


def _entity_matches(name: str, labels: Labels) -> bool:
    reserved = {label.key for label in labels if label.source == RESERVED}
    match name:
        case "all":
            return True
        case "none":
            return False
        case "world":
            return not reserved.isdisjoint(WORLD_NAMES)
        case "world-ipv4" | "world-ipv6":
            return _is_world_of(_WORLD_ENTITIES[name], labels)
        case "cluster":
            in_namespace = any(label.source == K8S and label.key == POD_NAMESPACE for label in labels)
            return in_namespace or not reserved.isdisjoint(_CLUSTER_NAMES)
        case _:
            return name in reserved


def _cidr_matches(peer: PeerCIDR, labels: Labels) -> bool:
    prefix = prefix_of(labels)
    if prefix is not None:
        return peer.covers(prefix)
    # No prefix of its own: what is left of the world once every CIDR identity is taken out.
    is_whole = peer.prefix.prefixlen == 0 and all(one.prefixlen > 0 for one in peer.excepts)
    return is_whole and _is_world_of(peer.prefix.version, labels)


def _is_world_of(version: int, labels: Labels) -> bool:
    """Whether the identity is one of addresses of IP *version* outside the cluster."""
    prefix = prefix_of(labels)
    if prefix is not None:
        return prefix.version == version
    worlds = _WORLD_OF_VERSION[version]
    return any(label.source == RESERVED and label.key in worlds for label in labels)


@lru_cache(maxsize=1 << 16)
def _prefix(text: str) -> Prefix:
    return ip_network(text)
