# SPDX-License-Identifier: Apache-2.0
"""External and load balancer addresses: like node ports for the world, like services for pods and sockets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ciliumd.abi import LbServiceFlags, Mark
from datapath.harness import DROP, PASS, REDIRECT, Datapath, Result
from datapath.rows import ALLOW_ALL, POD_ONE, POD_TWO
from datapath.sockets import connect
from datapath.wire import GATEWAY, asks
from fixtures.packets import (
    IP,
    Ether,
    Packet,
    assert_frame,
    from_pod,
    node_one,
    on_wire,
    pod_away,
    pod_one,
    pod_two,
    tcp,
    to_pod,
    udp,
    world_one,
)

if TYPE_CHECKING:
    from lab.cgroup import Cgroup

pytestmark = pytest.mark.datapath

TCP, UDP = 6, 17
CLIENT = 40010  # within the range of masquerading: it is kept
ADDRESS, PORT = "198.51.100.7", 53
KINDS = pytest.mark.parametrize(
    "kind", [LbServiceFlags.LB_F_EXTERNAL_IP, LbServiceFlags.LB_F_LOAD_BALANCER], ids=["external", "balancer"]
)


def arrive(outside: Datapath, packet: bytes) -> Result:
    """From the network."""
    return outside.run("from_netdev", packet, "net0")


@KINDS
@pytest.mark.parametrize(
    ("asked", "arrives", "answer", "told"),
    [
        pytest.param(
            tcp(CLIENT, PORT), tcp(CLIENT, 80), tcp(80, CLIENT, "SA"), tcp(PORT, CLIENT, "SA"), id="tcp"
        ),
        pytest.param(udp(CLIENT, PORT), udp(CLIENT, 81), udp(81, CLIENT), udp(PORT, CLIENT), id="udp"),
    ],
)
def test_backend_elsewhere_sees_the_node_and_the_client_sees_the_address(
    outside: Datapath, kind: int, asked: Packet, arrives: Packet, answer: Packet, told: Packet
) -> None:
    """One port of two protocols, each with backends of its own; one hop each way."""
    outside.add_service(21, ADDRESS, PORT, TCP, {121: (pod_away.ip, 80)}, flags=kind)
    outside.add_service(22, ADDRESS, PORT, UDP, {122: (pod_away.ip, 81)}, flags=kind)
    there = arrive(outside, asks(world_one.ip, asked, dst=ADDRESS))
    assert (there.action, there.mark) == (REDIRECT, Mark.MARK_SKIP_SNAT)
    assert_frame(on_wire(GATEWAY.mac, node_one.mac, node_one.ip, pod_away.ip, arrives, ttl=63), there.packet)
    back = arrive(outside, asks(pod_away.ip, answer, ttl=50))
    assert_frame(on_wire(GATEWAY.mac, node_one.mac, ADDRESS, world_one.ip, told, ttl=49), back.packet)


@KINDS
def test_pod_means_the_service_and_not_the_world(outside: Datapath, kind: int) -> None:
    """By its own address, past no masquerading; other ports of the address are the world's."""
    outside.add_endpoint(POD_TWO, *ALLOW_ALL)
    outside.add_service(21, ADDRESS, PORT, TCP, {121: (pod_one.ip, 80)}, flags=kind)
    there = outside.send(POD_TWO, from_pod(pod_two, ADDRESS, tcp(CLIENT, PORT)))
    assert_frame(to_pod(pod_one, pod_two.ip, tcp(CLIENT, 80)), there.packet)
    back = outside.send(POD_ONE, from_pod(pod_one, pod_two.ip, tcp(80, CLIENT, "SA")))
    assert_frame(to_pod(pod_two, ADDRESS, tcp(PORT, CLIENT, "SA")), back.packet)
    other = outside.send(POD_TWO, from_pod(pod_two, ADDRESS, tcp(CLIENT, 80)))
    assert (other.action, Ether(other.packet)[IP].dst) == (DROP, ADDRESS), "198.51.100.0/24 is unreachable"


@KINDS
def test_process_of_the_node_means_the_service(outside: Datapath, group: Cgroup, kind: int) -> None:
    """From its first packet on; it is told of the address it asked."""
    outside.add_service(21, ADDRESS, PORT, UDP, {121: (pod_one.ip, 5353)}, flags=kind)
    assert connect(group, ADDRESS, PORT) == [0, [ADDRESS, PORT], [pod_one.ip, 5353]]


@KINDS
def test_ports_without_a_service_are_left_to_the_stack(outside: Datapath, kind: int) -> None:
    """Whoever else answers at that address is not in our way."""
    outside.add_service(21, ADDRESS, PORT, TCP, {121: (pod_one.ip, 80)}, flags=kind)
    packet = asks(world_one.ip, udp(CLIENT, PORT), dst=ADDRESS)
    result = arrive(outside, packet)
    assert (result.action, result.packet, result.counted) == (PASS, packet, {})
