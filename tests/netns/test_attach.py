# SPDX-License-Identifier: Apache-2.0
"""The same programs carry the same traffic on tcx links and on clsact filters, whichever the kernel has."""

import signal
from collections.abc import Iterator

import pytest

from ciliumd.bpf.features import tcx_supported
from lab import manifests
from lab.node import Node
from lab.pod import Pod
from lab.traffic import Flood, Flow
from lab.waiting import eventually
from lab.world import World

pytestmark = pytest.mark.netns

VIP = "10.96.0.50"


@pytest.fixture(scope="module")
def far(world: World) -> str:
    """Address of a server in the world."""
    world.actor.call("serve_tcp", name="far", port=80, address=world.far)
    return world.far


@pytest.fixture(scope="module", params=["auto", "tc"])
def mode(request: pytest.FixtureRequest) -> str:
    """What the agent is told."""
    return str(request.param)


@pytest.fixture(scope="module")
def node(world: World, mode: str) -> Iterator[Node]:
    """A node whose agent attaches that way."""
    with Node(world, options={"attach-mode": mode}) as node:
        yield node.start()


@pytest.fixture(scope="module")
def pods(node: Node) -> tuple[Pod, Pod]:
    """A server behind a service, a client."""
    server = node.pod("server", {"app": "server"}).serve(tcp=(80,), udp=(80,))
    client = node.pod("client", {"app": "client"})
    node.apply(
        "service",
        manifests.service("server", VIP, {"app": "server"}, ports=[("TCP", 80, 80), ("UDP", 80, 80)]),
    )
    node.wait_service(f"{VIP}:80", 1)
    return server, client


def test_programs_hang_where_they_should(node: Node, mode: str, pods: tuple[Pod, Pod]) -> None:
    """Status says clsact, the device has it, and no tcx link is pinned; or nothing of it."""
    device = pods[0].endpoint["status"]["networking"]["interface-name"]
    by_clsact = mode == "tc" or not tcx_supported()

    def filters() -> int:
        shown = (
            node.netns.run(["/usr/sbin/tc", "filter", "show", "dev", device, side]).stdout
            for side in ("ingress", "egress")
        )
        return sum("cilium-" in text for text in shown)

    # A new pod has filters first, where there are links as well.
    eventually(lambda: filters() == (2 if by_clsact else 0), "its filters are as they should be")
    assert ("Legacy TC" in node.agent.cilium("status")) is by_clsact
    assert bool(list((node.bpf_root / "links").glob("tcx*"))) is not by_clsact


def test_all_ways_carry_traffic(node: Node, far: str, pods: tuple[Pod, Pod]) -> None:
    """Pod to pod, through the service, to the world and to the node and back."""
    server, client = pods

    assert client.reaches(server.address, 80)
    assert client.udp(server.address, 80)["outcome"] == "answered"
    assert client.reaches(VIP, 80)
    assert client.inside.call("tcp_connect", address=VIP, port=80)["outcome"] == "answered"
    assert client.tcp(far, 80)["answer"]["client"][0] == node.address
    assert client.ping(node.address)["answered"] == 1
    assert node.outside.call("tcp_connect", address=server.address, port=80)["outcome"] == "answered"


def test_policy_is_enforced(node: Node, pods: tuple[Pod, Pod]) -> None:
    """Denied, and allowed again."""
    server, client = pods
    node.apply_policy(
        "closed", manifests.network_policy("closed", {"podSelector": {"matchLabels": {"app": "server"}}})
    )
    assert not client.reaches(server.address, 80)
    node.delete_policy("closed")
    assert client.reaches(server.address, 80)


def test_restart_loses_no_packet(node: Node, pods: tuple[Pod, Pod]) -> None:
    """Programs are replaced in place: lost 0 over a restart by SIGKILL."""
    server, client = pods
    flows = [Flow("pod to pod", server.address, 9000, 9000)]
    with Flood(client.outside, server.outside, flows).start() as flood:
        flood.wait_sent(1000)
        node.agent.restart(signal.SIGKILL)
        flood.wait_sent(1000)
        fate = flood.stop()["pod to pod"]

    assert fate.lost == 0, str(fate)
