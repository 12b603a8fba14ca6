# SPDX-License-Identifier: Apache-2.0
"""Numbered packets while policies, pods and services change around them: none lost, none let through."""

import itertools
import signal
import time
from collections.abc import Callable

import pytest

from lab import manifests
from lab.manifests import cilium_policy, to_ports
from lab.node import Node
from lab.pod import Pod
from lab.traffic import Fate, Flood, Flow

pytestmark = pytest.mark.netns

VIP = "10.96.0.80"
ALLOWED, BEHIND_SERVICE, DENIED = 9000, 9001, 9002
ROUNDS = 12
SERVER = {"matchLabels": {"app": "server"}}


@pytest.fixture(scope="module")
def pods(node: Node) -> tuple[Pod, Pod]:
    """A server, first of its service, and a client who may use two of its ports."""
    server = node.pod("server", {"app": "server"})
    client = node.pod("client", {"app": "client"})
    service(node, 80)
    node.wait_service(f"{VIP}:9100", 1)
    node.apply_policy("server", policy(8000))
    return server, client


def service(node: Node, other_port: int) -> None:
    """The service, whose other port changes."""
    ports = [("UDP", 9100, BEHIND_SERVICE), ("TCP", other_port, 8080)]
    node.apply("service", manifests.service("server", VIP, {"app": "server"}, ports=ports))


def policy(other_port: int) -> manifests.Object:
    """The server's policy, whose rule about another port changes."""
    allowed = to_ports((ALLOWED, "UDP"), (BEHIND_SERVICE, "UDP"), (other_port, "TCP"))
    rules = [{"fromEndpoints": [{"matchLabels": {"app": "client"}}], "toPorts": allowed}]
    return cilium_policy("server", {"endpointSelector": SERVER, "ingress": rules})


def during(node: Node, pods: tuple[Pod, Pod], act: Callable[[int], None]) -> dict[str, Fate]:
    """What becomes of 10,000 packets per second and flow while *act* is done over and over."""
    server, client = pods
    flows = [
        Flow("allowed", server.address, ALLOWED, ALLOWED),
        Flow("service", VIP, 9100, BEHIND_SERVICE),
        Flow("denied", server.address, DENIED, DENIED),
    ]
    with Flood(client.outside, server.outside, flows).start() as flood:
        flood.wait_sent(500)
        for number in range(ROUNDS):
            act(number)
        flood.wait_sent(500)
        fates = flood.stop()
    assert node.agent.healthy()
    return fates


def unharmed(fates: dict[str, Fate]) -> None:
    """Nothing lost, nothing let through."""
    text = "; ".join(map(str, fates.values()))
    assert fates["allowed"].lost == fates["service"].lost == 0, text
    assert fates["denied"].received == 0, text
    assert fates["allowed"].sent > 1000


def test_edits_of_the_policy_in_force(node: Node, pods: tuple[Pod, Pod]) -> None:
    """Each edit is a new version; packets meet the old one or the new one, never none."""

    def act(number: int) -> None:
        node.apply_policy("server", policy(8001 + number % 2))

    unharmed(during(node, pods, act))


def test_policies_that_come_and_go(node: Node, pods: tuple[Pod, Pod]) -> None:
    """Further policies on the same pods, of either kind, allowing other things."""

    def act(number: int) -> None:
        if number % 2:
            node.delete_policy("further")
            return
        node.apply_policy(
            "further",
            cilium_policy(
                "further", {"endpointSelector": SERVER, "ingress": [{"toPorts": to_ports((7, "TCP"))}]}
            ),
            manifests.network_policy(
                "further",
                {"podSelector": SERVER, "ingress": [{"from": [{"ipBlock": {"cidr": "203.0.113.0/24"}}]}]},
            ),
        )

    unharmed(during(node, pods, act))


def test_pods_that_come_and_go(node: Node, pods: tuple[Pod, Pod]) -> None:
    """New identities, in and out of what the policy selects, and new backends of the service."""
    apps = itertools.cycle(["server", "client", "other"])

    def act(number: int) -> None:
        guest = node.pod(f"guest-{number}", {"app": next(apps), "number": str(number)})
        node.remove_pod(guest)

    unharmed(during(node, pods, act))


def test_edits_of_the_service(node: Node, pods: tuple[Pod, Pod]) -> None:
    """A frontend beside the one in use comes and goes."""

    def act(number: int) -> None:
        service(node, 80 + number % 2)
        node.wait_service(f"{VIP}:{80 + number % 2}", 1)

    unharmed(during(node, pods, act))


def test_restarts_between_edits(node: Node, pods: tuple[Pod, Pod]) -> None:
    """The agent is killed right after each edit and must finish what it began, or begin anew."""

    def act(number: int) -> None:
        if number < ROUNDS // 2:
            node.apply("server", policy(8003 + number))
            service(node, 83 + number)
            time.sleep(number * 0.1)
            node.agent.restart(signal.SIGKILL)

    unharmed(during(node, pods, act))
