# SPDX-License-Identifier: Apache-2.0
"""NetworkPolicies whose ``ipBlock`` cuts through pods of the same labels, on this node and on another one."""

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_network
from typing import Any, Final

import pytest

from lab import manifests
from lab.cluster import Cluster, joined
from lab.node import Node
from lab.pod import Pod
from lab.waiting import eventually

pytestmark = pytest.mark.netns

SERVER: Final = {"matchLabels": {"app": "server"}}
WEB: Final = {"app": "web"}


@pytest.fixture(scope="module", params=["tunnel", "routed"])
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """Two nodes, agents running; routed, the network between them knows the way to pods."""
    with joined(request.param) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def here(cluster: Cluster) -> Node:
    """The server's node."""
    return cluster.nodes[0]


@pytest.fixture(scope="module")
def server(cluster: Cluster, here: Node) -> Pod:
    """Judges who asks, and asks itself."""
    six = bool(here.agent.options.get("pod-cidr-ipv6"))
    return cluster.pod(here, "server", {"app": "server"}).serve(tcp=(80,), six=six)


@pytest.fixture(scope="module")
def pods(cluster: Cluster, server: Pod) -> dict[str, Pod]:
    """Pods of the same labels: two beside the server, two on the other node."""
    six = bool(cluster.nodes[0].agent.options.get("pod-cidr-ipv6"))
    return {
        f"{name}-{number}": cluster.pod(node, f"{name}-{number}", WEB).serve(tcp=(80,), six=six)
        for name, node in zip(("near", "far"), cluster.nodes, strict=True)
        for number in (1, 2)
    }


@contextmanager
def in_force(node: Node, *peers: dict[str, Any], section: str = "ingress") -> Iterator[None]:
    """Only these may come in to the server, or be gone to."""
    side = "from" if section == "ingress" else "to"
    spec = {
        "podSelector": SERVER,
        "policyTypes": [section.capitalize()],
        section: [{side: list(peers)}],
    }
    node.apply_policy("blocks", manifests.network_policy("blocks", spec))
    try:
        yield
    finally:
        node.delete_policy("blocks")


def block(cidr: str, *excepts: str) -> dict[str, Any]:
    """A peer."""
    return {"ipBlock": {"cidr": cidr, **({"except": list(excepts)} if excepts else {})}}


def only(pod: Pod) -> dict[str, Any]:
    """The block of one pod's address."""
    return block(f"{pod.address}/32")


def reaching(pods: dict[str, Pod], server: Pod) -> set[str]:
    """Who gets an answer of the server."""
    return {name for name, pod in pods.items() if pod.reaches(server.address, 80)}


def reached(pods: dict[str, Pod], server: Pod) -> set[str]:
    """Who answers the server."""
    return {name for name, pod in pods.items() if server.reaches(pod.address, 80)}


@pytest.mark.parametrize("name", ["near-1", "far-2"])
def test_one_of_the_same_labels_is_let_in(here: Node, server: Pod, pods: dict[str, Pod], name: str) -> None:
    """By its address alone, wherever it is; and out to it, the other way round."""
    with in_force(here, only(pods[name])):
        assert reaching(pods, server) == {name}
    with in_force(here, only(pods[name]), section="egress"):
        assert reached(pods, server) == {name}
    assert reaching(pods, server) == set(pods)


def test_an_exception_is_kept_out(here: Node, server: Pod, pods: dict[str, Pod]) -> None:
    """Unless another peer names it."""
    everybody, out = "10.11.0.0/16", pods["far-1"]
    with in_force(here, block(everybody, f"{out.address}/32")):
        assert reaching(pods, server) == set(pods) - {"far-1"}
    with in_force(here, block(everybody, f"{out.address}/32"), only(out)):
        assert reaching(pods, server) == set(pods)
    with in_force(here, block("0.0.0.0/0", everybody)):
        assert reaching(pods, server) == set()


# Where pods have both.
@pytest.mark.parametrize("cluster", ["tunnel"], indirect=True)
def test_the_other_family_is_no_part_of_the_block(here: Node, server: Pod, pods: dict[str, Pod]) -> None:
    """A pod in a block of IPv4 is not let in by its IPv6 address, and the other way round."""
    one = pods["far-1"]
    with in_force(here, only(one)):
        assert one.reaches(server.address, 80)
        assert not one.reaches(server.address6, 80)
    with in_force(here, block(f"{one.address6}/128")):
        assert one.reaches(server.address6, 80)
        assert not one.reaches(server.address, 80)


def test_revoked_block_stops_what_is_open(here: Node, server: Pod, pods: dict[str, Pod]) -> None:
    """A connection of a pod that a block let in, once it is in an exception; one of its twin goes on."""
    near, far = pods["near-1"], pods["far-2"]
    network = ip_network(f"{near.address}/32")
    with in_force(here, block("10.11.0.0/16")):
        kept = {
            pod: pod.outside.call("tcp_open", address=server.address, port=80)["handle"]
            for pod in (near, far)
        }
        here.apply_policy(
            "blocks",
            manifests.network_policy(
                "blocks",
                {"podSelector": SERVER, "ingress": [{"from": [block("10.11.0.0/16", str(network))]}]},
            ),
        )
        assert far.outside.call("tcp_say", handle=kept[far])["outcome"] == "answered"
        assert near.outside.call("tcp_say", handle=kept[near])["outcome"] != "answered"


def numbers(node: Node) -> dict[str, tuple[int, int]]:
    """Identity, and what it is judged by, of every address."""
    rows = node.agent.get("map/cilium_ipcache_v1")
    return {row["key"]["addr"]: (row["value"]["identity"], row["value"].get("judged", 0)) for row in rows}


def test_a_restart_changes_nothing(here: Node, server: Pod, pods: dict[str, Pod]) -> None:
    """Numbers of parts are kept, and so is who is told."""
    with in_force(here, only(pods["near-2"]), only(pods["far-1"])):
        named = {pods["near-2"].address, pods["far-1"].address}

        def settled() -> dict[str, tuple[int, int]] | None:
            # Parts of the policy before this one go once nobody is under it any more.
            found = numbers(here)
            return found if {addr for addr, (_, judged) in found.items() if judged} == named else None

        before = eventually(settled, "two pods are judged by their addresses")
        here.agent.restart(signal.SIGKILL)
        eventually(here.agent.healthy, "the agent is back")
        assert reaching(pods, server) == {"near-2", "far-1"}
        assert numbers(here) == before


def test_explain_judges_by_address(here: Node, server: Pod, pods: dict[str, Pod]) -> None:
    """The command line says what packets meet, of pods of the same labels."""

    def decision(pod: Pod) -> str:
        words = ("policy", "explain", "--from", pod.key, "--to", server.key, "--dport", "80", "-o", "json")
        return str(json.loads(here.agent.cli(*words, check=False).stdout)["verdict"])

    with in_force(here, only(pods["near-1"]), only(pods["far-1"])):
        assert [decision(pods[name]) for name in ("near-1", "near-2", "far-1", "far-2")] == [
            "allowed",
            "denied",
            "allowed",
            "denied",
        ]
