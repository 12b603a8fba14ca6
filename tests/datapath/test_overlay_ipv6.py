# SPDX-License-Identifier: Apache-2.0
"""IPv6 between nodes, inside the tunnel that IPv4 has: what leaves, what is believed, what is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
    tunnel_node,
)
from fixtures import packets
from fixtures.packets import Raw, assert_frame, tcp, udp
from fixtures.packets6 import (
    Place6,
    frame,
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

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.datapath

router_away = Place6("fd00:2::1", router_two)
unpublished = Place6("fd00:2::63", router_two)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tunnel]:
    """A node with a tunnel whose pods have both families."""
    with tunnel_node(tmp_path_factory.mktemp("tunnel6"), ipv6=1) as made:
        yield made


@pytest.fixture
def six(loaded: Tunnel) -> Tunnel:
    """The cluster's rows of both families, and pod one."""
    loaded.reset()
    datapath = loaded.datapath
    datapath.add_endpoint(SIX_ONE, *ALLOW_ALL)
    datapath.host_address(router.ip)
    datapath.ipcache("fd00:2::/112", Identity.ID_UNMANAGED, tunnel=node_two.ip)
    datapath.ipcache(router_away.ip, Identity.ID_REMOTE_NODE, tunnel=node_two.ip)
    datapath.ipcache(pod_away.ip, AWAY, tunnel=node_two.ip)
    return loaded


def inner(src: Place6, dst: str, *layers: object, **ip: object) -> bytes:
    """What the other node puts into the tunnel: one hop is behind it, its MACs are its own."""
    return frame(router_two.mac, router_two.mac, src.ip, dst, *layers, **({"hlim": 63} | ip))


@pytest.mark.parametrize(
    ("there", "back"),
    [
        pytest.param(tcp(30000, 80), tcp(80, 30000, "SA"), id="tcp"),
        pytest.param(udp(5000, 53), udp(53, 5000), id="udp"),
        pytest.param(ping(7), pong(7), id="ping"),
    ],
)
def test_pod_reaches_a_pod_of_another_node_and_is_answered(six: Tunnel, there: object, back: object) -> None:
    """The pod's identity is on the wire; a hop is taken each way."""
    left = Tunnelled.read(*six.pod_sends(from_pod(pod_one, pod_away.ip, there)).wire)
    assert (left.dst, left.identity) == (node_two.ip, SIX_ONE.identity)
    assert packet_of(left.inner) == packet_of(from_pod(pod_one, pod_away.ip, there, hlim=63))

    outcome = six.tunnel_brings(node_two.ip, AWAY, inner(pod_away, pod_one.ip, back))
    (arrived,) = outcome.pod
    assert_frame(to_pod(pod_one, pod_away.ip, back, hlim=62), arrived)
    assert len(six.datapath.ct()) == 1


def test_too_big_for_the_tunnel_is_said_to_the_sender(six: Tunnel) -> None:
    """Packet too big, with what fits; what fits exactly goes."""
    fits = MTU - 40 - 8
    assert six.pod_sends(from_pod(pod_one, pod_away.ip, udp(5000, 53, bytes(fits)))).wire
    sent = from_pod(pod_one, pod_away.ip, udp(5000, 53, bytes(fits + 1)))
    outcome = six.pod_sends(sent, frames=1)
    assert outcome.reasons == [DropReason.DROP_FRAG_NOSUPPORT]
    (told,) = outcome.pod
    answer = ICMPv6PacketTooBig(mtu=MTU) / Raw(sent[14 : 14 + 48])
    assert_frame(to_pod(pod_one, router.ip, answer, hlim=64), told)


def test_node_and_pods_of_the_other_node(six: Tunnel) -> None:
    """By the routers' addresses, as nodes."""
    query = inner(router_away, pod_one.ip, udp(40000, 53))
    outcome = six.tunnel_brings(node_two.ip, Identity.ID_REMOTE_NODE, query)
    assert len(outcome.pod) == 1
    assert outcome.events[0].src_identity == Identity.ID_REMOTE_NODE
    back = Tunnelled.read(*six.pod_sends(from_pod(pod_one, router_away.ip, udp(53, 40000))).wire)
    assert (back.dst, back.identity) == (node_two.ip, SIX_ONE.identity)
    (up,) = six.tunnel_brings(node_two.ip, AWAY, inner(pod_away, router.ip, ping(3))).host
    assert up[12:] == to_host(pod_one, router.ip, ping(3))[12:14] + inner(pod_away, router.ip, ping(3))[14:]
    out = Tunnelled.read(*six.host_sends(from_stack(router.ip, pod_away.ip, tcp(50000, 80))).wire)
    assert (out.dst, out.identity) == (node_two.ip, Identity.ID_REMOTE_NODE)
    routed = six.host_sends(from_stack(world_one.ip, pod_away.ip, tcp(50000, 80)))
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
    six: Tunnel, outer: str, identity: int, source: str, reason: DropReason
) -> None:
    """The rules of IPv4, address by address."""
    lie = inner(Place6(source, router_two), pod_one.ip, udp(5000, 53))
    outcome = six.tunnel_brings(outer, identity, lie)
    assert (outcome.reasons, outcome.pod) == ([reason], ())


def test_pod_without_a_row_yet_is_believed_what_a_pod_can_be(six: Tunnel) -> None:
    """Its node says who it is; where it may not go is refused like anybody's."""
    query = inner(unpublished, pod_one.ip, udp(5000, 53))
    outcome = six.tunnel_brings(node_two.ip, 2099, query)
    assert (len(outcome.pod), outcome.events[0].src_identity) == (1, 2099)
    six.datapath.policy(99, *ALLOW_ALL, Rule(INGRESS, DEFAULT_DENY, 6, 80))
    six.datapath.use_version(SIX_ONE, 99)
    refused = six.tunnel_brings(node_two.ip, AWAY, inner(pod_away, pod_one.ip, tcp(30000, 80)))
    assert refused.reasons == [DropReason.DROP_POLICY]
    nobody = six.tunnel_brings(node_two.ip, AWAY, inner(pod_away, pod_two.ip, udp(5000, 53)))
    assert nobody.reasons == [DropReason.DROP_UNROUTABLE]
    late = six.tunnel_brings(node_two.ip, AWAY, inner(pod_away, pod_one.ip, udp(5000, 53), hlim=1))
    assert late.reasons == [DropReason.DROP_TTL_EXCEEDED]
