# SPDX-License-Identifier: Apache-2.0
"""IPv6 between nodes, inside the tunnel that IPv4 has: what leaves, what is believed, what is refused."""

from __future__ import annotations

import pytest
from scapy.layers.inet6 import ICMPv6PacketTooBig

from ciliumd.abi import DropReason, Identity
from datapath.openworld6 import SIX_ONE
from datapath.rows import ALLOW_ALL, DEFAULT_DENY, INGRESS, Rule
from datapath.tunnel import (
    AWAY,
    MTU,
    Tunnel,
    Tunnelled,
    node_three,
    node_two,
    packet_of,
    router_two,
)
from datapath.tunnel6 import inner, router_away, unpublished
from fixtures import packets
from fixtures.packets import Raw, assert_frame, tcp, udp
from fixtures.packets6 import (
    Place6,
    from_pod,
    from_stack,
    ping,
    pod_away,
    pod_one,
    pod_two,
    pong,
    router,
    to_host,
    to_pod,
    world_one,
)

pytestmark = pytest.mark.datapath


@pytest.mark.parametrize(
    ("there", "back"),
    [
        pytest.param(tcp(30000, 80), tcp(80, 30000, "SA"), id="tcp"),
        pytest.param(udp(5000, 53), udp(53, 5000), id="udp"),
        pytest.param(ping(7), pong(7), id="ping"),
    ],
)
def test_pod_reaches_a_pod_of_another_node_and_is_answered(
    tunnel6: Tunnel, there: object, back: object
) -> None:
    """The pod's identity is on the wire; a hop is taken each way."""
    left = Tunnelled.read(*tunnel6.pod_sends(from_pod(pod_one, pod_away.ip, there)).wire)
    assert (left.dst, left.identity) == (node_two.ip, SIX_ONE.identity)
    assert packet_of(left.inner) == packet_of(from_pod(pod_one, pod_away.ip, there, hlim=63))

    outcome = tunnel6.tunnel_brings(node_two.ip, AWAY, inner(pod_away, pod_one.ip, back))
    (arrived,) = outcome.pod
    assert_frame(to_pod(pod_one, pod_away.ip, back, hlim=62), arrived)
    assert len(tunnel6.datapath.ct()) == 1


def test_too_big_for_the_tunnel_is_said_to_the_sender(tunnel6: Tunnel) -> None:
    """Packet too big, with what fits; what fits exactly goes."""
    fits = MTU - 40 - 8
    assert tunnel6.pod_sends(from_pod(pod_one, pod_away.ip, udp(5000, 53, bytes(fits)))).wire
    sent = from_pod(pod_one, pod_away.ip, udp(5000, 53, bytes(fits + 1)))
    outcome = tunnel6.pod_sends(sent, frames=1)
    assert outcome.reasons == [DropReason.DROP_FRAG_NOSUPPORT]
    (told,) = outcome.pod
    answer = ICMPv6PacketTooBig(mtu=MTU) / Raw(sent[14 : 14 + 48])
    assert_frame(to_pod(pod_one, router.ip, answer, hlim=64), told)


def test_node_and_pods_of_the_other_node(tunnel6: Tunnel) -> None:
    """By the routers' addresses, as nodes."""
    query = inner(router_away, pod_one.ip, udp(40000, 53))
    outcome = tunnel6.tunnel_brings(node_two.ip, Identity.ID_REMOTE_NODE, query)
    assert len(outcome.pod) == 1
    assert outcome.events[0].src_identity == Identity.ID_REMOTE_NODE
    back = Tunnelled.read(*tunnel6.pod_sends(from_pod(pod_one, router_away.ip, udp(53, 40000))).wire)
    assert (back.dst, back.identity) == (node_two.ip, SIX_ONE.identity)
    (up,) = tunnel6.tunnel_brings(node_two.ip, AWAY, inner(pod_away, router.ip, ping(3))).host
    assert up[12:] == to_host(pod_one, router.ip, ping(3))[12:14] + inner(pod_away, router.ip, ping(3))[14:]
    out = Tunnelled.read(*tunnel6.host_sends(from_stack(router.ip, pod_away.ip, tcp(50000, 80))).wire)
    assert (out.dst, out.identity) == (node_two.ip, Identity.ID_REMOTE_NODE)
    routed = tunnel6.host_sends(from_stack(world_one.ip, pod_away.ip, tcp(50000, 80)))
    assert routed.reasons == [DropReason.DROP_INVALID_SIP]


@pytest.mark.parametrize(
    ("outer", "identity", "source", "reason"),
    [
        pytest.param("192.168.9.77", AWAY, pod_away.ip, DropReason.DROP_UNKNOWN_SENDER, id="no node"),
        pytest.param(node_three.ip, AWAY, pod_away.ip, DropReason.DROP_INVALID_SIP, id="another's pod"),
        pytest.param(node_two.ip, AWAY + 1, pod_away.ip, DropReason.DROP_INVALID_IDENTITY, id="identity"),
        pytest.param(
            node_two.ip, Identity.ID_HOST, unpublished.ip, DropReason.DROP_INVALID_IDENTITY, id="as a host"
        ),
        pytest.param(node_two.ip, 1001, pod_one.ip, DropReason.DROP_INVALID_SIP, id="our pod"),
        pytest.param(node_two.ip, Identity.ID_HOST, router.ip, DropReason.DROP_INVALID_SIP, id="this node"),
        pytest.param(node_two.ip, AWAY, world_one.ip, DropReason.DROP_INVALID_SIP, id="the world"),
        pytest.param(node_two.ip, AWAY, "fe80::1", DropReason.DROP_INVALID_SIP, id="of a link"),
        pytest.param(
            node_two.ip, AWAY, f"::ffff:{packets.pod_away.ip}", DropReason.DROP_INVALID, id="IPv4's pod"
        ),
    ],
)
def test_node_speaks_for_itself_and_its_pods_alone(
    tunnel6: Tunnel, outer: str, identity: int, source: str, reason: DropReason
) -> None:
    """The rules of IPv4, address by address."""
    lie = inner(Place6(source, router_two), pod_one.ip, udp(5000, 53))
    outcome = tunnel6.tunnel_brings(outer, identity, lie)
    assert (outcome.reasons, outcome.pod) == ([reason], ())


def test_pod_without_a_row_yet_is_believed_what_a_pod_can_be(tunnel6: Tunnel) -> None:
    """Its node says who it is; where it may not go is refused like anybody's."""
    query = inner(unpublished, pod_one.ip, udp(5000, 53))
    outcome = tunnel6.tunnel_brings(node_two.ip, 2099, query)
    assert (len(outcome.pod), outcome.events[0].src_identity) == (1, 2099)
    tunnel6.datapath.policy(99, *ALLOW_ALL, Rule(INGRESS, DEFAULT_DENY, 6, 80))
    tunnel6.datapath.use_version(SIX_ONE, 99)
    refused = tunnel6.tunnel_brings(node_two.ip, AWAY, inner(pod_away, pod_one.ip, tcp(30000, 80)))
    assert refused.reasons == [DropReason.DROP_POLICY]
    nobody = tunnel6.tunnel_brings(node_two.ip, AWAY, inner(pod_away, pod_two.ip, udp(5000, 53)))
    assert nobody.reasons == [DropReason.DROP_UNROUTABLE]
    late = tunnel6.tunnel_brings(node_two.ip, AWAY, inner(pod_away, pod_one.ip, udp(5000, 53), hlim=1))
    assert late.reasons == [DropReason.DROP_TTL_EXCEEDED]
