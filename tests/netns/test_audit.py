# SPDX-License-Identifier: Apache-2.0
"""Policies that only tell what they would drop, for a pod or for a node; and answers to what is dropped."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from lab.manifests import cilium_policy
from lab.node import Node
from lab.pod import Pod
from lab.traffic import Flood, Flow
from lab.waiting import PATIENCE, eventually
from lab.world import World
from netns.policycast import in_force

pytestmark = pytest.mark.netns

CIDR: Final = "fd00:11::/112"
SERVER: Final = {"matchLabels": {"app": "server"}}
CLIENT: Final = {"matchLabels": {"app": "client"}}
CLOSED: Final = cilium_policy("closed", {"endpointSelector": SERVER, "ingress": [{}]})
MUTE: Final = cilium_policy("mute", {"endpointSelector": CLIENT, "egress": [{}]})
DENIED: Final = cilium_policy(
    "denied",
    {
        "endpointSelector": SERVER,
        "enableDefaultDeny": {"ingress": False},
        "ingressDeny": [{"fromEntities": ["all"]}],
    },
)
# At once: before the kernel sends a SYN again.
AT_ONCE: Final = 0.5
RATE: Final = 500
PORT: Final = 9000


@pytest.fixture(scope="module")
def node(world: World) -> Iterator[Node]:
    """A node whose pods have both families and are told what their policies drop."""
    options = {"enable-ipv6": "true", "pod-cidr-ipv6": CIDR, "policy-deny-response": "icmp"}
    with Node(world, name="audit", options=options) as node:
        yield node.start()


@pytest.fixture(scope="module")
def server(node: Node) -> Pod:
    """A pod that answers on port 80, both families."""
    return node.pod("server", {"app": "server"}).serve(tcp=(80,), udp=(80,), six=True)


@pytest.fixture(scope="module")
def client(node: Node) -> Pod:
    """A pod that asks."""
    return node.pod("client", {"app": "client"})


def set_audit(node: Node, pod: Pod, word: str) -> None:
    """As an operator does it."""
    told = node.agent.cilium("endpoint", "config", str(pod.id), f"PolicyAuditMode={word}")
    assert told == f"Endpoint {pod.id} configuration updated successfully\n"


@contextmanager
def audited(node: Node, pod: Pod) -> Iterator[None]:
    """Within this block."""
    set_audit(node, pod, "Enabled")
    try:
        yield
    finally:
        set_audit(node, pod, "Disabled")


def opened(client: Pod, server: Pod) -> dict[str, int]:
    """A connection over each family, by address."""
    made = {}
    for address in (server.address, server.address6):
        reply = client.outside.call("tcp_open", address=address, port=80)
        assert reply["outcome"] == "answered", reply
        made[address] = reply["handle"]
    return made


def said(client: Pod, connections: dict[str, int]) -> set[str]:
    """How they fare."""
    return {
        client.outside.call("tcp_say", handle=handle, timeout=0.5)["outcome"]
        for handle in connections.values()
    }


def shown(node: Node, pod: Pod) -> str:
    """The line of `endpoint list`."""
    (line,) = [
        line
        for line in node.agent.cilium("endpoint", "list", "--no-headers").splitlines()
        if line.startswith(f"{pod.id} ")
    ]
    return line


@pytest.mark.parametrize(
    ("policy", "judge"),
    [
        pytest.param(CLOSED, "server", id="default deny of the receiver"),
        pytest.param(DENIED, "server", id="deny rule of the receiver"),
        pytest.param(MUTE, "client", id="default deny of the sender"),
    ],
)
def test_audit_of_one_pod_is_switched_on_and_off_under_traffic(
    node: Node, client: Pod, server: Pod, policy: dict[str, object], judge: str
) -> None:
    """Datagrams arrive while it is on and at no other time; connections that it let through end with it."""
    pod = {"server": server, "client": client}[judge]
    flow = Flow("datagrams", server.address, PORT, PORT, rate=RATE)
    with in_force(node, policy), Flood(client.outside, server.outside, [flow]).start() as flood:
        flood.wait_sent(RATE)
        assert not client.reaches(server.address, 80)
        assert not client.reaches(server.address6, 80)

        before = flood.sent()
        with audited(node, pod):
            flood.wait_sent(RATE)
            within = flood.sent() - before
            connections = opened(client, server)
            assert said(client, connections) == {"answered"}
            assert "Disabled (Audit)" in shown(node, pod)
            assert f"audited endpoints: {pod.id}\n" in node.agent.cilium("status")
        after = flood.sent()
        assert said(client, connections).isdisjoint({"answered"})
        assert not client.reaches(server.address, 80)
        assert "Audit" not in shown(node, pod)
        assert "Policy Audit Mode" not in node.agent.cilium("status")
        flood.wait_sent(RATE)
        fate = flood.stop()["datagrams"]
    assert within * 0.5 < fate.received <= after - before + RATE * 0.1 * PATIENCE, fate
    assert client.reaches(server.address, 80)


def test_what_would_be_dropped_is_told_with_its_policy(
    node: Node, client: Pod, server: Pod, tmp_path: Path
) -> None:
    """By the monitor in Cilium's words, with both sides, the port, and the policy; no drop is counted."""
    output = tmp_path / "monitor"

    def dropped() -> float:
        return sum(
            one["value"]
            for one in node.agent.get("metrics")
            if one["name"] == "cilium_drop_count_total" and one["labels"]["reason"].startswith("Policy")
        )

    with in_force(node, CLOSED), audited(node, server):
        before = dropped()
        with node.agent.monitor(output, "-t", "policy-verdict"):
            for address in (server.address, server.address6):

                def told(address: str = address) -> list[str]:
                    assert client.reaches(address, 80, timeout=2.0)
                    lines = [line for line in output.read_text().splitlines() if f"{address}" in line]
                    # A flow that is judged again, by a version that came meanwhile, is told of once more.
                    return [line for line in lines if "action audit" in line and "80 tcp SYN" in line]

                line = eventually(told, f"the monitor tells of {address}")[-1]
                assert f"local EP ID {server.id}, remote ID " in line
                assert "proto 6, ingress, action audit" in line
                assert "policy cnp default/closed" in line
        assert dropped() == before
        told_why = node.agent.cli(
            *("policy", "explain", "--from", client.key, "--to", server.key, "--dport", "80"), check=False
        )
        assert "default-deny (audited: let through)" in told_why.stdout


def test_audit_of_one_pod_outlives_the_agent(node: Node, client: Pod, server: Pod) -> None:
    """Ended or killed: connections go on, and the next agent knows it, says it, and can end it."""
    with in_force(node, CLOSED):
        with audited(node, server):
            connections = opened(client, server)
            for number in (signal.SIGTERM, signal.SIGKILL):
                node.agent.stop(number)
                assert said(client, connections) == {"answered"}
                node.agent.start()
                assert said(client, connections) == {"answered"}
                assert client.reaches(server.address, 80)
                assert node.agent.cilium_json("endpoint", "config", str(server.id)) == {
                    "realized": {"options": {"PolicyAuditMode": "Enabled"}}
                }
                assert "agent.policies_are_audited" in node.agent.log_text()
                assert f"audited endpoints: {server.id}\n" in node.agent.cilium("status")
        assert said(client, connections).isdisjoint({"answered"})


def test_audit_of_the_node_is_for_all_but_those_that_say_otherwise(
    node: Node, client: Pod, server: Pod
) -> None:
    """By the option, from a start of the agent on; a start without it drops what only audit let through."""
    with in_force(node, CLOSED, MUTE):
        node.agent.options["policy-audit-mode"] = "true"
        node.agent.restart()
        connections = opened(client, server)
        listed = node.agent.cilium("status")
        assert "Policy Audit Mode:" in listed
        assert {server.id, client.id} <= set(node.agent.get("healthz")["policy-audit"]["endpoints"])
        assert "Disabled (Audit)" in shown(node, server)

        set_audit(node, server, "Disabled")
        assert not client.reaches(server.address, 80)
        assert "Audit" not in shown(node, server)
        node.agent.restart(signal.SIGKILL)
        assert not client.reaches(server.address, 80)
        set_audit(node, server, "Enabled")
        assert said(client, connections) == {"answered"}

        del node.agent.options["policy-audit-mode"]
        node.agent.restart()
        assert said(client, connections).isdisjoint({"answered"})
        assert "Policy Audit Mode" not in node.agent.cilium("status")


def test_who_may_not_send_is_told_at_once(node: Node, world: World, client: Pod, server: Pod) -> None:
    """By an ICMP error that the kernel makes EHOSTUNREACH of, of IPv6 EACCES; datagrams and connections."""
    with in_force(node, MUTE):
        for address, outcome in (
            (server.address, "unreachable"),
            (world.far, "unreachable"),
            (server.address6, "forbidden"),
        ):
            datagram = client.udp(address, 80)
            assert datagram["outcome"] == outcome, datagram
            assert datagram["seconds"] < AT_ONCE * PATIENCE, datagram
            connection = client.tcp(address, 80, timeout=10.0)
            assert connection["outcome"] == outcome, connection
            # Of IPv6 the kernel counts the error once it sends the SYN again.
            limit = 2.5 if ":" in address else AT_ONCE
            assert connection["seconds"] < limit * PATIENCE, connection
    assert client.reaches(server.address, 80)


def test_who_may_not_be_asked_says_nothing(node: Node, client: Pod, server: Pod) -> None:
    """What the receiver's policy drops is not answered."""
    with in_force(node, CLOSED):
        assert client.tcp(server.address, 80, timeout=AT_ONCE)["outcome"] == "timeout"
        assert client.udp(server.address, 80, timeout=AT_ONCE)["outcome"] == "timeout"
