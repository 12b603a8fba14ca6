# SPDX-License-Identifier: Apache-2.0
"""What a pod is told when its own policy keeps a packet from leaving (policy-deny-response=icmp)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from scapy.layers.inet6 import ICMPv6DestUnreach, IPv6ExtHdrFragment

from ciliumd.abi import DropReason, EndpointFlags
from datapath.harness import DROP, REDIRECT, Datapath
from datapath.openworld6 import SIX_ONE, SIX_TWO
from datapath.rows import ALLOW, ALLOW_ALL, DEFAULT_DENY, DENY, EGRESS, INGRESS, Rule, a16
from fixtures import packets, packets6
from fixtures.packets import (
    ICMP,
    Raw,
    assert_frame,
    from_pod,
    pod_one,
    pod_two,
    router,
    svc_one,
    tcp,
    to_pod,
    udp,
)

if TYPE_CHECKING:
    from ciliumd.abi import PolicyVerdict
    from fixtures.packets import Packet

pytestmark = pytest.mark.datapath

REASONS = {DENY: DropReason.DROP_POLICY_DENY, DEFAULT_DENY: DropReason.DROP_POLICY}
TOLD = EndpointFlags.ENDPOINT_F_DENY_RESPONSE
CLOSED = (Rule(EGRESS, DEFAULT_DENY, cookie=0xDE2), Rule(INGRESS, ALLOW))
PROHIBITED = ICMP(type=3, code=13)


@pytest.fixture
def closed(two_sixes: Datapath) -> Datapath:
    """Two pods that are told what their policies drop, the first of which may send nothing."""
    two_sixes.policy(SIX_ONE.version, *CLOSED)
    for pod in (SIX_ONE, SIX_TWO):
        two_sixes.add_endpoint(replace(pod, flags=TOLD))
    return two_sixes


@pytest.mark.parametrize("verdict", [DENY, DEFAULT_DENY])
@pytest.mark.parametrize("dst", [pod_two.ip, packets.world_one.ip])
@pytest.mark.parametrize(
    ("layer", "quoted"),
    [
        pytest.param(tcp(30000, 80), 40, id="tcp"),
        pytest.param(udp(5000, 53, bytes(1400)), 28, id="udp"),
        pytest.param(packets.ping(7), 28, id="ping"),
    ],
)
def test_sender_is_told_that_it_is_prohibited(
    closed: Datapath, verdict: PolicyVerdict, dst: str, layer: Packet, quoted: int
) -> None:
    """ICMP type 3 code 13 from the router, exact; counted and told as a drop as without the answer."""
    closed.policy(SIX_ONE.version, Rule(EGRESS, verdict, cookie=0xBAD), Rule(INGRESS, ALLOW))
    packet = from_pod(pod_one, dst, layer)

    result = closed.send(SIX_ONE, packet)

    assert result.action == REDIRECT
    drop = result.drop
    assert (drop.reason, drop.direction, drop.rule_cookie) == (REASONS[verdict], EGRESS, 0xBAD)
    assert (drop.endpoint_id, drop.dst) == (SIX_ONE.id, a16(dst))
    answer = PROHIBITED / Raw(packet[14 : 14 + quoted])
    assert_frame(to_pod(pod_one, router.ip, answer, ttl=64, id=0), result.packet)
    assert closed.ct(None) == {}


@pytest.mark.parametrize(
    ("layer", "quoted"),
    [
        pytest.param(tcp(30000, 80), 60, id="tcp"),
        pytest.param(udp(5000, 53), 48, id="udp"),
        pytest.param(packets6.ping(7), 48, id="ping"),
    ],
)
def test_ipv6_has_a_code_of_its_own(closed: Datapath, layer: Packet, quoted: int) -> None:
    """ICMPv6 type 1 code 1, for a SYN too: a reset would say that somebody had refused it."""
    packet = packets6.from_pod(packets6.pod_one, packets6.pod_two.ip, layer)

    result = closed.send(SIX_ONE, packet)

    assert (result.action, result.drop.reason) == (REDIRECT, DropReason.DROP_POLICY)
    answer = ICMPv6DestUnreach(code=1) / Raw(packet[14 : 14 + quoted])
    expected = packets6.to_pod(packets6.pod_one, packets6.router.ip, answer, hlim=64)
    assert_frame(expected, result.packet)


def test_answer_about_a_service_quotes_the_service(closed: Datapath) -> None:
    """The socket knows the frontend only."""
    closed.add_service(1, svc_one.ip, 80, 6, {101: (pod_two.ip, 8080)})
    packet = from_pod(pod_one, svc_one.ip, tcp(30000, 80))

    result = closed.send(SIX_ONE, packet)

    assert (result.drop.dst, result.drop.dport) == (a16(pod_two.ip), 8080)
    answer = PROHIBITED / Raw(packet[14:54])
    assert_frame(to_pod(pod_one, router.ip, answer, ttl=64, id=0), result.packet)


def test_flow_that_a_changed_policy_stops_is_answered(closed: Datapath) -> None:
    """Its sender is told with the next packet."""
    closed.policy(99, *ALLOW_ALL)
    closed.use_version(SIX_ONE, 99)
    assert_frame(
        to_pod(pod_two, pod_one.ip, tcp(30000, 80)),
        closed.send(SIX_ONE, from_pod(pod_one, pod_two.ip, tcp(30000, 80))).packet,
    )
    closed.use_version(SIX_ONE, SIX_ONE.version)

    packet = from_pod(pod_one, pod_two.ip, tcp(30000, 80, "A"))
    result = closed.send(SIX_ONE, packet)
    assert_frame(to_pod(pod_one, router.ip, PROHIBITED / Raw(packet[14:54]), ttl=64, id=0), result.packet)


def silent(datapath: Datapath, packet: bytes, reason: DropReason = DropReason.DROP_POLICY) -> bool:
    """Whether a packet of pod one is dropped for policy, and nothing is said about it."""
    result = datapath.send(SIX_ONE, packet)
    return (result.action, result.packet, result.drop.reason) == (DROP, packet, reason)


def test_what_must_not_be_answered_is_not(closed: Datapath) -> None:
    """Errors, later fragments, and what went to many, by its address or by its frame."""
    other = from_pod(pod_two, pod_one.ip, udp(1, 2))
    assert silent(closed, from_pod(pod_one, pod_two.ip, packets.unreachable(other)))
    for group in ("224.0.0.251", "239.255.255.250", "255.255.255.255"):
        assert silent(closed, from_pod(pod_one, group, udp(5353, 5353)))
    to_all = from_pod(replace(pod_one, node_mac="ff:ff:ff:ff:ff:ff"), "10.0.1.255", udp(1, 2))
    assert silent(closed, to_all)
    assert silent(closed, packets6.from_pod(packets6.pod_one, "ff0e::fb", udp(5353, 5353)))
    other6 = packets6.from_pod(packets6.pod_two, packets6.pod_one.ip, udp(1, 2))
    assert silent(
        closed, packets6.from_pod(packets6.pod_one, packets6.pod_two.ip, packets6.unreachable(other6))
    )


def test_only_the_first_fragment_is_answered(closed: Datapath) -> None:
    """Of both families."""
    whole = bytes(udp(5000, 53, bytes(64), chksum=0x1234))
    for first, later in (
        (
            from_pod(pod_one, pod_two.ip, Raw(whole[:32]), proto=17, flags="MF", id=9),
            from_pod(pod_one, pod_two.ip, Raw(whole[32:]), proto=17, frag=4, id=9),
        ),
        (
            packets6.from_pod(
                packets6.pod_one, packets6.pod_two.ip, IPv6ExtHdrFragment(nh=17, m=1, id=9), Raw(whole[:32])
            ),
            packets6.from_pod(
                packets6.pod_one,
                packets6.pod_two.ip,
                IPv6ExtHdrFragment(nh=17, offset=4, id=9),
                Raw(whole[32:]),
            ),
        ),
    ):
        assert closed.send(SIX_ONE, first).drop.reason == DropReason.DROP_POLICY
        assert silent(closed, later)


def test_receivers_policy_and_replies_are_silent(closed: Datapath) -> None:
    """Only what the sender's own egress policy drops is answered."""
    closed.policies({97: ALLOW_ALL, 98: (Rule(INGRESS, DENY), Rule(EGRESS, ALLOW))})
    closed.use_version(SIX_ONE, 97)
    closed.use_version(SIX_TWO, 98)
    packet = from_pod(pod_one, pod_two.ip, udp(1, 2))
    assert silent(closed, packet, DropReason.DROP_POLICY_DENY)

    closed.policy(99, Rule(INGRESS, DENY), Rule(EGRESS, ALLOW))
    assert closed.send(SIX_TWO, from_pod(pod_two, pod_one.ip, udp(3, 4))).action == REDIRECT
    closed.use_version(SIX_ONE, 99)
    assert silent(closed, from_pod(pod_one, pod_two.ip, udp(4, 3)), DropReason.DROP_POLICY_DENY)


def test_audited_pod_is_told_nothing(closed: Datapath) -> None:
    """Its packet gets through instead."""
    closed.add_endpoint(replace(SIX_ONE, flags=TOLD | EndpointFlags.ENDPOINT_F_AUDIT))
    layer = tcp(30000, 80)
    result = closed.send(SIX_ONE, from_pod(pod_one, pod_two.ip, layer))
    assert_frame(to_pod(pod_two, pod_one.ip, layer), result.packet)


def test_without_the_option_a_drop_is_silent(two_sixes: Datapath) -> None:
    """As it always was."""
    two_sixes.policy(SIX_ONE.version, *CLOSED)
    assert silent(two_sixes, from_pod(pod_one, pod_two.ip, tcp(30000, 80)))
