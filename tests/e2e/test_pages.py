# SPDX-License-Identifier: Apache-2.0
"""
The documentation's commands do on a cluster what the pages say, and its objects are accepted.

Installing and uninstalling are blocks too: the layer itself installs and uninstalls by them.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from lab.k8s import pages
from lab.k8s.ciliumd import CHART, NAMESPACE, RELEASE, Ciliumd
from lab.k8s.cluster import Cluster
from lab.k8s.kubectl import Kubectl, Object
from unit.docs.pages import Block, blocks
from unit.docs.pages import pages as all_pages

# What a reader of a block looks for, in each of its commands' words.
SOUGHT = {
    "kubectl get nodes": ("node1", "Cluster health:", "node2", "ciliumendpoint"),
    "kubectl -n kube-system exec daemonset/cilium -c cilium-agent -- cilium status --verbose": (
        "KubeProxyReplacement",
    ),
}
UPGRADE = "helm upgrade cilium charts/ciliumd --namespace kube-system --reset-then-reuse-values"
ROLL_BACK = "helm rollback cilium"
APP_ARMOR = "helm upgrade cilium charts/ciliumd --namespace kube-system --reuse-values --set securityContext"
# Blocks that change what is installed, each followed by the part of the layer that says so.
CHANGING = (
    ("README.md", "helm install"),  # conftest: how the layer installs
    ("docs/install.md", pages.BESIDE_KUBE_PROXY),
    ("docs/install.md", APP_ARMOR),  # test_profile_of_apparmor_is_named
    ("docs/operations.md", UPGRADE),  # test_upgrade_and_roll_back
    ("docs/operations.md", ROLL_BACK),
    ("docs/operations.md", pages.CLEAN_UP),  # test_uninstall
)
# Each of their sections is a cluster of its own: tests/datapath/test_services_page.py makes those of the one,
# tests/unit/docs/test_policy_page.py those of the other.
APART = {"services.md", "policy.md"}
LOOKING = [one for one in pages.shown() if all(words[0] == "kubectl" for words in one.commands)]


def documents() -> list[tuple[Block, Object]]:
    """Every block of YAML of the pages, once for each document in it."""
    return [
        (block, one)
        for page in all_pages()
        if page.name not in APART
        for block in blocks(page)
        if block.language == "yaml"
        for one in yaml.safe_load_all(block.text)
    ]


def objects() -> list[tuple[Block, Object]]:
    """Every object of the pages that users apply; a file of values is none."""
    return [(block, one) for block, one in documents() if "kind" in one]


def values() -> list[Block]:
    """Every file of values of the pages."""
    return [block for block, one in documents() if "kind" not in one]


def test_readers_look_at_what_the_pages_show() -> None:
    """No block is sought in that is gone."""
    assert SOUGHT.keys() <= {block.first for block in LOOKING}


def test_every_command_is_followed_somewhere() -> None:
    """A command of a page that is in no block which the layer follows needs a place here."""
    followed = {words for page, begins in CHANGING for words in pages.the(page, begins).commands}
    followed |= {words for block in LOOKING for words in block.commands}

    assert {words for block in pages.shown() for words in block.commands} <= followed


@pytest.mark.parametrize("block", LOOKING, ids=str)
def test_looking(ciliumd: Ciliumd, block: pages.Shown) -> None:
    """Every command of a block that only looks ends well, and says what a reader looks for."""
    said = pages.follow(ciliumd, block)

    assert all(text or pages.FOLLOWS in words for text, words in zip(said, block.commands, strict=True))
    for text, sought in zip(said, SOUGHT.get(block.first, ()), strict=False):
        assert sought in text


def test_profile_of_apparmor_is_named(ciliumd: Ciliumd) -> None:
    """The API server takes what the command would change; here, without AppArmor, no agent would start."""
    (said,) = pages.follow(ciliumd, pages.the("docs/install.md", APP_ARMOR), "--dry-run=server")

    assert "appArmorProfile: {type: Localhost, localhostProfile: ciliumd-agent}" in said


def test_upgrade_and_roll_back(ciliumd: Ciliumd, cluster: Cluster) -> None:
    """The commands, with a change between them that replaces every agent, forth and back."""
    agents = [ciliumd.incarnation(node) for node in cluster.nodes]
    said = pages.follow(ciliumd, pages.the("docs/operations.md", UPGRADE))
    assert "ciliumd" in said[2]

    change = ("--reuse-values", "--set-string", "podAnnotations.example\\.org/rolled=1")
    cluster.helm("upgrade", RELEASE, str(CHART), "-n", NAMESPACE, *change)
    ciliumd.wait()
    changed = [ciliumd.incarnation(node) for node in cluster.nodes]
    pages.follow(ciliumd, pages.the("docs/operations.md", ROLL_BACK))
    ciliumd.wait()
    after = [ciliumd.incarnation(node) for node in cluster.nodes]

    assert not set(agents) & set(changed)
    assert not set(changed) & set(after)
    assert "example.org/rolled" not in ciliumd.agent(cluster.nodes[0])["metadata"].get("annotations", {})


@pytest.fixture
def applied(kubectl: Kubectl) -> Iterator[list[Object]]:
    """The objects of all pages, as long as the test runs."""
    found = [one for _, one in objects()]
    kubectl.apply(*found)
    yield found
    for one in found:
        metadata = one["metadata"]
        kubectl.delete(one["kind"], metadata["name"], namespace=metadata.get("namespace", "default"))


def test_objects_are_taken(applied: list[Object], ciliumd: Ciliumd, cluster: Cluster) -> None:
    """The API server takes them, the operator calls every policy valid, and nodes still reach each other."""
    policies = [
        one for one in applied if one["kind"].endswith("NetworkPolicy") and "cilium" in one["apiVersion"]
    ]
    assert len(policies) >= 2
    for one in policies:
        metadata = one["metadata"]
        ciliumd.kubectl.wait(
            "--for=condition=Valid",
            f"{one['kind'].lower()}/{metadata['name']}",
            namespace=metadata.get("namespace", "default"),
        )
    for node in cluster.nodes:
        ciliumd.wait_reachable(node)


@pytest.mark.parametrize("block", values(), ids=str)
def test_values_are_taken(bare: Cluster, block: Block, tmp_path: Path) -> None:
    """Helm and the API server take what the chart makes of them."""
    file = tmp_path / "values.yaml"
    file.write_text(block.text)
    rendered = bare.helm("template", RELEASE, str(CHART), "-n", NAMESPACE, "-f", str(file)).stdout
    taken = bare.kubectl("apply", "--dry-run=server", "-n", NAMESPACE, "-f", "-", stdin=rendered)

    assert "daemonset.apps/cilium" in taken
