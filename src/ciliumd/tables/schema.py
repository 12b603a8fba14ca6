# SPDX-License-Identifier: Apache-2.0
"""
The tables of the agent, their keys and their rows.

Objects users write (namespaces, pods, services, slices, policies, CIDR groups) are rows as long as they are
valid; what is wrong with the others is in ``problems``; so are objects that agents write for each other
(nodes, remote endpoints, cluster identities).  Numbers that others hold on to (identities, service and
backend ids) are rows too, restored at start, so that ``desired`` needs no memory.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ciliumd.model.endpoint import EndpointSpec
from ciliumd.model.identity import NamedNode, NumericIdentity, PartOf
from ciliumd.model.labels import Labels
from ciliumd.model.net import Prefix
from ciliumd.model.objects import (
    CIDRGroupRow,
    EndpointSliceRow,
    NamespacedName,
    NamespaceRow,
    NodeRow,
    PodRow,
    RemoteEndpointRow,
)
from ciliumd.model.policy import Policy
from ciliumd.model.service import BackendKey, FrontendKey, Service
from ciliumd.tables.numbers import NumberTable
from ciliumd.tables.table import Index, Table

__all__ = [
    "CIDRGroupRow",
    "EndpointSliceRow",
    "NamespaceRow",
    "NamespacedName",
    "NodeRow",
    "ObjectKey",
    "PodRow",
    "Problem",
    "RemoteEndpointRow",
    "Tables",
]

ObjectKey = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Problem:
    """Why an object is not in force as written: the field, what is wrong with it, and in which file."""

    field: str
    message: str
    file: str = ""


def _by_service(_key: NamespacedName, row: EndpointSliceRow) -> tuple[NamespacedName]:
    return (row.service_key,)


def _by_namespace(_key: NamespacedName, row: PodRow) -> tuple[str]:
    return (row.namespace,)


def _by_pod(_key: int, row: EndpointSpec) -> tuple[NamespacedName]:
    return (row.pod_key,)


@dataclass(slots=True)
class Tables:
    """All tables of one agent, and the indexes between them."""

    namespaces: Table[str, NamespaceRow] = field(default_factory=lambda: Table("namespaces"))
    pods: Table[NamespacedName, PodRow] = field(default_factory=lambda: Table("pods"))
    services: Table[NamespacedName, Service] = field(default_factory=lambda: Table("services"))
    slices: Table[NamespacedName, EndpointSliceRow] = field(default_factory=lambda: Table("slices"))
    policies: Table[ObjectKey, Policy] = field(default_factory=lambda: Table("policies"))
    cidr_groups: Table[str, CIDRGroupRow] = field(default_factory=lambda: Table("cidr_groups"))
    problems: Table[ObjectKey, Problem] = field(default_factory=lambda: Table("problems"))
    endpoints: Table[int, EndpointSpec] = field(default_factory=lambda: Table("endpoints"))
    nodes: Table[str, NodeRow] = field(default_factory=lambda: Table("nodes"))
    remote_endpoints: Table[NamespacedName, RemoteEndpointRow] = field(
        default_factory=lambda: Table("remote_endpoints")
    )
    cluster_identities: Table[NumericIdentity, Labels] = field(
        default_factory=lambda: Table("cluster_identities")
    )
    identities: Table[Labels, NumericIdentity] = field(default_factory=lambda: Table("identities"))
    prefixes: Table[Prefix, NumericIdentity] = field(default_factory=lambda: Table("prefixes"))
    node_identities: Table[NamedNode, NumericIdentity] = field(
        default_factory=lambda: Table("node_identities")
    )
    parts: Table[PartOf, NumericIdentity] = field(default_factory=lambda: Table("parts"))
    service_ids: NumberTable[FrontendKey] = field(default_factory=lambda: NumberTable("service_ids"))
    backend_ids: NumberTable[BackendKey] = field(default_factory=lambda: NumberTable("backend_ids"))
    pods_of_namespace: Index[str, NamespacedName] = field(init=False)
    slices_of_service: Index[NamespacedName, NamespacedName] = field(init=False)
    endpoints_of_pod: Index[NamespacedName, int] = field(init=False)

    def __post_init__(self) -> None:
        self.pods_of_namespace = self.pods.add_index(_by_namespace)
        self.slices_of_service = self.slices.add_index(_by_service)
        self.endpoints_of_pod = self.endpoints.add_index(_by_pod)

    def slices_behind(self, service: NamespacedName) -> Iterator[EndpointSliceRow]:
        """The slices that are written for a service."""
        for key in self.slices_of_service.get(service):
            row = self.slices.get(key)
            if row is not None:
                yield row

    def named(self, name: str) -> Table[Any, Any]:
        """The table of that name."""
        table: Table[Any, Any] = getattr(self, name)
        return table

    @property
    def sources(self) -> tuple[Table[Any, Any], ...]:
        """The tables that are filled from objects somebody else writes."""
        return (
            self.namespaces,
            self.pods,
            self.services,
            self.slices,
            self.policies,
            self.cidr_groups,
            self.nodes,
            self.remote_endpoints,
            self.cluster_identities,
        )

    @property
    def in_sync(self) -> bool:
        """Whether every source has reported all it has: only then does absence mean deletion."""
        return self.endpoints.initialized and all(table.initialized for table in self.sources)
