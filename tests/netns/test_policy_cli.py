# SPDX-License-Identifier: Apache-2.0
"""
``cilium policy`` on a live agent: what it foretells and suggests is what packets then meet.

Every prediction is tried: the policies are applied, and the same connections made again.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from lab.manifests import Object, cilium_policy, to_ports
from lab.node import Node
from lab.pod import Pod
from lab.waiting import eventually

pytestmark = pytest.mark.netns

EMPIRE = {"endpointSelector": {"matchLabels": {"org": "empire", "class": "deathstar"}}}


@pytest.fixture(scope="module")
def pods(node: Node) -> tuple[Pod, Pod, Pod]:
    """Deathstar, tiefighter and xwing."""
    return (
        node.pod("deathstar", {"org": "empire", "class": "deathstar"}).serve(tcp=(80, 81)),
        node.pod("tiefighter", {"org": "empire", "class": "tiefighter"}),
        node.pod("xwing", {"org": "alliance", "class": "xwing"}),
    )


def _rule1(*ports: int) -> Object:
    rule = {
        "fromEndpoints": [{"matchLabels": {"org": "empire"}}],
        "toPorts": to_ports(*((port, "TCP") for port in ports)),
    }
    return cilium_policy("rule1", {**EMPIRE, "ingress": [rule]})


@pytest.fixture
def rule1(node: Node, pods: tuple[Pod, Pod, Pod]) -> Iterator[None]:
    """The empire may reach the deathstar on 80 and 81."""
    del pods
    node.apply_policy("rule1", _rule1(80, 81))
    yield
    node.delete_policy("rule1")


def _file(path: Path, *documents: Object) -> str:
    path.write_text(yaml.safe_dump_all(documents))
    return str(path)


def _explain(node: Node, source: Pod, destination: Pod, port: int) -> Object:
    words = ("policy", "explain", "--from", source.key, "--to", destination.key, "--port", f"{port}/TCP")
    answer: Object = json.loads(node.agent.cli(*words, "-o", "json", check=False).stdout)
    return answer


@pytest.mark.usefixtures("rule1")
def test_diff_foretells_what_packets_then_meet(
    node: Node, pods: tuple[Pod, Pod, Pod], tmp_path: Path
) -> None:
    """Allowed flows that would be denied, and denied ones that would pass; what stays is not told."""
    deathstar, tiefighter, xwing = pods
    assert tiefighter.reaches(deathstar.address, 80)
    assert tiefighter.reaches(deathstar.address, 81)
    assert not xwing.reaches(deathstar.address, 80)
    same = node.agent.cli("policy", "diff", "-f", _file(tmp_path / "same.yaml", _rule1(80, 81)))
    assert same.stdout == ""

    alliance = {"fromEndpoints": [{"matchLabels": {"org": "alliance"}}]}
    proposed = [_rule1(80), cilium_policy("rebels", {**EMPIRE, "ingress": [alliance]})]
    revision = node.policy_revision()
    answer = node.agent.cli(
        "policy", "diff", "-f", _file(tmp_path / "new.yaml", *proposed), "-o", "json", check=False
    )

    assert answer.returncode == 1, answer.stderr
    found = {
        (change["from"], change["to"], change["port"]): change["proposed-verdict"]
        for change in json.loads(answer.stdout)["changes"]
    }
    assert found == {
        (tiefighter.key, deathstar.key, 81): "denied",
        (xwing.key, deathstar.key, 80): "allowed",
    }
    assert node.policy_revision() == revision, "nothing came into force"
    assert tiefighter.reaches(deathstar.address, 81)

    node.apply_policy("rule1", *proposed)
    assert tiefighter.reaches(deathstar.address, 80)
    assert not tiefighter.reaches(deathstar.address, 81)
    assert xwing.reaches(deathstar.address, 80)


@pytest.mark.usefixtures("rule1")
def test_diff_of_a_policy_that_goes_and_of_one_that_cannot_be_read(
    node: Node, pods: tuple[Pod, Pod, Pod], tmp_path: Path
) -> None:
    """1 with the denied flow, 2 with the reason."""
    deathstar, _, xwing = pods
    assert not xwing.reaches(deathstar.address, 81)
    gone = node.agent.cli("policy", "diff", "--delete", "cnp:default/rule1", check=False)
    assert gone.returncode == 1, gone.stderr
    assert f"{xwing.key} -> {deathstar.key} 81/TCP: DENIED, would be ALLOWED" in gone.stdout
    assert "cnp:default/rule1" in gone.stdout

    bad = cilium_policy("bad", {**EMPIRE, "ingress": [{"toPorts": to_ports((99999, "TCP"))}]})
    refused = node.agent.cli("policy", "diff", "-f", _file(tmp_path / "bad.yaml", bad), check=False)
    assert refused.returncode == 2
    assert "spec.ingress[0].toPorts[0].ports[0].port" in refused.stderr


@pytest.mark.usefixtures("rule1")
def test_the_suggestion_of_explain_lets_that_pass_and_no_more(node: Node, pods: tuple[Pod, Pod, Pod]) -> None:
    """Applied as it is printed."""
    deathstar, _, xwing = pods
    assert not xwing.reaches(deathstar.address, 80)
    answer = _explain(node, xwing, deathstar, 80)
    assert answer["verdict"] == "denied"
    _, ingress = answer["directions"]
    assert ingress["counter"]["row"] >= 1
    assert ingress["counter"]["traffic"] >= 1
    assert not xwing.reaches(deathstar.address, 80)
    _, again = _explain(node, xwing, deathstar, 80)["directions"]
    assert again["counter"]["row"] > ingress["counter"]["row"]
    assert again["counter"]["last-seen"] > ingress["counter"]["last-seen"]
    (document,) = answer["suggestion"]["documents"]

    node.apply_policy("suggested", document)
    try:
        assert _explain(node, xwing, deathstar, 80)["verdict"] == "allowed"
        assert xwing.reaches(deathstar.address, 80)
        assert not xwing.reaches(deathstar.address, 81)
    finally:
        node.delete_policy("suggested")


def test_explain_names_the_deny_rule_that_no_rule_helps_against(
    node: Node, pods: tuple[Pod, Pod, Pod]
) -> None:
    """No document, but the rule."""
    deathstar, _, xwing = pods
    deny = {"fromEndpoints": [{"matchLabels": {"org": "alliance"}}]}
    node.apply_policy("deny", cilium_policy("deny", {**EMPIRE, "ingressDeny": [deny]}))
    try:
        suggestion = _explain(node, xwing, deathstar, 80)["suggestion"]
        assert suggestion["documents"] == []
        assert "cnp:default/deny/ingressDeny/0 denies it" in suggestion["note"]
    finally:
        node.delete_policy("deny")


@pytest.mark.usefixtures("rule1")
def test_selectors_show_the_identities_of_the_empire(node: Node, pods: tuple[Pod, Pod, Pod]) -> None:
    """Those of both its pods; a new pod of the empire is added."""
    deathstar, tiefighter, _ = pods

    def identities() -> set[int]:
        (one,) = [
            one for one in node.agent.cilium_json("policy", "selectors") if "org=empire" in one["selector"]
        ]
        return set(one["identities"])

    known = {one["id"]: one["status"]["identity"]["id"] for one in node.agent.get("endpoint")}
    assert identities() == {known[deathstar.id], known[tiefighter.id]}
    shuttle = node.pod("shuttle", {"org": "empire", "class": "shuttle"})
    try:
        eventually(lambda: len(identities()) == 3, "the shuttle is of the empire", seconds=10.0)
    finally:
        node.remove_pod(shuttle)
    assert "default/rule1" in node.agent.cilium("policy", "selectors")
