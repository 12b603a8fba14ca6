# SPDX-License-Identifier: Apache-2.0
"""
Security identities: the numbers that stand for label sets, and those that are reserved.

Ranges and names only; numbers are handed out by ``desired.identities``.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from ciliumd.model.labels import CIDR, PART, RESERVED, Label, Labels
from ciliumd.model.net import Prefix

NumericIdentity = int

CLUSTER_MIN = 256
CLUSTER_MAX = 65535
LOCAL_MIN = 1 << 24
LOCAL_MAX = LOCAL_MIN + 0xFFFF
"""First and last of the prefixes that policies name."""
NODE_MIN = 2 << 24
NODE_MAX = NODE_MIN + 0xFFFF
"""First and last of other nodes; no packet carries one to another node."""
API_SERVER_NODE_MIN = NODE_MAX + 1
API_SERVER_NODE_MAX = API_SERVER_NODE_MIN + 0xFFFF
"""The same of other nodes under addresses of the API server."""
PART_MIN = 3 << 24
PART_MAX = PART_MIN + 0xFFFF
"""First and last of pods of one identity in one block of addresses; no packet carries one at all."""
UNNUMBERED_MIN = 4 << 24
UNNUMBERED_MAX = UNNUMBERED_MIN + 0xFFFFFF
"""First and last of prefixes that no number was left for: rules are weighed for them, no packet has one."""


class Reserved(IntEnum):
    """Reserved numeric identities; the same numbers as ``cil_identity`` in the datapath."""

    UNKNOWN = 0
    HOST = 1
    WORLD = 2
    UNMANAGED = 3
    HEALTH = 4
    INIT = 5
    REMOTE_NODE = 6
    KUBE_APISERVER = 7
    INGRESS = 8
    WORLD_IPV4 = 9
    WORLD_IPV6 = 10
    ENCRYPTED_OVERLAY = 11

    @property
    def label(self) -> str:
        """The name in the label, e.g. ``remote-node``."""
        return self.name.lower().replace("_", "-")


@dataclass(frozen=True, slots=True)
class Identity:
    """A number and the label set it stands for."""

    id: NumericIdentity
    labels: Labels


class NamedNode(NamedTuple):
    """
    Another node of the cluster, and whether it is meant under addresses that are the API server's.

    Only those are judged as kube-apiserver, so that a node has up to two identities.
    """

    name: str
    api_server: bool = False


class PartOf(NamedTuple):
    """
    The pods of an identity of the cluster whose addresses lie in *prefix*, and in no narrower one.

    Without a prefix it stands for a number that is in use while nobody knows whose it is.
    """

    identity: NumericIdentity
    prefix: Prefix | None


def lost_part(number: NumericIdentity) -> PartOf:
    """What stands for the pods of a number that is in use; no pods are meant."""
    return PartOf(number, None)


def lost_node(number: NumericIdentity) -> NamedNode:
    """What stands for the node of a number that is in use; no node is called so."""
    return NamedNode(f"lost identity {number}", number >= API_SERVER_NODE_MIN)


def is_node(number: NumericIdentity) -> bool:
    """Whether *number* is one that this node gives to other nodes."""
    return NODE_MIN <= number <= API_SERVER_NODE_MAX


def is_pod(number: NumericIdentity) -> bool:
    """Whether *number* is one of pods, by their labels."""
    return CLUSTER_MIN <= number <= CLUSTER_MAX


def is_carried(number: NumericIdentity) -> bool:
    """Whether a packet may ever be of identity *number*."""
    return not UNNUMBERED_MIN <= number <= UNNUMBERED_MAX


def reserved_labels(reserved: Reserved) -> Labels:
    """
    The label set of a reserved identity, e.g. ``{reserved:host}``.

    The API server is on a node: its identity carries the label of remote nodes as well.
    """
    names = {reserved.label}
    if reserved is Reserved.KUBE_APISERVER:
        names.add(Reserved.REMOTE_NODE.label)
    return frozenset(Label(RESERVED, name) for name in names)


def cidr_labels(prefix: Prefix) -> Labels:
    """The label set of the local identity of *prefix*: the prefix itself, and the world."""
    return frozenset({Label(CIDR, str(prefix)), Label(RESERVED, Reserved.WORLD.label)})


def part_labels(labels: Labels, prefix: Prefix) -> Labels:
    """The label set of pods with *labels* whose addresses lie in *prefix*."""
    return labels | {Label(PART, str(prefix))}


def reserved_identities() -> dict[NumericIdentity, Labels]:
    """Every reserved identity a packet may carry, by number (``unknown`` is not one)."""
    return {int(reserved): reserved_labels(reserved) for reserved in Reserved if reserved}


def lost_labels(number: NumericIdentity) -> Labels:
    """What stands for the labels of a number that is in use while nobody knows whose it is."""
    return frozenset({Label("unspec", f"lost-identity-{number}")})
