# SPDX-License-Identifier: Apache-2.0
"""
Load balancing: which frontends this node serves, for which service, with which backends and ids.

Who has a frontend is said in ``desired.claims``, which addresses no service may take in ``desired.guard``,
whose backends are preferred in ``desired.topology``, how rows are spelled in ``desired.lbrows``; all of it is
kept up to date by ``desired.servicebook`` and ``desired.lbbook``.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice

from ciliumd.desired.allocation import Allocation, FreeNumbers, allocate, free_numbers
from ciliumd.desired.claims import Claims, by_age
from ciliumd.desired.guard import NO_GUARD, Guard
from ciliumd.desired.topology import nearest
from ciliumd.model.net import Addr
from ciliumd.model.objects import EndpointSliceRow, NamespacedName
from ciliumd.model.service import (
    INTERNAL,
    Backend,
    BackendKey,
    BackendState,
    Frontend,
    FrontendKey,
    Place,
    Service,
    ServiceKind,
    TrafficPolicy,
    port_place,
)

SERVICE_ID_MAX = 65535
BACKEND_ID_MAX = 0xFFFFFFFF
NOWHERE = Place()
"""A node of which nothing is known."""

_ByPort = dict[tuple[str, str, int], list[Backend]]
"""Backends by port name, protocol and address family."""

FIELDS = {
    ServiceKind.CLUSTER_IP: "spec.clusterIPs",
    ServiceKind.NODE_PORT: "spec.ports",
    ServiceKind.EXTERNAL_IP: "spec.externalIPs",
    ServiceKind.LOAD_BALANCER: "status.loadBalancer.ingress",
    ServiceKind.HOST_PORT: "spec.containers.ports",
}
"""Where in an object a frontend of each kind is written."""


@dataclass(frozen=True, slots=True)
class ServiceProblem:
    """Why part of a valid service is not in force; *kind* is that of the frontend."""

    service: NamespacedName
    frontend: FrontendKey
    message: str
    kind: ServiceKind = ServiceKind.CLUSTER_IP

    @property
    def field(self) -> str:
        """Where in the object the frontend is written."""
        return FIELDS[self.kind]


@dataclass(frozen=True, slots=True)
class ServedFrontend:
    """
    One frontend and everything behind it.

    *chosen* get new connections, in slot order; *backends* are all that are listed, chosen or not.  With a
    local traffic policy *elsewhere* says that other nodes have some that this one may not choose.
    """

    service: Service
    frontend: Frontend
    chosen: tuple[Backend, ...]
    backends: tuple[Backend, ...]
    elsewhere: bool = False


def judged_claims(claims: Claims, name: NamespacedName) -> tuple[list[Frontend], list[ServiceProblem]]:
    """The frontends that a service has, and what is wrong with the others it claims."""
    owned: list[Frontend] = []
    problems: list[ServiceProblem] = []
    for frontend, message in claims.judged(name):
        if message:
            problems.append(ServiceProblem(name, frontend.key, message, frontend.kind))
        else:
            owned.append(frontend)
    return owned, problems


def refused_claims(services: Iterable[Service], guard: Guard = NO_GUARD) -> list[ServiceProblem]:
    """What is wrong with the frontends that their services do not have, whoever has them."""
    claims, services = Claims(), by_age(services)
    claims.update({service.key: service for service in services}, guard)
    return [problem for service in services for problem in judged_claims(claims, service.key)[1]]


def by_service(problems: Iterable[ServiceProblem]) -> dict[NamespacedName, tuple[str, str]]:
    """What is wrong with each service: the field that is, and the first few of its messages."""
    found: dict[NamespacedName, dict[str, dict[str, None]]] = {}
    for one in problems:
        # Once for each address, which is refused for each of its ports.
        found.setdefault(one.service, {}).setdefault(one.field, {})[one.message] = None
    return {service: _told(next(iter(fields.items()))) for service, fields in found.items()}


def _told(problem: tuple[str, Collection[str]]) -> tuple[str, str]:
    field, messages = problem
    more = f"; and {len(messages) - _MOST_TOLD} more" if len(messages) > _MOST_TOLD else ""
    return field, "; ".join(islice(messages, _MOST_TOLD)) + more


_MOST_TOLD = 4


def served_frontends(
    services: Iterable[Service],
    slices: Iterable[EndpointSliceRow],
    *,
    here: Place = NOWHERE,
    guard: Guard = NO_GUARD,
) -> tuple[list[ServedFrontend], list[ServiceProblem]]:
    """Every frontend of the node with its backends, in a stable order, and claims that were refused."""
    claims, services = Claims(), by_age(services)
    claims.update({service.key: service for service in services}, guard)
    slices_of: dict[NamespacedName, list[EndpointSliceRow]] = {}
    for row in slices:
        slices_of.setdefault(row.service_key, []).append(row)
    served: list[ServedFrontend] = []
    problems: list[ServiceProblem] = []
    for service in services:
        owned, refused = judged_claims(claims, service.key)
        problems += refused
        served += served_of(service, owned, slices_of.get(service.key, ()), here)
    return in_order(served), problems


def in_order(served: Iterable[ServedFrontend]) -> list[ServedFrontend]:
    """By address, port and protocol."""
    return sorted(served, key=lambda one: frontend_order(one.frontend.key))


def served_of(
    service: Service,
    frontends: Iterable[Frontend],
    slices: Iterable[EndpointSliceRow],
    here: Place,
) -> Iterator[ServedFrontend]:
    """
    The *frontends* that *service* owns, with their backends from its *slices*.

    Backends belong to one by port name, protocol and address family.  With a local traffic policy, internal
    for a cluster address and external for any other, only those on this node count; else those that
    ``desired.topology`` prefers *here*.  One listed twice is as fit as its best listing.
    Ports and backends are looked up: a service with thousands of ports must not hold up the others.
    """
    listed = _by_port(slices)
    names = service.port_names()
    for frontend in frontends:
        yield _served(service, frontend, names[port_place(frontend)], listed, here)


def _by_port(slices: Iterable[EndpointSliceRow]) -> _ByPort:
    found: _ByPort = {}
    # Of two listings that are equally good the first counts, in whatever order they came.
    for row in sorted(slices, key=lambda one: one.name):
        for name, backend in row.backends:
            found.setdefault((name, backend.protocol, backend.addr.version), []).append(backend)
    return found


def _served(service: Service, frontend: Frontend, name: str, listed: _ByPort, here: Place) -> ServedFrontend:
    local_only = policy_of(service, frontend) is TrafficPolicy.LOCAL
    elsewhere = False
    best: dict[BackendKey, Backend] = {}
    for backend in listed.get((name, frontend.protocol, frontend.addr.version), ()):
        if local_only and (here.node is None or backend.node != here.node):
            elsewhere = True
            continue
        key = backend.key
        known = best.setdefault(key, backend)
        if known is not backend and _preference(backend) < _preference(known):
            best[key] = backend
    in_order = sorted(best.items(), key=lambda item: (item[1].state, backend_order(item[0])))
    backends = tuple(backend for _, backend in in_order)
    active = tuple(backend for backend in backends if backend.state is BackendState.ACTIVE)
    if not local_only:
        active = nearest(active, here, service.distribution)
    fallback = tuple(backend for backend in backends if backend.state is BackendState.TERMINATING)
    return ServedFrontend(service, frontend, active or fallback, backends, elsewhere)


def with_node_ports(services: Iterable[Service], addresses: Iterable[Addr]) -> Iterator[Service]:
    """
    The *services*, each with a frontend per node port and address of this node.

    Of the addresses those of the service's own families count.  A frontend that means other backends inside
    the cluster, be it a node port or an address outside, is there once more for the inside.
    """
    own = tuple(addresses)
    for service in services:
        families = {frontend.addr.version for frontend in service.frontends}
        frontends = [
            Frontend(addr, port.node_port, port.protocol, ServiceKind.NODE_PORT)
            for port in service.ports
            if port.node_port
            for addr in own
            if addr.version in families
        ]
        frontends += [
            replace(one, scope=INTERNAL)
            for one in (*service.frontends, *frontends)
            if has_two_scopes(service, one)
        ]
        yield replace(service, frontends=(*service.frontends, *frontends)) if frontends else service


def of_kinds(services: Iterable[Service], kinds: Mapping[int, Collection[ServiceKind]]) -> Iterator[Service]:
    """
    The *services* with those frontends alone that are served here: the *kinds* of each family.

    Others are served by a kube-proxy beside, or by nobody where pods have no addresses of the family.
    """
    for service in services:
        ours = tuple(one for one in service.frontends if one.kind in kinds[one.addr.version])
        yield service if len(ours) == len(service.frontends) else replace(service, frontends=ours)


def has_two_scopes(service: Service, frontend: Frontend) -> bool:
    """Whether clients inside the cluster get other backends by *frontend* than those outside."""
    external = frontend.kind is not ServiceKind.CLUSTER_IP
    return external and service.external_policy is TrafficPolicy.LOCAL


def policy_of(service: Service, frontend: Frontend) -> TrafficPolicy:
    """Which nodes' backends *frontend* may choose: what is local outside is open inside the cluster."""
    if frontend.kind is ServiceKind.CLUSTER_IP:
        return service.internal_policy
    return TrafficPolicy.CLUSTER if frontend.scope == INTERNAL else service.external_policy


def allocate_service_ids(
    existing: Mapping[FrontendKey, int], served: Iterable[ServedFrontend], free: FreeNumbers | None = None
) -> Allocation[FrontendKey]:
    """New service ids for the frontends that have none; *free* knows those there are without looking."""
    wanted = (one.frontend.key for one in served)
    free = free or partial(free_numbers, existing)
    return allocate(existing, wanted, free(1, SERVICE_ID_MAX), order=frontend_order)


def allocate_backend_ids(
    existing: Mapping[BackendKey, int], served: Iterable[ServedFrontend], free: FreeNumbers | None = None
) -> Allocation[BackendKey]:
    """New backend ids for the backends that have none; *free* knows those there are without looking."""
    wanted = (backend.key for one in served for backend in one.backends)
    free = free or partial(free_numbers, existing)
    return allocate(existing, wanted, free(1, BACKEND_ID_MAX), order=backend_order)


def frontend_order(key: FrontendKey) -> tuple[int, int, int, str, int]:
    """Sorts frontends of both families by address, port and protocol."""
    return (key.addr.version, int(key.addr), key.port, key.protocol, key.scope)


def backend_order(key: BackendKey) -> tuple[int, int, int, str]:
    """Sorts backends of both families by address, port and protocol."""
    return (key.addr.version, int(key.addr), key.port, key.protocol)


def _preference(backend: Backend) -> tuple[int, str]:
    return (backend.state, backend.node or "~")
