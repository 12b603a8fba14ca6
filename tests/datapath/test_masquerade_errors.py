# SPDX-License-Identifier: Apache-2.0
"""ICMP errors between pods and the world: turned together with the packet they quote."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ciliumd.abi import DropReason, Mark
from datapath.harness import PASS, Datapath
from datapath.rows import POD_ONE
from datapath.wire import GATEWAY, back, leave, masqueraded, node_after_pod, port_of
from fixtures.packets import (
    ICMP,
    Raw,
    assert_frame,
    from_pod,
    node_one,
    on_wire,
    ping,
    pod_one,
    tcp,
    to_pod,
    udp,
    unreachable,
    world_one,
)

if TYPE_CHECKING:
    from scapy.packet import Packet


pytestmark = pytest.mark.datapath


@pytest.mark.parametrize(
    "error",
    [
        pytest.param({"type": 3, "code": 3}, id="port unreachable"),
        pytest.param({"type": 3, "code": 4, "nexthopmtu": 1400}, id="fragmentation needed"),
        pytest.param({"type": 11, "code": 0}, id="time exceeded"),
    ],
)
@pytest.mark.parametrize("make", [tcp, udp, ping], ids=["tcp", "udp", "ping"])
def test_error_of_a_router_about_a_masqueraded_packet_reaches_the_pod(
    world: Datapath, make: object, error: dict[str, int]
) -> None:
    """The quoted packet shows the pod's address and port again, its IP sum and the ICMP sum are right."""

    def layer(port: int) -> Packet:
        return ping(port) if make is ping else make(port, 443, payload=b"12345678")

    frame = leave(world, POD_ONE, from_pod(pod_one, world_one.ip, layer(1234)))
    port = port_of(frame)
    arrived = on_wire(node_one.mac, GATEWAY.mac, node_one.ip, world_one.ip, layer(port), ttl=1)
    sent = bytearray(from_pod(pod_one, world_one.ip, layer(1234), ttl=1))
    if make is not ping:
        # Quoted TCP and UDP sums stay as the router saw them; a quoted echo's sum is mended.
        at = 34 + (16 if make is tcp else 6)
        sent[at : at + 2] = arrived[at : at + 2]
    for size in (28, len(arrived) - 14):
        result = back(world, GATEWAY.ip, ICMP(**error) / Raw(arrived[14 : 14 + size]), ttl=64)
        assert_frame(to_pod(pod_one, GATEWAY.ip, ICMP(**error) / Raw(bytes(sent[14 : 14 + size]))), result)


def test_error_about_nothing_of_ours_stays_with_the_node(world: Datapath) -> None:
    """No row, no change: the node's own stack knows what to do with it."""
    strange = on_wire(node_one.mac, GATEWAY.mac, node_one.ip, world_one.ip, udp(40001, 53))
    error = on_wire(GATEWAY.mac, node_one.mac, GATEWAY.ip, node_one.ip, unreachable(strange))
    result = world.run("from_netdev", error, "net0")
    assert (result.action, result.packet) == (PASS, error)


def answer_of(make: object, port: int) -> Packet:
    """What a server at port 53 says."""
    return tcp(53, port, "SA", b"12345678") if make is tcp else udp(53, port, b"12345678")


@pytest.mark.parametrize("make", [udp, tcp], ids=["udp", "tcp"])
def test_error_of_a_pod_leaves_as_the_nodes(world: Datapath, make: object) -> None:
    """About an answer that came too late: the world must see the packet that it sent."""
    port = port_of(leave(world, POD_ONE, from_pod(pod_one, world_one.ip, make(1234, 53))))
    answer = back(world, world_one.ip, answer_of(make, port))

    frame = leave(world, POD_ONE, from_pod(pod_one, world_one.ip, unreachable(answer)))
    quoted = bytearray(
        on_wire(GATEWAY.mac, node_one.mac, world_one.ip, node_one.ip, answer_of(make, port), ttl=63)
    )
    at = 34 + (16 if make is tcp else 6)
    quoted[at : at + 2] = answer[at : at + 2]
    assert_frame(masqueraded(pod_one, world_one.ip, unreachable(bytes(quoted))), frame)


def test_error_of_a_pod_about_nothing_does_not_leave(world: Datapath) -> None:
    """It would carry the pod's address into the world."""
    strange = on_wire(GATEWAY.mac, node_one.mac, world_one.ip, pod_one.ip, udp(53, 40001))
    sent = world.send(POD_ONE, from_pod(pod_one, world_one.ip, unreachable(strange)))
    drop = world.run("to_netdev", sent.packet, "net0", mark=sent.mark).drop
    assert drop.reason == DropReason.DROP_NAT_NO_MAPPING


def test_error_about_a_flow_of_the_node_that_came_second_finds_its_socket(world: Datapath) -> None:
    """The quoted port is turned back as well."""
    port = node_after_pod(world, udp(40001, 53))
    on_the_wire = on_wire(node_one.mac, GATEWAY.mac, node_one.ip, world_one.ip, udp(port, 53), ttl=40)
    error = on_wire(GATEWAY.mac, node_one.mac, GATEWAY.ip, node_one.ip, unreachable(on_the_wire))
    result = world.run("from_netdev", error, "net0")

    assert result.action == PASS
    quoted = bytearray(on_wire(node_one.mac, GATEWAY.mac, node_one.ip, world_one.ip, udp(40001, 53), ttl=40))
    quoted[40:42] = on_the_wire[40:42]
    assert_frame(
        on_wire(GATEWAY.mac, node_one.mac, GATEWAY.ip, node_one.ip, unreachable(bytes(quoted))), result.packet
    )


def test_error_about_a_request_from_the_world_keeps_the_pods_address(world: Datapath) -> None:
    """As the reply would have."""
    request = on_wire(GATEWAY.mac, node_one.mac, world_one.ip, pod_one.ip, udp(50000, 80), ttl=60)
    arrived = world.run("from_netdev", request, "net0").packet
    error = from_pod(pod_one, world_one.ip, unreachable(arrived))
    assert world.send(POD_ONE, error).mark == Mark.MARK_SKIP_SNAT
