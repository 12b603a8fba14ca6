# SPDX-License-Identifier: Apache-2.0
"""
What is left of Kubernetes objects once they are read: the rows everything is computed from.

Services and policies have modules of their own.  How objects are written is said in ``resources``,
where rows are kept in ``tables``.
"""

from dataclasses import dataclass

from ciliumd.model.net import Addr
from ciliumd.model.service import Backend

NamespacedName = tuple[str, str]
"""(namespace, name)."""


@dataclass(frozen=True, slots=True)
class NamespaceRow:
    """A namespace and its labels, ``kubernetes.io/metadata.name`` included."""

    name: str
    labels: dict[str, str]


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
