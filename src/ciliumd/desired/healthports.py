# SPDX-License-Identifier: Apache-2.0
"""
What load balancers in front of the cluster are told about this node, by service.

A service with ``healthCheckNodePort`` has a port of its own on every node; who listens there is in
``health.services``.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ciliumd.desired.services import ServedFrontend
from ciliumd.model.service import BackendState

if TYPE_CHECKING:
    from ciliumd.model.net import Addr


@dataclass(frozen=True, slots=True)
class LocalEndpoints:
    """How many endpoints of a service, ready ones, are on this node."""

    namespace: str
    name: str
    count: int


def health_ports(served: Iterable[ServedFrontend], *, node: str) -> dict[int, LocalEndpoints]:
    """By port; of two services with one port, which the API server lets nobody have, the first by name."""
    found: dict[tuple[str, str], set[Addr]] = {}
    ports: dict[tuple[str, str], int] = {}
    for one in served:
        service = one.service
        if not service.health_check_node_port:
            continue
        ports[service.key] = service.health_check_node_port
        found.setdefault(service.key, set()).update(
            backend.addr
            for backend in one.backends
            if backend.node == node and backend.state is BackendState.ACTIVE
        )
    answers: dict[int, LocalEndpoints] = {}
    for key, port in sorted(ports.items()):
        answers.setdefault(port, LocalEndpoints(*key, len(found[key])))
    return answers
