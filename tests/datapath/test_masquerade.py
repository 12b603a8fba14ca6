# SPDX-License-Identifier: Apache-2.0
"""Pods and the world: out under the node's address, back to the pod that asked, errors included."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ciliumd.abi import DropReason, EventType, Mark, NatDir, NatKey, NodeScope, TracePoint
from datapath.harness import DROP, PASS, REDIRECT, Datapath, forwarded
from datapath.node import NAT_PORTS
from datapath.rows import ALLOW, ALLOW_ALL, DEFAULT_DENY, EGRESS, INGRESS, POD_ONE, POD_TWO, Rule, a16
from datapath.wire import GATEWAY, back, leave, masqueraded, node_after_pod, port_of
from fixtures.packets import (
    Raw,
    assert_frame,
    from_pod,
    node_one,
    on_wire,
    ping,
    pod_away,
    pod_one,
    pod_two,
    pong,
    sctp,
    tcp,
    to_pod,
    udp,
    world_one,
    world_two,
)

if TYPE_CHECKING:
    from scapy.packet import Packet

    from datapath.conftest import Load

pytestmark = pytest.mark.datapath

TCP, UDP = 6, 17
NODE = 2 << 24


@pytest.mark.parametrize(
    ("out", "answer", "arrives"),
    [
        pytest.param(tcp(40001, 443), tcp(443, 40001, "SA"), tcp(443, 40001, "SA"), id="tcp"),
        pytest.param(udp(40001, 53), udp(53, 40001), udp(53, 40001), id="udp"),
        pytest.param(
            udp(40001, 53, chksum=0), udp(53, 40001, chksum=0), udp(53, 40001, chksum=0), id="udp 0"
        ),
        pytest.param(ping(40001), pong(40001), pong(40001), id="ping"),
    ],
)
def test_flow_leaves_as_the_node_and_its_answer_finds_the_pod(
    world: Datapath, out: Packet, answer: Packet, arrives: Packet
) -> None:
    """A port in the range is kept; a hop is taken each way; every checksum is right."""
    sent = world.send(POD_ONE, from_pod(pod_one, world_one.ip, out))
    assert (sent.action, sent.mark, sent.counted) == (REDIRECT, 0, forwarded(EGRESS))
    assert_frame(from_pod(pod_one, world_one.ip, out, ttl=63), sent.packet)
    assert [e.trace_point for e in sent.of_type(EventType.EVENT_TRACE)] == [TracePoint.TRACE_TO_NETWORK]

    wired = world.run("to_netdev", sent.packet, "net0", mark=sent.mark)
    assert (wired.action, wired.counted, wired.events) == (PASS, {}, ())
    assert_frame(masqueraded(pod_one, world_one.ip, out), wired.packet)

    assert_frame(to_pod(pod_one, world_one.ip, arrives, ttl=49), back(world, world_one.ip, answer, ttl=50))


@pytest.mark.parametrize("layers", [(tcp, "port"), (udp, "port"), (ping, "id")], ids=["tcp", "udp", "ping"])
def test_port_outside_the_range_gets_one_inside(world: Datapath, layers: tuple[object, str]) -> None:
    """Ports below belong to the node; the pod never learns of the other one."""
    make, kind = layers
    out = ping(7) if kind == "id" else make(1234, 443)
    frame = leave(world, POD_ONE, from_pod(pod_one, world_one.ip, out))
    port = port_of(frame)
    assert port in NAT_PORTS
    again = ping(port) if kind == "id" else make(port, 443)
    assert_frame(masqueraded(pod_one, world_one.ip, again), frame)
    assert leave(world, POD_ONE, from_pod(pod_one, world_one.ip, out)) == frame, "the flow keeps its port"

    answer = pong(port) if kind == "id" else make(443, port)
    expected = pong(7) if kind == "id" else make(443, 1234)
    assert_frame(to_pod(pod_one, world_one.ip, expected, ttl=63), back(world, world_one.ip, answer))


def test_two_pods_with_one_port_do_not_meet(world: Datapath) -> None:
    """To the same server they leave by two ports, and each gets its own answers."""
    one = port_of(leave(world, POD_ONE, from_pod(pod_one, world_one.ip, udp(40001, 53))))
    two = port_of(leave(world, POD_TWO, from_pod(pod_two, world_one.ip, udp(40001, 53))))
    assert one == 40001
    assert two in NAT_PORTS
    assert two != one

    assert_frame(to_pod(pod_one, world_one.ip, udp(53, 40001)), back(world, world_one.ip, udp(53, one)))
    assert_frame(to_pod(pod_two, world_one.ip, udp(53, 40001)), back(world, world_one.ip, udp(53, two)))


def test_one_port_serves_different_servers(world: Datapath) -> None:
    """Only address, port and protocol of the far end together are taken."""
    assert port_of(leave(world, POD_ONE, from_pod(pod_one, world_one.ip, udp(40001, 53)))) == 40001
    assert port_of(leave(world, POD_TWO, from_pod(pod_two, world_two.ip, udp(40001, 53)))) == 40001
    assert port_of(leave(world, POD_TWO, from_pod(pod_two, world_one.ip, udp(40001, 54)))) == 40001
    assert port_of(leave(world, POD_TWO, from_pod(pod_two, world_one.ip, tcp(40001, 53)))) == 40001


def test_pod_is_not_given_a_port_the_node_uses(world: Datapath) -> None:
    """The node's own flow came first: it is unchanged, and so are its answers."""
    own = on_wire(node_one.mac, GATEWAY.mac, node_one.ip, world_one.ip, tcp(40001, 443))
    assert world.run("to_netdev", own, "net0").packet == own

    assert port_of(leave(world, POD_ONE, from_pod(pod_one, world_one.ip, tcp(40001, 443)))) != 40001
    answer = on_wire(GATEWAY.mac, node_one.mac, world_one.ip, node_one.ip, tcp(443, 40001, "SA"))
    result = world.run("from_netdev", answer, "net0")
    assert (result.action, result.packet) == (PASS, answer)


def test_node_that_comes_second_gets_its_answers_too(world: Datapath) -> None:
    """Its packet takes another port on the wire, and the answer is turned back for its socket."""
    port = node_after_pod(world, tcp(40001, 443))
    assert port != 40001
    answer = on_wire(GATEWAY.mac, node_one.mac, world_one.ip, node_one.ip, tcp(443, port, "SA"))
    result = world.run("from_netdev", answer, "net0")
    assert result.action == PASS
    expected = on_wire(GATEWAY.mac, node_one.mac, world_one.ip, node_one.ip, tcp(443, 40001, "SA"))
    assert_frame(expected, result.packet)


def test_no_port_left_is_refused(world: Datapath) -> None:
    """For the pod; the node's own traffic is never stopped by us."""
    for port in NAT_PORTS:
        key = NatKey(a16(world_one.ip), a16(node_one.ip), 53, port, UDP, NatDir.NAT_IN, 0)
        world.add_snat(key, node_one.ip, port)
    sent = world.send(POD_ONE, from_pod(pod_one, world_one.ip, udp(40001, 53)))
    refused = world.run("to_netdev", sent.packet, "net0")
    assert (refused.action, refused.packet) == (DROP, sent.packet)
    assert (refused.drop.reason, refused.drop.direction) == (DropReason.DROP_NAT_NO_MAPPING, EGRESS)

    own = on_wire(node_one.mac, GATEWAY.mac, node_one.ip, world_one.ip, udp(40001, 53))
    assert world.run("to_netdev", own, "net0").packet == own


def test_recycled_row_is_no_mapping(world: Datapath) -> None:
    """Neither out nor in does a row that shows another key's fold say anything."""
    key = NatKey(a16(world_one.ip), a16(node_one.ip), 53, 40001, UDP, NatDir.NAT_IN, 0)
    world.add_snat(key, pod_two.ip, 1, check=1)
    answer = on_wire(GATEWAY.mac, node_one.mac, world_one.ip, node_one.ip, udp(53, 40001))
    assert world.run("from_netdev", answer, "net0").packet == answer
    assert port_of(leave(world, POD_ONE, from_pod(pod_one, world_one.ip, udp(40001, 53)))) != 40001


def test_answers_find_the_pod_again_after_the_lru_took_their_row(world: Datapath) -> None:
    """The next packet out claims the port again."""
    leave(world, POD_ONE, from_pod(pod_one, world_one.ip, udp(40001, 53)))
    (lost,) = (key for key in world.snat() if key.dir == NatDir.NAT_IN)
    world.map("snat").delete(lost.pack())
    leave(world, POD_ONE, from_pod(pod_one, world_one.ip, udp(40001, 53)))
    assert_frame(to_pod(pod_one, world_one.ip, udp(53, 40001)), back(world, world_one.ip, udp(53, 40001)))


def test_port_that_another_took_meanwhile_is_given_up(world: Datapath) -> None:
    """The flow whose row the LRU took moves to a new port, rather than share one."""
    leave(world, POD_ONE, from_pod(pod_one, world_one.ip, udp(40001, 53)))
    (lost,) = (key for key in world.snat() if key.dir == NatDir.NAT_IN)
    world.map("snat").delete(lost.pack())
    assert port_of(leave(world, POD_TWO, from_pod(pod_two, world_one.ip, udp(40001, 53)))) == 40001

    moved = port_of(leave(world, POD_ONE, from_pod(pod_one, world_one.ip, udp(40001, 53))))
    assert moved != 40001
    assert port_of(leave(world, POD_ONE, from_pod(pod_one, world_one.ip, udp(40001, 53)))) == moved
    assert_frame(to_pod(pod_one, world_one.ip, udp(53, 40001)), back(world, world_one.ip, udp(53, moved)))
    assert_frame(to_pod(pod_two, world_one.ip, udp(53, 40001)), back(world, world_one.ip, udp(53, 40001)))


def test_every_flow_has_one_row_each_way(world: Datapath) -> None:
    """OUT is keyed by what the pod sends, IN by what comes back."""
    leave(world, POD_ONE, from_pod(pod_one, world_one.ip, udp(40001, 53)))
    rows = world.snat()
    out = NatKey(a16(pod_one.ip), a16(world_one.ip), 40001, 53, UDP, NatDir.NAT_OUT, 0)
    into = NatKey(a16(world_one.ip), a16(node_one.ip), 53, 40001, UDP, NatDir.NAT_IN, 0)
    assert {key: (row.addr, row.port) for key, row in rows.items()} == {
        out: (a16(node_one.ip), 40001),
        into: (a16(pod_one.ip), 40001),
    }


# ---- what is not masqueraded -------------------------------------------------------------------


def test_who_came_in_with_the_pods_own_address_gets_its_answers_from_there(world: Datapath) -> None:
    """The reply carries a mark past the masquerade, which takes it off and leaves other bits."""
    request = on_wire(GATEWAY.mac, node_one.mac, world_one.ip, pod_one.ip, tcp(50000, 80), ttl=60)
    into = world.run("from_netdev", request, "net0")
    assert_frame(to_pod(pod_one, world_one.ip, tcp(50000, 80), ttl=59), into.packet)
    assert into.counted == forwarded(INGRESS)

    reply = world.send(POD_ONE, from_pod(pod_one, world_one.ip, tcp(80, 50000, "SA")))
    assert reply.mark == Mark.MARK_SKIP_SNAT
    wired = world.run("to_netdev", reply.packet, "net0", mark=reply.mark | 0x4000)
    assert (wired.action, wired.mark) == (PASS, 0x4000)
    assert_frame(from_pod(pod_one, world_one.ip, tcp(80, 50000, "SA"), ttl=63), wired.packet)
    assert world.snat() == {}


@pytest.mark.parametrize("identity", [1001, 6, 1, 7, NODE, NODE | NodeScope.NODE_API_SERVER])
def test_pods_and_nodes_of_the_cluster_see_the_pods_own_address(world: Datapath, identity: int) -> None:
    """Also by a native device, when the cluster is routed."""
    world.ipcache(f"{pod_away.ip}/32", identity)
    sent = world.send(POD_ONE, from_pod(pod_one, pod_away.ip, udp(40001, 53)))
    wired = world.run("to_netdev", sent.packet, "net0", mark=sent.mark)
    assert (wired.action, wired.packet) == (PASS, sent.packet)
    assert world.snat() == {}


def test_prefix_with_an_identity_of_its_own_is_still_the_world(world: Datapath) -> None:
    """A policy that names a CIDR does not change the way there."""
    world.ipcache("203.0.113.0/24", 1 << 24)
    assert port_of(leave(world, POD_ONE, from_pod(pod_one, world_one.ip, udp(40001, 53)))) == 40001


def test_unmasqueraded_flows_are_refused_where_they_cannot_be_changed(world: Datapath) -> None:
    """SCTP's CRC is not computed here; an echo reply to nobody, and unknown protocols, have no rows."""
    for layer, reason in [
        (sctp(40001, 99), DropReason.DROP_NAT_UNSUPP_PROTO),
        (pong(9), DropReason.DROP_NAT_NO_MAPPING),
        (Raw(b"12345678"), DropReason.DROP_CT_UNKNOWN_PROTO),
    ]:
        fields = {"proto": 47} if isinstance(layer, Raw) else {}
        packet = from_pod(pod_one, world_one.ip, layer, **fields)
        result = world.run("to_netdev", packet, "net0")
        assert (result.action, result.packet, result.drop.reason) == (DROP, packet, reason)


@pytest.mark.parametrize("layer", [tcp(30000, 443), udp(1000, 53), sctp(40001, 99), pong(40001), ping(5)])
def test_what_the_node_sends_outside_the_range_is_left_alone(world: Datapath, layer: Packet) -> None:
    """No row, no change."""
    own = on_wire(node_one.mac, GATEWAY.mac, node_one.ip, world_one.ip, layer)
    result = world.run("to_netdev", own, "net0")
    assert (result.action, result.packet, result.counted) == (PASS, own, {})
    assert world.snat() == {}


def test_device_that_is_not_native_masquerades_nothing(world: Datapath) -> None:
    """Only devices the agent named."""
    packet = from_pod(pod_one, world_one.ip, udp(40001, 53))
    assert world.run("to_netdev", packet, "wire0").packet == packet
    assert world.run("to_netdev", packet, "net0").packet != packet


def test_options_turn_masquerading_off(load: Load) -> None:
    """All of it, or for one network."""
    native = load(native_cidr_ipv4=0xCB007100, native_cidr_mask=0xFFFFFF00)
    never = load(masquerade=0)
    packet = from_pod(pod_one, world_one.ip, udp(40001, 53))
    for datapath in (native, never):
        datapath.native_device("net0", node_one.ip)
        assert datapath.run("to_netdev", packet, "net0").packet == packet
    other = from_pod(pod_one, "8.8.8.8", udp(40001, 53))
    assert native.run("to_netdev", other, "net0").packet != other
    answer = on_wire(GATEWAY.mac, node_one.mac, world_one.ip, node_one.ip, udp(53, 40001))
    assert never.run("from_netdev", answer, "net0").packet == answer


def test_policy_judges_the_world_by_its_identity(datapath: Datapath) -> None:
    """Egress before, ingress after the masquerade: the far end's own address decides."""
    datapath.native_device("net0", node_one.ip)
    datapath.ipcache("203.0.113.0/24", 1 << 24)
    rules = (
        Rule(EGRESS, DEFAULT_DENY),
        Rule(INGRESS, DEFAULT_DENY),
        Rule(EGRESS, ALLOW, UDP, 53, class_id=1),
    )
    datapath.add_endpoint(
        POD_ONE, *rules, Rule(EGRESS, DEFAULT_DENY, class_id=1), classes={(1 << 24, EGRESS): 1}
    )

    leave(datapath, POD_ONE, from_pod(pod_one, world_one.ip, udp(40001, 53)))
    assert_frame(to_pod(pod_one, world_one.ip, udp(53, 40001)), back(datapath, world_one.ip, udp(53, 40001)))
    assert datapath.send(POD_ONE, from_pod(pod_one, "8.8.8.8", udp(40001, 53))).action == DROP
    request = on_wire(GATEWAY.mac, node_one.mac, world_one.ip, pod_one.ip, udp(53, 40009))
    assert datapath.run("from_netdev", request, "net0").drop.reason == DropReason.DROP_POLICY


def test_masquerading_asks_for_no_verdict(world: Datapath) -> None:
    """The device programs judge nothing: policy spoke where the pod is."""
    sent = world.send(POD_ONE, from_pod(pod_one, world_one.ip, udp(40001, 53)))
    world.policy(99, *ALLOW_ALL)
    world.drop_policy(POD_ONE.version)
    assert world.run("to_netdev", sent.packet, "net0").events == ()
