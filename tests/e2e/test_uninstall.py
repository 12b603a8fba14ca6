# SPDX-License-Identifier: Apache-2.0
"""What ciliumd leaves when it goes: nothing.  The last file of the layer."""

import difflib
import json

import pytest

from lab.k8s import pages
from lab.k8s.ciliumd import PARTS
from lab.k8s.cluster import Cluster
from lab.k8s.fingerprint import Installed, fingerprint
from lab.k8s.kubectl import Kubectl
from lab.k8s.people import NAMESPACE
from lab.waiting import eventually

OTHER = "10-other.conflist"
CONFLIST = {
    "cniVersion": "0.4.0",
    "name": "other",
    "plugins": [{"type": "bridge", "ipam": {"type": "host-local"}}],
}
MARKS = ("cilium.io/", "ciliumd")


@pytest.fixture(scope="module")
def gone(installed: Installed) -> Cluster:
    """Another CNI's configuration is set aside; then pods, agents and release go."""
    cluster = installed.ciliumd.cluster
    for node in cluster.nodes:
        directory = node.directory / "etc/cni/net.d"
        (directory / OTHER).write_text(json.dumps(CONFLIST))
        eventually(
            lambda directory=directory: (
                {path.name for path in directory.iterdir()} == {"05-cilium.conflist", f"{OTHER}.cilium_bak"}
            ),
            f"the other configuration is set aside on {node.name}",
        )
    cluster.end_actors()
    cluster.kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found", "--timeout=60s")
    cluster.kubectl("scale", "deploy/coredns", "-n", "kube-system", "--replicas=0")
    cluster.kubectl(
        "wait", "--for=delete", "pod", "-l", "k8s-app=kube-dns", "-n", "kube-system", "--timeout=60s"
    )
    pages.follow(
        installed.ciliumd,
        pages.the("docs/operations.md", pages.CLEAN_UP),
    )
    cluster.kubectl.wait("--for=delete", "pod", "-l", PARTS, namespace="kube-system")
    return cluster


def test_the_nodes_are_as_before(installed: Installed, gone: Cluster) -> None:
    """No link, address, route, filter, pin or file of ours; the other CNI's configuration is back."""
    after = fingerprint(gone)
    changed = {
        (node, what): "\n".join(difflib.ndiff(before.splitlines(), after[node][what].splitlines()))
        for node, kinds in installed.before.items()
        for what, before in kinds.items()
        if before != after[node][what] and what != "cni"
    }

    assert [kinds["cni"].split() for kinds in after.values()] == [[OTHER]] * len(gone.nodes)
    assert changed == {}, "\n".join(f"{node}, {what}:\n{diff}" for (node, what), diff in changed.items())


def test_no_mark_on_the_nodes(gone: Cluster, kubectl: Kubectl) -> None:
    """No taint, annotation or label says that ciliumd was here."""
    for node in kubectl.list("nodes"):
        taints = [taint["key"] for taint in node["spec"].get("taints", [])]
        metadata = node["metadata"]
        names = [*taints, *metadata.get("annotations", {}), *metadata.get("labels", {})]

        assert [name for name in names if any(mark in name for mark in MARKS)] == []


def test_nothing_of_the_release(gone: Cluster, kubectl: Kubectl) -> None:
    """Helm knows no release, and no object of its is left but definitions with the users' policies."""
    left = kubectl(
        "get", "all,configmaps,serviceaccounts,roles,rolebindings", "-n", "kube-system", "-o", "name"
    )
    wide = kubectl("get", "clusterroles,clusterrolebindings", "-o", "name")

    assert json.loads(gone.helm("list", "-A", "-o", "json").stdout) == []
    assert [name for name in (left + wide).split() if "cilium" in name] == []
