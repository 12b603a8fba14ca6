# SPDX-License-Identifier: Apache-2.0
"""Pods and the world over IPv6: out under the node's address, back to the pod that asked, errors included."""

from __future__ import annotations

from ipaddress import IPv6Network
from typing import TYPE_CHECKING

import pytest
from scapy.layers.inet6 import ICMPv6PacketTooBig, ICMPv6TimeExceeded, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment

from ciliumd.abi import DropReason, Mark, NatDir, NatKey, NodeScope
from ciliumd.daemon.datapath import network6
from ciliumd.reconcile.gc import flow_of_nat
from datapath.harness import DROP, PASS, REDIRECT, Datapath
from datapath.node import MASQUERADE6, NAT_PORTS
from datapath.openworld6 import SIX_ONE, SIX_TWO
from datapath.rows import ALLOW_ALL, a16
from datapath.wire import GATEWAY, leave
from fixtures.packets import Raw, assert_frame, sctp, tcp, udp
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
    pong,
    to_pod,
    unreachable,
    world_one,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from scapy.packet import Packet

    from datapath.conftest import Load

pytestmark = pytest.mark.datapath

UDP, NODE = 17, 2 << 24


@pytest.fixture
def world6(both_families: Datapath) -> Datapath:
    """Two pods that may do everything, and a native device with an address of each family."""
    both_families.reset()
    fill(both_families)
    return both_families


def fill(datapath: Datapath) -> None:
    """The rows of such a node."""
    datapath.native_device("net0", node_one.place.ip, ip6=node_one.ip)
    datapath.host_address(node_one.ip)
    datapath.add_endpoint(SIX_ONE, *ALLOW_ALL)
    datapath.add_endpoint(SIX_TWO, *ALLOW_ALL)


def masqueraded(dst: str, *layers: Packet, **ip: object) -> bytes:
    """What pod one sent, as it must be on the wire."""
    return frame(pod_one.mac, pod_one.node_mac, node_one.ip, dst, *layers, **({"hlim": 63} | ip))


def answered(src: str, *layers: Packet, **ip: object) -> bytes:
    """What the world sends to the node's address."""
    return frame(GATEWAY.mac, node_one.mac, src, node_one.ip, *layers, **ip)


def back(datapath: Datapath, src: str, *layers: Packet, **ip: object) -> bytes:
    """The same, as it leaves our program for a pod."""
    result = datapath.run("from_netdev", answered(src, *layers, **ip), "net0")
    assert result.action == REDIRECT
    return result.packet


def port_of(wired: bytes) -> int:
    """The source port, or echo id, that a packet without extension headers left with."""
    ip = Ether(wired)[IPv6]
    assert ip.src == node_one.ip
    return int(ip.payload.id if ip.nh == 58 else ip.sport)


KINDS = [
    pytest.param(lambda port: tcp(port, 443), lambda port: tcp(443, port, "SA"), id="tcp"),
    pytest.param(lambda port: udp(port, 53), lambda port: udp(53, port), id="udp"),
    pytest.param(ping, pong, id="ping"),
]


@pytest.mark.parametrize("wanted", [40001, 7])
@pytest.mark.parametrize(("out", "answer"), KINDS)
def test_flow_leaves_as_the_node_and_its_answer_finds_the_pod(
    world6: Datapath, out: Callable[[int], Packet], answer: Callable[[int], Packet], wanted: int
) -> None:
    """A port in the range is kept, another one is not; every checksum is right both ways."""
    wired = leave(world6, SIX_ONE, from_pod(pod_one, world_one.ip, out(wanted)))
    port = port_of(wired)
    assert port in NAT_PORTS
    assert (port == wanted) == (wanted in NAT_PORTS)
    assert_frame(masqueraded(world_one.ip, out(port)), wired)
    assert leave(world6, SIX_ONE, from_pod(pod_one, world_one.ip, out(wanted))) == wired
    assert_frame(
        to_pod(pod_one, world_one.ip, answer(wanted), hlim=49),
        back(world6, world_one.ip, answer(port), hlim=50),
    )


def test_every_flow_has_one_row_each_way(world6: Datapath) -> None:
    """OUT is keyed by what the pod sends, IN by what comes back; all 128 bits are there."""
    leave(world6, SIX_ONE, from_pod(pod_one, world_one.ip, udp(40001, 53)))
    out = NatKey(a16(pod_one.ip), a16(world_one.ip), 40001, 53, UDP, NatDir.NAT_OUT, 0)
    into = NatKey(a16(world_one.ip), a16(node_one.ip), 53, 40001, UDP, NatDir.NAT_IN, 0)
    assert {key: (row.addr, row.port) for key, row in world6.snat().items()} == {
        out: (a16(node_one.ip), 40001),
        into: (a16(pod_one.ip), 40001),
    }
    # The garbage collector keeps both while this conntrack row lives.
    flows = {flow_of_nat(key, row) for key, row in world6.snat().items()}
    (flow,) = (flow for flow in flows if flow)
    assert len(flows) == 1
    assert world6.map("ct").lookup(flow.pack()) is not None


def test_two_pods_with_one_port_do_not_meet(world6: Datapath) -> None:
    """Nor do they with another server's flows, which may have the same port."""
    one = port_of(leave(world6, SIX_ONE, from_pod(pod_one, world_one.ip, udp(40001, 53))))
    two = port_of(leave(world6, SIX_TWO, from_pod(pod_two, world_one.ip, udp(40001, 53))))
    assert one == 40001
    assert two in NAT_PORTS
    assert two != one
    assert_frame(to_pod(pod_one, world_one.ip, udp(53, 40001)), back(world6, world_one.ip, udp(53, one)))
    assert_frame(to_pod(pod_two, world_one.ip, udp(53, 40001)), back(world6, world_one.ip, udp(53, two)))
    other = "2001:db8:fffe::7"
    assert port_of(leave(world6, SIX_TWO, from_pod(pod_two, other, udp(40001, 53)))) == 40001


def test_pod_is_not_given_a_port_the_node_uses(world6: Datapath) -> None:
    """The node's own flow came first: it and its answers are unchanged.  Coming second, it moves."""
    own = frame(node_one.mac, GATEWAY.mac, node_one.ip, world_one.ip, tcp(40001, 443))
    assert world6.run("to_netdev", own, "net0").packet == own
    assert port_of(leave(world6, SIX_ONE, from_pod(pod_one, world_one.ip, tcp(40001, 443)))) != 40001
    answer = answered(world_one.ip, tcp(443, 40001, "SA"))
    result = world6.run("from_netdev", answer, "net0")
    assert (result.action, result.packet) == (PASS, answer)

    leave(world6, SIX_ONE, from_pod(pod_one, world_one.ip, tcp(40002, 443)))
    second = frame(node_one.mac, GATEWAY.mac, node_one.ip, world_one.ip, tcp(40002, 443))
    moved = port_of(world6.run("to_netdev", second, "net0").packet)
    assert moved != 40002
    result = world6.run("from_netdev", answered(world_one.ip, tcp(443, moved, "SA")), "net0")
    assert result.action == PASS
    assert_frame(answered(world_one.ip, tcp(443, 40002, "SA")), result.packet)


def test_no_port_left_is_refused_and_comes_back(world6: Datapath) -> None:
    """The new flow alone is dropped, by name; a known one goes on; when a port is free it is found."""
    known = from_pod(pod_one, world_one.ip, udp(40001, 53))
    wired = leave(world6, SIX_ONE, known)
    keys = [
        NatKey(a16(world_one.ip), a16(node_one.ip), 53, port, UDP, NatDir.NAT_IN, 0) for port in NAT_PORTS
    ]
    for key in keys:
        if key.dport != 40001:
            world6.add_snat(key, node_one.ip, key.dport)
    sent = world6.send(SIX_ONE, from_pod(pod_one, world_one.ip, udp(40002, 53)))
    refused = world6.run("to_netdev", sent.packet, "net0")
    assert (refused.action, refused.packet) == (DROP, sent.packet)
    assert refused.drop.reason == DropReason.DROP_NAT_NO_MAPPING
    assert leave(world6, SIX_ONE, known) == wired
    own = frame(node_one.mac, GATEWAY.mac, node_one.ip, world_one.ip, udp(40001, 53))
    assert world6.run("to_netdev", own, "net0").packet == own

    world6.map("snat").delete(next(key for key in keys if key.dport == 40002).pack())
    assert port_of(leave(world6, SIX_ONE, from_pod(pod_one, world_one.ip, udp(40002, 53)))) == 40002


# ---- errors and fragments ----------------------------------------------------------------------


ERRORS = [
    pytest.param(unreachable, id="port unreachable"),
    pytest.param(lambda quoted: ICMPv6PacketTooBig(mtu=1280) / Raw(quoted[14:]), id="too big"),
    pytest.param(lambda quoted: ICMPv6TimeExceeded() / Raw(quoted[14:]), id="time exceeded"),
]


@pytest.mark.parametrize("wanted", [40001, 7])
@pytest.mark.parametrize(("out", "answer"), KINDS)
@pytest.mark.parametrize("error", ERRORS)
def test_error_about_a_pods_packet_reaches_the_pod(
    world6: Datapath,
    error: Callable[[bytes], Packet],
    out: Callable[[int], Packet],
    answer: Callable[[int], Packet],
    wanted: int,
) -> None:
    """It quotes the pod's own packet again; the quoted transport's sum is as it was on the wire."""
    del answer
    wired = leave(world6, SIX_ONE, from_pod(pod_one, world_one.ip, out(wanted)))
    arrived = back(world6, "2001:db8:77::1", error(wired))
    quoted = from_pod(pod_one, world_one.ip, out(wanted), hlim=63)
    at = 14 + 40 + (16 if out(1).name == "TCP" else 6 if out(1).name == "UDP" else 2)
    quoted = quoted[:at] + wired[at : at + 2] + quoted[at + 2 :]
    assert_frame(to_pod(pod_one, "2001:db8:77::1", error(quoted)), arrived)


def test_error_about_the_nodes_packet_stays_the_nodes(world6: Datapath) -> None:
    """Its flow has rows that change nothing, or none."""
    own = frame(node_one.mac, GATEWAY.mac, node_one.ip, world_one.ip, tcp(40001, 443))
    world6.run("to_netdev", own, "net0")
    other = frame(node_one.mac, GATEWAY.mac, node_one.ip, world_one.ip, tcp(30000, 443))
    for quoted in (own, other):
        error = answered("2001:db8:77::1", unreachable(quoted))
        result = world6.run("from_netdev", error, "net0")
        assert (result.action, result.packet) == (PASS, error)


def test_pods_error_about_an_answer_leaves_as_the_node(world6: Datapath) -> None:
    """The world sees its own packet quoted, as it sent it."""
    wired = leave(world6, SIX_ONE, from_pod(pod_one, world_one.ip, udp(7, 53)))
    port = port_of(wired)
    asked = answered(world_one.ip, udp(53, port))
    arrived = back(world6, world_one.ip, udp(53, port))
    told = leave(world6, SIX_ONE, from_pod(pod_one, world_one.ip, unreachable(arrived)))
    at = 14 + 40 + 6
    quoted = frame(GATEWAY.mac, node_one.mac, world_one.ip, node_one.ip, udp(53, port), hlim=63)
    quoted = quoted[:at] + arrived[at : at + 2] + quoted[at + 2 :]
    assert asked[14:21] == quoted[14:21]
    assert_frame(masqueraded(world_one.ip, unreachable(quoted)), told)


def pieces(layer: Packet, dst: str, src: str) -> list[tuple[IPv6ExtHdrFragment, bytes, int]]:
    """A datagram in two fragments: their headers, their bytes, and the transport's number."""
    whole = bytes(frame(pod_one.mac, pod_one.node_mac, src, dst, layer))[54:]
    number = frame(pod_one.mac, pod_one.node_mac, src, dst, layer)[20]
    return [
        (IPv6ExtHdrFragment(nh=number, offset=0, m=1, id=77), whole[:48], number),
        (IPv6ExtHdrFragment(nh=number, offset=6, m=0, id=77), whole[48:], number),
    ]


@pytest.mark.parametrize(
    ("wanted", "named"),
    [pytest.param(udp(7, 53) / Raw(bytes(range(200))), udp, id="udp")],
)
def test_fragments_leave_together_and_come_back_together(
    world6: Datapath, wanted: Packet, named: object
) -> None:
    """The first one tells the port, and the sum it holds covers the whole datagram."""
    del named
    wired = [
        leave(world6, SIX_ONE, from_pod(pod_one, world_one.ip, header, Raw(data)))
        for header, data, _ in pieces(wanted, world_one.ip, pod_one.ip)
    ]
    port = int.from_bytes(wired[0][62:64], "big")
    assert port in NAT_PORTS
    renamed = wanted.copy()
    renamed.sport = port
    for (header, data, _), got in zip(pieces(renamed, world_one.ip, node_one.ip), wired, strict=True):
        assert_frame(masqueraded(world_one.ip, header, Raw(data)), got)

    reply, there = (udp(53, number) / Raw(bytes(range(200))) for number in (port, 7))
    for (header, data, _), (_, expected, _) in zip(
        pieces(reply, node_one.ip, world_one.ip), pieces(there, pod_one.ip, world_one.ip), strict=True
    ):
        arrived = back(world6, world_one.ip, header, Raw(data))
        assert_frame(to_pod(pod_one, world_one.ip, header, Raw(expected)), arrived)


def test_later_fragment_without_a_first_one_is_refused(world6: Datapath) -> None:
    """It has no port of its own."""
    header, data, _ = pieces(udp(7, 53) / Raw(bytes(200)), world_one.ip, pod_one.ip)[1]
    result = world6.run("to_netdev", from_pod(pod_one, world_one.ip, header, Raw(data)), "net0")
    assert (result.action, result.drop.reason) == (DROP, DropReason.DROP_FRAG_NOT_FOUND)


def test_extension_headers_stay_where_they_are(world6: Datapath) -> None:
    """The port is changed behind them."""
    out = (IPv6ExtHdrDestOpt(), udp(7, 53))
    wired = leave(world6, SIX_ONE, from_pod(pod_one, world_one.ip, *out))
    port = int.from_bytes(wired[62:64], "big")
    assert_frame(masqueraded(world_one.ip, IPv6ExtHdrDestOpt(), udp(port, 53)), wired)


# ---- what is not masqueraded -------------------------------------------------------------------


def test_who_came_in_with_the_pods_own_address_gets_its_answers_from_there(world6: Datapath) -> None:
    """The mark past the masquerade holds for both families."""
    request = frame(GATEWAY.mac, node_one.mac, world_one.ip, pod_one.ip, tcp(50000, 80))
    assert world6.run("from_netdev", request, "net0").action == REDIRECT
    reply = world6.send(SIX_ONE, from_pod(pod_one, world_one.ip, tcp(80, 50000, "SA")))
    assert reply.mark == Mark.MARK_SKIP_SNAT
    wired = world6.run("to_netdev", reply.packet, "net0", mark=reply.mark)
    assert (wired.action, wired.mark, wired.packet) == (PASS, 0, reply.packet)
    assert world6.snat() == {}


@pytest.mark.parametrize("identity", [1001, 6, 1, 7, NODE, NODE | NodeScope.NODE_API_SERVER])
def test_pods_and_nodes_of_the_cluster_see_the_pods_own_address(world6: Datapath, identity: int) -> None:
    """As with IPv4 when the cluster is routed."""
    world6.ipcache(f"{pod_away.ip}/128", identity)
    packet = from_pod(pod_one, pod_away.ip, udp(40001, 53))
    assert world6.run("to_netdev", packet, "net0").packet == packet
    assert world6.snat() == {}


@pytest.mark.parametrize("identity", [2, 10, 1 << 24])
def test_every_name_of_the_world_is_the_world(world6: Datapath, identity: int) -> None:
    """Also a prefix that a policy names."""
    world6.ipcache("2001:db8:ffff::/48", identity)
    assert port_of(leave(world6, SIX_ONE, from_pod(pod_one, world_one.ip, udp(40001, 53)))) == 40001


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (sctp(40001, 99), DropReason.DROP_NAT_UNSUPP_PROTO),
        (pong(9), DropReason.DROP_NAT_NO_MAPPING),
    ],
)
def test_what_cannot_be_changed_is_refused(world6: Datapath, layer: Packet, reason: DropReason) -> None:
    """SCTP's CRC is not computed here, and an echo reply answers nobody."""
    packet = from_pod(pod_one, world_one.ip, layer)
    result = world6.run("to_netdev", packet, "net0")
    assert (result.action, result.packet, result.drop.reason) == (DROP, packet, reason)


def test_options_turn_masquerading_off(load: Load) -> None:
    """All of it, for one network, or of IPv4 alone."""
    packet = from_pod(pod_one, world_one.ip, udp(40001, 53))
    native = load(**MASQUERADE6, **network6("native_cidr", IPv6Network("2001:db8:ffff::/48")))
    never = load(**MASQUERADE6 | {"masquerade_ipv6": 0})
    for datapath in (native, never):
        fill(datapath)
        assert datapath.run("to_netdev", packet, "net0").packet == packet
    other = from_pod(pod_one, "2001:db8:fffe::7", udp(40001, 53))
    assert native.run("to_netdev", other, "net0").packet != other
    alone = load(**MASQUERADE6, masquerade=0)
    fill(alone)
    assert alone.run("to_netdev", packet, "net0").packet != packet
