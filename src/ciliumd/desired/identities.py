# SPDX-License-Identifier: Apache-2.0
"""
Identities: which label sets need a number on this node, and which number an endpoint carries.

An endpoint whose pod is not known (yet) is ``reserved:init``: it exists, but no label speaks for it.
The numbers themselves are rows (``identities``, ``prefixes``), restored before anything is computed.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from ciliumd.desired.allocation import Allocation, allocate, free_numbers
from ciliumd.model.endpoint import HEALTH_POD, EndpointSpec
from ciliumd.model.identity import (
    API_SERVER_NODE_MAX,
    API_SERVER_NODE_MIN,
    CLUSTER_MAX,
    CLUSTER_MIN,
    LOCAL_MAX,
    LOCAL_MIN,
    NODE_MAX,
    NODE_MIN,
    UNNUMBERED_MAX,
    UNNUMBERED_MIN,
    NamedNode,
    NumericIdentity,
    Reserved,
    cidr_labels,
    lost_labels,
    reserved_identities,
    reserved_labels,
)
from ciliumd.model.labels import Labels, labels_text, pod_labels
from ciliumd.model.net import LongestPrefix, Prefix, holds, prefix_order
from ciliumd.model.objects import NamespacedName, NamespaceRow, PodRow, RemoteEndpointRow
from ciliumd.model.policy import NamedPort

INIT_LABELS = reserved_labels(Reserved.INIT)
HEALTH_LABELS = reserved_labels(Reserved.HEALTH)
UNMANAGED_LABELS = reserved_labels(Reserved.UNMANAGED)
_RESERVED = {labels: number for number, labels in reserved_identities().items()}
# The API server gives every namespace this label; a namespace nobody described has it too.
_NAMESPACE_NAME = "kubernetes.io/metadata.name"


def labels_of_pod(pod: PodRow, namespace: NamespaceRow | None, *, cluster: str = "default") -> Labels:
    """The labels policy may select *pod* by."""
    return pod_labels(
        pod.namespace,
        pod.labels,
        {_NAMESPACE_NAME: pod.namespace} if namespace is None else namespace.labels,
        pod.service_account,
        cluster,
    )


def endpoint_labels(
    endpoint: EndpointSpec,
    pods: Mapping[NamespacedName, PodRow],
    namespaces: Mapping[str, NamespaceRow],
    *,
    cluster: str = "default",
) -> Labels:
    """The labels of *endpoint*: its pod's, or ``reserved:init`` while there is no such pod."""
    if endpoint.pod_key == HEALTH_POD:
        return HEALTH_LABELS
    pod = pods.get(endpoint.pod_key)
    if pod is None:
        return INIT_LABELS
    return labels_of_pod(pod, namespaces.get(pod.namespace), cluster=cluster)


def wanted_identities(label_sets: Iterable[Labels]) -> set[Labels]:
    """Those *label_sets* that need a number: all but the reserved ones."""
    return {labels for labels in label_sets if labels not in _RESERVED}


@dataclass(frozen=True, slots=True)
class Adoption:
    """
    Which number each wanted label set has in the cluster.

    *numbers* are those with a number, *missing* those without an object that says so: the number to
    prefer for it (somebody deleted the object of a number in use), or None.
    """

    numbers: dict[Labels, NumericIdentity]
    missing: dict[Labels, NumericIdentity | None]


def adopt_identities(
    existing: Mapping[Labels, NumericIdentity],
    cluster: Mapping[NumericIdentity, Labels],
    wanted: Iterable[Labels],
    condemned: Collection[NumericIdentity] = (),
) -> Adoption:
    """
    Numbers of the *wanted* label sets, from those of the *cluster*.

    A number in use stays as long as its object says the same, or nobody says anything; two nodes that
    numbered the same labels at once agree on the lower number.  Nobody begins to use a *condemned* one.
    """
    # A node wants few of them, and the cluster may have tens of thousands.
    by_labels: dict[Labels, list[NumericIdentity]] = {labels: [] for labels in wanted}
    for number, labels in cluster.items():
        if labels in by_labels:
            by_labels[labels].append(number)
    adoption = Adoption({}, {})
    for labels, numbers in by_labels.items():
        current = existing.get(labels)
        known = [n for n in numbers if n == current or n not in condemned]
        if known:
            adoption.numbers[labels] = min(known, key=lambda number: (number != current, number))
        elif current is not None and current not in cluster:
            adoption.numbers[labels] = adoption.missing[labels] = current
        else:
            adoption.missing[labels] = None
    return adoption


def found_again(
    existing: Mapping[Labels, NumericIdentity], cluster: Mapping[NumericIdentity, Labels]
) -> set[Labels]:
    """What stands for *existing* numbers that were lost, of which the *cluster* tells whose they are."""
    return {
        labels for labels, number in existing.items() if number in cluster and labels == lost_labels(number)
    }


def allocate_identities(
    existing: Mapping[Labels, NumericIdentity], wanted: Iterable[Labels]
) -> Allocation[Labels]:
    """New cluster identities for the *wanted* label sets that have none."""
    return allocate(existing, wanted, free_numbers(existing, CLUSTER_MIN, CLUSTER_MAX), order=labels_text)


def allocate_prefixes(
    existing: Mapping[Prefix, NumericIdentity], wanted: Iterable[Prefix]
) -> Allocation[Prefix]:
    """New node-local identities for the *wanted* prefixes that have none."""
    return allocate(existing, wanted, free_numbers(existing, LOCAL_MIN, LOCAL_MAX), order=prefix_order)


def unnumbered_prefixes(
    before: Mapping[Prefix, NumericIdentity], refused: Iterable[Prefix]
) -> dict[Prefix, NumericIdentity]:
    """
    What stands for the identities of *refused* prefixes, so that rules can be weighed for them.

    Who had one *before* keeps it, so that it means the same as long as it is there.
    """
    refused = list(refused)
    kept = {prefix: before[prefix] for prefix in refused if prefix in before}
    new = allocate(kept, refused, free_numbers(kept, UNNUMBERED_MIN, UNNUMBERED_MAX), order=prefix_order)
    return kept | new.assigned


def allocate_nodes(
    existing: Mapping[NamedNode, NumericIdentity], wanted: Iterable[NamedNode]
) -> Allocation[NamedNode]:
    """
    New node-local identities for the *wanted* nodes that have none.

    The datapath tells by the number whether an address is the API server's.
    """
    wanted = list(wanted)
    assigned: dict[NamedNode, NumericIdentity] = {}
    refused: list[NamedNode] = []
    for api_server, first, last in (
        (False, NODE_MIN, NODE_MAX),
        (True, API_SERVER_NODE_MIN, API_SERVER_NODE_MAX),
    ):
        named = (node for node in wanted if node.api_server is api_server)
        found = allocate(existing, named, free_numbers(existing, first, last), order=lambda node: node.name)
        assigned |= found.assigned
        refused += found.refused
    return Allocation(assigned, tuple(refused))


def identity_of(labels: Labels, identities: Mapping[Labels, NumericIdentity]) -> NumericIdentity | None:
    """The number of *labels*, reserved or allocated; None while there is none."""
    reserved = _RESERVED.get(labels)
    return identities.get(labels) if reserved is None else reserved


def endpoint_identities(
    labels_by_endpoint: Mapping[int, Labels], identities: Mapping[Labels, NumericIdentity]
) -> dict[int, NumericIdentity]:
    """Identity by endpoint id; endpoints whose label set has no number yet are left out."""
    found = {endpoint: identity_of(labels, identities) for endpoint, labels in labels_by_endpoint.items()}
    return {endpoint: identity for endpoint, identity in found.items() if identity is not None}


def named_ports_of_pod(pod: PodRow | None) -> frozenset[NamedPort]:
    """The container ports *pod* gives names to; none of a pod that is not known."""
    if pod is None:
        return frozenset()
    return _named(pod.named_ports)


def named_ports_by_identity(
    endpoints: Iterable[EndpointSpec],
    pods: Mapping[NamespacedName, PodRow],
    identities: Mapping[int, NumericIdentity],
    remote: Mapping[NumericIdentity, frozenset[NamedPort]] = MappingProxyType({}),
) -> dict[NumericIdentity, frozenset[NamedPort]]:
    """
    The named ports of the pods of each identity; identities without any are left out.

    *remote* are those of pods of other nodes.

    Where pods of one identity use a name for different numbers, it stands for all of them.
    """
    ports = dict(remote)
    for endpoint in endpoints:
        named = named_ports_of_pod(pods.get(endpoint.pod_key))
        if named and endpoint.id in identities:
            identity = identities[endpoint.id]
            ports[identity] = ports.get(identity, frozenset()) | named
    return ports


def named_ports_of_row(row: RemoteEndpointRow) -> frozenset[NamedPort]:
    """Named ports of a pod of another node."""
    return _named(row.named_ports)


def known_identities(
    identities: Mapping[Labels, NumericIdentity],
    prefixes: Mapping[Prefix, NumericIdentity],
    cluster: Mapping[NumericIdentity, Labels] = MappingProxyType({}),
    nodes: Mapping[NumericIdentity, Labels] = MappingProxyType({}),
    pods: Iterable[Prefix] = (),
) -> dict[NumericIdentity, Labels]:
    """
    Every identity policy may have to judge, by number: reserved, cluster and CIDR identities.

    *cluster* are those of other nodes as well, where the same labels may have had two numbers; *nodes* those
    of nodes by their labels, this one's included.  *pods* is where other nodes' pods are.
    """
    known = reserved_identities()
    known.update(cluster)
    known.update((number, labels) for labels, number in identities.items())
    known.update(labels_of_prefixes(prefixes, pods))
    known.update(nodes)
    return known


def labels_of_prefixes(
    prefixes: Mapping[Prefix, NumericIdentity], pods: Iterable[Prefix] = ()
) -> dict[NumericIdentity, Labels]:
    """
    What the identities of *prefixes* stand for, where *pods* are the networks of other nodes' pods.

    A prefix in one of those is no part of the world, though policies name it: nobody is there but pods that
    have not been published (yet), whom no prefix selects.
    """
    networks = LongestPrefix(pods)

    def is_of_pods(prefix: Prefix) -> bool:
        return any(holds(one, prefix) for one in networks.around(prefix.network_address))

    return {
        number: UNMANAGED_LABELS if is_of_pods(prefix) else cidr_labels(prefix)
        for prefix, number in prefixes.items()
    }


def _named(ports: Mapping[str, tuple[str, int]]) -> frozenset[NamedPort]:
    return frozenset(NamedPort(name, protocol, port) for name, (protocol, port) in ports.items())
