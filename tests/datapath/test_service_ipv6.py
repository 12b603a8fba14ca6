# SPDX-License-Identifier: Apache-2.0
"""Services of IPv6, packet by packet: translated on the way out, shown again on the way back, or refused."""

from __future__ import annotations

from ipaddress import IPv6Network
from typing import TYPE_CHECKING

import pytest
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6TimeExceeded,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
)

from ciliumd import abi
from ciliumd.abi import CtFlags, CtKind, DropReason, LbServiceFlags
from datapath.harness import DROP, REDIRECT, Datapath, Result, forwarded
from datapath.node import MASQUERADE6
from datapath.openworld6 import SIX_ONE, SIX_THREE, SIX_TWO
from datapath.rows import ALLOW, ALLOW_ALL, DEFAULT_DENY, EGRESS, INGRESS, POD_ONE, Rule, a16, u32
from datapath.wire import GATEWAY
from fixtures import packets
from fixtures.packets import Raw, assert_frame, sctp, tcp, udp
from fixtures.packets6 import (
    Ether,
    IPv6,
    frame,
    from_pod,
    from_stack,
    loopback,
    node_one,
    ping,
    pod_one,
    pod_three,
    pod_two,
    router,
    to_host,
    to_pod,
    unreachable,
    world_one,
)

if TYPE_CHECKING:
    from scapy.packet import Packet

    from datapath.conftest import Load

pytestmark = pytest.mark.datapath

TCP, UDP, SCTP = 6, 17, 132
WEB, DNS = 80, 53
SERVICE, OTHER = "fd00:96::10", "fd00:96::11"
BALANCER = "2001:db8:42::8"
TO_WEB = from_pod(pod_one, SERVICE, tcp(30000, WEB))
HOURS = 10800


@pytest.fixture
def service(two_sixes: Datapath) -> Datapath:
    """Ports 80/TCP and 53/UDP: both on pod two, with other ports there."""
    two_sixes.add_service(1, SERVICE, WEB, TCP, {101: (pod_two.ip, 8080)})
    two_sixes.add_service(2, SERVICE, DNS, UDP, {102: (pod_two.ip, 5353)})
    return two_sixes


def ask(datapath: Datapath, *layers: Packet, dst: str = SERVICE, **ip: object) -> Result:
    """Pod one sends."""
    return datapath.send(SIX_ONE, from_pod(pod_one, dst, *layers, **ip))


# ---- there and back ----------------------------------------------------------------------------


def test_tcp_is_translated_there_and_back(service: Datapath) -> None:
    """The backend sees its own address and port, the client sees the service; sums are right."""
    there = service.send(SIX_ONE, TO_WEB)
    assert there.action == REDIRECT
    assert_frame(to_pod(pod_two, pod_one.ip, tcp(30000, 8080)), there.packet)
    assert there.counted == forwarded(EGRESS, INGRESS)

    back = service.send(SIX_TWO, from_pod(pod_two, pod_one.ip, tcp(8080, 30000, "SA")))
    assert_frame(to_pod(pod_one, SERVICE, tcp(WEB, 30000, "SA")), back.packet)

    on = ask(service, tcp(30000, WEB, "PA", b"GET /"))
    assert_frame(to_pod(pod_two, pod_one.ip, tcp(30000, 8080, "PA", b"GET /")), on.packet)


def test_udp_is_translated_there_and_back(service: Datapath) -> None:
    """Behind an extension header, too, which stays where it is."""
    for before in ((), (IPv6ExtHdrDestOpt(),)):
        there = ask(service, *before, udp(5000, DNS))
        assert_frame(to_pod(pod_two, pod_one.ip, *before, udp(5000, 5353)), there.packet)
        back = service.send(SIX_TWO, from_pod(pod_two, pod_one.ip, *before, udp(5353, 5000)))
        assert_frame(to_pod(pod_one, SERVICE, *before, udp(DNS, 5000)), back.packet)


def test_udp_checksum_that_becomes_zero_is_sent_as_ffff(service: Datapath) -> None:
    """0 would say "no checksum", which IPv6 does not have."""
    body = to_pod(pod_two, pod_one.ip, udp(5000, 5353, b"\0\0"))[60:62]
    arrives = to_pod(pod_two, pod_one.ip, udp(5000, 5353, body))
    assert arrives[60:62] == b"\xff\xff"
    assert_frame(arrives, ask(service, udp(5000, DNS, body)).packet)


def test_sctp_is_translated_while_the_port_stays(service: Datapath) -> None:
    """Its CRC covers no addresses; another port would need it computed, and is refused."""
    service.add_service(3, OTHER, 99, SCTP, {103: (pod_two.ip, 99)})
    service.add_service(4, OTHER, 98, SCTP, {104: (pod_two.ip, 99)})
    there = ask(service, sctp(4000, 99), dst=OTHER)
    assert_frame(to_pod(pod_two, pod_one.ip, sctp(4000, 99)), there.packet)
    assert ask(service, sctp(4000, 98), dst=OTHER).drop.reason == DropReason.DROP_NAT_UNSUPP_PROTO


def pieces(src: str, dst: str, layer: Packet) -> list[tuple[IPv6ExtHdrFragment, Raw]]:
    """A datagram in two fragments."""
    whole = frame(pod_one.mac, pod_one.node_mac, src, dst, layer)
    cut = 54 + 48
    return [
        (IPv6ExtHdrFragment(nh=whole[20], offset=0, m=1, id=77), Raw(whole[54:cut])),
        (IPv6ExtHdrFragment(nh=whole[20], offset=6, m=0, id=77), Raw(whole[cut:])),
    ]


def test_fragments_go_the_way_of_the_first(service: Datapath) -> None:
    """Both ways; the sum in the first one covers the whole datagram."""
    text = bytes(range(200))
    asked = pieces(pod_one.ip, SERVICE, udp(5000, DNS) / Raw(text))
    arrived = pieces(pod_one.ip, pod_two.ip, udp(5000, 5353) / Raw(text))
    for sent, seen in zip(asked, arrived, strict=True):
        assert_frame(to_pod(pod_two, pod_one.ip, *seen), ask(service, *sent).packet)
    answer = pieces(pod_two.ip, pod_one.ip, udp(5353, 5000) / Raw(text))
    shown = pieces(SERVICE, pod_one.ip, udp(DNS, 5000) / Raw(text))
    for sent, seen in zip(answer, shown, strict=True):
        result = service.send(SIX_TWO, from_pod(pod_two, pod_one.ip, *sent))
        assert_frame(to_pod(pod_one, SERVICE, *seen), result.packet)


def test_policy_judges_the_backend_not_the_service(six: Datapath) -> None:
    """Verdict and conntrack name the translated flow."""
    rules = (*ALLOW_ALL, Rule(EGRESS, DEFAULT_DENY, cookie=1), Rule(EGRESS, ALLOW, TCP, 8080, cookie=2))
    six.add_endpoint(SIX_ONE, *rules)
    six.add_endpoint(SIX_TWO, *ALLOW_ALL)
    six.add_service(1, SERVICE, WEB, TCP, {101: (pod_two.ip, 8080)})
    six.add_service(2, SERVICE, 8080, TCP, {102: (pod_two.ip, 9090)})
    event = six.send(SIX_ONE, TO_WEB).events[0]
    assert (event.dst, event.dport, event.rule_cookie) == (a16(pod_two.ip), 8080, 2)
    refused = ask(six, tcp(30001, 8080))
    assert (refused.drop.rule_cookie, refused.drop.dport) == (1, 9090)


def test_families_do_not_meet(service: Datapath) -> None:
    """One number in the low word, one port, two families: each has its own frontend and its own flow."""
    service.add_service(5, packets.svc_one.ip, WEB, TCP, {105: (packets.pod_two.ip, 8081)})
    four = service.send(POD_ONE, packets.from_pod(packets.pod_one, packets.svc_one.ip, tcp(30000, WEB)))
    assert_frame(packets.to_pod(packets.pod_two, packets.pod_one.ip, tcp(30000, 8081)), four.packet)
    service.send(SIX_ONE, TO_WEB)
    kept = {(key.local, row.backend_id) for key, row in service.ct(CtKind.CT_KIND_SERVICE).items()}
    assert kept == {(a16(packets.pod_one.ip), 105), (a16(pod_one.ip), 101)}
    tail = f"::{packets.svc_one.ip}"
    assert Ether(ask(service, tcp(30001, WEB), dst=f"2001:db8{tail}").packet)[IPv6].dport == WEB


def test_flow_keeps_its_backend_until_that_is_gone(service: Datapath) -> None:
    """Sixteen flows over two backends; then one backend goes, and every flow lives on the other."""
    service.add_endpoint(SIX_THREE, *ALLOW_ALL)
    places = {101: (pod_two.ip, 8080), 103: (pod_three.ip, 8081)}
    service.add_service(1, SERVICE, WEB, TCP, places)

    def backends(flags: str) -> list[str]:
        return [Ether(ask(service, tcp(port, WEB, flags)).packet)[IPv6].dst for port in range(30000, 30064)]

    first = backends("S")
    assert set(first) == {pod_two.ip, pod_three.ip}
    assert backends("A") == first
    service.add_service(1, SERVICE, WEB, TCP, {103: (pod_three.ip, 8081)})
    service.remove_backend(101)
    assert set(backends("A")) == {pod_three.ip}


def test_client_keeps_its_backend_where_the_service_says_so(service: Datapath) -> None:
    """Known by its whole address."""
    service.add_endpoint(SIX_THREE, *ALLOW_ALL)
    places = {101: (pod_two.ip, 8080), 103: (pod_three.ip, 8081)}
    service.add_service(1, SERVICE, WEB, TCP, places, affinity=HOURS)
    chosen = {Ether(ask(service, tcp(port, WEB)).packet)[IPv6].dst for port in range(30000, 30064)}
    assert len(chosen) == 1
    ((key, _),) = service.map("lb_affinity").items()
    assert abi.LbAffinityKey.unpack(key).client == a16(pod_one.ip)


# ---- other kinds of backends -------------------------------------------------------------------


def test_backend_on_the_node_itself_answers_as_the_service(service: Datapath) -> None:
    """As the API server does: up the stack, and back through cilium_net."""
    service.host_address(node_one.ip)
    service.add_service(5, OTHER, 443, TCP, {105: (node_one.ip, 6443)})
    there = ask(service, tcp(30000, 443), dst=OTHER)
    assert_frame(to_host(pod_one, node_one.ip, tcp(30000, 6443)), there.packet)
    back = service.run("from_host", from_stack(node_one.ip, pod_one.ip, tcp(6443, 30000, "SA")), "cilium_net")
    assert_frame(to_pod(pod_one, OTHER, tcp(443, 30000, "SA"), hlim=64), back.packet)


def test_backend_in_the_world_answers_as_the_service_through_the_masquerade(load: Load) -> None:
    """Translated, masqueraded, and both undone on the way back, in the right order."""
    datapath = load(**MASQUERADE6)
    datapath.add_endpoint(SIX_ONE, *ALLOW_ALL)
    datapath.native_device("net0", packets.node_one.ip, ip6=node_one.ip)
    datapath.host_address(node_one.ip)
    datapath.add_service(6, OTHER, 443, TCP, {106: (world_one.ip, 8443)})
    out = ask(datapath, tcp(40001, 443), dst=OTHER)
    assert_frame(from_pod(pod_one, world_one.ip, tcp(40001, 8443), hlim=63), out.packet)
    wired = datapath.run("to_netdev", out.packet, "net0", mark=out.mark)
    assert Ether(wired.packet)[IPv6].src == node_one.ip
    reply = frame(GATEWAY.mac, node_one.mac, world_one.ip, node_one.ip, tcp(8443, 40001, "SA"), hlim=50)
    back = datapath.run("from_netdev", reply, "net0")
    assert_frame(to_pod(pod_one, OTHER, tcp(443, 40001, "SA"), hlim=49), back.packet)


# ---- a pod that asks itself --------------------------------------------------------------------


@pytest.fixture
def hairpin(six: Datapath) -> Datapath:
    """A pod that may talk to nobody is the backend of its own service."""
    six.add_endpoint(SIX_ONE, Rule(INGRESS, DEFAULT_DENY), Rule(EGRESS, DEFAULT_DENY))
    six.add_service(1, SERVICE, WEB, TCP, {101: (pod_one.ip, 8080)})
    six.add_service(2, SERVICE, DNS, UDP, {102: (pod_one.ip, 5353)})
    return six


def test_pod_reaches_itself_through_its_service(hairpin: Datapath) -> None:
    """From the loopback address, and back from the service: no policy stands between a pod and itself."""
    there = hairpin.send(SIX_ONE, TO_WEB)
    assert there.action == REDIRECT
    assert_frame(to_pod(pod_one, loopback.ip, tcp(30000, 8080)), there.packet)
    back = hairpin.send(SIX_ONE, from_pod(pod_one, loopback.ip, tcp(8080, 30000, "SA")))
    assert_frame(to_pod(pod_one, SERVICE, tcp(WEB, 30000, "SA")), back.packet)
    assert {row.flags & CtFlags.CT_F_LOOPBACK for row in hairpin.ct().values()} == {CtFlags.CT_F_LOOPBACK}


def test_error_of_a_pod_to_itself_finds_the_socket(hairpin: Datapath) -> None:
    """Port unreachable about a loopback datagram quotes what the client's socket sent."""
    ask(hairpin, udp(5000, DNS, b""))
    arrived = to_pod(pod_one, loopback.ip, udp(5000, 5353, b""))
    result = hairpin.send(SIX_ONE, from_pod(pod_one, loopback.ip, unreachable(arrived)))
    quoted = from_pod(pod_one, SERVICE, udp(5000, DNS, b""), hlim=63)
    quoted = quoted[:60] + arrived[60:62]
    assert_frame(to_pod(pod_one, pod_one.ip, unreachable(quoted)), result.packet)


def test_who_pretends_to_be_the_loopback_address_is_judged(hairpin: Datapath) -> None:
    """From outside, with the ports of an open flow: the pod's policy stands in between."""
    hairpin.native_device("net0", packets.node_one.ip, ip6=node_one.ip)
    hairpin.send(SIX_ONE, TO_WEB)
    packet = frame(GATEWAY.mac, node_one.mac, loopback.ip, pod_one.ip, tcp(30000, 8080, "A"))
    result = hairpin.run("from_netdev", packet, "net0")
    assert (result.action, result.drop.reason) == (DROP, DropReason.DROP_POLICY)


def test_loopback_address_is_nobody_to_talk_to(two_sixes: Datapath) -> None:
    """Without such a flow, a packet to it goes nowhere."""
    result = ask(two_sixes, tcp(8080, 30000), dst=loopback.ip)
    assert (result.action, result.drop.reason) == (DROP, DropReason.DROP_UNROUTABLE)


# ---- errors and refusals -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "seen"),
    [
        pytest.param(udp(5000, DNS, b"12345678"), udp(5000, 5353, b"12345678"), id="udp"),
        pytest.param(tcp(30000, WEB), tcp(30000, 8080), id="tcp"),
    ],
)
def test_error_of_a_backend_quotes_the_service(service: Datapath, sent: Packet, seen: Packet) -> None:
    """The client's socket is found by what it sent; the quoted L4 sum is the backend's business."""
    ask(service, sent)
    arrived = to_pod(pod_two, pod_one.ip, seen)
    result = service.send(SIX_TWO, from_pod(pod_two, pod_one.ip, unreachable(arrived)))
    as_sent = bytearray(from_pod(pod_one, SERVICE, sent, hlim=63))
    sum_at = 54 + (16 if arrived[20] == TCP else 6)
    as_sent[sum_at : sum_at + 2] = arrived[sum_at : sum_at + 2]
    assert_frame(to_pod(pod_one, pod_two.ip, unreachable(bytes(as_sent))), result.packet)


def told(packet: bytes, error: Packet, size: int) -> bytes:
    """The answer of the router to a pod's *packet*, which it quotes up to its transport's *size*."""
    quoted = Raw(packet[14 : 14 + 40 + size])
    return frame(pod_one.node_mac, pod_one.mac, router.ip, pod_one.ip, error, quoted, hlim=64)


NOBODY = ICMPv6DestUnreach(code=4)


def reset(layer: Packet, src: str) -> bytes:
    """The service's own answer to a SYN."""
    answer = tcp(layer.dport, layer.sport, "RA", b"", seq=0, ack=layer.seq + 1, window=0)
    return frame(pod_one.node_mac, pod_one.mac, src, pod_one.ip, answer, hlim=64)


@pytest.mark.parametrize(("layer", "size"), [(tcp(30000, WEB, "A"), 20), (udp(5000, DNS), 8)])
def test_without_a_backend_the_pod_is_told(service: Datapath, layer: Packet, size: int) -> None:
    """Port unreachable, by the router, about what the pod sent."""
    service.add_service(1, SERVICE, WEB, TCP, {})
    service.add_service(2, SERVICE, DNS, UDP, {})
    result = ask(service, layer)
    assert (result.action, result.drop.reason) == (REDIRECT, DropReason.DROP_NO_SERVICE)
    assert_frame(told(from_pod(pod_one, SERVICE, layer), NOBODY, size), result.packet)


def test_without_a_backend_a_connection_is_reset(service: Datapath) -> None:
    """With data in its SYN, too; behind an extension header nothing is said."""
    service.add_service(1, SERVICE, WEB, TCP, {})
    for layer in (tcp(30000, WEB), tcp(30000, WEB, "S", b"GET /")):
        result = ask(service, layer)
        assert (result.action, result.drop.reason) == (REDIRECT, DropReason.DROP_NO_SERVICE)
        assert_frame(reset(layer, SERVICE), result.packet)
    silent = ask(service, IPv6ExtHdrDestOpt(), tcp(30000, WEB))
    assert (silent.action, silent.drop.reason) == (DROP, DropReason.DROP_NO_SERVICE)


def test_who_has_backends_elsewhere_alone_says_nothing(service: Datapath) -> None:
    """A local policy: the client's next try may go to another node."""
    flags = LbServiceFlags.LB_F_CLUSTER_IP | LbServiceFlags.LB_F_ELSEWHERE
    service.add_service(1, SERVICE, WEB, TCP, {}, flags=flags)
    result = service.send(SIX_ONE, TO_WEB)
    assert (result.action, result.drop.reason) == (DROP, DropReason.DROP_NO_SERVICE)


@pytest.mark.parametrize("layer", [tcp(30000, 81), udp(5000, 80), ping(5)], ids=["tcp", "udp", "ping"])
def test_what_no_port_takes_is_refused_and_the_pod_is_told(service: Datapath, layer: Packet) -> None:
    """Instead of leaving for the world; without the row of the address it would."""
    assert ask(service, layer, dst=OTHER).of_type(1) == []
    service.cluster_ip(SERVICE)
    result = ask(service, layer)
    assert (result.action, result.drop.reason) == (REDIRECT, DropReason.DROP_IS_CLUSTER_IP)
    packet = from_pod(pod_one, SERVICE, layer)
    expected = reset(layer, SERVICE) if layer.name == "TCP" else told(packet, NOBODY, 8)
    assert_frame(expected, result.packet)


def test_last_hop_quotes_the_service(service: Datapath) -> None:
    """The pod knows of no backend."""
    packet = from_pod(pod_one, SERVICE, tcp(30000, WEB), hlim=1)
    result = service.send(SIX_ONE, packet)
    assert (result.action, result.drop.reason) == (REDIRECT, DropReason.DROP_TTL_EXCEEDED)
    assert_frame(told(packet, ICMPv6TimeExceeded(), 20), result.packet)


def test_source_ranges_judge_the_whole_address(service: Datapath) -> None:
    """Of pods; two networks that differ behind the 64th bit are two."""
    flags = LbServiceFlags.LB_F_LOAD_BALANCER | LbServiceFlags.LB_F_SOURCES_ALLOW
    service.add_service(7, BALANCER, WEB, TCP, {101: (pod_two.ip, 8080)}, flags=flags)
    ranges = service.map("lb_source_range")

    def listed(network: str) -> bytes:
        prefix = IPv6Network(network)
        bits = abi.LbSourcePrefix.LB_SOURCE_PREFIX_FRONTEND + prefix.prefixlen
        return abi.LbSourceKey(
            bits, 7, LbServiceFlags.LB_F_SOURCES_ALLOW, prefix.network_address.packed
        ).pack()

    for network, admitted in (("fd00:1::/127", False), ("fd00:1::a/127", True), ("fd00::/16", True)):
        ranges.update(listed(network), u32(1))
        result = ask(service, tcp(30000, WEB), dst=BALANCER)
        reasons = [] if admitted else [DropReason.DROP_NOT_IN_SRC_RANGE]
        assert [event.reason for event in result.of_type(1)] == reasons, network
        ranges.delete(listed(network))
