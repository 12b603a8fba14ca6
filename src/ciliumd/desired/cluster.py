# SPDX-License-Identifier: Apache-2.0
"""
Other nodes: whose their addresses are, how their pods are reached, and by which routes.

A node's InternalIP and ExternalIP are reached directly; its router, its health endpoint and its pods
lie behind its tunnel, if there is one.  An address that two objects claim is that of the younger one, for
the older is on its way out: which it is must not depend on who was heard of first.  Pods are followed one by
one (``remotepods``).
"""

from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType

from ciliumd import abi
from ciliumd.desired.ipcache import Beyond, Owner
from ciliumd.model.identity import NamedNode, NumericIdentity, Reserved, reserved_labels
from ciliumd.model.label_filter import LabelFilter
from ciliumd.model.labels import Labels, node_labels
from ciliumd.model.net import Addr, Prefix, addr16, fold32, prefix_order
from ciliumd.model.objects import (
    API_SERVER,
    CILIUM_INTERNAL_IP,
    EXTERNAL_IP,
    INTERNAL_IP,
    EndpointSliceRow,
    NodeRow,
)

_NODES = frozenset({int(Reserved.REMOTE_NODE), int(Reserved.KUBE_APISERVER)})
"""Identities that all nodes share."""


class Neighbours:
    """
    Which node an address belongs to, and where its packets are sent: the other nodes of the cluster.

    With *tunnel* off every address is reached directly; *underlay* is the family of the tunnel's own packets.
    """

    def __init__(self, nodes: Iterable[NodeRow], *, this: str, tunnel: bool, underlay: int = 4) -> None:
        self.nodes = tuple(node for node in _by_age(nodes) if node.name != this)
        self._tunnel = tunnel
        self._underlay = underlay
        self._by_address = {
            addr: node for node in self.nodes for addr in node.addresses_of(INTERNAL_IP, EXTERNAL_IP)
        }

    def tunnel_to(self, node: NodeRow) -> Addr | None:
        """The address packets for *node*'s pods are encapsulated for."""
        return node.tunnel_endpoint(self._underlay) if self._tunnel else None

    def tunnel_of(self, address: Addr | None) -> Addr | None:
        """The same for the node that has *address*; one not known yet is taken by its word."""
        if not self._tunnel or address is None:
            return None
        node = self._by_address.get(address)
        if node is not None:
            return node.tunnel_endpoint(self._underlay)
        return address if address.version == self._underlay else None

    def addresses(self) -> dict[Addr, Owner]:
        """Whose the nodes' own addresses are."""
        owners: dict[Addr, Owner] = {}
        for node in self.nodes:
            tunnel = self.tunnel_to(node)
            owners.update(dict.fromkeys(node.health, Owner(int(Reserved.HEALTH), tunnel)))
            router = Owner(int(Reserved.REMOTE_NODE), tunnel)
            owners.update(dict.fromkeys(node.addresses_of(CILIUM_INTERNAL_IP), router))
        owners.update(dict.fromkeys(self._by_address, Owner(int(Reserved.REMOTE_NODE))))
        return owners

    def holders(self, api_servers: Iterable[Addr] = ()) -> dict[Addr, NamedNode]:
        """Which node an address is of, or leads to its router, and whether it is one of the *api_servers*."""
        nodes = {addr: node for node in self.nodes for addr in node.addresses_of(CILIUM_INTERNAL_IP)}
        nodes |= self._by_address
        known = frozenset(api_servers)
        return {addr: NamedNode(node.name, addr in known) for addr, node in nodes.items()}

    def prefixes(self) -> dict[Prefix, Owner]:
        """Where the nodes' pods are that have not been published (yet)."""
        return {
            cidr: Owner(int(Reserved.UNMANAGED), self.tunnel_to(node))
            for node in self.nodes
            for cidr in node.pod_cidrs
        }

    def routes(self, *, families: Collection[int] = (4,)) -> tuple[Prefix, ...]:
        """Pod networks the node itself reaches through cilium_host; none without a tunnel."""
        cidrs = {
            cidr
            for node in self.nodes
            if self.tunnel_to(node) is not None
            for cidr in node.pod_cidrs
            if cidr.version in families
        }
        return tuple(sorted(cidrs, key=prefix_order))


def beyond(
    neighbours: Neighbours,
    *,
    api_servers: Iterable[Addr] = (),
    nodes: Mapping[NamedNode, NumericIdentity] = MappingProxyType({}),
) -> Beyond:
    """
    Every address beyond this node whose owner is known, but for pods'.

    *api_servers* that are nodes keep being reached directly; they are judged as kube-apiserver.  *nodes* are
    the identities of those that have one of their own, by their labels.
    """
    api_servers = tuple(api_servers)
    owners = neighbours.addresses()
    owners.update(dict.fromkeys(api_servers, Owner(int(Reserved.KUBE_APISERVER))))
    for addr, node in neighbours.holders(api_servers).items() if nodes else ():
        if node in nodes and owners[addr].identity in _NODES:
            owners[addr] = owners[addr]._replace(identity=nodes[node])
    return Beyond(owners, neighbours.prefixes())


def labels_of_node(node: NamedNode, row: NodeRow | None, relevant: LabelFilter) -> Labels:
    """The labels of the identity of another *node*, those of its *row* that are *relevant* among them."""
    shared = Reserved.KUBE_APISERVER if node.api_server else Reserved.REMOTE_NODE
    return reserved_labels(shared) | _own_labels(node.name, row, relevant)


def labels_of_this_node(name: str, row: NodeRow | None, relevant: LabelFilter) -> Labels:
    """The labels of this node's own identity, which is ``host``."""
    return reserved_labels(Reserved.HOST) | _own_labels(name, row, relevant)


def _own_labels(name: str, row: NodeRow | None, relevant: LabelFilter) -> Labels:
    # Its name stays: without it nobody could tell a node without labels from one that is not known.
    return relevant.keep(node_labels(name, {} if row is None else row.labels)) | node_labels(name, {})


def api_server_addresses(slices: Iterable[EndpointSliceRow]) -> frozenset[Addr]:
    """The addresses behind the ``kubernetes`` service."""
    return frozenset(
        backend.addr for row in slices if row.service_key == API_SERVER for _, backend in row.backends
    )


def node_rows(nodes: Iterable[NodeRow], *, underlay: int = 4) -> Mapping[bytes, bytes]:
    """
    Rows of ``cilium_nodes_v1``: which node an address is of, this one included.

    A node's number is made of its tunnel endpoint: it needs no memory, and no two nodes share it.
    """
    rows: dict[bytes, bytes] = {}
    numbers: dict[Addr, int] = {}
    taken = {0}
    for node in _by_age(nodes):
        endpoint = node.tunnel_endpoint(underlay)
        if endpoint is None:
            continue
        if endpoint not in numbers:
            number = int(endpoint) if endpoint.version == 4 else fold32(endpoint.packed)
            while number in taken:  # of IPv6 two may fold to one: the younger has the next
                number = (number + 1) & 0xFFFFFFFF
            taken.add(number)
            numbers[endpoint] = number
        for _, addr in node.addresses:
            packed = addr16(addr)
            value = abi.NodeValue(check=fold32(packed), node_id=numbers[endpoint])
            rows[abi.NodeKey(packed).pack()] = value.pack()
    return rows


def _by_age(nodes: Iterable[NodeRow]) -> list[NodeRow]:
    """The youngest last: what it claims is its."""
    return sorted(nodes, key=lambda node: (node.created, node.name))
