# SPDX-License-Identifier: Apache-2.0
"""Drops and verdicts name the policy that made them, live and in explanations."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.manifests import cilium_policy, to_ports
from lab.node import Node
from lab.pod import Pod
from lab.waiting import eventually

pytestmark = pytest.mark.netns


@pytest.fixture(scope="module")
def pods(node: Node) -> tuple[Pod, Pod, Pod]:
    """Deathstar, tiefighter and xwing."""
    return (
        node.pod("deathstar", {"org": "empire", "class": "deathstar"}).serve(tcp=(80,)),
        node.pod("tiefighter", {"org": "empire", "class": "tiefighter"}),
        node.pod("xwing", {"org": "alliance", "class": "xwing"}),
    )


@pytest.fixture(scope="module")
def _rule1(node: Node, pods: tuple[Pod, Pod, Pod]) -> Iterator[None]:
    """The empire may reach the deathstar on 80/TCP."""
    del pods
    node.apply_policy(
        "rule1",
        cilium_policy(
            "rule1",
            {
                "endpointSelector": {"matchLabels": {"org": "empire", "class": "deathstar"}},
                "ingress": [
                    {
                        "fromEndpoints": [{"matchLabels": {"org": "empire"}}],
                        "toPorts": to_ports((80, "TCP")),
                    }
                ],
            },
        ),
    )
    yield
    node.delete_policy("rule1")


def watched(node: Node, output: Path, *arguments: str, act: object, until: str) -> str:
    """What the monitor prints while *act* is done, up to *until*."""
    assert callable(act)
    with node.agent.monitor(output, *arguments):

        def seen() -> str:
            act()
            text = output.read_text()
            return text if until in text else ""

        return eventually(seen, f"the monitor prints {until!r}", seconds=10.0)


@pytest.mark.usefixtures("_rule1")
def test_drop_names_the_policy(node: Node, pods: tuple[Pod, Pod, Pod], tmp_path: Path) -> None:
    """A packet that the default deny of a policy took is shown with that policy's name."""
    deathstar, _, xwing = pods
    text = watched(
        node,
        tmp_path / "monitor",
        "--type",
        "drop",
        act=lambda: xwing.reaches(deathstar.address, 80),
        until="default/rule1",
    )
    (line, *_) = [line for line in text.splitlines() if "default/rule1" in line]

    assert "xx drop (Policy denied)" in line
    assert f"to endpoint {deathstar.id}" in line
    assert f"{xwing.address}:" in line
    assert f"{deathstar.address}:80 tcp SYN" in line


@pytest.mark.usefixtures("_rule1")
def test_verdict_names_the_rule_that_allows(node: Node, pods: tuple[Pod, Pod, Pod], tmp_path: Path) -> None:
    """An allowed connection is reported once, with its policy, as JSON."""
    deathstar, tiefighter, _ = pods
    text = watched(
        node,
        tmp_path / "monitor",
        "--type",
        "policy-verdict",
        "-j",
        act=lambda: tiefighter.reaches(deathstar.address, 80),
        until="rule1",
    )
    (event, *_) = [json.loads(line) for line in text.splitlines() if "rule1" in line]

    assert event["type"] == "policy-verdict"
    assert "rule1" in json.dumps(event)


@pytest.mark.usefixtures("_rule1")
def test_traces_show_where_packets_went(node: Node, pods: tuple[Pod, Pod, Pod], tmp_path: Path) -> None:
    """A new connection leaves a trace to its endpoint."""
    deathstar, tiefighter, _ = pods
    text = watched(
        node,
        tmp_path / "monitor",
        "--type",
        "trace",
        act=lambda: tiefighter.reaches(deathstar.address, 80),
        until=f"-> endpoint {deathstar.id}",
    )

    assert f"{tiefighter.address}:" in text


@pytest.mark.usefixtures("_rule1")
def test_drops_are_counted_by_reason_and_direction(node: Node, pods: tuple[Pod, Pod, Pod]) -> None:
    """The metric of policy drops on ingress grows with each refused packet."""
    deathstar, _, xwing = pods

    def dropped() -> float:
        return sum(
            row["value"]
            for row in node.agent.get("metrics")
            if row["name"] == "cilium_drop_count_total"
            and row["labels"] == {"reason": "Policy denied", "direction": "INGRESS"}
        )

    before = dropped()
    assert not xwing.reaches(deathstar.address, 80)
    assert dropped() > before


@pytest.mark.usefixtures("_rule1")
def test_explain_agrees_with_the_packets(node: Node, pods: tuple[Pod, Pod, Pod]) -> None:
    """``policy explain`` says what happened, and which policy decides."""
    for pod, code in ((pods[1], 0), (pods[2], 1)):
        answer = node.agent.cli(
            "policy", "explain", "--from", pod.key, "--to", pods[0].key, "--dport", "80/TCP", check=False
        )

        assert answer.returncode == code, answer.stdout + answer.stderr
        assert "rule1" in answer.stdout
        assert pod.reaches(pods[0].address, 80) == (code == 0)
