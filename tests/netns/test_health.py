# SPDX-License-Identifier: Apache-2.0
"""The health endpoint lives, dies and comes back; nodes see each other, and what stands between them."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.cluster import Cluster
from lab.node import Node
from lab.waiting import eventually
from lab.world import World

pytestmark = pytest.mark.netns

HEALTH = "ciliumd.cli.health"
SECONDS = 30.0
PROBED = {"enable-health-checking": "true", "enable-endpoint-health-checking": "true"}


@pytest.fixture(scope="module")
def node(world: World) -> Iterator[Node]:
    """A node that looks after its health."""
    with Node(world, options=PROBED) as node:
        yield node.start()


def report(node: Node, *arguments: str) -> dict[str, Any]:
    """What ``cilium-health status`` says, by node."""
    answer = json.loads(node.agent.cli("status", "-o", "json", *arguments, program=HEALTH).stdout)
    return {one["name"]: one for one in answer["nodes"]}


def outcomes(node: dict[str, Any]) -> dict[str, str]:
    """Status of each probe of a node's primary addresses."""
    return {
        f"{side} {protocol}": node[side]["primary-address"][protocol]["status"]
        for side in ("host", "health-endpoint")
        if node[side] is not None
        for protocol in ("icmp", "http")
    }


def endpoint(node: Node) -> dict[str, Any]:
    """The health endpoint as the agent shows it."""
    (found,) = [
        one
        for one in node.agent.get("endpoint")
        if one["status"]["external-identifiers"].get("container-name") == "cilium-health"
    ]
    return dict(found)


def address(node: Node) -> str:
    """Where it is."""
    return str(endpoint(node)["status"]["networking"]["addressing"][0]["ipv4"])


def process(node: Node) -> int:
    """The process behind it."""
    return int(Path(endpoint(node)["status"]["external-identifiers"]["netns"]).parts[2])


def well(node: Node) -> bool:
    """Whether every probe of the node's own addresses is answered."""
    return set(outcomes(report(node, "--probe")[node.name]).values()) == {""}


def test_a_node_that_is_ready_reaches_itself(node: Node) -> None:
    """Ready means that packets passed: device, identity, probes, status line."""
    links = node.netns.links()
    found = endpoint(node)

    assert links["lxc_health"]["operstate"] == "UP"
    assert found["status"]["identity"] == {"id": 4, "labels": ["reserved:health"]}
    assert found["status"]["networking"]["interface-name"] == "lxc_health"
    assert outcomes(report(node, "--probe")[node.name]) == {
        "host icmp": "",
        "host http": "",
        "health-endpoint icmp": "",
        "health-endpoint http": "",
    }
    text = node.agent.cilium("status")
    assert "Cilium health daemon:    Ok\n" in text
    assert "Cluster health:          1/1 reachable   (20" in text


def test_the_process_has_no_rights_over_the_node(node: Node) -> None:
    """It is root of a user namespace of its own, and of nothing else."""
    pid = process(node)
    own, theirs = Path("/proc/self/ns/user"), Path(f"/proc/{pid}/ns/user")
    mapped = Path(f"/proc/{pid}/uid_map").read_text()

    assert theirs.readlink() != own.readlink()
    assert mapped == ""
    assert int(Path(f"/proc/{pid}/status").read_text().split("VmRSS:")[1].split()[0]) < 20_000


def test_a_process_that_dies_is_replaced(node: Node) -> None:
    """With its namespace and device; the address stays."""
    before, where = process(node), address(node)
    os.kill(before, signal.SIGKILL)
    eventually(
        lambda: (
            any(one["status"]["identity"]["id"] == 4 for one in node.agent.get("endpoint"))
            and process(node) != before
        ),
        "another process",
        seconds=SECONDS,
    )
    assert address(node) == where
    eventually(lambda: well(node), "the new one answers", seconds=SECONDS)
    assert "health.endpoint_lost" in node.agent.log_text()


def test_an_endpoint_that_is_deleted_is_made_again(node: Node) -> None:
    """Nobody can take it away for good."""
    before, number = process(node), endpoint(node)["id"]
    node.agent.cilium("endpoint", "delete", str(number))
    eventually(
        lambda: (
            any(one["status"]["identity"]["id"] == 4 for one in node.agent.get("endpoint"))
            and process(node) != before
        ),
        "it is there again",
        seconds=SECONDS,
    )
    eventually(lambda: well(node), "and answers", seconds=SECONDS)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_restart_keeps_the_address_and_leaves_no_process(node: Node, number: int) -> None:
    """However the agent ends."""
    before, where = process(node), address(node)
    node.agent.stop(number)
    eventually(lambda: not Path(f"/proc/{before}").exists(), "its process has ended", seconds=SECONDS)
    node.agent.start()

    assert address(node) == where
    assert well(node)
    assert "endpoint.lost" not in node.agent.log_text()


def test_a_health_endpoint_out_of_reach_is_told(node: Node) -> None:
    """Its device down: the node still answers, the endpoint does not."""
    node.netns.ip("link", "set", "lxc_health", "down")
    try:
        found = outcomes(report(node, "--probe")[node.name])
        assert (found["host icmp"], found["host http"]) == ("", "")
        assert found["health-endpoint icmp"]
        assert found["health-endpoint http"]
        assert "0/1 reachable" in node.agent.cilium("status")
        metrics = {row["name"]: row["value"] for row in node.agent.cilium_json("metrics", "list")}
        assert (metrics["cilium_unreachable_nodes"], metrics["cilium_unreachable_health_endpoints"]) == (0, 1)
    finally:
        node.netns.ip("link", "set", "lxc_health", "up")
    eventually(lambda: well(node), "it is reached again", seconds=SECONDS)


def test_runtime_configuration_is_written(node: Node) -> None:
    """What clients of Cilium read from the state directory."""
    path = Path(node.agent.options["state-dir"]) / "agent-runtime-config.json"
    found = json.loads(path.read_text())
    assert found["EnableHealthChecking"] is True
    assert found["EnableEndpointHealthChecking"] is True
    assert found["EncryptNode"] is False


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two nodes that publish their health endpoints to each other."""
    with Cluster(options={**PROBED, "health-check-interval": "2"}) as cluster:
        cluster.start()
        for node in cluster.nodes:
            cluster.apply(f"node-{node.name}", _published(cluster, node))
        yield cluster


def _published(cluster: Cluster, node: Node) -> dict[str, Any]:
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNode",
        "metadata": {"name": node.name},
        "spec": {
            "addresses": [
                {"type": "InternalIP", "ip": node.address},
                {"type": "CiliumInternalIP", "ip": cluster.router(node)},
            ],
            "ipam": {"podCIDRs": [node.pod_cidr]},
            "health": {"ipv4": address(node)},
        },
    }


def test_nodes_reach_each_other_and_each_others_endpoints(cluster: Cluster) -> None:
    """All eight probes on both nodes: the underlay, and the tunnel."""
    for node in cluster.nodes:
        eventually(
            lambda node=node: (
                [set(outcomes(one).values()) for one in report(node, "--probe").values()] == [{""}, {""}]
            ),
            f"{node.name} reaches both nodes and both endpoints",
            seconds=SECONDS,
        )
        # The agent's own rounds are seconds apart: the last one may be older than what it knows of the other.
        eventually(
            lambda node=node: len([one for one in report(node).values() if one["health-endpoint"]]) == 2,
            f"{node.name} has asked both endpoints unasked",
            seconds=SECONDS,
        )
        assert "Cluster health:          2/2 reachable" in node.agent.cilium("status")
        assert f"{node.name} (localhost):" in node.agent.cli("status", program=HEALTH).stdout
        assert len(node.agent.cilium_json("node", "list")) == 2


def test_tunnels_of_other_nodes_are_listed(cluster: Cluster) -> None:
    """The other node's pod network, and whose address leads there."""
    one, other = cluster.nodes
    assert one.agent.cilium("bpf", "tunnel", "list").splitlines()[1:] == [
        f"{other.pod_cidr}   {other.address}"
    ]
    entries = {row["cidr"]: row for row in one.agent.cilium_json("ip", "list")}
    assert entries[f"{address(other)}/32"]["identity"] == 4
    assert entries[f"{address(other)}/32"]["hostIP"] == other.address


def test_a_node_that_is_gone_is_missed_and_found_again(cluster: Cluster) -> None:
    """Counted and named while it is away; its own trouble does not make this node sick."""
    one, other = cluster.nodes
    other.agent.stop(signal.SIGKILL)
    other.netns.ip("link", "set", "eth0", "down")
    try:
        eventually(
            lambda: "1/2 reachable" in one.agent.cilium("status"), "the other is missed", seconds=SECONDS
        )
        assert f"no answer from {other.name}" in one.agent.cilium("status")
        assert one.agent.healthy()
        assert set(outcomes(report(one)[other.name]).values()) & {"Connection timed out", "No route to host"}
    finally:
        other.netns.ip("link", "set", "eth0", "up")
        other.netns.ip("route", "replace", "default", "via", other.gateway, "src", other.address)
        other.agent.start()
    eventually(lambda: "2/2 reachable" in one.agent.cilium("status"), "it is back", seconds=SECONDS)
