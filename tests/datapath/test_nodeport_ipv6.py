# SPDX-License-Identifier: Apache-2.0
"""Services of IPv6 asked from outside whose backend is here, and who may ask."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6PacketTooBig,
    ICMPv6TimeExceeded,
    IPv6ExtHdrDestOpt,
)

from ciliumd import abi
from ciliumd.abi import CtKind, DropReason, LbServiceFlags
from datapath.harness import DROP, PASS, REDIRECT, Datapath, forwarded
from datapath.openworld6 import SIX_ONE, SIX_TWO
from datapath.rows import ALLOW_ALL, INGRESS, a16, u32
from datapath.wire import AWAY, AWAY_DNS, DNS, GATEWAY, NODE_PORT, WEB
from datapath.wire6 import TCP, UDP, answers, arrive, asks, forward, hidden, pieces
from fixtures.packets import Raw, assert_frame, tcp, udp
from fixtures.packets6 import (
    Ether,
    IPv6,
    frame,
    from_pod,
    node_one,
    ping,
    pod_away,
    pod_one,
    pod_two,
    to_pod,
    unreachable,
    world_one,
)

if TYPE_CHECKING:
    from scapy.packet import Packet

pytestmark = pytest.mark.datapath

CLIENT = 40010  # within the range of masquerading: it is kept
WORLD_TWO, FAR = "2001:db8:ffff::8", "2001:db8:77::1"
SERVICE, BALANCER = "fd00:96::10", "2001:db8:42::8"
ELSEWHERE, TWO_SCOPES = LbServiceFlags.LB_F_ELSEWHERE, LbServiceFlags.LB_F_TWO_SCOPES
LOAD_BALANCER, CLUSTER_IP = LbServiceFlags.LB_F_LOAD_BALANCER, LbServiceFlags.LB_F_CLUSTER_IP


@pytest.fixture
def outside(exposed6: Datapath) -> Datapath:
    """Whose node ports the world asks at."""
    return exposed6


# ---- a pod here --------------------------------------------------------------------------------

HERE = [
    pytest.param((), tcp(CLIENT, WEB), tcp(CLIENT, 80), tcp(80, CLIENT, "SA"), tcp(WEB, CLIENT, "SA")),
    pytest.param((), udp(CLIENT, DNS), udp(CLIENT, 53), udp(53, CLIENT), udp(DNS, CLIENT)),
    pytest.param(
        (IPv6ExtHdrDestOpt(),), udp(CLIENT, DNS), udp(CLIENT, 53), udp(53, CLIENT), udp(DNS, CLIENT)
    ),
]


@pytest.mark.parametrize(("before", "asked", "arrives", "answer", "shown"), HERE)
def test_pod_sees_the_client_and_the_client_sees_the_node(
    outside: Datapath,
    before: tuple[Packet, ...],
    asked: Packet,
    arrives: Packet,
    answer: Packet,
    shown: Packet,
) -> None:
    """One hop each way; no masquerading row is needed."""
    result = arrive(outside, asks(world_one.ip, *before, asked))
    assert (result.action, result.counted) == (REDIRECT, forwarded(INGRESS))
    assert_frame(to_pod(pod_one, world_one.ip, *before, arrives), result.packet)
    expected = frame(pod_one.mac, pod_one.node_mac, node_one.ip, world_one.ip, *before, shown, hlim=63)
    assert_frame(expected, answers(outside, *before, answer))
    assert outside.snat() == {}


@pytest.mark.parametrize("flag", [LbServiceFlags.LB_F_EXTERNAL_IP, LOAD_BALANCER])
def test_address_that_is_no_nodes_is_asked_in_passing(outside: Datapath, flag: LbServiceFlags) -> None:
    """External and load balancer addresses: a pod here sees the client, one elsewhere the node."""
    outside.add_service(7, BALANCER, 443, TCP, {101: (pod_one.ip, 80)}, flags=flag)
    result = arrive(outside, asks(world_one.ip, tcp(CLIENT, 443), dst=BALANCER))
    assert_frame(to_pod(pod_one, world_one.ip, tcp(CLIENT, 80)), result.packet)
    told = Ether(answers(outside, tcp(80, CLIENT, "SA")))
    assert (told[IPv6].src, told[IPv6].sport) == (BALANCER, 443)
    outside.add_service(8, BALANCER, 444, TCP, {108: (pod_away.ip, 80)}, flags=flag)
    sent = forward(outside, asks(world_one.ip, tcp(CLIENT, 444), dst=BALANCER))
    assert_frame(hidden(node_one.ip, pod_away.ip, tcp(CLIENT, 80)), sent)
    back = forward(outside, asks(pod_away.ip, tcp(80, CLIENT, "SA")))
    assert_frame(hidden(BALANCER, world_one.ip, tcp(444, CLIENT, "SA")), back)


def test_pods_refusal_reaches_the_client_as_the_nodes(outside: Datapath) -> None:
    """Source and quoted packet are what the client knows; the quoted sum is as the pod saw it."""
    arrived = arrive(outside, asks(world_one.ip, udp(CLIENT, DNS))).packet
    told = answers(outside, unreachable(arrived))
    quoted = asks(world_one.ip, udp(CLIENT, DNS), hlim=63)
    quoted = quoted[:60] + arrived[60:62] + quoted[62:]
    expected = frame(pod_one.mac, pod_one.node_mac, node_one.ip, world_one.ip, unreachable(quoted), hlim=63)
    assert_frame(expected, told)


def test_error_about_an_answer_reaches_the_pod(outside: Datapath) -> None:
    """A router on the way says "too big" about what it saw: the pod learns of what it sent."""
    arrive(outside, asks(world_one.ip, udp(CLIENT, DNS)))
    answer = answers(outside, udp(53, CLIENT))
    result = arrive(outside, asks(FAR, ICMPv6PacketTooBig(mtu=1400) / Raw(answer[14:])))
    assert result.action == REDIRECT
    sent = from_pod(pod_one, world_one.ip, udp(53, CLIENT), hlim=63)
    sent = sent[:60] + answer[60:62] + sent[62:]
    assert_frame(to_pod(pod_one, FAR, ICMPv6PacketTooBig(mtu=1400) / Raw(sent[14:])), result.packet)

    strange = asks(FAR, unreachable(asks(node_one.ip, udp(DNS, 1), dst=world_one.ip)))
    assert arrive(outside, strange).packet == strange, "about no flow of ours: the stack's"


def test_fragments_follow_their_first(outside: Datapath) -> None:
    """To a pod here and to one elsewhere, and back."""
    text = Raw(bytes(range(200)))
    asked = pieces(world_one.ip, node_one.ip, udp(CLIENT, DNS) / text)
    arrived = pieces(world_one.ip, pod_one.ip, udp(CLIENT, 53) / text)
    for sent, seen in zip(asked, arrived, strict=True):
        result = arrive(outside, asks(world_one.ip, *sent))
        assert_frame(to_pod(pod_one, world_one.ip, *seen), result.packet)
    answer = pieces(pod_one.ip, world_one.ip, udp(53, CLIENT) / text)
    shown = pieces(node_one.ip, world_one.ip, udp(DNS, CLIENT) / text)
    for sent, seen in zip(answer, shown, strict=True):
        expected = frame(pod_one.mac, pod_one.node_mac, node_one.ip, world_one.ip, *seen, hlim=63)
        assert_frame(expected, answers(outside, *sent))

    asked = pieces(world_one.ip, node_one.ip, udp(CLIENT, AWAY_DNS) / text)
    arrived = pieces(node_one.ip, pod_away.ip, udp(CLIENT, 53) / text)
    for sent, seen in zip(asked, arrived, strict=True):
        assert_frame(hidden(node_one.ip, pod_away.ip, *seen), forward(outside, asks(world_one.ip, *sent)))
    answer = pieces(pod_away.ip, node_one.ip, udp(53, CLIENT) / text)
    shown = pieces(node_one.ip, world_one.ip, udp(AWAY_DNS, CLIENT) / text)
    for sent, seen in zip(answer, shown, strict=True):
        assert_frame(hidden(node_one.ip, world_one.ip, *seen), forward(outside, asks(pod_away.ip, *sent)))


# ---- the node itself ---------------------------------------------------------------------------


def test_node_itself_is_a_backend(outside: Datapath) -> None:
    """Its stack gets the packet with the port it listens on; what it answers shows the node port."""
    outside.add_service(9, node_one.ip, 30443, TCP, {109: (node_one.ip, 6443)}, flags=NODE_PORT)
    result = arrive(outside, asks(world_one.ip, tcp(CLIENT, 30443)))
    assert result.action == PASS
    assert_frame(asks(world_one.ip, tcp(CLIENT, 6443)), result.packet)
    own = frame(node_one.mac, GATEWAY.mac, node_one.ip, world_one.ip, tcp(6443, CLIENT, "SA"))
    answer = outside.run("to_netdev", own, "net0")
    assert answer.action == PASS
    expected = frame(node_one.mac, GATEWAY.mac, node_one.ip, world_one.ip, tcp(30443, CLIENT, "SA"))
    assert_frame(expected, answer.packet)
    direct = frame(node_one.mac, GATEWAY.mac, node_one.ip, WORLD_TWO, tcp(6443, CLIENT, "SA"))
    assert outside.run("to_netdev", direct, "net0").packet == direct


def test_what_no_service_asks_for_is_the_nodes(outside: Datapath) -> None:
    """Other ports, the same port of another protocol, pings, the other family."""
    for layer in (tcp(CLIENT, 22), udp(CLIENT, WEB), ping(5)):
        packet = asks(world_one.ip, layer)
        result = arrive(outside, packet)
        assert (result.action, result.packet, result.counted) == (PASS, packet, {})


# ---- who may ask, and who is told --------------------------------------------------------------


def test_cluster_address_is_nobodys_outside(outside: Datapath) -> None:
    """Neither translated nor routed on, unless it is open."""
    outside.add_service(11, SERVICE, 80, TCP, {101: (pod_one.ip, 80)})
    outside.cluster_ip(SERVICE)
    for layer in (tcp(CLIENT, 80), tcp(CLIENT, 81), ping(5)):
        packet = asks(world_one.ip, layer, dst=SERVICE)
        result = arrive(outside, packet)
        seen = (result.action, result.packet, result.drop.reason)
        assert seen == (DROP, packet, DropReason.DROP_IS_CLUSTER_IP)
    outside.add_service(
        11, SERVICE, 80, TCP, {101: (pod_one.ip, 80)}, flags=CLUSTER_IP | LbServiceFlags.LB_F_OPEN
    )
    result = arrive(outside, asks(world_one.ip, tcp(CLIENT, 80), dst=SERVICE))
    assert_frame(to_pod(pod_one, world_one.ip, tcp(CLIENT, 80)), result.packet)


@pytest.mark.parametrize(("layer", "size"), [(tcp(CLIENT, WEB), 20), (udp(CLIENT, DNS), 8)])
def test_without_a_backend_the_client_is_told(outside: Datapath, layer: Packet, size: int) -> None:
    """By the address it asked, quoting what it sent; of a local policy's node it is not."""
    outside.add_service(1, node_one.ip, WEB, TCP, {}, flags=NODE_PORT)
    outside.add_service(2, node_one.ip, DNS, UDP, {}, flags=NODE_PORT)
    packet = asks(world_one.ip, layer)
    result = arrive(outside, packet)
    assert (result.action, result.drop.reason) == (REDIRECT, DropReason.DROP_NO_SERVICE)
    quoted = Raw(packet[14 : 14 + 40 + size])
    expected = frame(
        node_one.mac, GATEWAY.mac, node_one.ip, world_one.ip, ICMPv6DestUnreach(code=4), quoted, hlim=64
    )
    assert_frame(expected, result.packet)

    outside.add_service(1, node_one.ip, WEB, TCP, {}, flags=NODE_PORT | ELSEWHERE | TWO_SCOPES)
    outside.add_service(2, node_one.ip, DNS, UDP, {}, flags=NODE_PORT | ELSEWHERE | TWO_SCOPES)
    silent = arrive(outside, packet)
    assert (silent.action, silent.drop.reason) == (DROP, DropReason.DROP_NO_SERVICE)


def test_last_hop_is_told(outside: Datapath) -> None:
    """RFC 4443: time exceeded."""
    for layer in (tcp(CLIENT, WEB), tcp(CLIENT, AWAY)):
        packet = asks(world_one.ip, layer, hlim=1)
        result = arrive(outside, packet)
        assert result.drop.reason == DropReason.DROP_TTL_EXCEEDED
        quoted = Raw(packet[14 : 14 + 60])
        expected = frame(
            node_one.mac, GATEWAY.mac, node_one.ip, world_one.ip, ICMPv6TimeExceeded(), quoted, hlim=64
        )
        assert_frame(expected, result.packet)


def test_nobody_outside_has_an_address_of_this_node_or_of_a_link(outside: Datapath) -> None:
    """Refused before a backend is chosen."""
    for source in (pod_one.ip, node_one.ip, "fe80::1"):
        result = arrive(outside, asks(source, tcp(CLIENT, WEB)))
        assert (result.action, result.drop.reason) == (DROP, DropReason.DROP_INVALID_SIP)
    assert outside.ct(None) == {}


def test_source_ranges_hold_for_every_packet(outside: Datapath) -> None:
    """Revoking ends what is under way."""
    flags = LOAD_BALANCER | LbServiceFlags.LB_F_SOURCES_ALLOW
    outside.add_service(7, BALANCER, 443, TCP, {101: (pod_one.ip, 80)}, flags=flags)
    bits, allow = abi.LbSourcePrefix.LB_SOURCE_PREFIX_FRONTEND + 48, LbServiceFlags.LB_F_SOURCES_ALLOW
    listed = abi.LbSourceKey(bits, 7, allow, a16("2001:db8:ffff::"))
    packet = asks(world_one.ip, tcp(CLIENT, 443), dst=BALANCER)
    assert arrive(outside, packet).drop.reason == DropReason.DROP_NOT_IN_SRC_RANGE
    outside.map("lb_source_range").update(listed.pack(), u32(1))
    assert arrive(outside, packet).action == REDIRECT
    assert arrive(outside, asks(FAR, tcp(CLIENT, 443), dst=BALANCER)).action == DROP
    outside.map("lb_source_range").delete(listed.pack())
    assert arrive(outside, asks(world_one.ip, tcp(CLIENT, 443, "A"), dst=BALANCER)).action == DROP


def test_every_client_has_its_own_backend(outside: Datapath) -> None:
    """With affinity: 40 of them all choosing alike is chance once in 2^39 runs."""
    outside.add_endpoint(SIX_TWO, *ALLOW_ALL)
    places = {121: (pod_one.ip, 8080), 122: (pod_two.ip, 8080)}
    outside.add_service(21, node_one.ip, 31000, TCP, places, flags=NODE_PORT, affinity=10800)

    def chosen(client: str) -> set[str]:
        ports = range(45000, 45008)
        return {Ether(arrive(outside, asks(client, tcp(port, 31000))).packet)[IPv6].dst for port in ports}

    every = [chosen(f"2001:db8:ffff::{host:x}") for host in range(100, 140)]
    assert {len(one) for one in every} == {1}
    assert set().union(*every) == {pod_one.ip, pod_two.ip}


def test_cluster_and_world_may_have_different_backends(outside: Datapath) -> None:
    """externalTrafficPolicy Local: outside only what is here counts, inside everything does."""
    outside.add_endpoint(SIX_TWO, *ALLOW_ALL)
    flags = NODE_PORT | TWO_SCOPES
    outside.add_service(1, node_one.ip, WEB, TCP, {}, flags=flags)
    outside.add_service(5, node_one.ip, WEB, TCP, {101: (pod_one.ip, 80)}, flags=flags, scope=1)
    assert arrive(outside, asks(world_one.ip, tcp(CLIENT, WEB))).drop.reason == DropReason.DROP_NO_SERVICE
    there = outside.send(SIX_TWO, from_pod(pod_two, node_one.ip, tcp(CLIENT, WEB)))
    assert_frame(to_pod(pod_one, pod_two.ip, tcp(CLIENT, 80)), there.packet)
    back = outside.send(SIX_ONE, from_pod(pod_one, pod_two.ip, tcp(80, CLIENT, "SA")))
    assert_frame(to_pod(pod_two, node_one.ip, tcp(WEB, CLIENT, "SA")), back.packet)


def test_flow_keeps_its_backend(outside: Datapath) -> None:
    """One row of kind service for each, under the client's whole address."""
    for client in (world_one.ip, WORLD_TWO):
        arrive(outside, asks(client, tcp(CLIENT, WEB)))
    kept = {(key.local, row.backend_id) for key, row in outside.ct(CtKind.CT_KIND_SERVICE).items()}
    assert kept == {(a16(world_one.ip), 101), (a16(WORLD_TWO), 101)}
