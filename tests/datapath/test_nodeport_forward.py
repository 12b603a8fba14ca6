# SPDX-License-Identifier: Apache-2.0
"""Services asked from outside whose backend is elsewhere, reached by route: under the node's address."""

from __future__ import annotations

import pytest

from ciliumd.abi import CtFlags, DropReason, Mark, NatDir, NatKey
from ciliumd.reconcile.gc import flow_of_nat
from datapath.conftest import Load
from datapath.harness import DROP, PASS, REDIRECT, Datapath, Result, forwarded
from datapath.node import NAT_PORTS
from datapath.rows import EGRESS, POD_ONE, a16
from datapath.wire import AWAY, AWAY_DNS, GATEWAY, NODE_PORT, asks, assert_quotes, leave
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
    pod_away,
    pod_one,
    sctp,
    tcp,
    udp,
    unreachable,
    world_one,
    world_two,
)

pytestmark = pytest.mark.datapath

CLIENT = 40010  # within the range of masquerading: it is kept
ETHERNET, IPV4 = 14, 20
UDP = 17


def arrive(outside: Datapath, packet: bytes) -> Result:
    """From the network."""
    return outside.run("from_netdev", packet, "net0")


def forward(outside: Datapath, packet: bytes) -> bytes:
    """A client's packet, as it is on the wire again; nobody behind us changes it any more."""
    result = arrive(outside, packet)
    assert (result.action, result.mark, result.counted) == (
        REDIRECT,
        Mark.MARK_SKIP_SNAT,
        forwarded(EGRESS),
    )
    wired = outside.run("to_netdev", result.packet, "net0", mark=result.mark)
    assert (wired.action, wired.packet, wired.mark) == (PASS, result.packet, 0)
    return wired.packet


def seen_port(frame: bytes) -> int:
    """The port the backend was asked from."""
    return int(Ether(frame)[IP].payload.sport)


@pytest.mark.parametrize(
    ("asked", "arrives", "answer", "told"),
    [
        pytest.param(
            tcp(CLIENT, AWAY), tcp(CLIENT, 80), tcp(80, CLIENT, "SA"), tcp(AWAY, CLIENT, "SA"), id="tcp"
        ),
        pytest.param(
            udp(CLIENT, AWAY_DNS), udp(CLIENT, 53), udp(53, CLIENT), udp(AWAY_DNS, CLIENT), id="udp"
        ),
        pytest.param(
            udp(CLIENT, AWAY_DNS, chksum=0),
            udp(CLIENT, 53, chksum=0),
            udp(53, CLIENT, chksum=0),
            udp(AWAY_DNS, CLIENT, chksum=0),
            id="udp 0",
        ),
    ],
)
def test_client_reaches_a_backend_elsewhere_and_is_answered(
    outside: Datapath, asked: Packet, arrives: Packet, answer: Packet, told: Packet
) -> None:
    """The backend sees the node, the client sees the node port; one hop each way; rows fit together."""
    frame = forward(outside, asks(world_one.ip, asked))
    expected = on_wire(GATEWAY.mac, node_one.mac, node_one.ip, pod_away.ip, arrives, ttl=63)
    assert_frame(expected, frame)
    back = forward(outside, asks(pod_away.ip, answer, ttl=50))
    assert_frame(on_wire(GATEWAY.mac, node_one.mac, node_one.ip, world_one.ip, told, ttl=49), back)

    ((flow, row),) = outside.ct().items()
    assert (flow.local, flow.remote, flow.remote_port) == (
        a16(world_one.ip),
        a16(pod_away.ip),
        53 if asked.dport == AWAY_DNS else 80,
    )
    assert row.flags & CtFlags.CT_F_SEEN_REPLY
    assert {flow_of_nat(key, entry) for key, entry in outside.snat().items()} == {flow}


def test_two_clients_with_one_port_do_not_meet(outside: Datapath) -> None:
    """The second is given another port, and each gets its own answers."""
    one = seen_port(forward(outside, asks(world_one.ip, udp(CLIENT, AWAY_DNS))))
    two = seen_port(forward(outside, asks(world_two.ip, udp(CLIENT, AWAY_DNS))))
    assert one == CLIENT
    assert two in NAT_PORTS
    assert two != one
    for port, client in ((one, world_one), (two, world_two)):
        told = forward(outside, asks(pod_away.ip, udp(53, port)))
        expected = udp(AWAY_DNS, CLIENT)
        assert_frame(on_wire(GATEWAY.mac, node_one.mac, node_one.ip, client.ip, expected, ttl=63), told)


def test_client_and_pod_share_the_nodes_ports(outside: Datapath) -> None:
    """A pod's masqueraded flow to the same far end keeps its port, whoever comes second."""
    outside.add_service(8, node_one.ip, 31500, UDP, {108: (world_two.ip, 53)}, flags=NODE_PORT)
    leave(outside, POD_ONE, from_pod(pod_one, world_two.ip, udp(CLIENT, 53)))
    assert seen_port(forward(outside, asks(world_one.ip, udp(CLIENT, 31500)))) != CLIENT


def test_flow_keeps_its_port(outside: Datapath) -> None:
    """Outside the range one inside it is given, once."""
    ports = {seen_port(forward(outside, asks(world_one.ip, tcp(1234, AWAY, flags)))) for flags in ("S", "A")}
    assert len(ports) == 1
    assert ports <= set(NAT_PORTS)


def test_two_node_ports_of_one_backend_are_told_apart(outside: Datapath) -> None:
    """To the backend a client's two flows are one; answers show what was asked last."""
    outside.add_service(9, node_one.ip, 31054, UDP, {109: (pod_away.ip, 53)}, flags=NODE_PORT)
    for asked in (AWAY_DNS, 31054, AWAY_DNS):
        forward(outside, asks(world_one.ip, udp(CLIENT, asked)))
        assert Ether(forward(outside, asks(pod_away.ip, udp(53, CLIENT))))[IP].payload.sport == asked


def test_no_port_left_is_refused(outside: Datapath) -> None:
    """Every port towards that backend is another's."""
    for port in NAT_PORTS:
        key = NatKey(a16(pod_away.ip), a16(node_one.ip), 53, port, UDP, NatDir.NAT_IN, 0)
        outside.add_snat(key, node_one.ip, port)
    result = arrive(outside, asks(world_one.ip, udp(CLIENT, AWAY_DNS)))
    assert (result.action, result.drop.reason) == (DROP, DropReason.DROP_NAT_NO_MAPPING)


def test_protocol_that_cannot_be_masqueraded_is_refused(outside: Datapath) -> None:
    """SCTP's ports are under a sum that is not computed here."""
    outside.add_service(9, node_one.ip, 30099, 132, {109: (pod_away.ip, 30099)}, flags=NODE_PORT)
    result = arrive(outside, asks(world_one.ip, sctp(CLIENT, 30099)))
    assert result.drop.reason == DropReason.DROP_NAT_UNSUPP_PROTO


def test_fragments_follow_their_first(outside: Datapath) -> None:
    """There and back: later ones have addresses only."""
    datagram = bytes(udp(CLIENT, AWAY_DNS, bytes(24), len=32, chksum=0))
    answer = bytes(udp(53, CLIENT, bytes(24), len=32, chksum=0))
    for data, src, dst in (
        (datagram, world_one.ip, pod_away.ip),
        (answer, pod_away.ip, world_one.ip),
    ):
        for piece, fields in [(data[:16], {"flags": "MF"}), (data[16:], {"frag": 2})]:
            frame = forward(outside, asks(src, Raw(piece), proto=UDP, id=5, **fields))
            assert (Ether(frame)[IP].src, Ether(frame)[IP].dst) == (node_one.ip, dst)
            assert frame[ETHERNET + IPV4 + 8 :] == piece[8:] if "flags" in fields else piece


def test_backends_refusal_reaches_the_client_as_the_nodes(outside: Datapath) -> None:
    """Quoting what the client sent to the node port."""
    frame = forward(outside, asks(world_one.ip, udp(1234, AWAY_DNS)))
    told = forward(outside, asks(pod_away.ip, unreachable(frame)))
    quoted = on_wire(GATEWAY.mac, node_one.mac, world_one.ip, node_one.ip, udp(1234, AWAY_DNS), ttl=63)
    assert (Ether(told)[IP].src, Ether(told)[IP].dst) == (node_one.ip, world_one.ip)
    assert_quotes(told, quoted)


def test_error_about_an_answer_reaches_the_backend(outside: Datapath) -> None:
    """From the node, quoting what the backend sent to the node."""
    port = seen_port(forward(outside, asks(world_one.ip, udp(1234, AWAY_DNS))))
    answer = forward(outside, asks(pod_away.ip, udp(53, port)))
    told = forward(outside, asks("203.0.113.99", unreachable(answer, code=4, nexthopmtu=1400)))
    seen = Ether(told)
    assert (seen[IP].src, seen[IP].dst, seen[ICMP].nexthopmtu) == (node_one.ip, pod_away.ip, 1400)
    quoted = asks(pod_away.ip, udp(53, port), ttl=63)
    assert_quotes(told, quoted)


def test_last_hop_is_refused_both_ways(outside: Datapath) -> None:
    """No packet lives for ever."""
    forward(outside, asks(world_one.ip, tcp(CLIENT, AWAY)))
    for packet in (asks(world_one.ip, tcp(CLIENT, AWAY), ttl=1), asks(pod_away.ip, tcp(80, CLIENT), ttl=1)):
        assert arrive(outside, packet).drop.reason == DropReason.DROP_TTL_EXCEEDED


def test_no_way_to_the_backend_is_refused(outside: Datapath) -> None:
    """The routing table knows none."""
    outside.add_service(9, node_one.ip, 31900, 6, {109: ("198.51.100.9", 80)}, flags=NODE_PORT)
    assert arrive(outside, asks(world_one.ip, tcp(CLIENT, 31900))).drop.reason == DropReason.DROP_NO_FIB


def test_device_without_an_address_masquerades_nothing(outside: Datapath) -> None:
    """There is no address to be answered at."""
    outside.map("devices").delete(outside.native_device("net0", node_one.ip).to_bytes(4, "little"))
    result = arrive(outside, asks(world_one.ip, tcp(CLIENT, AWAY)))
    assert result.drop.reason == DropReason.DROP_NAT_NO_MAPPING


def test_answer_whose_flow_is_gone_goes_nowhere(outside: Datapath) -> None:
    """Of a client, and of a pod that had been masqueraded."""
    forward(outside, asks(world_one.ip, tcp(CLIENT, AWAY)))
    for key in outside.ct():
        outside.map("ct").delete(key.pack())
    lost = arrive(outside, asks(pod_away.ip, tcp(80, CLIENT, "SA")))
    assert (lost.action, lost.drop.reason) == (DROP, DropReason.DROP_UNROUTABLE)
    forward(outside, asks(world_one.ip, tcp(CLIENT, AWAY, "A")))
    forward(outside, asks(pod_away.ip, tcp(80, CLIENT, "A")))


def test_service_that_is_gone_ends_its_connections(outside: Datapath) -> None:
    """An answer without a frontend to show goes nowhere."""
    forward(outside, asks(world_one.ip, tcp(CLIENT, AWAY)))
    outside.map("lb_revnat").delete((3).to_bytes(4, "little"))
    result = arrive(outside, asks(pod_away.ip, tcp(80, CLIENT, "SA")))
    assert result.drop.reason == DropReason.DROP_NO_SERVICE


def test_closed_connection_starts_anew(outside: Datapath) -> None:
    """A SYN over a closed row is a new flow, with a fresh row."""
    forward(outside, asks(world_one.ip, tcp(CLIENT, AWAY)))
    forward(outside, asks(pod_away.ip, tcp(80, CLIENT, "FA")))
    forward(outside, asks(world_one.ip, tcp(CLIENT, AWAY, "FA")))
    ((key, closed),) = outside.ct().items()
    assert closed.flags & (CtFlags.CT_F_LOCAL_CLOSED | CtFlags.CT_F_REMOTE_CLOSED)
    forward(outside, asks(world_one.ip, tcp(CLIENT, AWAY)))
    opened = outside.ct()[key]
    assert (opened.flags, opened.tcp_flags_remote) == (0, 0)


def test_backend_cannot_be_the_port_of_a_tunnel(load: Load) -> None:
    """Whoever may write a service must not speak with the node's address to another node's tunnel."""
    datapath = load(node_port=1, tunnel=1)
    datapath.native_device("net0", node_one.ip)
    datapath.host_address(node_one.ip)
    for number, backend in enumerate(("192.168.9.2", node_one.ip), 20):
        datapath.add_service(
            number, node_one.ip, 31000 + number, UDP, {number: (backend, 8472)}, flags=NODE_PORT
        )
        result = arrive(datapath, asks(world_one.ip, udp(CLIENT, 31000 + number)))
        assert (result.action, result.drop.reason) == (DROP, DropReason.DROP_ENCAP_PROHIBITED)
