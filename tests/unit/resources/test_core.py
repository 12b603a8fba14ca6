# SPDX-License-Identifier: Apache-2.0
"""Namespaces and pods become rows; what is no concern of ours is not read."""

from ipaddress import IPv4Address

import pytest

from ciliumd.model.objects import HostPort
from ciliumd.tables import NamespaceRow, PodRow
from unit.resources.documents import problems, rows

pytestmark = pytest.mark.unit

POD = """
apiVersion: v1
kind: Pod
metadata:
  name: web-1
  namespace: shop
  labels: {app: web}
  annotations: {whatever: "{}"}
spec:
  serviceAccountName: builder
  nodeName: one
  tolerations: [{operator: Exists}]
  initContainers:
  - {name: setup, ports: [{name: setup, containerPort: 1}]}
  - {name: proxy, restartPolicy: Always, ports: [{name: proxy, containerPort: 15001}]}
  containers:
  - name: web
    image: web
    ports:
    - {name: http, containerPort: 8080}
    - {name: dns, containerPort: 53, protocol: UDP}
    - {containerPort: 9}
  - {name: second, ports: [{name: http, containerPort: 9090}]}
"""


def test_pod_row_has_what_policy_and_services_need() -> None:
    """Labels, account and the named ports: the first container's of equal names, sidecars' too."""
    assert rows(POD) == [
        (
            "pods",
            ("shop", "web-1"),
            PodRow(
                namespace="shop",
                name="web-1",
                labels={"app": "web"},
                service_account="builder",
                ip=None,
                host_network=False,
                node="one",
                named_ports={"http": ("TCP", 8080), "dns": ("UDP", 53), "proxy": ("TCP", 15001)},
            ),
        )
    ]


def test_host_ports_are_read_as_written() -> None:
    """0.0.0.0 is every address; a container on the node's own network needs none."""
    text = """
apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
  hostNetwork: %s
  containers:
  - ports:
    - {containerPort: 8080, hostPort: 80}
    - {containerPort: 5353, hostPort: 53, protocol: UDP, hostIP: 192.0.2.1}
    - {containerPort: 9, hostPort: 9, hostIP: 0.0.0.0}
    - {containerPort: 10}
"""
    ((_, _, row),) = rows(text % "false")
    assert row.host_ports == (
        HostPort(None, 80, "TCP", 8080),
        HostPort(IPv4Address("192.0.2.1"), 53, "UDP", 5353),
        HostPort(None, 9, "TCP", 9),
    )
    ((_, _, row),) = rows(text % "true")
    assert row.host_ports == ()


def test_pod_status_tells_address_and_fitness() -> None:
    """A running pod that is not ready says so; one being deleted is terminating."""
    ((_, _, row),) = rows(
        "{apiVersion: v1, kind: Pod, metadata: {name: a, deletionTimestamp: 2026-01-01T00:00:00Z}, "
        "spec: {hostNetwork: true}, status: {phase: Running, podIP: 10.0.0.7, "
        "conditions: [{type: Initialized, status: 'True'}, {type: Ready, status: 'False'}]}}"
    )

    assert row.ip == IPv4Address("10.0.0.7")
    assert (row.ready, row.terminating, row.host_network) == (False, True, True)


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_pod_that_has_ended_gives_no_row(phase: str) -> None:
    """Its address may be somebody else's by now."""
    assert rows(f"{{apiVersion: v1, kind: Pod, metadata: {{name: a}}, status: {{phase: {phase}}}}}") == []


def test_namespace_has_its_name_as_a_label() -> None:
    """As the API server sees to it, whatever the document says."""
    labels = "{env: prod, kubernetes.io/metadata.name: x}"
    text = f"{{apiVersion: v1, kind: Namespace, metadata: {{name: shop, labels: {labels}}}}}"

    assert rows(text) == [
        ("namespaces", "shop", NamespaceRow("shop", {"env": "prod", "kubernetes.io/metadata.name": "shop"}))
    ]


@pytest.mark.parametrize(
    ("port", "field"),
    [
        ("{containerPort: 0}", "containerPort"),
        ("{containerPort: 65536}", "containerPort"),
        ("{containerPort: '80'}", "containerPort"),
        ("{name: HTTP, containerPort: 80}", "name"),
        ("{name: a-name-too-long-x, containerPort: 80}", "name"),
        ("{name: '80', containerPort: 80}", "name"),
        ("{containerPort: 80, protocol: tcp}", "protocol"),
        ("{name: http}", "containerPort"),
    ],
)
def test_container_port_that_cannot_be_is_named(port: str, field: str) -> None:
    """The path leads to the port."""
    text = (
        f"{{apiVersion: v1, kind: Pod, metadata: {{name: a}}, spec: {{containers: [{{ports: [{port}]}}]}}}}"
    )

    assert list(problems(text)) == [f"spec.containers[0].ports[0].{field}"]


@pytest.mark.parametrize(
    ("key", "value", "valid"),
    [
        ("app", "web", True),
        ("app", "", True),
        ("app.kubernetes.io/name", "Web_1.2-x", True),
        ("app", "-web", False),
        ("app", "w" * 64, False),
        ("-app", "web", False),
        ("a" * 64, "web", False),
        ("UPPER.example/app", "web", False),
        ("a/b/c", "web", False),
        ("/app", "web", False),
    ],
)
def test_labels_are_those_kubernetes_allows(key: str, value: str, *, valid: bool) -> None:
    """Keys with an optional DNS prefix, values of at most 63 characters."""
    text = f"{{apiVersion: v1, kind: Pod, metadata: {{name: a, labels: {{'{key}': '{value}'}}}}}}"

    assert (problems(text) == {}) is valid
