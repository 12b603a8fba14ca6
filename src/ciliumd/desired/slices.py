# SPDX-License-Identifier: Apache-2.0
"""
Backends for services nobody wrote EndpointSlices for: the pods on this node their selectors match.

For manifests in a directory, where no controller writes slices.  A service with any slice of its own
is left alone; so is one without a selector, whose slices are somebody's to write.
"""

from collections.abc import Iterable, Mapping

from ciliumd.model.endpoint import EndpointSpec
from ciliumd.model.objects import EndpointSliceRow, NamespacedName, PodRow
from ciliumd.model.service import Backend, BackendState, Service, ServicePort

DERIVED = "/derived"
"""Ends the names of derived slices; no object's name has a slash."""


def derived_slices(
    services: Iterable[Service],
    slices: Iterable[EndpointSliceRow],
    pods: Mapping[NamespacedName, PodRow],
    endpoints: Iterable[EndpointSpec],
    *,
    node: str | None = None,
) -> dict[NamespacedName, EndpointSliceRow]:
    """The derived slice of every service that needs one, by (namespace, name)."""
    described = {row.service_key for row in slices}
    local: dict[str, list[tuple[PodRow, EndpointSpec]]] = {}
    for endpoint in endpoints:
        pod = pods.get(endpoint.pod_key)
        if pod is not None:
            local.setdefault(pod.namespace, []).append((pod, endpoint))
    rows = (
        derived_slice(service, local.get(service.namespace, ()), node=node)
        for service in services
        if service.selector and service.key not in described
    )
    return {(row.namespace, row.name): row for row in rows}


def derived_slice(
    service: Service, local: Iterable[tuple[PodRow, EndpointSpec]], *, node: str | None = None
) -> EndpointSliceRow:
    """The slice of one service from the *local* pods of its namespace and their endpoints."""
    wanted = set(service.selector)
    backends = [
        (port.name, Backend(addr, target, port.protocol, node, state))
        for pod, endpoint in local
        if wanted <= pod.labels.items() and (state := _state(pod, service)) is not None
        for port in service.ports
        if (target := _target(port, pod)) is not None
        for addr in endpoint.addresses
    ]
    backends.sort(key=lambda item: (item[0], item[1].addr.version, int(item[1].addr), item[1].port))
    return EndpointSliceRow(service.namespace, service.name + DERIVED, service.name, tuple(backends))


def _state(pod: PodRow, service: Service) -> BackendState | None:
    if pod.terminating and not service.publish_not_ready:
        return BackendState.TERMINATING if pod.ready else None
    return BackendState.ACTIVE if pod.ready or service.publish_not_ready else None


def _target(port: ServicePort, pod: PodRow) -> int | None:
    """The number *port* has on *pod*; None when it is a name the pod does not use for that protocol."""
    if isinstance(port.target, int):
        return port.target
    protocol, number = pod.named_ports.get(port.target, ("", 0))
    return number if protocol == port.protocol else None
