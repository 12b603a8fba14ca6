# SPDX-License-Identifier: Apache-2.0
"""
Who may say what in the tunnel: every forged shape is refused for its reason, and nothing arrives.

The reference knows the cluster and no maps; every sender, identity and inner source meet here.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest

from ciliumd.abi import DropReason, EventType, Identity
from datapath.rows import INGRESS, POD_ONE
from datapath.tunnel import (
    AWAY,
    CLUSTER,
    FAR,
    LABELLED,
    TUNNEL_PORT,
    Tunnel,
    fill_cluster,
    health_two,
    inner,
    node_three,
    node_two,
    node_two_again,
    pod_far,
    pod_unpublished,
    router_three,
    router_two,
    tunnelled,
)
from fixtures.packets import (
    Place,
    from_pod,
    node_one,
    on_wire,
    pod_away,
    pod_one,
    router,
    tcp,
    udp,
    world_one,
)

if TYPE_CHECKING:
    from reference.tunnel import Cluster

pytestmark = pytest.mark.datapath

STRANGER = "192.168.9.77"
OUTERS = (node_two.ip, node_two_again.ip, node_three.ip, STRANGER, world_one.ip)
IDENTITIES = (*range(12), 126, 127, 128, 255, 256, AWAY, FAR, POD_ONE.identity, (1 << 24) - 1)
LOCAL = (pod_one.ip, router.ip, node_one.ip)
SOURCES = (
    *(pod_away, pod_far, pod_unpublished, health_two, router_two, router_three),
    *(node_two, node_two_again, node_three, world_one, Place("10.0.3.77", router_three.mac)),
    *(Place(address, router_two.mac) for address in LOCAL),
)


@pytest.mark.parametrize("cluster", [CLUSTER, LABELLED], ids=["plain", "labelled"])
@pytest.mark.parametrize("outer", OUTERS)
def test_every_sender_identity_and_source_is_judged_as_the_reference_does(
    tunnel: Tunnel, outer: str, cluster: Cluster
) -> None:
    """Refused for the reference's reason and counted once; or delivered, and judged as who it is."""
    fill_cluster(tunnel.datapath, cluster)
    accepted = 0
    for sport, (identity, source) in enumerate(itertools.product(IDENTITIES, SOURCES), 10000):
        outcome = tunnel.tunnel_brings(outer, identity, inner(source, pod_one.ip, udp(sport, 53)))
        shape = (outer, identity, source.ip)
        reason = cluster.refused(*shape)
        if reason:
            assert [int(found) for found in outcome.reasons] == [reason], shape
            assert outcome.pod == outcome.host == outcome.wire == (), shape
            continue
        accepted += 1
        assert (outcome.reasons, len(outcome.pod)) == ([], 1), shape
        seen = {event.src_identity for event in outcome.events if event.type == EventType.EVENT_TRACE}
        assert seen == {cluster.judged_as(identity, source.ip)}, shape
    assert bool(accepted) == (outer not in {STRANGER, world_one.ip})


def test_a_forged_packet_is_told_with_what_it_claims(tunnel: Tunnel) -> None:
    """Source, claimed identity, direction; one drop is counted."""
    before = tunnel.datapath.counts()
    outcome = tunnel.tunnel_brings(STRANGER, Identity.ID_HOST, inner(router_two, pod_one.ip, udp(5, 53)))
    (event,) = outcome.events
    assert (event.src_identity, event.direction) == (Identity.ID_HOST, INGRESS)
    assert event.src[12:] == router_two.address.packed
    place = (DropReason.DROP_UNKNOWN_SENDER, INGRESS)
    assert tunnel.datapath.counts() == before | {place: before.get(place, 0) + 1}


@pytest.mark.parametrize(
    "dst",
    [router.ip, node_one.ip, router_two.ip, node_two.ip, node_two_again.ip, node_three.ip, world_one.ip],
)
def test_pod_cannot_send_to_the_port_of_a_tunnel(tunnel: Tunnel, dst: str) -> None:
    """Masqueraded it would speak with its node's address: to no node, own or other, nor past them."""
    forged = tunnelled(node_one.ip, Identity.ID_REMOTE_NODE, inner(router, pod_away.ip, udp(5, 53)))[42:]
    outcome = tunnel.pod_sends(from_pod(pod_one, dst, udp(5000, TUNNEL_PORT, forged)))
    assert outcome.reasons == [DropReason.DROP_ENCAP_PROHIBITED]
    assert outcome.wire == outcome.host == ()


def test_the_ports_number_is_free_between_pods(tunnel: Tunnel) -> None:
    """UDP to a pod, and TCP to anybody, is no tunnel."""
    assert len(tunnel.pod_sends(from_pod(pod_one, pod_away.ip, udp(5000, TUNNEL_PORT))).wire) == 1
    assert len(tunnel.pod_sends(from_pod(pod_one, node_two.ip, tcp(5000, TUNNEL_PORT))).wire) == 1


@pytest.mark.parametrize(
    "source",
    [
        pod_away,
        pod_far,
        pod_unpublished,
        router_two,
        *(Place(address, node_two.mac) for address in (pod_one.ip, router.ip, node_one.ip)),
    ],
    ids=lambda place: place.ip,
)
def test_nobody_comes_past_the_tunnel_with_an_address_behind_it(tunnel: Tunnel, source: Place) -> None:
    """From the network to a pod: addresses of pods and routers are never out there."""
    frame = on_wire(node_two.mac, node_one.mac, source.ip, pod_one.ip, udp(5000, 53))
    result = tunnel.datapath.run("from_netdev", frame, "net0")
    assert result.drop.reason == DropReason.DROP_INVALID_SIP


def test_what_is_no_ipv4_packet_is_refused(tunnel: Tunnel) -> None:
    """ARP, IPv6, and what only says that it is IPv4."""
    ethernet = bytes(12)
    for frame, reason in [
        (ethernet + b"\x08\x06" + bytes(46), DropReason.DROP_UNKNOWN_L3),
        (ethernet + b"\x86\xdd" + bytes(46), DropReason.DROP_UNKNOWN_L3),
        (ethernet + b"\x08\x00" + b"\x65" + bytes(45), DropReason.DROP_INVALID),
    ]:
        assert tunnel.tunnel_brings(node_two.ip, AWAY, frame).reasons == [reason]


def test_first_fragment_of_a_forger_names_no_ports(tunnel: Tunnel) -> None:
    """Nothing is remembered of it: a later fragment of the true sender still has no first."""
    first = inner(pod_away, pod_one.ip, udp(5000, 53), id=77, flags="MF")
    later = inner(pod_away, pod_one.ip, udp(5000, 53), id=77, frag=4)
    assert tunnel.tunnel_brings(STRANGER, AWAY, first).reasons == [DropReason.DROP_UNKNOWN_SENDER]
    assert tunnel.tunnel_brings(node_two.ip, AWAY, later).reasons == [DropReason.DROP_FRAG_NOT_FOUND]
    assert tunnel.tunnel_brings(node_two.ip, AWAY, first).reasons == []
    assert tunnel.tunnel_brings(node_two.ip, AWAY, later).reasons == []


@pytest.mark.parametrize("source", [pod_one, router, node_one], ids=lambda place: place.ip)
def test_address_of_this_node_is_nobody_elses_whatever_rows_say(tunnel: Tunnel, source: Place) -> None:
    """A row may be late, or claim a local pod's address for a pod elsewhere."""
    tunnel.datapath.ipcache(source.ip, AWAY, tunnel=node_two.ip)
    tunnel.datapath.node_address(source.ip, 2)
    outcome = tunnel.tunnel_brings(node_two.ip, AWAY, inner(source, pod_one.ip, udp(5, 53)))
    assert outcome.reasons == [DropReason.DROP_INVALID_SIP]


def test_recycled_row_of_a_node_is_nobody(tunnel: Tunnel) -> None:
    """A row that shows another address's fold is a miss."""
    tunnel.datapath.node_address(node_two.ip, 2, check=1)
    outcome = tunnel.tunnel_brings(node_two.ip, AWAY, inner(pod_away, pod_one.ip, udp(5, 53)))
    assert outcome.reasons == [DropReason.DROP_UNKNOWN_SENDER]


def test_without_a_tunnel_key_nothing_is_believed(tunnel: Tunnel) -> None:
    """A packet that did not come out of the tunnel; and one the stack puts into it itself."""
    frame = inner(pod_away, pod_one.ip, udp(5, 53))
    result = tunnel.datapath.run("from_overlay", frame, "cilium_vxlan")
    assert result.drop.reason == DropReason.DROP_NO_TUNNEL_KEY
    result = tunnel.datapath.run("to_overlay", frame, "cilium_vxlan")
    assert result.drop.reason == DropReason.DROP_ENCAP_PROHIBITED
    quiet = tunnel.datapath.run("to_overlay", bytes(12) + b"\x86\xdd" + bytes(46), "cilium_vxlan")
    assert (quiet.action, quiet.counted) == (2, {})
