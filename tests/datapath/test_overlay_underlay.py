# SPDX-License-Identifier: Apache-2.0
"""A tunnel whose own packets are of IPv6: what leaves, who is believed, and that IPv4 brings nothing."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from ciliumd.abi import DropReason, Identity
from datapath.node import IP_TOOL
from datapath.openworld6 import SIX_ONE
from datapath.tunnel import (
    AWAY,
    TUNNEL_PORT,
    VXLAN_FLAGS,
    Tunnel,
    node_two,
    packet_of,
    tunnel_node,
    vxlan,
)
from datapath.tunnel6 import fill_away, inner, router_away, unpublished
from fixtures import packets
from fixtures.packets import UDP, Ether, Raw, assert_frame, tcp
from fixtures.packets6 import (
    IPv6,
    Place6,
    frame,
    from_pod,
    from_stack,
    node_one,
    pod_away,
    pod_one,
    router,
    to_pod,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from datapath.tunnel import Outcome

pytestmark = pytest.mark.datapath

HEADERS = 14 + 40 + 8 + 8  # of Ethernet, IPv6, UDP, VXLAN
MTU = 1500 - HEADERS  # what carries a frame has no Ethernet header in its own MTU, but that of the frame
two, two_again = Place6("2001:db8:9::2", node_two), Place6("2001:db8:9::12", node_two)
stranger = Place6("2001:db8:9::66", node_two)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tunnel]:
    """A node whose tunnel is of IPv6, and its neighbours."""
    with tunnel_node(tmp_path_factory.mktemp("underlay6"), ipv6=1, tunnel_ipv6=1, overlay_mtu=MTU) as made:
        for place in (two, two_again):
            words = ["neighbour", "add", place.ip, "lladdr", place.mac, "dev", "net0"]
            subprocess.run([IP_TOOL, *words], check=True, capture_output=True)
        yield made


@pytest.fixture
def six(loaded: Tunnel) -> Tunnel:
    """Rows of pod one and of node two, which is reached over IPv6."""
    loaded.reset()
    datapath = loaded.datapath
    fill_away(datapath, two.ip)
    datapath.host_address(node_one.ip)
    datapath.node_address(node_one.ip, 1)
    for place in (two, two_again):
        datapath.node_address(place.ip, 2)
        datapath.ipcache(place.ip, Identity.ID_REMOTE_NODE)
    return loaded


def left(outcome: Outcome) -> tuple[str, str, int, bytes]:
    """Of the one frame in the tunnel: outer source and destination, identity, what is inside."""
    (sent,) = outcome.wire
    outer = Ether(sent)
    assert outer[UDP].dport == TUNNEL_PORT
    # Not whole yet: the device is to complete it.
    assert outer[UDP].chksum
    header = sent[HEADERS - 8 : HEADERS]
    assert (header[:4], header[7]) == (VXLAN_FLAGS, 0)
    return outer[IPv6].src, outer[IPv6].dst, int.from_bytes(header[4:7], "big"), sent[HEADERS:]


def brought(by: str, identity: int, inner: bytes) -> bytes:
    """A frame of the network that carries *inner* to this node, as *identity*'s."""
    carried = UDP(sport=50000, dport=TUNNEL_PORT) / Raw(vxlan(identity, inner))
    return frame(two.mac, node_one.mac, by, node_one.ip, carried)


def test_pod_reaches_a_pod_of_another_node_and_is_answered(six: Tunnel) -> None:
    """By the node's whole address, with a checksum; its identity is on the wire."""
    sent = from_pod(pod_one, pod_away.ip, tcp(30000, 80))
    src, dst, identity, carried = left(six.pod_sends(sent))
    assert (src, dst, identity) == (node_one.ip, two.ip, SIX_ONE.identity)
    assert packet_of(carried) == packet_of(from_pod(pod_one, pod_away.ip, tcp(30000, 80), hlim=63))

    answer = inner(pod_away, pod_one.ip, tcp(80, 30000, "SA"))
    (arrived,) = six.arrives(brought(two.ip, AWAY, answer)).pod
    assert_frame(to_pod(pod_one, pod_away.ip, tcp(80, 30000, "SA"), hlim=62), arrived)
    assert len(six.datapath.ct()) == 1


def test_node_and_pods_of_the_other_node(six: Tunnel) -> None:
    """By the routers' addresses; any address of a node may carry what is its own."""
    sent = from_stack(router.ip, pod_away.ip, tcp(41000, 80))
    _, dst, identity, _ = left(six.host_sends(sent))
    assert (dst, identity) == (two.ip, Identity.ID_REMOTE_NODE)
    asked = inner(router_away, router.ip, tcp(42000, 7000))
    (arrived,) = six.arrives(brought(two_again.ip, Identity.ID_REMOTE_NODE, asked)).host
    assert packet_of(arrived) == packet_of(asked)


def test_pod_answers_a_node_by_the_way_it_came(six: Tunnel) -> None:
    """That came through the tunnel under its address in the network."""
    asked = inner(two, pod_one.ip, tcp(43000, 80))
    assert six.arrives(brought(two.ip, Identity.ID_REMOTE_NODE, asked)).pod
    _, dst, identity, _ = left(six.pod_sends(from_pod(pod_one, two.ip, tcp(80, 43000, "SA"))))
    assert (dst, identity) == (two.ip, SIX_ONE.identity)


@pytest.mark.parametrize(
    ("by", "identity", "src", "reason"),
    [
        pytest.param(stranger, AWAY, pod_away, DropReason.DROP_UNKNOWN_SENDER, id="nobody's node"),
        pytest.param(two, AWAY + 1, pod_away, DropReason.DROP_INVALID_IDENTITY, id="another identity"),
        pytest.param(two, AWAY, pod_one, DropReason.DROP_INVALID_SIP, id="a pod of ours"),
        pytest.param(two, Identity.ID_WORLD, unpublished, DropReason.DROP_INVALID_IDENTITY, id="the world"),
        pytest.param(two, AWAY, Place6("fd00:3::1f", node_two), DropReason.DROP_INVALID_SIP, id="elsewhere"),
    ],
)
def test_who_is_not_believed(six: Tunnel, by: Place6, identity: int, src: Place6, reason: DropReason) -> None:
    """As over IPv4."""
    outcome = six.arrives(brought(by.ip, identity, inner(src, pod_one.ip, tcp(30000, 80))))
    assert outcome.reasons == [reason]
    assert outcome.frames == 0


def test_a_tunnel_of_ipv4_brings_nothing(six: Tunnel) -> None:
    """Even from an address that is a node's."""
    six.datapath.node_address(node_two.ip, 2)
    asked = inner(pod_away, pod_one.ip, tcp(30000, 80))
    outcome = six.tunnel_brings(node_two.ip, AWAY, asked)
    assert outcome.reasons == [DropReason.DROP_NO_TUNNEL_KEY]
    assert outcome.frames == 0


def test_the_tunnels_own_packets_are_no_masquerades_answers(six: Tunnel) -> None:
    """They have the node's address and a port that a pod's flow might have been given."""
    six.datapath.native_device("net0", "192.168.9.1", ip6=node_one.ip)
    answer = inner(pod_away, pod_one.ip, tcp(30001, 80))
    assert six.arrives(brought(two.ip, AWAY, answer)).pod
    left(six.pod_sends(from_pod(pod_one, pod_away.ip, tcp(80, 30001, "SA"))))
    assert not list(six.datapath.map("snat").items())


def test_what_does_not_fit_is_told_although_it_might_be_cut(six: Tunnel) -> None:
    """Nobody cuts the outer packet over IPv6: a packet of IPv4 that says it may be is refused, too."""
    six.datapath.ipcache(packets.pod_away.ip, AWAY, tunnel=two.ip)
    fits = MTU - 20 - 8
    whole = packets.from_pod(packets.pod_one, packets.pod_away.ip, packets.udp(5000, 53, bytes(fits)))
    left(six.pod_sends(whole))
    sent = packets.from_pod(packets.pod_one, packets.pod_away.ip, packets.udp(5000, 53, bytes(fits + 1)))
    outcome = six.pod_sends(sent, frames=1)
    assert outcome.reasons == [DropReason.DROP_FRAG_NOSUPPORT]
    (told,) = outcome.pod
    assert Ether(told)[packets.ICMP].nexthopmtu == MTU


def test_nobody_forges_a_nodes_packets(six: Tunnel) -> None:
    """A pod sends nothing to a tunnel's port of a node."""
    forged = UDP(sport=50000, dport=TUNNEL_PORT) / Raw(VXLAN_FLAGS + bytes(4) + bytes(60))
    for place in (two, node_one, router_away):
        outcome = six.pod_sends(from_pod(pod_one, place.ip, forged))
        assert outcome.reasons == [DropReason.DROP_ENCAP_PROHIBITED]
