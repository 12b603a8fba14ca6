# SPDX-License-Identifier: Apache-2.0
"""Pods of one node over IPv6: who may say what, what arrives, what is remembered, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from scapy.layers.inet6 import (
    ICMPv6MLReport2,
    ICMPv6ND_NA,
    ICMPv6ND_RA,
    ICMPv6ND_Redirect,
    ICMPv6ND_RS,
    ICMPv6PacketTooBig,
    ICMPv6TimeExceeded,
)

from ciliumd.abi import CtKey, CtState, DropReason, EventType, TracePoint
from datapath.harness import DROP, PASS, REDIRECT, Datapath, Result, forwarded
from datapath.openworld6 import SIX_ONE, SIX_THREE, SIX_TWO
from datapath.rows import (
    ALLOW,
    ALLOW_ALL,
    DEFAULT_DENY,
    DENY,
    DENY_ALL,
    EGRESS,
    INGRESS,
    ONLY_IN,
    ONLY_OUT,
    POD_ONE,
    Rule,
    a16,
)
from fixtures import packets
from fixtures.packets import Raw, assert_frame, sctp, tcp, udp, who_has
from fixtures.packets6 import (
    advertisement,
    frame,
    from_pod,
    from_stack,
    link_local,
    node_one,
    ping,
    pod_away,
    pod_one,
    pod_three,
    pod_two,
    pong,
    router,
    solicitation,
    to_host,
    to_pod,
    unreachable,
    world_one,
)

if TYPE_CHECKING:
    pass

pytestmark = pytest.mark.datapath

ICMPV6, ECHO = 58, 128
QUERY = from_pod(pod_one, pod_two.ip, udp(5000, 53))
REQUESTS = [
    pytest.param(tcp(30000, 80), tcp(80, 30000, "SA"), id="tcp"),
    pytest.param(udp(30000, 53), udp(53, 30000), id="udp"),
    pytest.param(sctp(30000, 99), sctp(99, 30000), id="sctp"),
    pytest.param(ping(7), pong(7), id="icmp"),
]


def _refused(datapath: Datapath, packet: bytes) -> int:
    result = datapath.send(SIX_ONE, packet)
    assert (result.action, result.packet) == (DROP, packet)
    return result.drop.reason


@pytest.mark.parametrize(("request_layer", "reply_layer"), REQUESTS)
def test_request_and_reply_arrive_with_macs_and_hops_changed_alone(
    two_sixes: Datapath, request_layer: object, reply_layer: object
) -> None:
    """One hop later; every other byte is the sender's."""
    there = two_sixes.send(SIX_ONE, from_pod(pod_one, pod_two.ip, request_layer))
    back = two_sixes.send(SIX_TWO, from_pod(pod_two, pod_one.ip, reply_layer))

    assert (there.action, back.action) == (REDIRECT, REDIRECT)
    assert_frame(to_pod(pod_two, pod_one.ip, request_layer), there.packet)
    assert_frame(to_pod(pod_one, pod_two.ip, reply_layer), back.packet)
    assert there.counted == back.counted == forwarded(EGRESS, INGRESS)


def test_each_pod_has_one_conntrack_row_under_the_whole_addresses(two_sixes: Datapath) -> None:
    """And the established flow asks no policy."""
    two_sixes.send(SIX_ONE, from_pod(pod_one, pod_two.ip, tcp(30000, 80)))
    two_sixes.send(SIX_TWO, from_pod(pod_two, pod_one.ip, tcp(80, 30000, "SA")))
    one, two = pod_one.address.packed, pod_two.address.packed
    assert two_sixes.ct().keys() == {CtKey(one, two, 30000, 80, 6, 0, 0), CtKey(two, one, 80, 30000, 6, 0, 0)}
    two_sixes.drop_policy(SIX_ONE.version)
    two_sixes.drop_policy(SIX_TWO.version)
    assert two_sixes.send(SIX_ONE, from_pod(pod_one, pod_two.ip, tcp(30000, 80, "A"))).action == REDIRECT


def test_events_tell_addresses_and_type(two_sixes: Datapath) -> None:
    """Verdicts and the arrival, with type and code where ports would be."""
    events = two_sixes.send(SIX_ONE, from_pod(pod_one, pod_two.ip, ping(7))).events
    assert [(e.type, e.direction, e.endpoint_id) for e in events] == [
        (EventType.EVENT_POLICY_VERDICT, EGRESS, 101),
        (EventType.EVENT_POLICY_VERDICT, INGRESS, 102),
        (EventType.EVENT_TRACE, INGRESS, 102),
    ]
    assert all((e.src, e.dst, e.ethertype) == (a16(pod_one.ip), a16(pod_two.ip), 0x86DD) for e in events)
    assert all((e.protocol, e.sport, e.dport) == (ICMPV6, ECHO << 8, 0) for e in events)
    assert events[2].trace_point == TracePoint.TRACE_TO_ENDPOINT


def test_families_of_one_pod_are_different_flows(two_sixes: Datapath) -> None:
    """The same ports, both ways at once; IPv4 goes on as ever."""
    assert two_sixes.send(SIX_ONE, QUERY).action == REDIRECT
    four = packets.from_pod(packets.pod_one, packets.pod_two.ip, udp(5000, 53))
    assert_frame(
        packets.to_pod(packets.pod_two, packets.pod_one.ip, udp(5000, 53)),
        two_sixes.send(SIX_ONE, four).packet,
    )
    assert len(two_sixes.ct()) == 4


# ---- who speaks --------------------------------------------------------------------------------


def test_gateway_is_the_pods_own_device(two_sixes: Datapath) -> None:
    """Asked by its address, or by the link-local one that its stack makes of its MAC."""
    for source in (pod_one.ip, link_local(pod_one)):
        result = two_sixes.send(SIX_ONE, solicitation(pod_one, router.ip, source=source))
        assert (result.action, result.counted, result.events) == (REDIRECT, {}, ())
        assert_frame(advertisement(pod_one, router.ip, to=source), result.packet)
    bare = solicitation(pod_one, router.ip)
    # Without the option, as some stacks ask a neighbour that they know.
    bare = bare[:18] + (24).to_bytes(2, "big") + bare[20:78]
    assert_frame(advertisement(pod_one, router.ip), two_sixes.send(SIX_ONE, bare).packet)


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        pytest.param(solicitation(pod_one, pod_two.ip), DropReason.DROP_UNKNOWN_TARGET, id="another"),
        pytest.param(
            solicitation(pod_one, link_local(pod_one)), DropReason.DROP_UNKNOWN_TARGET, id="link-local"
        ),
        pytest.param(
            solicitation(pod_one, router.ip, source=pod_two.ip), DropReason.DROP_INVALID_SIP, id="spoofed"
        ),
        pytest.param(
            solicitation(pod_one, router.ip, source=link_local(pod_two)),
            DropReason.DROP_INVALID_SIP,
            id="spoofed link-local",
        ),
        pytest.param(
            solicitation(pod_one, router.ip, source="::"),
            DropReason.DROP_INVALID_SIP,
            id="duplicate detection",
        ),
        pytest.param(
            solicitation(pod_one, router.ip, mac=pod_two.mac),
            DropReason.DROP_INVALID_SMAC,
            id="another's MAC",
        ),
        pytest.param(solicitation(pod_one, router.ip, hlim=254), DropReason.DROP_INVALID, id="from afar"),
        pytest.param(
            from_pod(pod_one, "ff02::1", ICMPv6ND_NA(tgt=router.ip), hlim=255),
            DropReason.DROP_ICMP6_TYPE,
            id="advertisement",
        ),
        pytest.param(
            from_pod(pod_one, "ff02::1", ICMPv6ND_RA(), hlim=255), DropReason.DROP_ICMP6_TYPE, id="router"
        ),
        pytest.param(
            from_pod(pod_one, pod_two.ip, ICMPv6ND_RA(), hlim=255),
            DropReason.DROP_ICMP6_TYPE,
            id="router, to a pod",
        ),
        pytest.param(
            from_pod(pod_one, pod_two.ip, ICMPv6ND_Redirect(tgt=pod_one.ip, dst=world_one.ip), hlim=255),
            DropReason.DROP_ICMP6_TYPE,
            id="redirect",
        ),
        pytest.param(
            from_pod(pod_one, "ff02::2", ICMPv6ND_RS(), hlim=255),
            DropReason.DROP_ICMP6_TYPE,
            id="asks routers",
        ),
        pytest.param(
            from_pod(pod_one, "ff02::16", ICMPv6MLReport2()), DropReason.DROP_ICMP6_TYPE, id="joins a group"
        ),
    ],
)
def test_what_belongs_to_a_link_stays_there(two_sixes: Datapath, packet: bytes, reason: DropReason) -> None:
    """Only the gateway is told, and nobody else is told anything."""
    assert _refused(two_sixes, packet) == reason


@pytest.mark.parametrize(
    "source", [pod_two.ip, router.ip, world_one.ip, "::", "ff02::1", link_local(pod_one)]
)
def test_spoofed_source_is_refused(two_sixes: Datapath, source: str) -> None:
    """Nor may a first fragment of a liar leave ports behind."""
    packet = frame(pod_one.mac, pod_one.node_mac, source, pod_two.ip, udp(5000, 53))
    assert _refused(two_sixes, packet) == DropReason.DROP_INVALID_SIP
    wrong_mac = packet[:6] + bytes.fromhex(pod_two.mac.replace(":", "")) + packet[12:]
    assert _refused(two_sixes, wrong_mac) == DropReason.DROP_INVALID_SMAC


@pytest.mark.parametrize("end", ["source", "destination"])
def test_ipv4_in_ipv6_is_nobodys(two_sixes: Datapath, end: str) -> None:
    """Keys of maps spell IPv4 so: such a packet would be taken for one of IPv4, and its rules for its own."""
    mapped = f"::ffff:{packets.pod_two.ip}"
    src, dst = (mapped, pod_two.ip) if end == "source" else (pod_one.ip, mapped)
    packet = frame(pod_one.mac, pod_one.node_mac, src, dst, udp(5000, 53))
    assert _refused(two_sixes, packet) == DropReason.DROP_INVALID
    quoted = frame(pod_one.node_mac, pod_one.mac, mapped, pod_one.ip, udp(5000, 53))
    error = from_pod(pod_one, pod_two.ip, unreachable(quoted))
    assert _refused(two_sixes, error) == DropReason.DROP_CT_INVALID_HDR


def test_pod_without_ipv6_may_not_speak_it(six: Datapath) -> None:
    """Not even as the unspecified address, which its row holds."""
    six.add_endpoint(POD_ONE, *ALLOW_ALL)
    six.add_endpoint(SIX_TWO, *ALLOW_ALL)
    for source in ("::", pod_one.ip, link_local(pod_two)):
        packet = frame(pod_one.mac, pod_one.node_mac, source, pod_two.ip, udp(5000, 53))
        assert six.send(POD_ONE, packet).drop.reason == DropReason.DROP_INVALID_SIP
    asks = solicitation(pod_one, router.ip, source="::")
    assert six.send(POD_ONE, asks).drop.reason == DropReason.DROP_INVALID_SIP


def test_pod_without_ipv4_may_not_speak_it(six: Datapath) -> None:
    """Neither a packet nor a question of ARP from 0.0.0.0, which its row holds."""
    nobody = replace(packets.pod_one, ip="0.0.0.0")
    only = replace(SIX_ONE, place=nobody)
    six.add_endpoint(only, *ALLOW_ALL)
    six.add_endpoint(SIX_TWO, *ALLOW_ALL)
    assert six.send(only, QUERY).action == REDIRECT
    for packet in (
        packets.from_pod(nobody, packets.pod_two.ip, udp(5000, 53)),
        who_has(nobody, packets.router.ip),
    ):
        assert six.send(only, packet).drop.reason == DropReason.DROP_INVALID_SIP


def test_node_without_ipv6_refuses_all_of_it(datapath: Datapath) -> None:
    """As an unknown protocol, whatever the rows say."""
    datapath.add_endpoint(SIX_ONE, *ALLOW_ALL)
    datapath.add_endpoint(SIX_TWO, *ALLOW_ALL)
    for packet in (QUERY, solicitation(pod_one, router.ip)):
        assert _refused(datapath, packet) == DropReason.DROP_UNKNOWN_L3
    assert datapath.run("from_host", from_stack(router.ip, pod_one.ip, ping(1)), "cilium_net").action == PASS


# ---- policy and conntrack ----------------------------------------------------------------------


@pytest.mark.parametrize("direction", [EGRESS, INGRESS])
@pytest.mark.parametrize(("verdict", "reason"), [(DENY, 181), (DEFAULT_DENY, 133)])
def test_refused_flow_names_the_rule(six: Datapath, direction: int, verdict: int, reason: int) -> None:
    """By port, of either side's policy."""
    judge, other = (SIX_ONE, SIX_TWO) if direction == EGRESS else (SIX_TWO, SIX_ONE)
    six.add_endpoint(other, *ALLOW_ALL)
    six.add_endpoint(judge, *ALLOW_ALL, Rule(direction, verdict, 6, 80, cookie=0xBAD))
    drop = six.send(SIX_ONE, from_pod(pod_one, pod_two.ip, tcp(30000, 80))).drop
    assert (drop.reason, drop.rule_cookie, drop.endpoint_id) == (reason, 0xBAD, judge.id)
    assert six.send(SIX_ONE, from_pod(pod_one, pod_two.ip, tcp(30000, 81))).action == REDIRECT


def test_types_of_icmpv6_are_judged_as_its_own(six: Datapath) -> None:
    """An allowed echo of IPv4 is none of IPv6, and the other way round."""
    six.add_endpoint(SIX_ONE, *ALLOW_ALL)
    six.add_endpoint(SIX_TWO, *DENY_ALL, Rule(INGRESS, ALLOW, ICMPV6, ECHO, cookie=6))
    four = packets.from_pod(packets.pod_one, packets.pod_two.ip, packets.ping(7))
    result = six.send(SIX_ONE, from_pod(pod_one, pod_two.ip, ping(7)))
    assert (result.action, result.events[-1].rule_cookie) == (REDIRECT, 6)
    assert six.send(SIX_ONE, four).drop.reason == DropReason.DROP_POLICY
    six.policy(99, *DENY_ALL, Rule(INGRESS, ALLOW, 1, 8))
    six.use_version(SIX_TWO, 99)
    assert six.send(SIX_ONE, from_pod(pod_one, pod_two.ip, ping(8))).drop.reason == DropReason.DROP_POLICY
    assert six.send(SIX_ONE, four).action == REDIRECT


def test_echo_request_against_the_flow_is_judged_as_new(six: Datapath) -> None:
    """The reply needs no rule; a request from the other side does."""
    six.add_endpoint(SIX_ONE, *ONLY_OUT)
    six.add_endpoint(SIX_TWO, *ONLY_IN)
    for identifier in (7, 0):
        assert six.send(SIX_ONE, from_pod(pod_one, pod_two.ip, ping(identifier))).action == REDIRECT
        assert six.send(SIX_TWO, from_pod(pod_two, pod_one.ip, pong(identifier))).action == REDIRECT
        own = six.send(SIX_TWO, from_pod(pod_two, pod_one.ip, ping(identifier)))
        assert own.drop.reason == DropReason.DROP_POLICY


def test_revoked_allow_stops_an_open_flow(two_sixes: Datapath) -> None:
    """With the next packet, either way."""
    assert two_sixes.send(SIX_ONE, from_pod(pod_one, pod_two.ip, ping(7))).action == REDIRECT
    two_sixes.policy(99, *ALLOW_ALL, Rule(INGRESS, DENY, ICMPV6, ECHO, cookie=0x99))
    two_sixes.use_version(SIX_TWO, 99)
    for pod, packet in (
        (SIX_ONE, from_pod(pod_one, pod_two.ip, ping(7))),
        (SIX_TWO, from_pod(pod_two, pod_one.ip, pong(7))),
    ):
        assert two_sixes.send(pod, packet).drop.rule_cookie == 0x99


@pytest.mark.parametrize("layer", [tcp(30000, 80), udp(5000, 53), ping(9)], ids=["tcp", "udp", "icmp"])
@pytest.mark.parametrize("kind", ["unreachable", "too big"])
def test_error_goes_with_the_flow_it_is_about(six: Datapath, layer: object, kind: str) -> None:
    """In both directions: no policy is asked, and the bytes are untouched."""
    six.add_endpoint(SIX_ONE, *ONLY_OUT)
    six.add_endpoint(SIX_TWO, *ONLY_IN)
    six.send(SIX_ONE, from_pod(pod_one, pod_two.ip, layer))
    arrived = to_pod(pod_two, pod_one.ip, layer)
    error = (
        unreachable(arrived) if kind == "unreachable" else ICMPv6PacketTooBig(mtu=1280) / Raw(arrived[14:])
    )
    result = six.send(SIX_TWO, from_pod(pod_two, pod_one.ip, error))
    assert result.action == REDIRECT
    assert_frame(to_pod(pod_one, pod_two.ip, error), result.packet)
    assert result.of_type(EventType.EVENT_POLICY_VERDICT) == []
    # The opener itself may report about what came back.
    answers = {"TCP": tcp(80, 30000, "SA"), "UDP": udp(53, 5000)}
    answer = to_pod(pod_one, pod_two.ip, answers.get(type(layer).__name__, pong(9)))
    back = six.send(SIX_ONE, from_pod(pod_one, pod_two.ip, unreachable(answer)))
    assert (back.action, len(six.ct())) == (REDIRECT, 2), "an error makes no row"


def test_error_about_nothing_known_is_judged_by_its_type(six: Datapath) -> None:
    """It is an ICMPv6 packet like any other."""
    six.add_endpoint(SIX_ONE, *ALLOW_ALL)
    six.add_endpoint(SIX_TWO, *ONLY_IN, Rule(EGRESS, ALLOW, ICMPV6, 2, cookie=0x22))
    arrived = to_pod(pod_two, pod_one.ip, udp(5000, 53))
    too_big = from_pod(pod_two, pod_one.ip, ICMPv6PacketTooBig(mtu=1280) / Raw(arrived[14:]))
    result = six.send(SIX_TWO, too_big)
    assert (result.action, result.events[0].rule_cookie, six.ct()) == (REDIRECT, 0x22, {})
    exceeded = from_pod(pod_two, pod_one.ip, ICMPv6TimeExceeded() / Raw(arrived[14:]))
    assert six.send(SIX_TWO, exceeded).drop.reason == DropReason.DROP_POLICY


def test_error_about_a_revoked_flow_is_refused(two_sixes: Datapath) -> None:
    """An error is as welcome as the flow it is about."""
    two_sixes.send(SIX_ONE, QUERY)
    two_sixes.policy(99, *ALLOW_ALL, Rule(EGRESS, DENY, cookie=0x99))
    two_sixes.use_version(SIX_ONE, 99)
    error = from_pod(pod_two, pod_one.ip, unreachable(to_pod(pod_two, pod_one.ip, udp(5000, 53))))
    drop = two_sixes.send(SIX_TWO, error).drop
    assert (drop.rule_cookie, drop.endpoint_id, drop.ct_state) == (0x99, SIX_ONE.id, CtState.CT_STATE_RELATED)


# ---- where it goes -----------------------------------------------------------------------------


@pytest.mark.parametrize("hops", [0, 1])
def test_packet_without_a_hop_left_is_refused_and_answered(two_sixes: Datapath, hops: int) -> None:
    """Time exceeded from the router, quoting the packet's start; counted as a drop."""
    for layer, quoted in ((udp(30000, 53), 48), (tcp(30000, 80), 60), (ping(3), 48)):
        sent = from_pod(pod_one, pod_two.ip, layer, hlim=hops)
        result = two_sixes.send(SIX_ONE, sent)
        assert result.action == REDIRECT
        assert result.drop.reason == DropReason.DROP_TTL_EXCEEDED
        answer = ICMPv6TimeExceeded(code=0) / Raw(sent[14 : 14 + quoted])
        assert_frame(to_pod(pod_one, router.ip, answer, hlim=64), result.packet)


def test_pod_and_host_reach_each_other(two_sixes: Datapath) -> None:
    """The host is no hop."""
    two_sixes.host_address(router.ip)
    there = two_sixes.send(SIX_ONE, from_pod(pod_one, router.ip, ping(7)))
    assert_frame(to_host(pod_one, router.ip, ping(7)), there.packet)
    assert there.action == REDIRECT
    assert there.events[0].dst_identity == 1
    back = two_sixes.run("from_host", from_stack(router.ip, pod_one.ip, pong(7)), "cilium_net")
    assert_frame(to_pod(pod_one, router.ip, pong(7), hlim=64), back.packet)
    assert back.action == REDIRECT


def test_stack_opens_a_flow_to_a_pod(two_sixes: Datapath) -> None:
    """By cilium_host or by the pod's own device; what is of the pair's link passes, as ARP does."""
    two_sixes.host_address(router.ip)
    sent = from_stack(router.ip, pod_one.ip, tcp(40000, 80))
    assert two_sixes.run("from_host", sent, "cilium_net").action == REDIRECT
    assert two_sixes.run("to_container", sent, SIX_ONE.device).action == PASS
    assert (
        two_sixes.run("from_host", from_stack(router.ip, pod_three.ip, ping(1)), "cilium_net").action == DROP
    )
    for group in ("ff02::1", "ff02::16", "fe80::1"):
        result = two_sixes.run("from_host", from_stack(router.ip, group, ICMPv6ND_RS()), "cilium_net")
        assert (result.action, result.counted) == (PASS, {})


def test_destination_decides_the_way_out(two_sixes: Datapath) -> None:
    """By route, unless no router may send it on, or it would come back."""
    out = two_sixes.send(SIX_ONE, from_pod(pod_one, world_one.ip, udp(5000, 53)))
    assert (out.action, out.events[-1].trace_point) == (REDIRECT, TracePoint.TRACE_TO_NETWORK)
    assert_frame(from_pod(pod_one, world_one.ip, udp(5000, 53), hlim=63), out.packet)
    assert out.events[0].dst_identity == 10
    for destination, reason in {
        pod_three.ip: DropReason.DROP_UNROUTABLE,
        "2001:db8:dead::1": DropReason.DROP_NO_FIB,
        "ff02::fb": DropReason.DROP_NO_FIB,
        "ff0e::1": DropReason.DROP_NO_FIB,
        "fe80::1": DropReason.DROP_NO_FIB,
        "::1": DropReason.DROP_NO_FIB,
        "::": DropReason.DROP_NO_FIB,
        "::10.0.1.12": DropReason.DROP_NO_FIB,
    }.items():
        assert _refused(two_sixes, from_pod(pod_one, destination, udp(5000, 53))) == reason


def test_identity_is_of_the_address_then_of_the_longest_prefix(two_sixes: Datapath) -> None:
    """As for IPv4."""

    def identity(ip: str) -> int:
        two_sixes.age(100)
        return two_sixes.send(SIX_ONE, from_pod(pod_one, ip, udp(5000, 53))).events[0].dst_identity

    assert identity(pod_away.ip) == 10
    two_sixes.ipcache("fd00::/16", 16777217)
    two_sixes.ipcache("fd00:2::/64", 16777218)
    assert (identity("fd00:3::1"), identity(pod_away.ip)) == (16777217, 16777218)
    two_sixes.ipcache(pod_away.ip, 4321)
    assert identity(pod_away.ip) == 4321


def test_network_reaches_a_pod_but_not_in_its_name(two_sixes: Datapath) -> None:
    """Nobody out there is a local pod, this node, or of one link."""
    two_sixes.host_address(node_one.ip)

    def arrives(source: str, **ip: object) -> Result:
        packet = frame(world_one.mac, node_one.mac, source, pod_one.ip, udp(5000, 53), **ip)
        return two_sixes.run("from_netdev", packet, "net0")

    came = arrives(world_one.ip)
    assert came.action == REDIRECT
    for source in (pod_one.ip, pod_two.ip, node_one.ip, "fe80::1"):
        assert arrives(source).drop.reason == DropReason.DROP_INVALID_SIP
    assert arrives(world_one.ip, hlim=1).drop.reason == DropReason.DROP_TTL_EXCEEDED
    own = frame(world_one.mac, node_one.mac, world_one.ip, node_one.ip, udp(5000, 53))
    assert two_sixes.run("from_netdev", own, "net0").action == PASS


def test_row_of_a_slot_that_changed_hands_delivers_nothing(two_sixes: Datapath) -> None:
    """An address row that outlived its endpoint does not deliver to the slot's next tenant."""
    two_sixes.local_address(pod_three.ip, SIX_TWO.slot)
    assert (
        two_sixes.send(SIX_ONE, from_pod(pod_one, pod_three.ip, ping(1))).drop.reason
        == DropReason.DROP_NO_LXC
    )
    two_sixes.add_endpoint(SIX_THREE, *ALLOW_ALL)
    assert two_sixes.send(SIX_ONE, from_pod(pod_one, pod_three.ip, ping(1))).action == REDIRECT
