# SPDX-License-Identifier: Apache-2.0
"""
Labels with a source, as Cilium writes them: ``k8s:app=web``, ``reserved:host``, ``cidr:10.0.0.0/8``.

Says which labels a pod has; which label sets share an identity is decided in ``desired.identities``.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

K8S = "k8s"
RESERVED = "reserved"
CIDR = "cidr"
NODE = "node"
"""Of labels that the agent gives to identities of nodes, and to nothing else."""
PART = "part"
"""Of the one label that tells pods of a label set apart by their address; its key is a prefix."""
ANY = "any"
"""In a selector: any source that labels of endpoints have, which is not one the agent gives itself."""
SOURCES = frozenset({K8S, RESERVED, CIDR, ANY, "unspec", "container", "fqdn", "cidrgroup", NODE})

POD_NAMESPACE = "io.kubernetes.pod.namespace"
NAMESPACE_LABELS_PREFIX = "io.cilium.k8s.namespace.labels."
SERVICE_ACCOUNT = "io.cilium.k8s.policy.serviceaccount"
CLUSTER = "io.cilium.k8s.policy.cluster"
NODE_NAME = "io.cilium.k8s.node.name"
_RESERVED_KEY_PREFIX = "io.cilium.k8s."


@dataclass(frozen=True, slots=True, order=True)
class Label:
    """One label: who says it (*source*), *key* and *value* (empty for reserved and cidr labels)."""

    source: str
    key: str
    value: str = ""

    def __str__(self) -> str:
        text = f"{self.source}:{self.key}"
        return f"{text}={self.value}" if self.value else text


Labels = frozenset[Label]


def parse_label(text: str) -> Label:
    """
    The label written as *text*: ``source:key=value``, ``key=value``, ``source:key``, ``key``.

    A text without one of the known sources before the first colon has source ``unspec``.
    """
    head, equals, value = text.partition("=")
    source, colon, key = head.partition(":")
    if not (colon and source in SOURCES):
        source, key = "unspec", head
    if source == CIDR:
        return Label(CIDR, text.partition(":")[2])
    if not key:
        raise ValueError(f"label without a key: {text!r}")
    return Label(source, key, value if equals else "")


def labels_text(labels: Iterable[Label]) -> tuple[str, ...]:
    """The labels as texts in a stable order."""
    return tuple(str(label) for label in sorted(labels))


def object_labels(labels: Mapping[str, str]) -> Labels:
    """The labels of a Kubernetes object that is no endpoint: all are its own."""
    return frozenset(Label(K8S, key, value) for key, value in labels.items())


def is_reserved_key(key: str) -> bool:
    """Whether ciliumd itself sets Kubernetes labels under *key*, so that users must not."""
    return key == POD_NAMESPACE or key.startswith(_RESERVED_KEY_PREFIX)


def pod_labels(
    namespace: str,
    pod_labels: Mapping[str, str],
    namespace_labels: Mapping[str, str],
    service_account: str,
    cluster: str = "default",
) -> Labels:
    """
    Every label policy may select a pod by.

    User labels under the keys ciliumd sets itself are dropped: a pod that claims another namespace
    or service account must not get it.  Which others make an identity is said in ``label_filter``.
    """
    labels = {Label(K8S, key, value) for key, value in pod_labels.items() if not is_reserved_key(key)}
    labels.update(Label(K8S, NAMESPACE_LABELS_PREFIX + key, value) for key, value in namespace_labels.items())
    labels.add(Label(K8S, POD_NAMESPACE, namespace))
    labels.add(Label(K8S, SERVICE_ACCOUNT, service_account))
    labels.add(Label(K8S, CLUSTER, cluster))
    return frozenset(labels)


def node_labels(name: str, labels: Mapping[str, str]) -> Labels:
    """
    Every label policy may select a node by: those of its Node, and its name.

    Which of the former make its identity is said in ``label_filter``.
    """
    own = {Label(NODE, key, value) for key, value in labels.items() if not is_reserved_key(key)}
    return frozenset({*own, Label(NODE, NODE_NAME, name)})
