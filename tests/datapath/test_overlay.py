# SPDX-License-Identifier: Apache-2.0
"""Between nodes, frame by frame: what a pod or the node sends, as it is on the wire, and the way back."""

from __future__ import annotations

import pytest

from ciliumd.abi import CtFlags, DropReason, EventType, Identity, TracePoint
from datapath.rows import (
    ALLOW,
    ALLOW_ALL,
    DEFAULT_DENY,
    EGRESS,
    INGRESS,
    POD_ONE,
    Rule,
)
from datapath.tunnel import (
    AWAY,
    MTU,
    Tunnel,
    Tunnelled,
    health_two,
    inner,
    node_two,
    packet_of,
    pod_unpublished,
    router_two,
)
from fixtures.packets import (
    ICMP,
    IP,
    UDP,
    Ether,
    Place,
    Raw,
    assert_frame,
    from_pod,
    from_stack,
    node_one,
    on_wire,
    ping,
    pod_away,
    pod_one,
    pod_three,
    pong,
    router,
    tcp,
    to_host,
    to_pod,
    udp,
    unreachable,
    world_one,
)

pytestmark = pytest.mark.datapath

ETHERNET, IPV4, UDP_HEADER, ICMP_HEADER = 14, 20, 8, 8
BIG = bytes(1472)  # a datagram of 1500 bytes


def sent(frames: tuple[bytes, ...]) -> Tunnelled:
    """The one frame that left through the tunnel."""
    (frame,) = frames
    return Tunnelled.read(frame)


@pytest.mark.parametrize(
    ("there", "back"),
    [
        pytest.param(tcp(30000, 80), tcp(80, 30000, "SA"), id="tcp"),
        pytest.param(udp(5000, 53), udp(53, 5000), id="udp"),
        pytest.param(udp(5000, 53, chksum=0), udp(53, 5000, chksum=0), id="udp 0"),
        pytest.param(ping(7), pong(7), id="ping"),
    ],
)
def test_pod_reaches_a_pod_of_another_node_and_is_answered(
    tunnel: Tunnel, there: object, back: object
) -> None:
    """The pod's identity is on the wire; a hop is taken each way; the flow is one of conntrack."""
    out = tunnel.pod_sends(from_pod(pod_one, pod_away.ip, there))
    carried = sent(out.wire)
    assert (carried.src, carried.dst, carried.identity) == (node_one.ip, node_two.ip, POD_ONE.identity)
    assert_frame(on_wire(router.mac, router.mac, pod_one.ip, pod_away.ip, there, ttl=63), carried.inner)
    assert out.reasons == []
    traced = [event for event in out.events if event.type == EventType.EVENT_TRACE]
    assert [(event.trace_point, event.dst_identity) for event in traced] == [
        (TracePoint.TRACE_TO_OVERLAY, AWAY)
    ]

    answer = tunnel.tunnel_brings(node_two.ip, AWAY, inner(pod_away, pod_one.ip, back))
    (arrived,) = answer.pod
    assert_frame(to_pod(pod_one, pod_away.ip, back, ttl=62), arrived)
    assert len(tunnel.datapath.ct()) == 1


def test_policy_judges_the_identity_of_the_tunnel(tunnel: Tunnel) -> None:
    """Both ways, and before the control plane knows the pod: what its node says."""
    rules = (
        Rule(INGRESS, DEFAULT_DENY),
        Rule(EGRESS, DEFAULT_DENY),
        Rule(INGRESS, ALLOW, class_id=1, cookie=0xA1),
        Rule(EGRESS, ALLOW, class_id=1, cookie=0xA2),
    )
    classes = {(AWAY, INGRESS): 1, (AWAY, EGRESS): 1, (3000, INGRESS): 1}
    tunnel.datapath.policy(99, *rules, classes=classes)
    tunnel.datapath.use_version(POD_ONE, 99)

    health = inner(health_two, pod_one.ip, tcp(30000, 80))
    assert tunnel.tunnel_brings(node_two.ip, Identity.ID_HEALTH, health).reasons == [DropReason.DROP_POLICY]
    friend = inner(pod_away, pod_one.ip, tcp(30000, 80))
    assert len(tunnel.tunnel_brings(node_two.ip, AWAY, friend).pod) == 1
    for identity, reasons in ((3000, []), (3001, [DropReason.DROP_POLICY])):
        fresh = inner(pod_unpublished, pod_one.ip, tcp(30000 + identity, 80))
        assert tunnel.tunnel_brings(node_two.ip, identity, fresh).reasons == reasons
    answer = from_pod(pod_one, pod_unpublished.ip, tcp(80, 33000, "SA"))
    assert sent(tunnel.pod_sends(answer).wire).identity == POD_ONE.identity
    opened = from_pod(pod_one, pod_unpublished.ip, tcp(40000, 80))
    assert tunnel.pod_sends(opened).reasons == [DropReason.DROP_POLICY]

    # Once it is published its row is what counts, for flows that are open, too.
    carried = CtFlags.CT_F_CARRIED_PEER
    (row,) = (row for row in tunnel.datapath.ct().values() if row.peer_identity == 3000)
    assert row.flags & carried
    tunnel.datapath.ipcache(pod_unpublished.ip, 3000, tunnel=node_two.ip)
    tunnel.tunnel_brings(node_two.ip, 3000, inner(pod_unpublished, pod_one.ip, tcp(33000, 80, "A")))
    (row,) = (row for row in tunnel.datapath.ct().values() if row.peer_identity == 3000)
    assert not row.flags & carried
    tunnel.datapath.ipcache(pod_unpublished.ip, 3001, tunnel=node_two.ip)
    assert tunnel.pod_sends(answer).reasons == [DropReason.DROP_POLICY]


def test_answer_to_a_client_of_another_nodes_port_is_judged_by_the_client(tunnel: Tunnel) -> None:
    """Its address is the other node's: only the tunnel told that it is the world."""
    rules = (
        Rule(INGRESS, DEFAULT_DENY),
        Rule(EGRESS, DEFAULT_DENY),
        Rule(INGRESS, ALLOW, class_id=1, cookie=0xA1),
    )
    tunnel.datapath.policy(99, *rules, classes={(Identity.ID_WORLD, INGRESS): 1})
    tunnel.datapath.use_version(POD_ONE, 99)
    request = inner(router_two, pod_one.ip, tcp(40000, 80))
    assert len(tunnel.tunnel_brings(node_two.ip, Identity.ID_WORLD, request).pod) == 1
    for flags in ("SA", "A", "PA"):
        carried = sent(tunnel.pod_sends(from_pod(pod_one, router_two.ip, tcp(80, 40000, flags))).wire)
        assert (carried.dst, carried.identity) == (node_two.ip, POD_ONE.identity)
    # Revoked: the flow is judged as the one who opened it, not as the node it came by.
    node = (Rule(INGRESS, DEFAULT_DENY), Rule(EGRESS, DEFAULT_DENY), Rule(INGRESS, ALLOW, class_id=1))
    tunnel.datapath.policy(100, *node, classes={(Identity.ID_REMOTE_NODE, INGRESS): 1})
    tunnel.datapath.use_version(POD_ONE, 100)
    answer = from_pod(pod_one, router_two.ip, tcp(80, 40000, "PA"))
    assert tunnel.pod_sends(answer).reasons == [DropReason.DROP_POLICY]
    # The node's own connection from that very port is another peer, and judged anew.
    own = inner(router_two, pod_one.ip, tcp(40000, 80, "A"))
    assert len(tunnel.tunnel_brings(node_two.ip, Identity.ID_REMOTE_NODE, own).pod) == 1
    assert tunnel.pod_sends(answer).reasons == []


def test_node_reaches_a_pod_of_another_node(tunnel: Tunnel) -> None:
    """As another node, from its router's address; no hop is taken."""
    out = tunnel.host_sends(from_stack(router.ip, pod_away.ip, tcp(30000, 80)))
    carried = sent(out.wire)
    assert (carried.dst, carried.identity) == (node_two.ip, Identity.ID_REMOTE_NODE)
    assert_frame(on_wire(router.mac, router.mac, router.ip, pod_away.ip, tcp(30000, 80)), carried.inner)


def test_nobody_elses_packets_leave_as_the_nodes(tunnel: Tunnel) -> None:
    """What the stack forwards for others has no place in the tunnel."""
    out = tunnel.host_sends(from_stack(world_one.ip, pod_away.ip, tcp(30000, 80)))
    assert (out.reasons, out.wire) == ([DropReason.DROP_INVALID_SIP], ())
    unknown = tunnel.host_sends(from_stack(router.ip, pod_three.ip, udp(5000, 53)))
    assert unknown.reasons == [DropReason.DROP_NO_LXC]


@pytest.mark.parametrize("source", [router_two, Place(node_two.ip, router_two.mac)], ids=["router", "node"])
def test_another_node_reaches_a_pod_and_is_answered_through_the_tunnel(tunnel: Tunnel, source: Place) -> None:
    """Whatever address of its own it uses."""
    request = inner(source, pod_one.ip, tcp(30000, 80))
    (arrived,) = tunnel.tunnel_brings(node_two.ip, Identity.ID_REMOTE_NODE, request).pod
    assert_frame(to_pod(pod_one, source.ip, tcp(30000, 80), ttl=62), arrived)

    carried = sent(tunnel.pod_sends(from_pod(pod_one, source.ip, tcp(80, 30000, "SA"))).wire)
    assert (carried.dst, carried.identity) == (node_two.ip, POD_ONE.identity)
    assert_frame(
        on_wire(router.mac, router.mac, pod_one.ip, source.ip, tcp(80, 30000, "SA"), ttl=63), carried.inner
    )


def test_what_the_stack_brought_is_not_answered_through_the_tunnel(tunnel: Tunnel) -> None:
    """Another node came by a port of this one that netfilter turned: the answer has to pass it again."""
    came = tunnel.host_sends(from_stack(node_two.ip, pod_one.ip, tcp(40000, 80)))
    assert len(came.pod) == 1
    (row,) = tunnel.datapath.ct().values()
    assert row.flags & CtFlags.CT_F_FROM_STACK

    answer = tunnel.pod_sends(from_pod(pod_one, node_two.ip, tcp(80, 40000, "SA")))
    assert answer.reasons == []
    (frame,) = answer.wire
    assert (Ether(frame)[IP].src, Ether(frame)[IP].dst) == (pod_one.ip, node_two.ip)


def test_what_is_for_the_node_goes_up_its_stack_which_answers_through_the_tunnel(tunnel: Tunnel) -> None:
    """As if it came in by cilium_host; the kernel's own echo reply is the proof."""
    outcome = tunnel.tunnel_brings(node_two.ip, AWAY, inner(pod_away, router.ip, ping(9)), frames=2)
    (up,) = outcome.host
    assert_frame(on_wire(router.mac, router.mac, pod_away.ip, router.ip, ping(9), ttl=63), up)
    carried = sent(outcome.wire)
    assert (carried.dst, carried.identity) == (node_two.ip, Identity.ID_REMOTE_NODE)
    reply = Ether(carried.inner)
    assert (reply[IP].src, reply[IP].dst, reply[ICMP].type, reply[ICMP].id) == (router.ip, pod_away.ip, 0, 9)

    silent = tunnel.tunnel_brings(node_two.ip, AWAY, inner(pod_away, node_one.ip, pong(9)))
    assert [packet_of(frame) for frame in silent.host] == [packet_of(inner(pod_away, node_one.ip, pong(9)))]
    assert to_host(pod_away, node_one.ip, pong(9), ttl=63) == silent.host[0]


@pytest.mark.parametrize(
    ("dst", "ttl", "reason"),
    [
        (pod_three.ip, 63, DropReason.DROP_NO_LXC),
        ("10.0.9.9", 63, DropReason.DROP_UNROUTABLE),
        (pod_away.ip, 63, DropReason.DROP_UNROUTABLE),
        (world_one.ip, 63, DropReason.DROP_UNROUTABLE),
        (pod_one.ip, 1, DropReason.DROP_TTL_EXCEEDED),
    ],
)
def test_tunnel_ends_here(tunnel: Tunnel, dst: str, ttl: int, reason: DropReason) -> None:
    """What is for no pod and no address of this node is not sent on."""
    outcome = tunnel.tunnel_brings(node_two.ip, AWAY, inner(pod_away, dst, udp(5000, 53), ttl=ttl))
    assert outcome.reasons == [reason]
    assert outcome.wire == outcome.host == outcome.pod == ()


def test_pod_reaches_another_node_past_the_tunnel_as_its_node(tunnel: Tunnel) -> None:
    """The network between the nodes knows no pods; the node's answer finds the pod."""
    (frame,) = tunnel.pod_sends(from_pod(pod_one, node_two.ip, tcp(40001, 6443))).wire
    expected = on_wire(node_one.mac, node_two.mac, node_one.ip, node_two.ip, tcp(40001, 6443), ttl=63)
    assert_frame(expected, frame)
    answer = on_wire(node_two.mac, node_one.mac, node_two.ip, node_one.ip, tcp(6443, 40001, "SA"))
    (arrived,) = tunnel.arrives(answer).pod
    assert_frame(to_pod(pod_one, node_two.ip, tcp(6443, 40001, "SA")), arrived)


def test_packets_of_the_tunnel_take_no_masquerading_rows(tunnel: Tunnel) -> None:
    """Their source ports lie in the range, and are nobody's connection."""
    for sport in range(30000, 30010):
        assert len(tunnel.pod_sends(from_pod(pod_one, pod_away.ip, udp(sport, 53))).wire) == 1
        tunnel.tunnel_brings(node_two.ip, AWAY, inner(pod_away, pod_one.ip, udp(53, sport)))
    assert tunnel.datapath.snat() == {}


def test_too_big_for_the_tunnel_is_said_to_the_sender(tunnel: Tunnel) -> None:
    """RFC 1191: type 3, code 4, and what would fit; quoting what the pod sent."""
    big = from_pod(pod_one, pod_away.ip, udp(5000, 53, BIG), flags="DF")
    outcome = tunnel.pod_sends(big, frames=1)
    assert (outcome.reasons, outcome.wire) == ([DropReason.DROP_FRAG_NOSUPPORT], ())
    (told,) = outcome.pod
    message = Ether(told)
    assert (message[IP].src, message[ICMP].type, message[ICMP].code) == (router.ip, 3, 4)
    assert message[ICMP].nexthopmtu == MTU
    quoted = told[ETHERNET + IPV4 + ICMP_HEADER :]
    assert quoted == big[ETHERNET : ETHERNET + len(quoted)]
    assert len(quoted) >= IPV4 + UDP_HEADER


def test_exactly_what_fits_goes(tunnel: Tunnel) -> None:
    """The last byte counts."""
    for size, wired in ((MTU, 1), (MTU + 1, 0)):
        body = bytes(size - IPV4 - UDP_HEADER)
        frame = from_pod(pod_one, pod_away.ip, udp(5000, 53, body), flags="DF")
        assert len(tunnel.pod_sends(frame).wire) == wired


def test_packet_that_a_device_will_cut_is_measured_by_its_segments(tunnel: Tunnel) -> None:
    """A big one of small segments goes as it is; one whose segments would not fit is refused."""
    frame = from_pod(pod_one, pod_away.ip, tcp(30000, 80, "A", bytes(4000)), flags="DF")
    headers = IPV4 + 20
    whole = tunnel.pod_sends_segments(frame, MTU - headers)
    assert (whole.reasons, Ether(whole.wire[0])[UDP].dport) == ([], 8472)
    assert sum(len(piece) for piece in whole.wire) >= len(frame)
    refused = tunnel.pod_sends_segments(frame, MTU - headers + 1, frames=1)
    assert (refused.reasons, refused.wire) == ([DropReason.DROP_FRAG_NOSUPPORT], ())
    (told,) = refused.pod
    assert Ether(told)[ICMP].nexthopmtu == MTU


def test_too_big_without_its_sender_minding_travels_in_outer_fragments(tunnel: Tunnel) -> None:
    """Both outer fragments together carry the packet, whole."""
    frame = from_pod(pod_one, pod_away.ip, udp(5000, 53, BIG))
    first, last = (Ether(piece)[IP] for piece in tunnel.pod_sends(frame, frames=2).wire)
    assert (first.flags.MF, first.frag, last.flags.MF) == (True, 0, False)
    assert last.frag * 8 == first.len - IPV4
    payload = (bytes(first.payload) + bytes(last.payload))[UDP_HEADER + 8 :]
    assert payload == on_wire(router.mac, router.mac, pod_one.ip, pod_away.ip, udp(5000, 53, BIG), ttl=63)


def test_fragments_pass_by_the_ports_of_their_first(tunnel: Tunnel) -> None:
    """Both ways; a later one without its first is refused."""
    tunnel.datapath.policy(
        99, *ALLOW_ALL, Rule(EGRESS, DEFAULT_DENY), Rule(EGRESS, ALLOW, 17, 53), Rule(INGRESS, DEFAULT_DENY)
    )
    tunnel.datapath.use_version(POD_ONE, 99)
    datagram = bytes(UDP(sport=5000, dport=53, len=32, chksum=0) / Raw(bytes(24)))
    halves = [
        (Raw(datagram[:16]), {"flags": "MF", "id": 5, "proto": 17}),
        (Raw(datagram[16:]), {"frag": 2, "id": 5, "proto": 17}),
    ]
    for half, fields in halves:
        carried = sent(tunnel.pod_sends(from_pod(pod_one, pod_away.ip, half, **fields)).wire)
        assert packet_of(carried.inner) == packet_of(from_pod(pod_one, pod_away.ip, half, ttl=63, **fields))
    answer = bytes(UDP(sport=53, dport=5000, len=32, chksum=0) / Raw(bytes(24)))
    for half, fields in [(Raw(answer[:16]), halves[0][1]), (Raw(answer[16:]), halves[1][1])]:
        (arrived,) = tunnel.tunnel_brings(node_two.ip, AWAY, inner(pod_away, pod_one.ip, half, **fields)).pod
        assert packet_of(arrived) == packet_of(to_pod(pod_one, pod_away.ip, half, ttl=62, **fields))
    lost = inner(pod_away, pod_one.ip, halves[1][0], **(halves[1][1] | {"id": 6}))
    assert tunnel.tunnel_brings(node_two.ip, AWAY, lost).reasons == [DropReason.DROP_FRAG_NOT_FOUND]


def test_icmp_error_goes_with_the_flow_it_quotes(tunnel: Tunnel) -> None:
    """The other pod refuses a datagram: policy allows no ICMP, the error is the flow's own."""
    rules = (Rule(EGRESS, ALLOW), Rule(INGRESS, DEFAULT_DENY))
    tunnel.datapath.policy(99, *rules)
    tunnel.datapath.use_version(POD_ONE, 99)
    carried = sent(tunnel.pod_sends(from_pod(pod_one, pod_away.ip, udp(5000, 53))).wire)
    error = inner(pod_away, pod_one.ip, unreachable(carried.inner))
    (arrived,) = tunnel.tunnel_brings(node_two.ip, AWAY, error).pod
    assert_frame(to_pod(pod_one, pod_away.ip, unreachable(carried.inner), ttl=62), arrived)
    alone = inner(pod_away, pod_one.ip, unreachable(from_pod(pod_one, pod_away.ip, udp(5001, 53))))
    assert tunnel.tunnel_brings(node_two.ip, AWAY, alone).reasons == [DropReason.DROP_POLICY]
