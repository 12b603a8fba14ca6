# SPDX-License-Identifier: Apache-2.0
"""A pod that is a backend of the service it asks: to itself and back, past all policy."""

from __future__ import annotations

import pytest

from ciliumd.abi import CtFlags, DropReason
from datapath.harness import DROP, REDIRECT, Datapath
from datapath.rows import (
    ALLOW_ALL,
    DEFAULT_DENY,
    EGRESS,
    INGRESS,
    POD_ONE,
    Rule,
)
from fixtures.packets import (
    ICMP,
    Ether,
    assert_frame,
    from_pod,
    loopback,
    node_one,
    on_wire,
    pod_one,
    svc_one,
    tcp,
    to_pod,
    udp,
    unreachable,
    world_one,
)

pytestmark = pytest.mark.datapath

TCP, UDP, SCTP = 6, 17, 132
WEB, DNS = 80, 53
TO_WEB = from_pod(pod_one, svc_one.ip, tcp(30000, WEB))


@pytest.fixture
def hairpin(datapath: Datapath) -> Datapath:
    """A pod that may talk to nobody is the backend of its own service."""
    datapath.add_endpoint(POD_ONE, Rule(INGRESS, DEFAULT_DENY), Rule(EGRESS, DEFAULT_DENY))
    datapath.add_service(1, svc_one.ip, WEB, TCP, {101: (pod_one.ip, 8080)})
    datapath.add_service(2, svc_one.ip, DNS, UDP, {102: (pod_one.ip, 5353)})
    return datapath


def test_pod_reaches_itself_through_its_service(hairpin: Datapath) -> None:
    """From the loopback address, and back from the service: no policy stands between a pod and itself."""
    there = hairpin.send(POD_ONE, TO_WEB)
    assert there.action == REDIRECT
    assert_frame(to_pod(pod_one, loopback.ip, tcp(30000, 8080)), there.packet)
    back = hairpin.send(POD_ONE, from_pod(pod_one, loopback.ip, tcp(8080, 30000, "SA")))
    assert_frame(to_pod(pod_one, svc_one.ip, tcp(WEB, 30000, "SA")), back.packet)
    on = hairpin.send(POD_ONE, from_pod(pod_one, svc_one.ip, tcp(30000, WEB, "A")))
    assert_frame(to_pod(pod_one, loopback.ip, tcp(30000, 8080, "A")), on.packet)
    assert {row.flags & CtFlags.CT_F_LOOPBACK for row in hairpin.ct().values()} == {CtFlags.CT_F_LOOPBACK}


def test_open_loopback_flow_is_quiet(hairpin: Datapath) -> None:
    """As any open flow: no row is written, and nothing told, for each packet."""
    hairpin.send(POD_ONE, TO_WEB)
    hairpin.send(POD_ONE, from_pod(pod_one, loopback.ip, tcp(8080, 30000, "SA")))
    asks = from_pod(pod_one, svc_one.ip, tcp(30000, WEB, "A"))
    answers = from_pod(pod_one, loopback.ip, tcp(8080, 30000, "A"))
    for packet in (asks, answers):
        hairpin.send(POD_ONE, packet)
    assert [hairpin.send(POD_ONE, packet).events for packet in (asks, answers, asks, answers)] == [()] * 4


def test_error_of_a_pod_to_itself_finds_the_socket(hairpin: Datapath) -> None:
    """Port unreachable about a loopback datagram quotes what the client's socket sent."""
    hairpin.send(POD_ONE, from_pod(pod_one, svc_one.ip, udp(5000, DNS, b"")))
    arrived = to_pod(pod_one, loopback.ip, udp(5000, 5353, b""))
    result = hairpin.send(POD_ONE, from_pod(pod_one, loopback.ip, unreachable(arrived)))

    assert result.action == REDIRECT
    quoted = Ether(result.packet)[ICMP].payload
    assert (quoted.src, quoted.dst, quoted.sport, quoted.dport) == (pod_one.ip, svc_one.ip, 5000, DNS)


def test_error_about_another_packet_is_not_turned_round(hairpin: Datapath) -> None:
    """What the packet before it was must not count: it came on the same CPU."""
    arrived = to_pod(pod_one, loopback.ip, udp(5000, 9999, b""))
    hairpin.send(POD_ONE, from_pod(pod_one, svc_one.ip, udp(5000, DNS, b"")))
    hairpin.add_endpoint(POD_ONE, *ALLOW_ALL)
    result = hairpin.send(POD_ONE, from_pod(pod_one, loopback.ip, unreachable(arrived)))
    assert (result.action, result.drop.reason) == (DROP, DropReason.DROP_UNROUTABLE)


def test_loopback_address_is_nobody_to_talk_to(two_pods: Datapath) -> None:
    """Without such a flow, a packet to it goes nowhere."""
    result = two_pods.send(POD_ONE, from_pod(pod_one, loopback.ip, tcp(8080, 30000)))
    assert (result.action, result.drop.reason) == (DROP, DropReason.DROP_UNROUTABLE)


@pytest.mark.parametrize("flags", ["S", "A", "SA"])
def test_who_pretends_to_be_the_loopback_address_is_judged(hairpin: Datapath, flags: str) -> None:
    """From outside, with the ports of an open flow: policy stands in between, and the flow goes on."""
    hairpin.native_device("net0", node_one.ip)
    hairpin.send(POD_ONE, TO_WEB)
    packet = on_wire(world_one.mac, node_one.mac, loopback.ip, pod_one.ip, tcp(30000, 8080, flags))
    result = hairpin.run("from_netdev", packet, "net0")
    assert (result.action, result.drop.reason) == (DROP, DropReason.DROP_POLICY)

    back = hairpin.send(POD_ONE, from_pod(pod_one, loopback.ip, tcp(8080, 30000, "SA")))
    assert_frame(to_pod(pod_one, svc_one.ip, tcp(WEB, 30000, "SA")), back.packet)
