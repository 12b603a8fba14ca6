# SPDX-License-Identifier: Apache-2.0
"""The chart, by the commands of its readers: lint, template, install, status."""

import json
from collections.abc import Callable

import pytest
import yaml

from lab.k8s.ciliumd import AGENT, CHART, NAMESPACE, PARTS, RELEASE, Ciliumd
from lab.k8s.cluster import Cluster
from lab.k8s.fingerprint import Installed
from lab.k8s.kubectl import Kubectl

RECIPES = {
    "defaults": (),
    "vxlan": (
        "tunnel=vxlan",
        "ipam.mode=kubernetes",
        "kubeProxyReplacement=strict",
        "prometheus.enabled=true",
    ),
    "metrics": ("prometheus.enabled=true", "operator.prometheus.enabled=true"),
    "cleanup": ("cleanup.enabled=true",),
}


def test_lint(bare: Cluster) -> None:
    """Helm has nothing to say."""
    done = bare.helm("lint", "--strict", str(CHART))

    assert "0 chart(s) failed" in done.stdout


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_api_server_takes_what_is_rendered(bare: Cluster, recipe: str) -> None:
    """Every object of every recipe passes the API server's own validation."""
    words = [word for value in RECIPES[recipe] for word in ("--set", value)]
    rendered = bare.helm("template", RELEASE, str(CHART), "-n", NAMESPACE, "--include-crds", *words).stdout
    objects = [one for one in yaml.safe_load_all(rendered) if one]

    assert {one["kind"] for one in objects} >= {"DaemonSet", "ConfigMap", "ServiceAccount", "ClusterRole"}
    bare.kubectl("apply", "--dry-run=server", "-n", NAMESPACE, "-f", "-", stdin=rendered)


def test_install(installed: Installed, record_property: Callable[[str, object], None]) -> None:
    """From `helm install` to ready nodes and cluster DNS."""
    record_property("figure", f"helm install to nodes and DNS ready: {installed.seconds:.1f} s")
    release = json.loads(
        installed.ciliumd.cluster.helm("status", RELEASE, "-n", NAMESPACE, "-o", "json").stdout
    )

    assert release["info"]["status"] == "deployed"


def test_pods_are_ready_and_were_not_restarted(ciliumd: Ciliumd, kubectl: Kubectl) -> None:
    """An agent per node, an operator, and nobody crashed on the way."""
    pods = kubectl.list("pods", namespace=NAMESPACE, selector=PARTS)
    statuses = [status for pod in pods for status in pod["status"]["containerStatuses"]]

    assert sum(pod["metadata"]["name"].startswith("cilium-operator") for pod in pods) >= 1
    assert {status["name"] for status in statuses} >= {AGENT}
    assert [status["name"] for status in statuses if not status["ready"] or status["restartCount"]] == []


def test_agents_say_that_all_is_well(ciliumd: Ciliumd, cluster: Cluster) -> None:
    """`cilium status` on every node: its own state, the API server, and that it reaches the others."""
    for node in cluster.nodes:
        ciliumd.wait_reachable(node)
        text = ciliumd.cilium(node, "status")

        assert "Kubernetes:" in text
        assert any(line.startswith("Cilium:") and " Ok " in line for line in text.splitlines()), text
        assert any(
            line.startswith("KubeProxyReplacement:") and " True " in line for line in text.splitlines()
        ), text


def test_the_cluster_command_line_agrees(ciliumd: Ciliumd, cluster: Cluster) -> None:
    """`cilium status --wait` away from the agents ends with 0 and its picture."""
    text = ciliumd.outer("status", "--wait")
    agents = len(cluster.nodes)

    assert "Cilium:" in text
    assert f"Desired: {agents}, Ready: {agents}/{agents}, Available: {agents}/{agents}" in text


def test_nodes_and_endpoints_are_published(ciliumd: Ciliumd, cluster: Cluster, kubectl: Kubectl) -> None:
    """A CiliumNode per node, a CiliumEndpoint per pod of the cluster's network, and its identity."""
    nodes = kubectl.list("ciliumnodes")
    dns = kubectl.list("pods", namespace=NAMESPACE, selector="k8s-app=kube-dns")[0]
    endpoint = kubectl.get("ciliumendpoint", dns["metadata"]["name"], NAMESPACE)
    identity = str(endpoint["status"]["identity"]["id"])

    assert {node["metadata"]["name"] for node in nodes} == {node.name for node in cluster.nodes}
    assert endpoint["status"]["networking"]["addressing"][0]["ipv4"] == dns["status"]["podIP"]
    assert kubectl.get("ciliumidentity", identity)["security-labels"]["k8s:k8s-app"] == "kube-dns"
