# SPDX-License-Identifier: Apache-2.0
"""Nodes, CiliumNodes, CiliumEndpoints and CiliumIdentities become rows, or are refused by field."""

from ipaddress import ip_address, ip_network

import pytest
import yaml

from ciliumd.model.labels import Label
from ciliumd.model.objects import NodeRow, RemoteEndpointRow
from ciliumd.resources.node import KubernetesNode, Node
from unit.resources.documents import problems, rows

NODE = """
apiVersion: v1
kind: Node
metadata: {name: n1, uid: u1, labels: {zone: a}}
spec: {podCIDR: 10.0.1.0/24, podCIDRs: [10.0.1.0/24, 'fd00:1::/64']}
status:
  addresses:
  - {type: Hostname, address: n1}
  - {type: InternalIP, address: 192.0.2.1}
  - {type: ExternalIP, address: 198.51.100.1}
  - {type: InternalIP, address: 'fd00::1'}
"""
CILIUM_NODE = """
apiVersion: cilium.io/v2
kind: CiliumNode
metadata: {name: n1, labels: {zone: a}}
spec:
  addresses:
  - {type: InternalIP, ip: 192.0.2.1}
  - {type: CiliumInternalIP, ip: 10.0.1.1}
  - {type: Unheard, ip: nonsense}
  ipam: {podCIDRs: [10.0.1.0/24], pools: {requested: []}}
  health: {ipv4: 10.0.1.9, ipv6: ''}
  encryption: {key: 0}
status: {ipam: {operator-status: {error: ''}}}
"""
ENDPOINT = """
apiVersion: cilium.io/v2
kind: CiliumEndpoint
metadata: {name: web-1, namespace: shop}
status:
  id: 12
  identity: {id: 1234, labels: ['k8s:app=web']}
  networking: {addressing: [{ipv4: 10.0.1.7, ipv6: 'fd00:1::7'}], node: 192.0.2.1}
  named-ports: [{name: http, port: 8080, protocol: TCP}]
  state: ready
"""
IDENTITY = """
apiVersion: cilium.io/v2
kind: CiliumIdentity
metadata: {name: '1234'}
security-labels: {'k8s:app': web, 'k8s:io.kubernetes.pod.namespace': shop, 'k8s:empty': ''}
"""


def test_node_is_no_row_but_can_be_read():
    """Addresses of machines, not names; CIDRs of both families."""
    assert rows(NODE) == []
    expected = KubernetesNode(
        name="n1",
        uid="u1",
        labels={"zone": "a"},
        addresses=(
            ("InternalIP", ip_address("192.0.2.1")),
            ("ExternalIP", ip_address("198.51.100.1")),
            ("InternalIP", ip_address("fd00::1")),
        ),
        pod_cidrs=(ip_network("10.0.1.0/24"), ip_network("fd00:1::/64")),
    )
    assert expected == Node.model_validate(yaml.safe_load(NODE)).to_model()


def test_node_with_the_old_field_only_has_that_pod_cidr():
    """``podCIDR`` came before ``podCIDRs``."""
    document = {"metadata": {"name": "n1"}, "spec": {"podCIDR": "10.0.1.0/24"}}
    assert (ip_network("10.0.1.0/24"),) == Node.model_validate(document).to_model().pod_cidrs


def test_cilium_node_is_a_row():
    """Unknown types of addresses are left alone."""
    expected = NodeRow(
        name="n1",
        addresses=(("InternalIP", ip_address("192.0.2.1")), ("CiliumInternalIP", ip_address("10.0.1.1"))),
        pod_cidrs=(ip_network("10.0.1.0/24"),),
        health=(ip_address("10.0.1.9"),),
        labels={"zone": "a"},
    )
    assert [("nodes", "n1", expected)] == rows(CILIUM_NODE)


def test_cilium_node_without_anything_is_a_row():
    """The agent of that node has just begun."""
    text = "{apiVersion: cilium.io/v2, kind: CiliumNode, metadata: {name: n1}, spec: {}}"
    assert [("nodes", "n1", NodeRow(name="n1"))] == rows(text)


def test_endpoint_is_a_row():
    """Identity, addresses, where it is, and its named ports."""
    expected = RemoteEndpointRow(
        namespace="shop",
        name="web-1",
        identity=1234,
        addresses=(ip_address("10.0.1.7"), ip_address("fd00:1::7")),
        node=ip_address("192.0.2.1"),
        named_ports={"http": ("TCP", 8080)},
    )
    assert [("remote_endpoints", ("shop", "web-1"), expected)] == rows(ENDPOINT)


@pytest.mark.parametrize(
    "status",
    [
        "",
        "status: {}",
        "status: {identity: {id: 300}}",
        "status: {networking: {addressing: [{ipv4: 10.0.0.9}]}}",
    ],
)
def test_endpoint_without_identity_or_address_is_no_row(status):
    """It is not ready yet."""
    text = f"apiVersion: cilium.io/v2\nkind: CiliumEndpoint\nmetadata: {{name: a, namespace: b}}\n{status}"
    assert rows(text) == []


def test_identity_is_a_row():
    """The name is the number."""
    labels = frozenset(
        {
            Label("k8s", "app", "web"),
            Label("k8s", "io.kubernetes.pod.namespace", "shop"),
            Label("k8s", "empty"),
        }
    )
    assert [("cluster_identities", 1234, labels)] == rows(IDENTITY)


@pytest.mark.parametrize(
    ("text", "old", "new", "field"),
    [
        (NODE, "address: 192.0.2.1", "address: n1.local", "status.addresses[1].address"),
        (NODE, "podCIDRs: [10.0.1.0/24", "podCIDRs: [10.0.1.0", "spec.podCIDRs[0]"),
        (CILIUM_NODE, "ip: 10.0.1.1", "ip: 10.0.1", "spec.addresses[1].ip"),
        (CILIUM_NODE, "podCIDRs: [10.0.1.0/24]", "podCIDRs: [10.0.1.0/33]", "spec.ipam.podCIDRs[0]"),
        (CILIUM_NODE, "ipv4: 10.0.1.9", "ipv4: health", "spec.health.ipv4"),
        (ENDPOINT, "id: 1234", "id: 1", "status.identity.id"),
        (ENDPOINT, "id: 1234", "id: 7", "status.identity.id"),
        (ENDPOINT, "id: 1234", "id: 65536", "status.identity.id"),
        (ENDPOINT, "id: 1234", "id: web", "status.identity.id"),
        (ENDPOINT, "ipv4: 10.0.1.7", "ipv4: 127.0.0.1", "status.networking.addressing[0].ipv4"),
        (ENDPOINT, "ipv4: 10.0.1.7", "ipv4: 224.0.0.1", "status.networking.addressing[0].ipv4"),
        (ENDPOINT, "ipv6: 'fd00:1::7'", "ipv6: '::'", "status.networking.addressing[0].ipv6"),
        (ENDPOINT, "node: 192.0.2.1", "node: n1", "status.networking.node"),
        (ENDPOINT, "port: 8080", "port: 0", 'status["named-ports"][0].port'),
        (IDENTITY, "'1234'", "'01234'", "metadata.name"),
        (IDENTITY, "'1234'", "'255'", "metadata.name"),
        (IDENTITY, "'1234'", "'65536'", "metadata.name"),
        (IDENTITY, "'1234'", "web", "metadata.name"),
        (IDENTITY, "'k8s:app'", "app", 'security-labels["app"]'),
        (IDENTITY, "'k8s:app'", "'reserved:host'", 'security-labels["reserved:host"]'),
        (IDENTITY, "security-labels: {", "security-labels: {} #", '["security-labels"]'),
    ],
)
def test_what_contradicts_itself_is_refused_by_field(text, old, new, field):
    """Also what nobody may claim: the identity of a node, of the API server, of another cluster."""
    assert old in text
    assert [field] == list(problems(text.replace(old, new)))
