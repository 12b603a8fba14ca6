# SPDX-License-Identifier: Apache-2.0
"""Policies that select nodes by labels, between two nodes: tunnelled in both families, and routed."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from lab import manifests
from lab.cluster import Cluster, joined
from lab.node import Node
from lab.pod import Pod
from lab.waiting import eventually

pytestmark = pytest.mark.netns

OPTION: Final = {"enable-node-selector-labels": "true"}
EDGE, CORE = {"role": "edge"}, {"role": "core"}
PORT = 7000


@pytest.fixture(scope="module", params=["tunnel", "routed"])
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """Two nodes, agents running; routed, the network between them knows the way to pods."""
    with joined(request.param, options=OPTION) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def near(cluster: Cluster) -> Node:
    """The node that asks."""
    return cluster.nodes[0]


@pytest.fixture(scope="module")
def far(cluster: Cluster) -> Node:
    """The server's node, where something of the node itself answers as well."""
    node = cluster.nodes[1]
    node.outside.call("serve_tcp", name="far", port=PORT)
    return node


@pytest.fixture(scope="module")
def client(cluster: Cluster, near: Node) -> Pod:
    """A pod beside the node that asks; it claims to be a node of the edge."""
    return cluster.pod(near, "client", {"app": "client", "role": "edge"})


@pytest.fixture(scope="module")
def server(cluster: Cluster, far: Node) -> Pod:
    """Answers on the other node."""
    six = bool(cluster.nodes[0].agent.options.get("pod-cidr-ipv6"))
    return cluster.pod(far, "server", {"app": "server"}).serve(tcp=(80,), **({"six": True} if six else {}))


@pytest.fixture(autouse=True)
def labelled(cluster: Cluster, near: Node, far: Node) -> Iterator[None]:
    """Neither node is anything."""
    yield
    for node in cluster.nodes:
        cluster.label(node, {})
    for node in cluster.nodes:
        eventually(lambda node=node: not _roles(node), f"{node.name} has forgotten the labels of nodes")


@pytest.fixture
def edge_let_in(cluster: Cluster, near: Node, far: Node, server: Pod) -> Iterator[None]:
    """Nodes of the edge, and no others but its own, reach the server; the near one is of the edge."""
    cluster.label(near, EDGE)
    far.apply_policy("nodes", policy("ingress", {"matchLabels": EDGE}))
    eventually(lambda: asks(near, server), "a node of the edge is let in")
    yield
    far.delete_policy("nodes")


def _roles(node: Node) -> list[str]:
    known = node.agent.get("identity")
    return [label for one in known for label in one["labels"] if label.startswith("node:role=")]


def policy(section: str, nodes: dict[str, Any], *, app: str = "server", **more: Any) -> manifests.Object:
    """A policy with one rule for the nodes that a selector means."""
    field = "fromNodes" if section.startswith("ingress") else "toNodes"
    return manifests.cilium_policy(
        "nodes",
        {"endpointSelector": {"matchLabels": {"app": app}}, section: [{field: [nodes]}], **more},
    )


def outcomes(node: Node, pod: Pod) -> list[bool]:
    """Whether a node reaches the port of a pod, by each family it has."""
    return [
        node.outside.call("tcp_connect", address=address, port=80, timeout=0.5)["outcome"] == "answered"
        for address in (pod.address, pod.address6)
        if address
    ]


def asks(node: Node, pod: Pod) -> bool:
    """Whether it does by all of them."""
    return all(outcomes(node, pod))


def is_shut(node: Node, pod: Pod) -> bool:
    """Whether it does by none."""
    return not any(outcomes(node, pod))


def told_of(at: Node, asking: Node, pod: Pod, output: Path) -> dict[str, Any]:
    """What is told of the verdict on a connection of *asking* to *pod*."""
    with at.agent.monitor(output, "--type", "policy-verdict", "-j"):

        def seen() -> dict[str, Any] | None:
            asks(asking, pod)
            events = [json.loads(line) for line in output.read_text().splitlines() if line.startswith("{")]
            return next((one for one in events if "nodes" in json.dumps(one)), None)

        return dict(eventually(seen, "the monitor tells of the verdict", seconds=10.0))


def number_of(at: Node, other: Node) -> int:
    """The identity that one node has for the other."""
    name = f"node:io.cilium.k8s.node.name={other.name}"
    (number,) = (one["id"] for one in at.agent.get("identity") if name in one["labels"])
    return int(number)


@pytest.mark.usefixtures("edge_let_in")
def test_a_pod_is_reached_by_nodes_that_a_policy_selects(
    cluster: Cluster, near: Node, far: Node, client: Pod, server: Pod
) -> None:
    """Not by others, nor by a pod that has such a label; labels that change count for what is open, too."""
    assert not client.reaches(server.address, 80)
    assert asks(far, server), "the node itself reaches its pods"
    kept = near.outside.call("tcp_open", address=server.address, port=80)
    assert near.outside.call("tcp_say", handle=kept["handle"], timeout=5.0)["outcome"] == "answered"

    cluster.label(near, CORE)
    eventually(lambda: is_shut(near, server), "a node that is no more of the edge is not")
    said = near.outside.call("tcp_say", handle=kept["handle"], timeout=1.0)
    near.outside.call("tcp_stop", handle=kept["handle"])
    assert said["outcome"] != "answered"

    cluster.label(near, EDGE)
    eventually(lambda: asks(near, server), "it is again")


def test_a_pod_is_not_reached_by_nodes_that_a_policy_excludes(
    cluster: Cluster, near: Node, far: Node, client: Pod, server: Pod
) -> None:
    """Also its own node, if that is what is written."""
    cluster.label(near, EDGE)
    everybody = {"ingress": [{"fromEntities": ["all"]}]}
    far.apply_policy("nodes", policy("ingressDeny", {"matchLabels": EDGE}, **everybody))
    try:
        eventually(lambda: is_shut(near, server), "a node of the edge is kept out")
        assert client.reaches(server.address, 80)
        assert asks(far, server)
        cluster.label(far, EDGE)
        eventually(lambda: is_shut(far, server), "so is the node itself")
        cluster.label(near, CORE)
        eventually(lambda: asks(near, server), "what is no more of the edge comes in")
    finally:
        far.delete_policy("nodes")


@pytest.mark.parametrize("section", ["egress", "egressDeny"])
def test_a_pod_reaches_the_nodes_it_may(
    cluster: Cluster, near: Node, far: Node, client: Pod, section: str
) -> None:
    """By the node's address and by its router's."""
    addresses = [far.address]
    if cluster.nodes[0].agent.options["routing-mode"] == "tunnel":
        addresses.append(cluster.router(far))
    cluster.label(far, EDGE)
    everywhere = {"egress": [{"toEntities": ["all"]}]} if section == "egressDeny" else {}
    near.apply_policy("nodes", policy(section, {"matchLabels": EDGE}, app="client", **everywhere))
    try:
        for labels, reached in ((EDGE, section == "egress"), (CORE, section != "egress")):
            cluster.label(far, labels)
            for address in addresses:
                eventually(
                    lambda address=address, reached=reached: client.reaches(address, PORT) is reached,
                    f"{address} of a node with {labels} is reached: {reached}",
                )
    finally:
        near.delete_policy("nodes")


@pytest.mark.usefixtures("edge_let_in")
def test_the_next_agent_goes_on_with_the_same_numbers(
    cluster: Cluster, near: Node, far: Node, client: Pod, server: Pod
) -> None:
    """Under traffic: a connection that a policy on labels let in goes on, and nobody else comes in."""
    before = number_of(far, near)
    kept = near.outside.call("tcp_open", address=server.address, port=80)
    far.agent.restart(signal.SIGKILL)
    said = near.outside.call("tcp_say", handle=kept["handle"], timeout=5.0)
    near.outside.call("tcp_stop", handle=kept["handle"])
    assert said["outcome"] == "answered"
    assert number_of(far, near) == before
    assert asks(near, server)
    assert not client.reaches(server.address, 80)


@pytest.mark.usefixtures("edge_let_in")
def test_labels_that_changed_while_no_agent_ran_count_at_once(
    cluster: Cluster, near: Node, far: Node, server: Pod
) -> None:
    """The next agent does not go by what the maps remember."""
    far.agent.stop(signal.SIGKILL)
    cluster.label(near, CORE)
    far.agent.start()
    assert is_shut(near, server)


@pytest.mark.usefixtures("edge_let_in")
def test_clients_are_told_of_the_labels(
    cluster: Cluster, near: Node, far: Node, server: Pod, tmp_path: Path
) -> None:
    """Identities, addresses, flows, and why a node is let in."""
    number = number_of(far, near)
    assert number >> 24 == 2
    for words in (("identity", "list"), ("identity", "get", str(number)), ("ip", "list")):
        assert "node:role=edge" in far.agent.cilium(*words)
    rows = far.agent.cilium("bpf", "ipcache", "list").splitlines()
    assert any(near.address in row and str(number) in row for row in rows)
    explained = far.agent.cilium(
        "policy", "explain", "--from", near.address, "--to", "default/server", "--dport", "80"
    )
    assert "ALLOWED" in explained
    assert "cnp:default/nodes/ingress/0" in explained
    event = told_of(far, near, server, tmp_path / "monitor")
    assert number in (event["srcLabel"], event.get("identity"))
