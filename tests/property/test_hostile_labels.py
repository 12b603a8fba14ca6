# SPDX-License-Identifier: Apache-2.0
"""
Whatever labels a pod claims, no selector takes it for another namespace's, a node, or the world.

Who writes a pod chooses its labels; who writes a policy relies on the namespace, the service account, the
namespace's labels and the reserved names, which nobody may choose.
"""

from ipaddress import ip_network
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ciliumd.desired.identities import labels_of_pod
from ciliumd.desired.policy.rules import peer_matches
from ciliumd.model.identity import reserved_identities
from ciliumd.model.labels import K8S, POD_NAMESPACE, Label, Labels
from ciliumd.model.objects import NamespaceRow, PodRow
from ciliumd.model.policy import ENTITIES, PeerCIDR, PeerEntity, PeerNodes, PeerSelector
from ciliumd.resources.fields import label_key, label_value
from property.computed import policies_of
from property.worlds import Document

pytestmark = pytest.mark.property

HOME, OTHER = "home", "other"
HOME_LABELS = {"kubernetes.io/metadata.name": HOME, "env": "test"}
CASES = 2000

_KEYS = st.one_of(
    st.sampled_from(
        (
            "io.kubernetes.pod.namespace",
            "k8s:io.kubernetes.pod.namespace",
            "k8s.io.kubernetes.pod.namespace",
            "any:io.kubernetes.pod.namespace",
            "IO.kubernetes.pod.namespace",
            "io.kubernetes.pod.namespace ",
            "\u0456o.kubernetes.pod.namespace",
            "io.cilium.k8s.policy.cluster",
            "io.cilium.k8s.policy.serviceaccount",
            "io.cilium.k8s.namespace.labels.env",
            "io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name",
            "io.cilium.k8s.namespace.labels.",
            "reserved:host",
            "reserved",
            "host",
            "world",
            "health",
            "init",
            "kube-apiserver",
            "cidr:0.0.0.0/0",
            "node:role",
            "node",
            "role",
            "io.cilium.k8s.node.name",
            "remote-node",
            "0.0.0.0/0",
            "kubernetes.io/metadata.name",
            "env",
            "app",
            "",
            "a" * 63,
            "d" * 253 + "/" + "n" * 63,
        )
    ),
    st.text(max_size=12),
)
_VALUES = st.one_of(
    st.sampled_from((OTHER, HOME, "", "prod", "default", "admin", "v" * 63)), st.text(max_size=6)
)
_POD_LABELS = st.dictionaries(_KEYS, _VALUES, max_size=6)

_TERM_KEYS = st.sampled_from(("app", "env", "host", "world", "k8s:app", "any:host", "k8s:env", "a" * 63))
_TERMS = st.one_of(
    st.fixed_dictionaries(
        {
            "key": _TERM_KEYS,
            "operator": st.sampled_from(("In", "NotIn")),
            "values": st.lists(st.sampled_from((OTHER, "prod", "x")), min_size=1, max_size=2),
        }
    ),
    st.fixed_dictionaries({"key": _TERM_KEYS, "operator": st.sampled_from(("Exists", "DoesNotExist"))}),
)
_ABOUT_OTHER = (
    {"k8s:io.kubernetes.pod.namespace": OTHER},
    {"io.kubernetes.pod.namespace": OTHER},
    {"any:io.kubernetes.pod.namespace": OTHER},
    {"k8s:io.cilium.k8s.namespace.labels.env": "prod"},
    {"any:io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name": OTHER},
    {"io.cilium.k8s.policy.serviceaccount": "admin"},
    {"io.cilium.k8s.policy.cluster": "elsewhere"},
    *({f"reserved:{name}": ""} for name in ("host", "world", "health", "init", "kube-apiserver")),
)
_RESERVED_ENTITIES = sorted(ENTITIES - {"all", "cluster"})


def hostile(labels: dict[str, str]) -> Labels:
    """What counts of a pod of namespace home that claims *labels*."""
    row = PodRow(HOME, "pod", labels, "default", None, False, None, {})
    return labels_of_pod(row, NamespaceRow(HOME, HOME_LABELS))


def selectors(kind: str, peer: Document, *, namespace: str | None) -> list[PeerSelector]:
    """What *peer* means in each section of a policy, where the other kinds of peers are left out."""
    spec: dict[str, Any] = {"endpointSelector": {}}
    for section, side in (
        ("ingress", "from"),
        ("ingressDeny", "from"),
        ("egress", "to"),
        ("egressDeny", "to"),
    ):
        spec[section] = [{f"{side}Endpoints": [peer]}]
    metadata = {"name": "policy"} | ({} if namespace is None else {"namespace": namespace})
    (policy,) = policies_of(
        [{"apiVersion": "cilium.io/v2", "kind": kind, "metadata": metadata, "spec": spec}]
    )
    return [peer for rule in policy.rules for peer in rule.peers or () if isinstance(peer, PeerSelector)]


def claimed_as_node(claimed: dict[str, str]) -> dict[str, str]:
    """What of a claim could be a label of a node."""
    return {key: value for key, value in claimed.items() if _is_label(key, value)}


def _is_label(key: str, value: str) -> bool:
    try:
        label_key(key), label_value(value)
    except ValueError:
        return False
    return True


def node_peers(match_labels: dict[str, str], terms: list[Document]) -> list[PeerNodes]:
    """Nodes that are labelled so, in each section of a policy."""
    keys = [term["key"].rpartition(":")[2] for term in terms]
    selector = {
        "matchLabels": match_labels,
        "matchExpressions": [{**term, "key": key} for term, key in zip(terms, keys, strict=True)],
    }
    spec = {
        "endpointSelector": {},
        **{section: [{"fromNodes": [selector]}] for section in ("ingress", "ingressDeny")},
        **{section: [{"toNodes": [selector]}] for section in ("egress", "egressDeny")},
    }
    (policy,) = policies_of(
        [
            {
                "apiVersion": "cilium.io/v2",
                "kind": "CiliumClusterwideNetworkPolicy",
                "metadata": {"name": "policy"},
                "spec": spec,
            }
        ]
    )
    return [peer for rule in policy.rules for peer in rule.peers or () if isinstance(peer, PeerNodes)]


@settings(max_examples=CASES)
@given(claimed=_POD_LABELS, terms=st.lists(_TERMS, max_size=2))
def test_no_claim_crosses_a_namespace_or_reserved_boundary(
    claimed: dict[str, str], terms: list[Document]
) -> None:
    """As subject and as peer: by namespace, its labels, account, reserved name, entity and address."""
    labels = hostile(claimed)
    expressions = {"matchExpressions": terms}

    (subject,) = policies_of(
        [
            {
                "apiVersion": "cilium.io/v2",
                "kind": "CiliumNetworkPolicy",
                "metadata": {"name": "policy", "namespace": OTHER},
                "spec": {"endpointSelector": expressions, "ingress": [{}]},
            }
        ]
    )
    assert not subject.subject.matches(labels)
    for peer in selectors("CiliumNetworkPolicy", expressions, namespace=OTHER):
        assert not peer_matches(peer, labels)
    for match_labels in _ABOUT_OTHER:
        about = {"matchLabels": match_labels, **expressions}
        for peer in (
            *selectors("CiliumNetworkPolicy", about, namespace=HOME),
            *selectors("CiliumClusterwideNetworkPolicy", about, namespace=None),
        ):
            assert not peer_matches(peer, labels)
    for name in _RESERVED_ENTITIES:
        assert not peer_matches(PeerEntity(name), labels)
    for match_labels in ({}, claimed_as_node(claimed)):
        assert not any(peer_matches(peer, labels) for peer in node_peers(match_labels, terms))
    for prefix in ("0.0.0.0/0", "::/0"):
        assert not peer_matches(PeerCIDR(ip_network(prefix)), labels)
    assert labels not in reserved_identities().values()


@settings(max_examples=CASES // 10)
@given(claimed=_POD_LABELS)
def test_no_claim_gets_a_pod_out_of_its_own_namespace(claimed: dict[str, str]) -> None:
    """What means every pod of a namespace, or of those labelled so, means this one too."""
    labels = hostile(claimed)
    for match_labels in ({}, {"k8s:io.cilium.k8s.namespace.labels.env": "test"}):
        for peer in selectors("CiliumNetworkPolicy", {"matchLabels": match_labels}, namespace=HOME):
            assert peer_matches(peer, labels)
    assert peer_matches(PeerEntity("cluster"), labels)


def test_a_pod_that_got_another_namespace_would_be_noticed() -> None:
    """The negative control: were the claim taken over, the selectors above would match."""
    (peer, *_) = selectors("CiliumNetworkPolicy", {}, namespace=OTHER)
    taken_over = hostile({}) | {Label(K8S, POD_NAMESPACE, OTHER)}

    assert not peer_matches(peer, hostile({"io.kubernetes.pod.namespace": OTHER}))
    assert peer_matches(peer, taken_over)
