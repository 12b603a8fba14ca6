# SPDX-License-Identifier: Apache-2.0
"""Small worlds for tests of desired state: endpoints, pods, services with everything else default."""

from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address, IPv6Address, ip_address
from types import MappingProxyType

from hypothesis import strategies as st

from ciliumd.desired.ipcache import Beyond, IpcacheRows, Owner, prefix_rows, single_owners
from ciliumd.desired.ipcachebook import IpcacheBook
from ciliumd.model.endpoint import EndpointSpec
from ciliumd.model.net import Addr, Prefix
from ciliumd.model.service import (
    Backend,
    BackendState,
    Frontend,
    Service,
    ServiceKind,
    ServicePort,
    TrafficPolicy,
)
from ciliumd.tables import EndpointSliceRow, PodRow


def endpoint(number: int, *, pod: str | None = None, ipv6: str | None = None) -> EndpointSpec:
    """Endpoint *number*: slot number + 100, address 10.0.0.number, interface number + 1000."""
    return EndpointSpec(
        id=number,
        slot=number + 100,
        slot_gen=number + 7,
        namespace="shop",
        pod=pod or f"pod-{number}",
        container_id="",
        netns=f"/run/netns/pod-{number}",
        ifname=f"lxc{number}",
        ifindex=number + 1000,
        mac=f"02:00:00:00:00:{number:02x}",
        node_mac=f"02:00:00:00:01:{number:02x}",
        ipv4=IPv4Address(f"10.0.0.{number}"),
        ipv6=IPv6Address(ipv6) if ipv6 else None,
        netns_cookie=number + 4000,
    )


def pod(
    name: str,
    labels: dict[str, str],
    *,
    named_ports: dict[str, tuple[str, int]] | None = None,
    ready: bool = True,
    terminating: bool = False,
) -> PodRow:
    """A pod of namespace shop."""
    return PodRow(
        namespace="shop",
        name=name,
        labels=labels,
        service_account="default",
        ip=None,
        host_network=False,
        node=None,
        named_ports=named_ports or {},
        ready=ready,
        terminating=terminating,
    )


def service(
    name: str,
    address: str,
    *ports: ServicePort,
    internal_policy: TrafficPolicy = TrafficPolicy.CLUSTER,
    created: str = "",
    affinity_timeout: int = 0,
    selector: tuple[tuple[str, str], ...] = (),
    publish_not_ready: bool = False,
) -> Service:
    """A ClusterIP service of namespace shop; port 80/TCP named http unless *ports* are given."""
    ports = ports or (ServicePort("http", "TCP", 80, 8080),)
    return Service(
        namespace="shop",
        name=name,
        type="ClusterIP",
        frontends=tuple(
            Frontend(ip_address(address), port.port, port.protocol, ServiceKind.CLUSTER_IP) for port in ports
        ),
        ports=ports,
        selector=selector,
        internal_policy=internal_policy,
        affinity_timeout=affinity_timeout,
        publish_not_ready=publish_not_ready,
        created=created,
    )


def backend(
    address: str, *, state: BackendState = BackendState.ACTIVE, node: str | None = "one", port: int = 8080
) -> Backend:
    """A TCP backend."""
    return Backend(ip_address(address), port, "TCP", node, state)


def endpoint_slice(
    service_name: str, *backends: Backend, name: str = "a", port: str = "http"
) -> EndpointSliceRow:
    """A slice of a service of namespace shop."""
    return EndpointSliceRow(
        "shop", f"{service_name}-{name}", service_name, tuple((port, one) for one in backends)
    )


SERVICES = st.dictionaries(
    st.sampled_from(["api", "db", "web"]),
    st.tuples(st.sampled_from(["10.96.0.1", "10.96.0.2", "fd00::1"]), st.sampled_from(["", "2024", "2025"])),
).map(lambda made: [service(name, address, created=created) for name, (address, created) in made.items()])

BACKENDS = st.builds(
    lambda number, state, node: backend(number, state=state, node=node),
    st.sampled_from(["10.0.0.1", "10.0.0.2", "10.0.0.3", "fd01::1"]),
    st.sampled_from([BackendState.ACTIVE, BackendState.TERMINATING]),
    st.sampled_from(["one", "two", None]),
)

SLICES = st.dictionaries(
    st.tuples(st.sampled_from(["api", "db", "web"]), st.sampled_from(["a", "b"])),
    st.lists(BACKENDS, max_size=4),
).map(lambda made: [endpoint_slice(name, *found, name=part) for (name, part), found in made.items()])


def ipcache_rows(
    endpoints: Iterable[EndpointSpec],
    identities: Mapping[int, int],
    *,
    host_addresses: Iterable[Addr],
    prefixes: Mapping[Prefix, int],
    beyond: Beyond | None = None,
    pods: Mapping[Addr, Owner] = MappingProxyType({}),
    judged: Mapping[Addr, int] = MappingProxyType({}),
) -> IpcacheRows:
    """All rows of the ipcache, computed at once."""
    beyond = beyond or Beyond()
    owners = single_owners(
        endpoints, identities, host_addresses=host_addresses, prefixes=prefixes, beyond=beyond
    )
    book = IpcacheBook()
    book.update(owners, pods, moved=pods, judged=judged)
    return IpcacheRows(book.rows, *prefix_rows(prefixes, beyond))
