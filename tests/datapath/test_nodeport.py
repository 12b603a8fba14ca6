# SPDX-License-Identifier: Apache-2.0
"""Services asked from outside whose backend is here: a pod, or the node itself."""

from __future__ import annotations

import pytest

from ciliumd.abi import CtKind, DropReason, Identity, LbServiceFlags, Mark
from datapath.conftest import Load
from datapath.harness import DROP, PASS, REDIRECT, Datapath, Result, forwarded
from datapath.rows import ALLOW, ALLOW_ALL, DEFAULT_DENY, EGRESS, INGRESS, POD_ONE, POD_TWO, Rule
from datapath.wire import DNS, GATEWAY, NODE_PORT, WEB, asks, assert_quotes, expose
from fixtures.packets import (
    ICMP,
    IP,
    Ether,
    Packet,
    Raw,
    assert_frame,
    from_pod,
    node_one,
    on_wire,
    ping,
    pod_one,
    pod_two,
    sctp,
    svc_one,
    tcp,
    to_pod,
    udp,
    unreachable,
    world_one,
    world_two,
)

pytestmark = pytest.mark.datapath

CLIENT = 45000


def arrive(outside: Datapath, packet: bytes) -> Result:
    """From the network."""
    return outside.run("from_netdev", packet, "net0")


def answers(outside: Datapath, *layers: Packet, dst: str = world_one.ip, **ip: object) -> bytes:
    """What pod one answers, as the world gets it: past masquerading, with the MACs of the pod's veth."""
    sent = outside.send(POD_ONE, from_pod(pod_one, dst, *layers, **ip))
    assert (sent.action, sent.mark) == (REDIRECT, Mark.MARK_SKIP_SNAT)
    wired = outside.run("to_netdev", sent.packet, "net0", mark=sent.mark)
    assert (wired.action, wired.mark, wired.packet) == (PASS, 0, sent.packet)
    return wired.packet


@pytest.mark.parametrize(
    ("asked", "arrives", "answer", "told"),
    [
        pytest.param(
            tcp(CLIENT, WEB), tcp(CLIENT, 80), tcp(80, CLIENT, "SA"), tcp(WEB, CLIENT, "SA"), id="tcp"
        ),
        pytest.param(udp(CLIENT, DNS), udp(CLIENT, 53), udp(53, CLIENT), udp(DNS, CLIENT), id="udp"),
        pytest.param(
            udp(CLIENT, DNS, chksum=0),
            udp(CLIENT, 53, chksum=0),
            udp(53, CLIENT, chksum=0),
            udp(DNS, CLIENT, chksum=0),
            id="udp 0",
        ),
    ],
)
def test_pod_sees_the_client_and_the_client_sees_the_node(
    outside: Datapath, asked: Packet, arrives: Packet, answer: Packet, told: Packet
) -> None:
    """One hop each way; no masquerading row is needed."""
    result = arrive(outside, asks(world_one.ip, asked))
    assert (result.action, result.counted) == (REDIRECT, forwarded(INGRESS))
    assert_frame(to_pod(pod_one, world_one.ip, arrives), result.packet)
    expected = on_wire(pod_one.mac, pod_one.node_mac, node_one.ip, world_one.ip, told, ttl=63)
    assert_frame(expected, answers(outside, answer))
    assert outside.snat() == {}


def test_policy_sees_the_client_and_the_pods_own_port(outside: Datapath) -> None:
    """The world, one of its networks, or another node: by address, as without a node port."""
    rules = (
        *(Rule(INGRESS, DEFAULT_DENY), Rule(EGRESS, DEFAULT_DENY)),
        *(Rule(INGRESS, DEFAULT_DENY, class_id=1), Rule(INGRESS, ALLOW, 6, 80, class_id=1)),
    )
    outside.ipcache("203.0.113.8/32", 1 << 24)
    outside.ipcache("192.168.9.2/32", Identity.ID_REMOTE_NODE)
    classes = {(1 << 24, INGRESS): 1, (Identity.ID_REMOTE_NODE, INGRESS): 1}
    outside.policy(99, *rules, classes=classes)
    outside.use_version(POD_ONE, 99)
    refused = arrive(outside, asks(world_one.ip, tcp(CLIENT, WEB))).drop
    assert (refused.reason, refused.src_identity) == (DropReason.DROP_POLICY, Identity.ID_WORLD)
    assert arrive(outside, asks(world_two.ip, tcp(CLIENT, WEB))).action == REDIRECT
    assert arrive(outside, asks("192.168.9.2", tcp(CLIENT, WEB))).action == REDIRECT
    assert arrive(outside, asks(world_two.ip, udp(CLIENT, DNS))).drop.reason == DropReason.DROP_POLICY
    answers(outside, tcp(80, CLIENT, "SA"), dst=world_two.ip)


def test_one_client_may_mean_the_node_port_and_the_pod(outside: Datapath) -> None:
    """From one port: answers follow what was asked last."""
    arrive(outside, asks(world_one.ip, udp(CLIENT, DNS)))
    assert Ether(answers(outside, udp(53, CLIENT)))[IP].src == node_one.ip
    arrive(outside, asks(world_one.ip, udp(CLIENT, 53), dst=pod_one.ip))
    assert Ether(answers(outside, udp(53, CLIENT)))[IP].src == pod_one.ip
    arrive(outside, asks(world_one.ip, udp(CLIENT, DNS)))
    assert Ether(answers(outside, udp(53, CLIENT)))[IP].src == node_one.ip


def test_flow_keeps_its_backend_until_that_is_gone(outside: Datapath) -> None:
    """Sixteen flows over two backends; then one backend goes, and every flow lives on the other."""
    outside.add_endpoint(POD_TWO, *ALLOW_ALL)
    outside.add_service(
        1, node_one.ip, WEB, 6, {101: (pod_one.ip, 80), 105: (pod_two.ip, 80)}, flags=NODE_PORT
    )
    ports = range(CLIENT, CLIENT + 32)

    def backends(flags: str) -> list[str]:
        found = (arrive(outside, asks(world_one.ip, tcp(port, WEB, flags))).packet for port in ports)
        return [Ether(packet)[IP].dst for packet in found]

    first = backends("S")
    assert set(first) == {pod_one.ip, pod_two.ip}
    assert backends("A") == first
    outside.add_service(1, node_one.ip, WEB, 6, {105: (pod_two.ip, 80)}, flags=NODE_PORT)
    outside.remove_backend(101)
    assert set(backends("A")) == {pod_two.ip}
    assert len(outside.ct(CtKind.CT_KIND_SERVICE)) == len(ports)


def test_without_a_backend_the_client_is_told(outside: Datapath) -> None:
    """By the address it asked, quoting what it sent; back by the device it came."""
    outside.add_service(1, node_one.ip, WEB, 6, {}, flags=NODE_PORT)
    packet = asks(world_one.ip, tcp(CLIENT, WEB))
    result = arrive(outside, packet)
    assert (result.action, result.drop.reason) == (REDIRECT, DropReason.DROP_NO_SERVICE)
    assert result.drop.direction == INGRESS
    expected = on_wire(
        node_one.mac, GATEWAY.mac, node_one.ip, world_one.ip, unreachable(packet), id=0, ttl=64
    )
    assert_frame(expected, result.packet)
    later = asks(world_one.ip, Raw(bytes(16)), frag=2, proto=6)
    assert arrive(outside, later).action == PASS, "of no known datagram: the stack's"


@pytest.mark.parametrize("ttl", [1, 0])
def test_last_hop_is_told(outside: Datapath, ttl: int) -> None:
    """RFC 1812: time exceeded."""
    result = arrive(outside, asks(world_one.ip, tcp(CLIENT, WEB), ttl=ttl))
    assert result.drop.reason == DropReason.DROP_TTL_EXCEEDED
    told = Ether(result.packet)
    assert (told[IP].src, told[ICMP].type, told[ICMP].code) == (node_one.ip, 11, 0)


@pytest.mark.parametrize("source", [pod_one.ip, node_one.ip])
def test_nobody_outside_has_an_address_of_this_node(outside: Datapath, source: str) -> None:
    """Refused before a backend is chosen."""
    result = arrive(outside, asks(source, tcp(CLIENT, WEB)))
    assert (result.action, result.drop.reason) == (DROP, DropReason.DROP_INVALID_SIP)
    assert outside.ct(None) == {}


def test_what_no_service_asks_for_is_the_nodes(outside: Datapath) -> None:
    """Other ports, the same port of another protocol, pings."""
    for layer in (tcp(CLIENT, 22), udp(CLIENT, WEB), ping(5)):
        packet = asks(world_one.ip, layer)
        result = arrive(outside, packet)
        assert (result.action, result.packet, result.counted) == (PASS, packet, {})


def test_external_address_is_no_address_of_the_node(outside: Datapath) -> None:
    """External and load balancer addresses are asked in passing."""
    for number, flag in enumerate((LbServiceFlags.LB_F_EXTERNAL_IP, LbServiceFlags.LB_F_LOAD_BALANCER), 7):
        address = f"198.51.100.{number}"
        outside.add_service(number, address, 443, 6, {101: (pod_one.ip, 80)}, flags=flag)
        result = arrive(outside, asks(world_one.ip, tcp(CLIENT + number, 443), dst=address))
        assert_frame(to_pod(pod_one, world_one.ip, tcp(CLIENT + number, 80)), result.packet)
        answer = answers(outside, tcp(80, CLIENT + number, "SA"))
        assert (Ether(answer)[IP].src, Ether(answer)[IP].sport) == (address, 443)


def test_service_that_is_gone_ends_its_connections(outside: Datapath) -> None:
    """A pod's answer without a frontend to show goes nowhere."""
    arrive(outside, asks(world_one.ip, tcp(CLIENT, WEB)))
    outside.map("lb_revnat").delete((1).to_bytes(4, "little"))
    answer = outside.send(POD_ONE, from_pod(pod_one, world_one.ip, tcp(80, CLIENT, "SA")))
    assert answer.drop.reason == DropReason.DROP_NO_SERVICE


def test_fragments_follow_their_first(outside: Datapath) -> None:
    """Later ones have addresses only; both ways."""
    datagram = bytes(udp(CLIENT, DNS, bytes(24), len=32, chksum=0))
    halves = [(datagram[:16], {"flags": "MF"}), (datagram[16:], {"frag": 2})]
    for data, fields in halves:
        result = arrive(outside, asks(world_one.ip, Raw(data), proto=17, id=5, **fields))
        assert result.action == REDIRECT
        assert (Ether(result.packet)[IP].src, Ether(result.packet)[IP].dst) == (world_one.ip, pod_one.ip)
    answer = bytes(udp(53, CLIENT, bytes(24), len=32, chksum=0))
    for data, fields in [(answer[:16], {"flags": "MF"}), (answer[16:], {"frag": 2})]:
        frame = answers(outside, Raw(data), proto=17, id=6, **fields)
        assert Ether(frame)[IP].src == node_one.ip


def test_pods_refusal_reaches_the_client_as_the_nodes(outside: Datapath) -> None:
    """Source and quoted packet are what the client knows."""
    asked = asks(world_one.ip, udp(CLIENT, DNS))
    arrived = arrive(outside, asked).packet
    told = answers(outside, unreachable(arrived))
    quoted = on_wire(GATEWAY.mac, node_one.mac, world_one.ip, node_one.ip, udp(CLIENT, DNS), ttl=63)
    assert Ether(told)[IP].src == node_one.ip
    assert_quotes(told, quoted)


def test_error_about_an_answer_reaches_the_pod(outside: Datapath) -> None:
    """A router on the way says "too big" about what it saw: the pod learns of what it sent."""
    arrive(outside, asks(world_one.ip, udp(CLIENT, DNS)))
    answer = answers(outside, udp(53, CLIENT))
    error = asks("203.0.113.99", unreachable(answer, code=4, nexthopmtu=1400))
    result = arrive(outside, error)
    assert result.action == REDIRECT
    seen = Ether(result.packet)
    assert (seen[IP].src, seen[IP].dst, seen[ICMP].nexthopmtu) == ("203.0.113.99", pod_one.ip, 1400)
    sent = from_pod(pod_one, world_one.ip, udp(53, CLIENT), ttl=63)
    assert_quotes(result.packet, sent)

    outside.add_service(9, "198.51.100.9", 53, 17, {102: (pod_one.ip, 53)}, flags=NODE_PORT)
    arrive(outside, asks(world_one.ip, udp(CLIENT, 53), dst="198.51.100.9"))
    quoted = on_wire(node_one.mac, GATEWAY.mac, "198.51.100.9", world_one.ip, udp(53, CLIENT))
    misled = asks("203.0.113.99", unreachable(quoted))
    assert arrive(outside, misled).packet == misled, "to another than it quotes: the stack's"

    strange = asks("203.0.113.99", unreachable(asks(node_one.ip, udp(DNS, 1), dst=world_one.ip)))
    assert arrive(outside, strange).packet == strange, "about no flow of ours: the stack's"


def test_node_itself_is_a_backend(outside: Datapath) -> None:
    """Its stack gets the packet with the port it listens on; what it answers shows the node port."""
    outside.add_service(9, node_one.ip, 30443, 6, {109: (node_one.ip, 6443)}, flags=NODE_PORT)
    result = arrive(outside, asks(world_one.ip, tcp(CLIENT, 30443)))
    assert result.action == PASS
    assert_frame(asks(world_one.ip, tcp(CLIENT, 6443)), result.packet)
    own = on_wire(node_one.mac, GATEWAY.mac, node_one.ip, world_one.ip, tcp(6443, CLIENT, "SA"))
    answer = outside.run("to_netdev", own, "net0")
    assert answer.action == PASS
    expected = on_wire(node_one.mac, GATEWAY.mac, node_one.ip, world_one.ip, tcp(30443, CLIENT, "SA"))
    assert_frame(expected, answer.packet)
    direct = on_wire(node_one.mac, GATEWAY.mac, node_one.ip, world_two.ip, tcp(6443, CLIENT, "SA"))
    assert outside.run("to_netdev", direct, "net0").packet == direct


def test_sctp_is_passed_on_while_its_port_stays(outside: Datapath) -> None:
    """Its checksum is not computed here."""
    outside.add_service(9, node_one.ip, 30099, 132, {109: (pod_one.ip, 30099)}, flags=NODE_PORT)
    outside.add_service(10, node_one.ip, 30098, 132, {110: (pod_one.ip, 98)}, flags=NODE_PORT)
    result = arrive(outside, asks(world_one.ip, sctp(CLIENT, 30099)))
    assert_frame(to_pod(pod_one, world_one.ip, sctp(CLIENT, 30099)), result.packet)
    refused = arrive(outside, asks(world_one.ip, sctp(CLIENT, 30098)))
    assert refused.drop.reason == DropReason.DROP_NAT_UNSUPP_PROTO


def test_pod_reaches_a_node_port_of_its_own_node(outside: Datapath) -> None:
    """As any service: by its own address, without masquerading."""
    outside.add_endpoint(POD_TWO, *ALLOW_ALL)
    there = outside.send(POD_TWO, from_pod(pod_two, node_one.ip, tcp(CLIENT, WEB)))
    assert_frame(to_pod(pod_one, pod_two.ip, tcp(CLIENT, 80)), there.packet)
    back = outside.send(POD_ONE, from_pod(pod_one, pod_two.ip, tcp(80, CLIENT, "SA")))
    assert_frame(to_pod(pod_two, node_one.ip, tcp(WEB, CLIENT, "SA")), back.packet)


def test_cluster_and_world_may_have_different_backends(outside: Datapath) -> None:
    """externalTrafficPolicy Local: outside only what is here counts, inside everything does."""
    outside.add_endpoint(POD_TWO, *ALLOW_ALL)
    flags = NODE_PORT | LbServiceFlags.LB_F_TWO_SCOPES
    outside.add_service(1, node_one.ip, WEB, 6, {}, flags=flags)
    outside.add_service(1, node_one.ip, WEB, 6, {101: (pod_one.ip, 80)}, flags=flags, scope=1)
    refused = arrive(outside, asks(world_one.ip, tcp(CLIENT, WEB)))
    assert refused.drop.reason == DropReason.DROP_NO_SERVICE
    there = outside.send(POD_TWO, from_pod(pod_two, node_one.ip, tcp(CLIENT, WEB)))
    assert_frame(to_pod(pod_one, pod_two.ip, tcp(CLIENT, 80)), there.packet)


def test_node_that_is_told_not_to_takes_nothing_in(load: Load) -> None:
    """Somebody else's proxy may serve the node's ports."""
    datapath = load(node_port=0)
    expose(datapath)
    for packet in (asks(world_one.ip, tcp(CLIENT, WEB)), asks(world_one.ip, tcp(CLIENT, 80), dst=svc_one.ip)):
        result = arrive(datapath, packet)
        assert (result.action, result.packet, result.counted) == (PASS, packet, {})
