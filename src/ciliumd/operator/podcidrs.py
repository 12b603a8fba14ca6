# SPDX-License-Identifier: Apache-2.0
"""
Which pod CIDRs each node is to have: a pure function of nodes and CiliumNodes.

Two modes: blocks of the cluster's pool, or what Kubernetes gave the node (Node.spec.podCIDRs).  What a
node has is never taken away or replaced; a conflict is told and left to a human.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Any

from ciliumd.model.net import Prefix
from ciliumd.operator.clusterpool import ClusterPool, Conflict, Exhausted, Usage
from ciliumd.resources.fields import parse_prefix

_ADDRESS_TYPES = frozenset({"InternalIP", "ExternalIP"})
_POD_CIDR = "podCIDR"
Object = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Pool:
    """The cluster's pool, and the block that was given last."""

    cidrs: tuple[Prefix, ...]
    mask_size: int
    after: Prefix | None = None


@dataclass(frozen=True, slots=True)
class Assignment:
    """What one CiliumNode is to say: its pod CIDRs, and what is wrong (empty: nothing)."""

    node: str
    cidrs: tuple[str, ...]
    error: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """
    An assignment for every CiliumNode; *after* and *after6* are the blocks that were given last.

    *usage* is of the pool of IPv4, or where there is none of that of IPv6.
    """

    assignments: list[Assignment]
    usage: Usage | None
    after: Prefix | None
    after6: Prefix | None


def plan(
    nodes: Mapping[str, Object],
    cilium_nodes: Mapping[str, Object],
    *,
    pool: Pool | None,
    pool6: Pool | None = None,
    service_ranges: Iterable[Prefix] = (),
) -> Plan:
    """
    Pod CIDRs of every CiliumNode.

    *nodes* and *cilium_nodes* are the objects by name.  Each node has a block of *pool* and one of *pool6*,
    as far as there are such, behind those it has; without either pod CIDRs are those of the Node.
    Older CiliumNodes come first: of two that claim one block the older keeps it.
    """
    reserved = dict.fromkeys(service_ranges, "the range of service addresses")
    reserved |= _addresses(nodes)
    order = sorted(cilium_nodes, key=lambda name: (_created(cilium_nodes[name]), name))
    books = {4: _book(pool, reserved), 6: _book(pool6, reserved)}
    pools = {version: books[version] for version, one in ((4, pool), (6, pool6)) if one is not None}
    pooled = bool(pools)
    settled = {name: _settled(books, name, _wanted(name, nodes, cilium_nodes, pooled)) for name in order}
    assignments = []
    for name in order:
        if settled[name].error:
            assignments.append(settled[name])
        elif pooled or settled[name].cidrs:
            assignments.append(_completed(pools, settled[name]))
        else:
            error = (
                "the Node has no spec.podCIDRs: start kube-controller-manager with --allocate-node-cidrs, "
                "or choose ipam: cluster-pool"
            )
            assignments.append(Assignment(name, (), error))
    return Plan(
        assignments,
        usage=next((one.usage for one in pools.values()), None),
        after=books[4].after,
        after6=books[6].after,
    )


def _book(pool: Pool | None, reserved: Mapping[Prefix, str]) -> ClusterPool:
    """Who has what of the pool; without one no more than who has which prefix."""
    if pool is None:
        return ClusterPool((), 0, reserved)
    return ClusterPool(pool.cidrs, pool.mask_size, reserved, pool.after)


def _completed(pools: Mapping[int, ClusterPool], has: Assignment) -> Assignment:
    """The same with a block of each pool, IPv4 first, that it has none of; of what is missing it says why."""
    versions = {ip_network(cidr).version for cidr in has.cidrs}
    for version, book in pools.items():
        if version not in versions and not has.error:
            block = _new_block(book, has.node)
            has = Assignment(has.node, (*has.cidrs, *block.cidrs), block.error)
    return has


def cidrs_of(cilium_node: Object) -> tuple[str, ...]:
    """The pod CIDRs a CiliumNode has."""
    ipam = (cilium_node.get("spec") or {}).get("ipam") or {}
    return tuple(ipam.get("podCIDRs") or ())


def error_of(cilium_node: Object) -> str:
    """What a CiliumNode says is wrong with its pod CIDRs."""
    ipam = (cilium_node.get("status") or {}).get("ipam") or {}
    return str((ipam.get("operator-status") or {}).get("error") or "")


def _wanted(
    name: str, nodes: Mapping[str, Object], cilium_nodes: Mapping[str, Object], pooled: bool
) -> tuple[str, ...]:
    """What it has; in mode ``kubernetes`` what its Node says."""
    has = cidrs_of(cilium_nodes[name])
    if pooled or has:
        return has
    return pod_cidrs_of(nodes.get(name) or {})


def _settled(books: Mapping[int, ClusterPool], name: str, cidrs: Sequence[str]) -> Assignment:
    """The assignment of a node that has CIDRs; without any the node is yet to get one."""
    for text in cidrs:
        try:
            block = parse_prefix(text)
            book = books[block.version]
            book.take(name, block)
        except (ValueError, Conflict) as error:
            return Assignment(name, tuple(cidrs), str(error))
        if objection := book.objection(block):
            return Assignment(name, tuple(cidrs), objection)
    return Assignment(name, tuple(cidrs))


def _new_block(book: ClusterPool, name: str) -> Assignment:
    try:
        return Assignment(name, (str(book.allocate(name)),))
    except Exhausted as error:
        return Assignment(name, (), str(error))


def addresses_of(node: Object) -> tuple[tuple[str, str], ...]:
    """What of a Node counts: its addresses, by type, and the pod CIDRs Kubernetes gave it."""
    addresses = (node.get("status") or {}).get("addresses") or ()
    own = [(one["type"], one["address"]) for one in addresses if one.get("type") in _ADDRESS_TYPES]
    return (*own, *((_POD_CIDR, cidr) for cidr in pod_cidrs_of(node)))


def pod_cidrs_of(node: Object) -> tuple[str, ...]:
    """What Kubernetes gave a Node."""
    spec = node.get("spec") or {}
    return tuple(spec.get("podCIDRs") or filter(None, [spec.get("podCIDR")]))


def _addresses(nodes: Mapping[str, Object]) -> dict[Prefix, str]:
    return {
        ip_network(address): f"{kind} of node {name}"
        for name in sorted(nodes)
        for kind, address in addresses_of(nodes[name])
        if kind != _POD_CIDR
    }


def _created(document: Object) -> str:
    return str((document.get("metadata") or {}).get("creationTimestamp") or "")
