# SPDX-License-Identifier: Apache-2.0
"""Services of IPv6 asked from outside whose backend is behind the tunnel, frame by frame on real devices."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from scapy.layers.inet6 import ICMPv6PacketTooBig, IPv6ExtHdrFragment

from ciliumd.abi import DropReason, Identity
from datapath.node import NAT_PORTS
from datapath.openworld6 import SIX_ONE
from datapath.tunnel import (
    AWAY,
    MTU,
    Tunnel,
    Tunnelled,
    node_two,
    packet_of,
)
from datapath.tunnel6 import inner
from datapath.wire import GATEWAY, NODE_PORT
from datapath.wire6 import asks
from fixtures import packets
from fixtures.packets import Raw, assert_frame, tcp, udp
from fixtures.packets6 import (
    Ether,
    IPv6,
    frame,
    from_pod,
    from_stack,
    node_one,
    pod_away,
    pod_one,
    router,
    to_pod,
    unreachable,
    world_one,
)

if TYPE_CHECKING:
    from scapy.packet import Packet

pytestmark = pytest.mark.datapath

WEB, DNS, CLIENT = 30080, 30053, 40010
WORLD_TWO, FAR = "2001:db8:ffff::8", "2001:db8:77::1"


@pytest.fixture
def exposed(tunnel6: Tunnel) -> Tunnel:
    """80/TCP and 53/UDP of the pod on node two, as node ports of this node."""
    datapath = tunnel6.datapath
    datapath.native_device("net0", node_one.place.ip, ip6=node_one.ip)
    datapath.host_address(node_one.ip)
    datapath.add_service(1, node_one.ip, WEB, 6, {101: (pod_away.ip, 80)}, flags=NODE_PORT)
    datapath.add_service(2, node_one.ip, DNS, 17, {102: (pod_away.ip, 53)}, flags=NODE_PORT)
    return tunnel6


def from_away(*layers: Packet, dst: str = router.ip, **ip: object) -> bytes:
    """What node two puts into the tunnel for its pod."""
    return inner(pod_away, dst, *layers, **ip)


def carried(*layers: Packet, src: str = router.ip, **ip: object) -> bytes:
    """What is in the tunnel towards that pod."""
    fields = {"hlim": 63} | ip
    return frame(router.mac, router.mac, src, pod_away.ip, *layers, **fields)


def forwarded(exposed: Tunnel, packet: bytes) -> Tunnelled:
    """A client's packet in the tunnel."""
    outcome = exposed.arrives(packet)
    assert outcome.reasons == []
    (wired,) = outcome.wire
    return Tunnelled.read(wired)


def told(exposed: Tunnel, packet: bytes) -> bytes:
    """What the pod on node two sends to this node's router, as the client gets it."""
    outcome = exposed.tunnel_brings(node_two.ip, AWAY, packet)
    assert (outcome.reasons, outcome.host, outcome.pod) == ([], (), ())
    (wired,) = outcome.wire
    return wired


def seen_port(packet: bytes) -> int:
    """The port the backend is asked from."""
    return int(Ether(packet)[IPv6].payload.sport)


def shown(*layers: Packet, dst: str = world_one.ip) -> bytes:
    """What the client gets, two hops behind the pod."""
    return frame(node_one.mac, GATEWAY.mac, node_one.ip, dst, *layers, hlim=62)


def test_client_reaches_a_backend_behind_the_tunnel_and_is_answered(exposed: Tunnel) -> None:
    """As the world to policy, from the router's address; the answer comes through the tunnel."""
    for asked, arrives, answer, expected in (
        (tcp(CLIENT, WEB), tcp(CLIENT, 80), tcp(80, CLIENT, "SA"), tcp(WEB, CLIENT, "SA")),
        (udp(CLIENT, DNS), udp(CLIENT, 53), udp(53, CLIENT), udp(DNS, CLIENT)),
    ):
        sent = forwarded(exposed, asks(world_one.ip, asked))
        assert (sent.src, sent.dst, sent.identity) == (
            packets.node_one.ip,
            node_two.ip,
            Identity.ID_WORLD,
        )
        assert_frame(carried(arrives), sent.inner)
        assert_frame(shown(expected), told(exposed, from_away(answer)))


def test_node_and_clients_share_the_routers_ports(exposed: Tunnel) -> None:
    """The node's own connection keeps its answers, and the client gets another port; then the other way."""
    own = exposed.host_sends(from_stack(router.ip, pod_away.ip, tcp(CLIENT, 80)))
    assert seen_port(Tunnelled.read(own.wire[0]).inner) == CLIENT
    port = seen_port(forwarded(exposed, asks(world_one.ip, tcp(CLIENT, WEB))).inner)
    assert port != CLIENT
    assert port in NAT_PORTS
    answer = from_away(tcp(80, CLIENT, "SA"))
    up = exposed.tunnel_brings(node_two.ip, AWAY, answer)
    assert packet_of(up.host[0]) == packet_of(answer)
    assert_frame(shown(tcp(WEB, CLIENT, "SA")), told(exposed, from_away(tcp(80, port, "SA"))))

    forwarded(exposed, asks(WORLD_TWO, udp(CLIENT, DNS)))
    own = exposed.host_sends(from_stack(router.ip, pod_away.ip, udp(CLIENT, 53)))
    port = seen_port(Tunnelled.read(own.wire[0]).inner)
    assert port != CLIENT
    up = exposed.tunnel_brings(node_two.ip, AWAY, from_away(udp(53, port)))
    assert packet_of(up.host[0]) == packet_of(from_away(udp(53, CLIENT)))


def test_too_big_for_the_tunnel_is_said_to_the_client(exposed: Tunnel) -> None:
    """By the address it asked, with what would fit."""
    big = asks(world_one.ip, udp(CLIENT, DNS, bytes(1452)))
    outcome = exposed.arrives(big, frames=1)
    assert outcome.reasons == [DropReason.DROP_FRAG_NOSUPPORT]
    error = ICMPv6PacketTooBig(mtu=MTU) / Raw(big[14 : 14 + 48])
    assert_frame(frame(node_one.mac, GATEWAY.mac, node_one.ip, world_one.ip, error, hlim=64), outcome.wire[0])


def test_fragments_that_do_not_fit_the_tunnel_travel_in_fragments_of_its_own(exposed: Tunnel) -> None:
    """Their sender could not be told: nothing of it may be lost."""
    datagram = asks(world_one.ip, udp(CLIENT, DNS, bytes(3000)))[54:]
    first = asks(world_one.ip, IPv6ExtHdrFragment(nh=17, offset=0, m=1, id=7), Raw(datagram[:1448]))
    outcome = exposed.arrives(first, frames=2)
    assert (outcome.reasons, len(outcome.wire)) == ([], 2)
    inside = b"".join(wired[34:] for wired in outcome.wire)
    sent = udp(CLIENT, 53, bytes(3000))
    expected = carried(sent)[54:]
    assert inside[16 + 54 : 16 + 62] == bytes([17, 0, 0, 1, 0, 0, 0, 7])
    assert inside[16 + 62 :] == expected[:1448]


def test_errors_pass_the_tunnel_both_ways(exposed: Tunnel) -> None:
    """The pod's refusal to the client, and what the network says about an answer to the pod."""
    asked = forwarded(exposed, asks(world_one.ip, udp(CLIENT, DNS))).inner
    refusal = told(exposed, from_away(unreachable(asked)))
    quoted = asks(world_one.ip, udp(CLIENT, DNS), hlim=63)
    quoted = quoted[:60] + asked[60:62] + quoted[62:]
    assert_frame(shown(unreachable(quoted)), refusal)

    answer = told(exposed, from_away(udp(53, CLIENT)))
    error = forwarded(exposed, asks(FAR, ICMPv6PacketTooBig(mtu=1300) / Raw(answer[14:])))
    sent = from_away(udp(53, CLIENT), hlim=62)
    sent = sent[:60] + answer[60:62] + sent[62:]
    assert (error.dst, error.identity) == (node_two.ip, Identity.ID_WORLD)
    assert_frame(carried(ICMPv6PacketTooBig(mtu=1300) / Raw(sent[14:])), error.inner)


def test_pod_asks_a_node_port_and_its_backend_sees_the_pod(exposed: Tunnel) -> None:
    """Inside the cluster nothing is hidden: own address, own identity."""
    (wired,) = exposed.pod_sends(from_pod(pod_one, node_one.ip, udp(5000, DNS))).wire
    sent = Tunnelled.read(wired)
    assert sent.identity == SIX_ONE.identity
    assert_frame(carried(udp(5000, 53), src=pod_one.ip), sent.inner)
    answer = from_away(udp(53, 5000), dst=pod_one.ip)
    (got,) = exposed.tunnel_brings(node_two.ip, AWAY, answer).pod
    assert_frame(to_pod(pod_one, node_one.ip, udp(DNS, 5000), hlim=62), got)


def test_client_with_an_address_behind_the_tunnel_is_refused(exposed: Tunnel) -> None:
    """Pods of other nodes come through the tunnel, or as their node."""
    outcome = exposed.arrives(asks(pod_away.ip, udp(CLIENT, DNS)))
    assert (outcome.reasons, outcome.wire) == ([DropReason.DROP_INVALID_SIP], ())
    assert exposed.datapath.ct(None) == {}
