# SPDX-License-Identifier: Apache-2.0
"""
Service (v1) and EndpointSlice (discovery.k8s.io/v1).

All service types parse.  Frontends are made here for cluster, external and load-balancer addresses:
headless and ExternalName services have none, those of node ports are made where the node's addresses are
known, and there it is judged which addresses a service may take (``desired.services``).
"""

from functools import lru_cache
from typing import Annotated, Literal

from pydantic import Field

from ciliumd.model.labels import object_labels
from ciliumd.model.net import Addr, Prefix
from ciliumd.model.objects import EndpointSliceRow
from ciliumd.model.service import (
    Backend,
    BackendState,
    Frontend,
    Hints,
    Service,
    ServiceKind,
    ServicePort,
    TrafficDistribution,
    TrafficPolicy,
)
from ciliumd.resources.errors import FieldError
from ciliumd.resources.fields import (
    LabelMap,
    Lenient,
    ObjectMeta,
    PortNumber,
    PortNumberOrName,
    Row,
    Shared,
    parse_address,
    parse_prefix,
)

Protocol = Literal["TCP", "UDP", "SCTP"]
SERVICE_NAME_LABEL = "kubernetes.io/service-name"
MOST_EXTERNAL = 1024
"""External and load-balancer frontends of one service: every one takes a number, which all services share."""

MOST_RANGES = 1024
"""Source ranges of one service: each is a row for each of its load balancer frontends."""

PROXY_NAME = "service.kubernetes.io/service-proxy-name"
"""Label: who serves the service; every other proxy leaves it alone (Kubernetes, well-known labels)."""

HEADLESS = "service.kubernetes.io/headless"
"""Label: nobody serves the service.  No proxy can have this name, for labels' values have no slash."""

SOURCES_POLICY = "service.cilium.io/src-ranges-policy"
"""Annotation: whether source ranges are those who may ask (``allow``) or may not (``deny``)."""

# Words of a later Kubernetes are no preference that is known here.
_DISTRIBUTIONS = {
    "PreferClose": TrafficDistribution.SAME_ZONE,
    "PreferSameZone": TrafficDistribution.SAME_ZONE,
    "PreferSameNode": TrafficDistribution.SAME_NODE,
}
_AFFINITY_SECONDS = 10800
_HEADLESS = "None"


class ServicePortSpec(Lenient):
    """One port of a service.  Port names of services are DNS labels, longer than a container port's."""

    name: Annotated[str, Field(max_length=63)] | None = None
    protocol: Protocol = "TCP"
    port: PortNumber
    target_port: PortNumberOrName | None = None
    node_port: Annotated[int, Field(ge=0, le=65535)] | None = None

    def to_model(self) -> ServicePort:
        """The port; without a target it is its own."""
        target = self.port if self.target_port is None else self.target_port
        return ServicePort(self.name or "", self.protocol, self.port, target, self.node_port or 0)


class ClientIPConfig(Lenient):
    """How long a client keeps its backend."""

    timeout_seconds: Annotated[int, Field(ge=1, le=86400)] | None = None


class SessionAffinityConfig(Lenient):
    """Settings of session affinity."""

    client_ip: ClientIPConfig | None = Field(None, alias="clientIP")


class ServiceSpec(Lenient):
    """What we read of a service's spec."""

    type: Literal["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"] = "ClusterIP"
    cluster_ip: str | None = Field(None, alias="clusterIP")
    cluster_ips: list[str] | None = Field(None, alias="clusterIPs")
    external_ips: list[str] | None = Field(None, alias="externalIPs")
    ports: list[ServicePortSpec] | None = None
    selector: LabelMap | None = None
    internal_traffic_policy: Literal["Cluster", "Local"] = "Cluster"
    external_traffic_policy: Literal["Cluster", "Local", ""] = "Cluster"
    session_affinity: Literal["None", "ClientIP"] = "None"
    session_affinity_config: SessionAffinityConfig | None = None
    publish_not_ready_addresses: bool | None = None
    load_balancer_source_ranges: list[str] | None = None
    traffic_distribution: str | None = None
    health_check_node_port: Annotated[int, Field(ge=0, le=65535)] | None = None

    def health_port(self) -> int:
        """Where load balancers ask; only those in front of a service with a local policy do."""
        local = self.type == "LoadBalancer" and self.external_traffic_policy == "Local"
        return (self.health_check_node_port or 0) if local else 0

    def affinity_timeout(self) -> int:
        """Seconds a client keeps its backend; 0 without affinity."""
        if self.session_affinity == "None":
            return 0
        config = self.session_affinity_config
        seconds = config.client_ip.timeout_seconds if config and config.client_ip else None
        return seconds or _AFFINITY_SECONDS

    def cluster_addresses(self) -> tuple[Addr, ...]:
        """The cluster addresses; none for headless and ExternalName services."""
        if self.type == "ExternalName" or self.cluster_ip == _HEADLESS:
            return ()
        if not self.cluster_ip and not self.cluster_ips:
            message = "is missing: write an address, or None for a headless service"
            raise FieldError("spec.clusterIP", message)
        if not self.cluster_ips:
            return (_address("spec.clusterIP", self.cluster_ip or ""),)
        if self.cluster_ip and self.cluster_ips[0] != self.cluster_ip:
            raise FieldError("spec.clusterIPs[0]", f"must be clusterIP, {self.cluster_ip}")
        if self.cluster_ips == [_HEADLESS]:
            return ()
        addresses = tuple(_address(f"spec.clusterIPs[{i}]", text) for i, text in enumerate(self.cluster_ips))
        if len({addr.version for addr in addresses}) < len(addresses):
            raise FieldError("spec.clusterIPs", "may have one address of each family")
        return addresses

    def external_addresses(self) -> tuple[Addr, ...]:
        """The addresses somebody routes to the nodes (``externalIPs``)."""
        return tuple(
            _address(f"spec.externalIPs[{i}]", text) for i, text in enumerate(self.external_ips or ())
        )

    def source_ranges(self) -> tuple[Prefix, ...]:
        """Where clients of the load balancer come from, each once; the API allows spaces around them."""
        field = "spec.loadBalancerSourceRanges"
        ranges: dict[Prefix, None] = {}
        for i, text in enumerate(self.load_balancer_source_ranges or ()):
            try:
                ranges[parse_prefix(text.strip())] = None
            except ValueError as error:
                raise FieldError(f"{field}[{i}]", str(error)) from None
        if len(ranges) > MOST_RANGES:
            raise FieldError(field, f"has {len(ranges)} ranges, at most {MOST_RANGES} are possible")
        return tuple(ranges)


class ServiceMeta(ObjectMeta):
    """What we read of a service's metadata."""

    annotations: dict[str, str] | None = None

    @property
    def proxy(self) -> str:
        """Who serves it instead of everybody's proxy, :data:`HEADLESS` for nobody; empty for that."""
        labels = self.labels or {}
        return HEADLESS if HEADLESS in labels else labels.get(PROXY_NAME, "")

    def denies_sources(self) -> bool:
        """Whether source ranges say who may not ask."""
        policy = (self.annotations or {}).get(SOURCES_POLICY, "allow")
        if policy not in {"allow", "deny"}:
            raise FieldError(
                f'metadata.annotations["{SOURCES_POLICY}"]', f"must be allow or deny, not {policy!r}"
            )
        return policy == "deny"


class LoadBalancerIngress(Lenient):
    """
    One way into a load balancer: an address, or a name that is left to DNS.

    With the mode ``Proxy`` the balancer sends to node ports and pods, and who wants it must go to it.
    """

    ip: str | None = None
    ip_mode: Literal["VIP", "Proxy"] | None = None


class LoadBalancerStatus(Lenient):
    """What whoever made the load balancer says of it."""

    ingress: list[LoadBalancerIngress] | None = None


class ServiceStatus(Lenient):
    """What we read of a service's status."""

    load_balancer: LoadBalancerStatus | None = None

    def addresses(self) -> tuple[Addr, ...]:
        """The load balancer's addresses that nodes are to answer for."""
        ingress = (self.load_balancer and self.load_balancer.ingress) or ()
        return tuple(
            _address(f"status.loadBalancer.ingress[{i}].ip", one.ip)
            for i, one in enumerate(ingress)
            if one.ip and one.ip_mode != "Proxy"
        )


class ServiceResource(Lenient):
    """A service."""

    metadata: ServiceMeta
    spec: ServiceSpec
    status: ServiceStatus | None = None

    def rows(self) -> list[Row]:
        """One row of ``services``."""
        spec = self.spec
        ports = tuple(port.to_model() for port in spec.ports or ())
        _check_ports(ports)
        addresses = self._addresses()
        if addresses and not ports:
            raise FieldError("spec.ports", "is missing: a service with an address needs a port")
        service = Service(
            namespace=self.metadata.scope,
            name=self.metadata.name,
            type=spec.type,
            frontends=tuple(
                Frontend(addr, port.port, port.protocol, kind) for addr, kind in addresses for port in ports
            ),
            ports=ports,
            selector=() if spec.type == "ExternalName" else tuple(sorted((spec.selector or {}).items())),
            internal_policy=TrafficPolicy(spec.internal_traffic_policy),
            external_policy=TrafficPolicy(spec.external_traffic_policy or "Cluster"),
            affinity_timeout=spec.affinity_timeout(),
            publish_not_ready=bool(spec.publish_not_ready_addresses),
            source_ranges=spec.source_ranges() if spec.type == "LoadBalancer" else (),
            denies_sources=self.metadata.denies_sources(),
            distribution=_DISTRIBUTIONS.get(spec.traffic_distribution or ""),
            created=self.metadata.creation_timestamp or "",
            health_check_node_port=spec.health_port(),
            proxy=self.metadata.proxy,
            labels=object_labels(self.metadata.labels or {}),
        )
        return [("services", service.key, service)]

    def _addresses(self) -> tuple[tuple[Addr, ServiceKind], ...]:
        """
        Every address with its kind, each once.

        A service without a cluster address has no other either; of external ones those of its families
        count.
        """
        cluster = self.spec.cluster_addresses()
        balancer = self.status.addresses() if self.status and self.spec.type == "LoadBalancer" else ()
        external = self.spec.external_addresses()
        families = {addr.version for addr in cluster}
        kinds = dict.fromkeys(cluster, ServiceKind.CLUSTER_IP)
        for addresses, kind in (
            (balancer, ServiceKind.LOAD_BALANCER),
            (external, ServiceKind.EXTERNAL_IP),
        ):
            for addr in addresses:
                if addr.version in families:
                    kinds.setdefault(addr, kind)
        if (len(kinds) - len(cluster)) * len(self.spec.ports or ()) > MOST_EXTERNAL:
            raise FieldError(
                "spec.externalIPs", f"times ports, and load balancer addresses, are more than {MOST_EXTERNAL}"
            )
        return tuple(kinds.items())


class EndpointConditions(Lenient):
    """What an endpoint is fit for; unknown counts as the API says: ready, serving, not terminating."""

    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None

    def state(self) -> BackendState | None:
        """The state of a backend in these conditions, None when it must get no traffic at all."""
        ready = self.ready is not False
        terminating = bool(self.terminating)
        if ready:
            return BackendState.ACTIVE
        if terminating and self.serving is not False:
            return BackendState.TERMINATING
        return None


class HintedPlace(Lenient):
    """A zone or a node by name."""

    name: str


class EndpointHints(Lenient):
    """Whose clients an endpoint is meant for."""

    for_zones: list[HintedPlace] | None = None
    for_nodes: list[HintedPlace] | None = None

    def to_model(self) -> Hints | None:
        """The hints; None when they say nothing."""
        hints = _hints(
            tuple(one.name for one in self.for_zones or ()), tuple(one.name for one in self.for_nodes or ())
        )
        return hints if hints.zones or hints.nodes else None


@lru_cache(maxsize=4096)
def _hints(zones: tuple[str, ...], nodes: tuple[str, ...]) -> Hints:
    """One object for the thousands of endpoints that say the same."""
    return Hints(zones, nodes)


class SliceEndpoint(Lenient):
    """One endpoint of a slice.  Addresses beyond the first have no defined meaning and are not used."""

    addresses: Annotated[list[str], Field(min_length=1)]
    conditions: EndpointConditions | None = None
    node_name: Shared | None = None
    zone: Shared | None = None
    hints: EndpointHints | None = None


class SlicePort(Lenient):
    """One port of a slice; without a number it stands for every port, which no service port does."""

    name: Annotated[Shared, Field(max_length=63)] | None = None
    protocol: Protocol | None = None
    port: PortNumber | None = None


class EndpointSlice(Lenient):
    """Some endpoints of one service."""

    metadata: ObjectMeta
    address_type: Literal["IPv4", "IPv6", "FQDN"]
    endpoints: list[SliceEndpoint] | None = None
    ports: list[SlicePort] | None = None

    def rows(self) -> list[Row]:
        """One row of ``slices``; none for slices of no service and for host names."""
        service = (self.metadata.labels or {}).get(SERVICE_NAME_LABEL)
        if not service or self.address_type == "FQDN":
            return []
        backends = tuple(
            (
                port.name or "",
                Backend(
                    addr,
                    port.port,
                    port.protocol or "TCP",
                    endpoint.node_name,
                    state,
                    endpoint.zone or "",
                    hints,
                ),
            )
            for addr, endpoint, state in self._usable()
            for hints in (None if endpoint.hints is None else endpoint.hints.to_model(),)
            for port in self.ports or ()
            if port.port is not None
        )
        row = EndpointSliceRow(self.metadata.scope, self.metadata.name, service, backends)
        return [("slices", (row.namespace, row.name), row)]

    def _usable(self) -> list[tuple[Addr, SliceEndpoint, BackendState]]:
        version = 4 if self.address_type == "IPv4" else 6
        usable = []
        for i, endpoint in enumerate(self.endpoints or ()):
            field = f"endpoints[{i}].addresses[0]"
            addr = _address(field, endpoint.addresses[0])
            if addr.version != version:
                raise FieldError(field, f"{addr} is not an {self.address_type} address")
            state = (endpoint.conditions or EndpointConditions()).state()
            if state is not None:
                usable.append((addr, endpoint, state))
        return usable


def _address(field: str, text: str) -> Addr:
    try:
        return parse_address(text)
    except ValueError as error:
        raise FieldError(field, str(error)) from None


def _check_ports(ports: tuple[ServicePort, ...]) -> None:
    names: set[str] = set()
    numbers: set[tuple[str, int]] = set()
    for i, port in enumerate(ports):
        if not port.name and len(ports) > 1:
            raise FieldError(f"spec.ports[{i}].name", "is missing: with several ports each needs a name")
        if port.name in names:
            raise FieldError(f"spec.ports[{i}].name", f"{port.name!r} is the name of another port")
        if (port.protocol, port.port) in numbers:
            raise FieldError(f"spec.ports[{i}].port", f"{port.port}/{port.protocol} is listed twice")
        names.add(port.name)
        numbers.add((port.protocol, port.port))
