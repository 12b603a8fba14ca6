# SPDX-License-Identifier: Apache-2.0
"""What a plan knows of the node itself, from its configuration and its devices."""

from dataclasses import dataclass

from ciliumd.model.label_filter import EVERY_LABEL, LabelFilter
from ciliumd.model.net import Addr, Prefix
from ciliumd.model.policy import Enforcement
from ciliumd.model.service import EVERY_KIND, ServiceKind


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """
    What is known of the node itself.

    *addresses* are all of its own, *node_port_addresses* those its node ports are served on.  *families* are
    those pods here have; with *tunnel* other nodes' pods are reached by encapsulation, in packets of the
    family *underlay*.  *protected* are further addresses that no service may take, and whose they are,
    *allowed* those that one may take from anybody.  *serves* are the kinds of frontends that are served here,
    *serves6* those of IPv6, *proxy* is the name that services give who is to serve them.  *allocates* tells
    whether this node numbers label sets by itself, or waits for the cluster to do so; *label_filter* which
    labels are in them.  With *audit* endpoints that say nothing else are audited; with *answers_denied* pods
    are told what their egress policies drop.  *node_labels* are the labels that identities of nodes have;
    None: nodes have none of their own.
    """

    name: str
    cluster: str
    addresses: tuple[Addr, ...]
    node_port_addresses: tuple[Addr, ...] = ()
    tunnel: bool = False
    underlay: int = 4
    pod_cidrs: tuple[Prefix, ...] = ()
    protected: tuple[tuple[Addr, str], ...] = ()
    allowed: tuple[Prefix, ...] = ()
    external_cluster_ip: bool = False
    serves: frozenset[ServiceKind] = EVERY_KIND
    serves6: frozenset[ServiceKind] = frozenset()
    proxy: str = ""
    families: frozenset[int] = frozenset({4})
    allocates: bool = True
    enforcement: Enforcement = Enforcement.DEFAULT
    audit: bool = False
    answers_denied: bool = False
    label_filter: LabelFilter = EVERY_LABEL
    node_labels: LabelFilter | None = None
