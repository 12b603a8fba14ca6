# SPDX-License-Identifier: Apache-2.0
"""CiliumClusterwideNetworkPolicy: whom it selects that a namespaced policy does not."""

from ipaddress import ip_network

import pytest

from ciliumd.model.identity import Reserved, cidr_labels, reserved_labels
from ciliumd.model.labels import Labels, pod_labels
from ciliumd.model.policy import PeerEntity, PeerSelector, Selector
from ciliumd.resources import parse
from unit.resources.documents import ccnp_document, policy

pytestmark = pytest.mark.unit

NODES_AND_WORLD = [
    *(reserved_labels(reserved) for reserved in Reserved if reserved),
    cidr_labels(ip_network("192.0.2.0/24")),
]


def pod(app: str, namespace: str = "shop", **namespace_labels: str) -> Labels:
    """Labels of a pod."""
    return pod_labels(namespace, {"app": app}, namespace_labels, "default")


def peers(selector: str, *, section: str = "ingress", subject: str = "{}") -> Selector:
    """The selector of the one peer of a policy for *subject*."""
    side = "fromEndpoints" if section.startswith("ingress") else "toEndpoints"
    row = policy(ccnp_document(f"{{endpointSelector: {subject}, {section}: [{{{side}: [{selector}]}}]}}"))
    (peer,) = row.rules[0].peers or ()
    assert isinstance(peer, PeerSelector)
    return peer.selector


def test_rows_have_no_namespace() -> None:
    """Keys, origins and the row itself say so; spec and specs are told apart."""
    document = ccnp_document("{endpointSelector: {}, ingress: [{}]}")
    document["specs"] = [{"endpointSelector": {}, "egressDeny": [{"toEntities": ["world-ipv4"]}]}]

    resource = parse(document)
    assert resource.key == ("CiliumClusterwideNetworkPolicy", "", "rule1")
    (_, first_key, first), (_, second_key, second) = resource.rows()
    assert first_key == ("CiliumClusterwideNetworkPolicy", "", "rule1")
    assert second_key == ("CiliumClusterwideNetworkPolicy", "", "rule1/specs/0")
    assert (first.namespace, first.origin) == ("", "ccnp:rule1")
    assert second.rules[0].origin == "ccnp:rule1/specs/0/egressDeny/0"
    assert second.rules[0].peers == (PeerEntity("world-ipv4"),)


def test_empty_subject_is_every_endpoint() -> None:
    """Of any namespace, and those of none: health endpoints and pods not yet known."""
    subject = policy(ccnp_document("{endpointSelector: {}, ingress: [{}]}")).subject

    for labels in (pod("web"), pod("web", "other"), *map(reserved_labels, (Reserved.HEALTH, Reserved.INIT))):
        assert subject.matches(labels)


@pytest.mark.parametrize(
    ("selector", "selected"),
    [
        ("{matchLabels: {app: web}}", {("web", "shop"), ("web", "other")}),
        ("{matchLabels: {app: web, 'k8s:io.kubernetes.pod.namespace': shop}}", {("web", "shop")}),
        ("{matchLabels: {io.kubernetes.pod.namespace: other}}", {("web", "other"), ("db", "other")}),
        (
            "{matchExpressions: [{key: io.kubernetes.pod.namespace, operator: NotIn, values: [shop]}]}",
            {("web", "other"), ("db", "other")},
        ),
        ("{matchLabels: {'reserved:health': ''}}", set()),
    ],
)
def test_subject_may_name_a_namespace(selector: str, selected: set[tuple[str, str]]) -> None:
    """Without one it is a pod of any."""
    subject = policy(ccnp_document(f"{{endpointSelector: {selector}, ingress: [{{}}]}}")).subject

    pods = [(app, namespace) for app in ("web", "db") for namespace in ("shop", "other")]
    assert selected == {(app, namespace) for app, namespace in pods if subject.matches(pod(app, namespace))}
    health = reserved_labels(Reserved.HEALTH)
    assert subject.matches(health) == ("reserved:health" in selector or "NotIn" in selector)


@pytest.mark.parametrize("section", ["ingress", "ingressDeny", "egress", "egressDeny"])
@pytest.mark.parametrize(
    "selector", ["{}", "{matchExpressions: [{key: 'reserved:host', operator: DoesNotExist}]}"]
)
def test_peers_are_pods_of_any_namespace(selector: str, section: str) -> None:
    """An empty selector is no way to the nodes or the world."""
    selected = peers(selector, section=section)

    assert selected.matches(pod("web"))
    assert selected.matches(pod("web", "other"))
    assert not any(selected.matches(labels) for labels in NODES_AND_WORLD)


def test_peers_may_name_a_namespace_its_labels_or_what_has_none() -> None:
    """As in a namespaced policy."""
    assert not peers("{matchLabels: {'k8s:io.kubernetes.pod.namespace': other}}").matches(pod("web"))
    by_labels = peers("{matchLabels: {'k8s:io.cilium.k8s.namespace.labels.env': prod}}")
    assert by_labels.matches(pod("web", env="prod"))
    assert not by_labels.matches(pod("web"))
    remote = peers("{matchLabels: {'reserved:remote-node': ''}}")
    assert [reserved for reserved in Reserved if reserved and remote.matches(reserved_labels(reserved))] == [
        Reserved.REMOTE_NODE,
        Reserved.KUBE_APISERVER,
    ]


@pytest.mark.parametrize(
    ("term", "is_about_init"),
    [
        ("matchLabels: {'reserved:init': ''}", True),
        ("matchExpressions: [{key: 'reserved:init', operator: Exists}]", True),
        ("matchExpressions: [{key: 'reserved:init', operator: DoesNotExist}]", False),
    ],
)
def test_policy_for_pods_not_yet_known_may_mean_peers_without_a_namespace(
    term: str, *, is_about_init: bool
) -> None:
    """Its subjects have no namespace either, so an empty peer selector is everything that has an identity."""
    selected = peers("{}", subject=f"{{{term}}}")

    assert selected.matches(pod("web"))
    assert all(selected.matches(labels) is is_about_init for labels in NODES_AND_WORLD)
