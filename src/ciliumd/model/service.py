# SPDX-License-Identifier: Apache-2.0
"""
Services as the load balancer sees them: frontends clients speak to, backends that answer.

Which backends a frontend gets is decided in ``desired.services``.
"""

from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import NamedTuple

from ciliumd.model.labels import Labels
from ciliumd.model.net import Addr, Prefix, host_port

PROTOCOL_NUMBERS = {"TCP": 6, "UDP": 17, "SCTP": 132}


EXTERNAL, INTERNAL, NODE = 0, 1, 2
"""
Scopes of a frontend: for clients outside the cluster (or for all of them), inside, and at a loopback
address, where only the node's own sockets mean it.
"""


class ServiceKind(Enum):
    """Why a frontend exists; the text is what ``service list`` shows."""

    CLUSTER_IP = "ClusterIP"
    NODE_PORT = "NodePort"
    EXTERNAL_IP = "ExternalIPs"
    LOAD_BALANCER = "LoadBalancer"
    HOST_PORT = "HostPort"


EVERY_KIND = frozenset(ServiceKind)


class TrafficPolicy(Enum):
    """Which nodes' backends may be chosen."""

    CLUSTER = "Cluster"
    LOCAL = "Local"


class TrafficDistribution(Enum):
    """Whose backends are preferred, if whoever writes the slices says nothing himself."""

    SAME_ZONE = "PreferSameZone"
    SAME_NODE = "PreferSameNode"


class Hints(NamedTuple):
    """The zones and nodes whose clients an endpoint is meant for."""

    zones: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()


class Place(NamedTuple):
    """Where this node is, as far as that is known: its name and its zone."""

    node: str | None = None
    zone: str = ""


class BackendState(IntEnum):
    """Whether a backend takes new connections; the same numbers as the datapath."""

    ACTIVE = 0
    TERMINATING = 1
    QUARANTINED = 2
    MAINTENANCE = 3


@dataclass(frozen=True, slots=True, order=True)
class L4:
    """A transport port; *protocol* is ``TCP``, ``UDP`` or ``SCTP``."""

    protocol: str
    port: int

    def __str__(self) -> str:
        return f"{self.port}/{self.protocol}"


class FrontendKey(NamedTuple):
    """What makes a frontend unique on the node."""

    addr: Addr
    port: int
    protocol: str
    scope: int = 0

    def __str__(self) -> str:
        return f"{host_port(self.addr, self.port)}/{self.protocol}"


class BackendKey(NamedTuple):
    """What makes a backend unique on the node, whichever services use it."""

    addr: Addr
    port: int
    protocol: str


@dataclass(frozen=True, slots=True)
class Frontend:
    """An address and port clients connect to, in the scope EXTERNAL unless there are two."""

    addr: Addr
    port: int
    protocol: str
    kind: ServiceKind
    scope: int = 0

    @property
    def key(self) -> FrontendKey:
        """Its identity, without the kind."""
        return FrontendKey(self.addr, self.port, self.protocol, self.scope)


@dataclass(frozen=True, slots=True)
class Backend:
    """An address and port that answers; *node* and *zone* are where it runs, when known."""

    addr: Addr
    port: int
    protocol: str
    node: str | None = None
    state: BackendState = BackendState.ACTIVE
    zone: str = ""
    hints: Hints | None = None

    @property
    def key(self) -> BackendKey:
        """Its identity, without node and state."""
        return BackendKey(self.addr, self.port, self.protocol)


PortPlace = tuple[bool, str, int]
"""See :func:`port_place`."""


@dataclass(frozen=True, slots=True)
class ServicePort:
    """One entry of a service's ports; *target* is a number or the name of a container port."""

    name: str
    protocol: str
    port: int
    target: int | str
    node_port: int = 0


@dataclass(frozen=True, slots=True)
class Service:
    """
    A service and the frontends this node serves for it.

    *selector* is empty for services whose endpoints somebody else writes; *labels* are its own, by which
    policies select it.  *affinity_timeout* is in seconds, 0 without client affinity.  *source_ranges* are
    where clients of its load balancer addresses may come from, or with *denies_sources* may not; without any
    they come from everywhere.  *distribution* is which backends are preferred.  *created* is the creation
    time as written, for precedence.  *health_check_node_port* is where load balancers ask for local
    endpoints, 0 for nowhere.  *proxy* is who serves it instead of everybody's proxy, empty for that.
    """

    namespace: str
    name: str
    type: str
    frontends: tuple[Frontend, ...]
    ports: tuple[ServicePort, ...]
    selector: tuple[tuple[str, str], ...] = ()
    internal_policy: TrafficPolicy = TrafficPolicy.CLUSTER
    external_policy: TrafficPolicy = TrafficPolicy.CLUSTER
    affinity_timeout: int = 0
    publish_not_ready: bool = False
    source_ranges: tuple[Prefix, ...] = ()
    denies_sources: bool = False
    distribution: TrafficDistribution | None = None
    created: str = ""
    health_check_node_port: int = 0
    proxy: str = ""
    labels: Labels = frozenset()

    @property
    def key(self) -> tuple[str, str]:
        """Key of its row: (namespace, name)."""
        return (self.namespace, self.name)

    def port_of(self, frontend: Frontend) -> ServicePort:
        """The port *frontend* belongs to."""
        wanted = port_place(frontend)
        for port in self.ports:
            if wanted in _places(port):
                return port
        raise KeyError(f"service {self.namespace}/{self.name} has no port for {frontend}")

    def port_names(self) -> dict[PortPlace, str]:
        """The name of every port, as :meth:`port_of` finds it, by :func:`port_place`."""
        names: dict[PortPlace, str] = {}
        for port in self.ports:
            for place in _places(port):
                names.setdefault(place, port.name)
        return names


def port_place(frontend: Frontend) -> PortPlace:
    """What the port of *frontend* is found by: whether as a node port, its protocol and its number."""
    return (frontend.kind is ServiceKind.NODE_PORT, frontend.protocol, frontend.port)


def _places(port: ServicePort) -> tuple[PortPlace, PortPlace]:
    return (False, port.protocol, port.port), (True, port.protocol, port.node_port)
