# SPDX-License-Identifier: Apache-2.0
"""
What is left of Kubernetes objects once they are read: the rows everything is computed from.

Services and policies have modules of their own.  How objects are written is said in ``resources``,
where rows are kept in ``tables``.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

from ciliumd.model.identity import NumericIdentity
from ciliumd.model.labels import Labels
from ciliumd.model.net import Addr, Prefix, first_of
from ciliumd.model.service import Backend

NamespacedName = tuple[str, str]
"""(namespace, name)."""

DEFAULT_CLUSTER = "default"
"""What a cluster is called that nobody named."""

API_SERVER: NamespacedName = ("default", "kubernetes")
"""The service whose endpoints are the API server's own addresses."""

INTERNAL_IP, EXTERNAL_IP, CILIUM_INTERNAL_IP = "InternalIP", "ExternalIP", "CiliumInternalIP"
"""Types of a node's addresses."""


@dataclass(frozen=True, slots=True)
class NamespaceRow:
    """A namespace and its labels, ``kubernetes.io/metadata.name`` included."""

    name: str
    labels: dict[str, str]


class HostPort(NamedTuple):
    """A port of the node that leads to a container: at *addr* only, or at every address of the node."""

    addr: Addr | None
    port: int
    protocol: str
    target: int


@dataclass(frozen=True, slots=True)
class PodRow:
    """
    What policy and services need of a pod.  *named_ports* gives (protocol, port) by port name.

    *ready* is False for a pod that says it must not get connections; *terminating* for one that is
    on its way out but may still finish what it has.
    """

    namespace: str
    name: str
    labels: dict[str, str]
    service_account: str
    ip: Addr | None
    host_network: bool
    node: str | None
    named_ports: dict[str, tuple[str, int]]
    ready: bool = True
    terminating: bool = False
    host_ports: tuple[HostPort, ...] = ()


@dataclass(frozen=True, slots=True)
class EndpointSliceRow:
    """Part of a service's backends, each with the name of the service port it stands behind."""

    namespace: str
    name: str
    service: str
    backends: tuple[tuple[str, Backend], ...]

    @property
    def service_key(self) -> NamespacedName:
        """Key of the service it belongs to."""
        return (self.namespace, self.service)


@dataclass(frozen=True, slots=True)
class CIDRGroupRow:
    """Prefixes that policies refer to by *name*, or by *labels* (of source ``k8s``)."""

    name: str
    labels: Labels
    prefixes: tuple[Prefix, ...]


@dataclass(frozen=True, slots=True)
class NodeRow:
    """
    A node of the cluster, this one included (CiliumNode, cilium.io/v2).

    *addresses* are pairs of type and address, as CiliumNode writes them: ``InternalIP``, ``ExternalIP``
    and ``CiliumInternalIP`` (the router address inside its pod CIDR); *health* are those of its health
    endpoint.  *created* is the object's ``creationTimestamp``, empty when it does not say.
    """

    name: str
    cluster: str = DEFAULT_CLUSTER
    addresses: tuple[tuple[str, Addr], ...] = ()
    pod_cidrs: tuple[Prefix, ...] = ()
    health: tuple[Addr, ...] = ()
    labels: dict[str, str] = field(default_factory=dict)
    created: str = ""

    @property
    def full_name(self) -> str:
        """As :func:`full_name` writes it."""
        return full_name(self.cluster, self.name)

    def addresses_of(self, *types: str) -> tuple[Addr, ...]:
        """Its addresses of these types, in the order they are written."""
        return tuple(addr for kind, addr in self.addresses if kind in types)

    def tunnel_endpoint(self, underlay: int = 4) -> Addr | None:
        """Where packets for its pods are sent: its first InternalIP of this family; None if it has none."""
        return first_of(underlay, self.addresses_of(INTERNAL_IP))


@dataclass(frozen=True, slots=True)
class RemoteEndpointRow:
    """
    A pod of the cluster as its own node published it (CiliumEndpoint, cilium.io/v2).

    *node* is an address of that node; *named_ports* gives (protocol, port) by port name; *created* is the
    object's ``creationTimestamp``.  Those of this node are rows too: who reads them lets the local endpoint
    win.
    """

    namespace: str
    name: str
    identity: NumericIdentity
    addresses: tuple[Addr, ...]
    node: Addr | None
    named_ports: dict[str, tuple[str, int]]
    created: str = ""

    @property
    def key(self) -> NamespacedName:
        """Key of its row: (namespace, name), those of its pod."""
        return (self.namespace, self.name)


def full_name(cluster: str, node: str) -> str:
    """``cluster/node``; the node alone in a cluster nobody named."""
    return node if cluster == DEFAULT_CLUSTER else f"{cluster}/{node}"
