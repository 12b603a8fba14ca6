# SPDX-License-Identifier: Apache-2.0
"""
Addresses that no service may take: whoever may write a Service may write any address into it.

An external address, or one of a load balancer, takes what everybody in the cluster sends there.  So none may
be a node's, a pod's, the API server's or a resolver's, unless the configuration lists it; special addresses
(loopback, multicast and their like) are never anybody's.  That another service has an address is judged in
``desired.services``.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address

from ciliumd.model.net import Addr, Prefix
from ciliumd.model.objects import NodeRow

_BROADCAST = IPv4Address("255.255.255.255")
_SPECIAL = (
    ("is_unspecified", "no address at all"),
    ("is_loopback", "a loopback address, which every network namespace has for itself"),
    ("is_link_local", "a link-local address"),
    ("is_multicast", "a multicast address"),
)

Networks = Mapping[tuple[int, int], Mapping[int, str]]
"""Owners of networks, by (family, prefix length) and the network's address."""


@dataclass(frozen=True, slots=True)
class Guard:
    """Whose single addresses and networks are; those in *allowed* may be taken all the same."""

    owners: Mapping[Addr, str] = field(default_factory=dict)
    networks: Networks = field(default_factory=dict)
    allowed: Networks = field(default_factory=dict)

    def objection(self, addr: Addr) -> str:
        """Why no service may take *addr*; empty when one may."""
        if special := _special(addr):
            return f"{addr} is {special}"
        if self.allows(addr):
            return ""
        owner = self.owners.get(addr) or _within(self.networks, addr)
        return f"{addr} is {owner}" if owner else ""

    def allows(self, addr: Addr) -> bool:
        """Whether the configuration lists *addr*, so that whoever has it may lose it."""
        return bool(_within(self.allowed, addr))


NO_GUARD = Guard()
"""Keeps nothing but what is nobody's."""


def guard(
    nodes: Iterable[NodeRow],
    *,
    protected: Iterable[tuple[Addr, str]] = (),
    pods: Iterable[Prefix] = (),
    allowed: Iterable[Prefix] = (),
) -> Guard:
    """
    The guard of a cluster of these *nodes*.

    *protected* are further addresses and whose they are, *pods* further networks of pods, *allowed* those
    that services may take.  A pod's address is guarded by its node's pod CIDR, before there is a pod.
    """
    owners: dict[Addr, str] = {}
    networks: dict[Prefix, str] = dict.fromkeys(pods, "a pod's: it is in this node's pod CIDR")
    for node in sorted(nodes, key=lambda one: one.name):
        for addr in (*(addr for _, addr in node.addresses), *node.health):
            owners.setdefault(addr, f"an address of node {node.name}")
        for cidr in node.pod_cidrs:
            networks[cidr] = f"a pod's: it is in the pod CIDR of node {node.name}"
    for addr, owner in protected:
        owners.setdefault(addr, owner)
    return Guard(owners, _by_length(networks), _by_length(dict.fromkeys(allowed, "allowed")))


def _special(addr: Addr) -> str:
    if addr == _BROADCAST:
        return "the broadcast address"
    # 0.0.0.0/8 and 127.0.0.0/8 are "this host on this network" (RFC 1122, 3.2.1.3).
    if addr.version == 4 and addr.packed[0] == 0:
        return "no address of anybody"
    return next((text for name, text in _SPECIAL if getattr(addr, name)), "")


def _by_length(networks: Mapping[Prefix, str]) -> Networks:
    found: dict[tuple[int, int], dict[int, str]] = {}
    for network, owner in networks.items():
        found.setdefault((network.version, network.prefixlen), {})[int(network.network_address)] = owner
    return found


def _within(networks: Networks, addr: Addr) -> str:
    """The owner of the longest network that holds *addr*; empty without one."""
    value = int(addr)
    for version, length in sorted(networks, reverse=True):
        if version == addr.version:
            shift = addr.max_prefixlen - length
            owner = networks[version, length].get(value >> shift << shift)
            if owner:
                return owner
    return ""
