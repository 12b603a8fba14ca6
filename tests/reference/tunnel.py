# SPDX-License-Identifier: Apache-2.0
"""
Whom a node may speak for in the tunnel, said again without looking at the code or at its maps.

A cluster is its nodes: addresses in the network, the router's, the network of its pods, and those
pods that have been published.  Numbers of identities and of drop reasons are written out, because
they are a promise to users.  Standard library only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network

INVALID_SOURCE, INVALID_IDENTITY, UNKNOWN_SENDER = 132, 171, 172
WORLD, UNMANAGED, HEALTH, INIT, REMOTE_NODE, KUBE_APISERVER, INGRESS = 2, 3, 4, 5, 6, 7, 8
# Reserved identities that pods can have; all others above the reserved ones are theirs, too.
PODS_OWN = frozenset({UNMANAGED, HEALTH, INIT, INGRESS})
LAST_RESERVED = 11
# Under its own address a node speaks for itself, and for the clients of its node ports.
# One of these is in place of an identity: a client that is a node, but not the one that speaks.
NODE_CLIENT = 127
NODES_OWN = frozenset({WORLD, REMOTE_NODE, KUBE_APISERVER, NODE_CLIENT})


@dataclass(frozen=True, slots=True)
class Node:
    """A node of the cluster; *numbers* are those the receiver gave it by its labels, by address."""

    addresses: frozenset[str]
    router: str
    cidr: str
    pods: Mapping[str, int]
    is_apiserver: bool = False
    numbers: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Cluster:
    """The node that receives, and those that may send."""

    here: Node
    others: tuple[Node, ...]

    def refused(self, outer: str, identity: int, source: str) -> int:
        """Drop reason of a packet in the tunnel; 0 when its sender may have sent it."""
        senders = [node for node in self.others if outer in node.addresses]
        if not senders:
            return UNKNOWN_SENDER
        (sender,) = senders
        if source in {*self.here.addresses, self.here.router, *self.here.pods}:
            return INVALID_SOURCE
        if source in sender.addresses or source == sender.router:
            return 0 if identity in NODES_OWN else INVALID_IDENTITY
        if source in sender.pods:
            return 0 if identity == sender.pods[source] else INVALID_IDENTITY
        if ip_address(source) in ip_network(sender.cidr):
            is_pods = identity in PODS_OWN or (identity > LAST_RESERVED and identity != NODE_CLIENT)
            return 0 if is_pods else INVALID_IDENTITY
        return INVALID_SOURCE

    def judged_as(self, identity: int, source: str) -> int:
        """Identity that policy sees behind an accepted packet."""
        if identity == NODE_CLIENT:
            return REMOTE_NODE
        numbers = {address: number for node in self.others for address, number in node.numbers.items()}
        if identity == REMOTE_NODE and source in numbers:
            return numbers[source]
        masters = {address for node in self.others if node.is_apiserver for address in node.addresses}
        return KUBE_APISERVER if identity == REMOTE_NODE and source in masters else identity
