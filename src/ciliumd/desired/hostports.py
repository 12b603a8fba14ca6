# SPDX-License-Identifier: Apache-2.0
"""
Host ports: containers that are to be reached at a port of their node, as services of one backend each.

A host port belongs to addresses of the node and to nothing else: ``hostIP`` cannot take an address that is
somebody else's.  At 127.0.0.1 and ::1 it is there for the node's own sockets.  Of two pods that want the same
port the one that stays has it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address

from ciliumd.desired.services import ServiceProblem
from ciliumd.model.endpoint import EndpointSpec
from ciliumd.model.net import Addr
from ciliumd.model.objects import EndpointSliceRow, HostPort, NamespacedName, PodRow
from ciliumd.model.service import (
    EXTERNAL,
    L4,
    NODE,
    Backend,
    BackendState,
    Frontend,
    FrontendKey,
    Service,
    ServiceKind,
    ServicePort,
)

LOOPBACK: tuple[Addr, ...] = (IPv4Address("127.0.0.1"), IPv6Address("::1"))
MARK = "/host-port/"
"""In the name of each such service, behind the pod's; no object's name has a slash."""


@dataclass(slots=True)
class HostPorts:
    """The services of host ports, their backends, and what is wrong with the others."""

    services: list[Service] = field(default_factory=list)
    slices: list[EndpointSliceRow] = field(default_factory=list)
    problems: list[ServiceProblem] = field(default_factory=list)


def host_ports(
    pods: Mapping[NamespacedName, PodRow],
    endpoints: Iterable[EndpointSpec],
    addresses: Iterable[Addr],
    *,
    node: str | None = None,
) -> HostPorts:
    """Those of all pods that have an endpoint here, on a node that is reached at *addresses*."""
    reached = tuple(addresses)
    # At 127.0.0.1 too, but not at that alone: host ports of a family without addresses are not ours to serve.
    families = {addr.version for addr in reached}
    own = (*reached, *(addr for addr in LOOPBACK if addr.version in families))
    found = HostPorts()
    taken: dict[FrontendKey, NamespacedName] = {}
    local = [(pods[one.pod_key], one) for one in endpoints if one.pod_key in pods]
    for pod, endpoint in sorted(local, key=lambda item: (item[0].terminating, item[1].pod_key)):
        for wanted in pod.host_ports if own else ():
            _add(found, taken, pod, endpoint, wanted, own=own, node=node)
    return found


def pod_of(service: NamespacedName) -> NamespacedName | None:
    """The pod a service of this kind stands for; None for every other service."""
    namespace, name = service
    return (namespace, name.partition(MARK)[0]) if MARK in name else None


def _add(
    found: HostPorts,
    taken: dict[FrontendKey, NamespacedName],
    pod: PodRow,
    endpoint: EndpointSpec,
    wanted: HostPort,
    *,
    own: tuple[Addr, ...],
    node: str | None,
) -> None:
    place = None if wanted.addr is None else FrontendKey(wanted.addr, wanted.port, wanted.protocol)
    where = L4(wanted.protocol, wanted.port) if place is None else place
    name = f"{pod.name}{MARK}{where}"
    families = {addr.version: addr for addr in endpoint.addresses}
    frontends = []

    def problem(key: FrontendKey, message: str) -> ServiceProblem:
        return ServiceProblem((pod.namespace, name), key, message, ServiceKind.HOST_PORT)

    for addr in own if wanted.addr is None else (wanted.addr,):
        key = FrontendKey(addr, wanted.port, wanted.protocol, NODE if addr.is_loopback else EXTERNAL)
        if addr not in own and not addr.is_loopback:
            message = f"hostIP {addr} is no address at which this node is reached"
            found.problems.append(problem(key, message))
        elif (owner := taken.setdefault(key, endpoint.pod_key)) != endpoint.pod_key:
            message = f"{key} is a host port of pod {'/'.join(owner)}"
            found.problems.append(problem(key, message))
        elif addr.version in families:
            frontends.append(Frontend(*key[:3], ServiceKind.HOST_PORT, key.scope))
    if not frontends:
        return
    state = BackendState.TERMINATING if pod.terminating else BackendState.ACTIVE
    backends = tuple(
        ("", Backend(addr, wanted.target, wanted.protocol, node, state)) for addr in families.values()
    )
    found.services.append(
        Service(
            namespace=pod.namespace,
            name=name,
            type=ServiceKind.HOST_PORT.value,
            frontends=tuple(frontends),
            ports=(ServicePort("", wanted.protocol, wanted.port, wanted.target),),
        )
    )
    found.slices.append(EndpointSliceRow(pod.namespace, name, name, backends))
