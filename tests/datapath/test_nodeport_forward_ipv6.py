# SPDX-License-Identifier: Apache-2.0
"""Services of IPv6 asked from outside whose backend is elsewhere, reached by route."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from scapy.layers.inet6 import ICMPv6PacketTooBig

from ciliumd.abi import CtFlags, DropReason, NatDir, NatKey
from ciliumd.reconcile.gc import flow_of_nat
from datapath.harness import PASS, Datapath
from datapath.node import NAT_PORTS
from datapath.rows import a16, u32
from datapath.wire import AWAY, AWAY_DNS, GATEWAY, NODE_PORT
from datapath.wire6 import TCP, UDP, arrive, asks, forward, hidden, seen_port
from fixtures.packets import Raw, assert_frame, sctp, tcp, udp
from fixtures.packets6 import frame, node_one, pod_away, pod_one, unreachable, world_one

if TYPE_CHECKING:
    from collections.abc import Callable

    from scapy.packet import Packet

pytestmark = pytest.mark.datapath

CLIENT = 40010  # within the range of masquerading: it is kept
WORLD_TWO, FAR = "2001:db8:ffff::8", "2001:db8:77::1"


@pytest.fixture
def outside(exposed6: Datapath) -> Datapath:
    """Whose node ports the world asks at."""
    return exposed6


@pytest.mark.parametrize("port", [CLIENT, 1234])
@pytest.mark.parametrize(
    ("asked", "target", "answer"),
    [
        pytest.param(lambda port: tcp(port, AWAY), 80, lambda a, b: tcp(a, b, "SA"), id="tcp"),
        pytest.param(lambda port: udp(port, AWAY_DNS), 53, udp, id="udp"),
    ],
)
def test_client_reaches_a_backend_elsewhere_and_is_answered(
    outside: Datapath,
    asked: Callable[[int], Packet],
    target: int,
    answer: Callable[[int, int], Packet],
    port: int,
) -> None:
    """The backend sees the node, the client sees the node port; one hop each way; rows fit together."""
    question = asked(port)
    wired = forward(outside, asks(world_one.ip, question))
    given = seen_port(wired)
    assert given in NAT_PORTS
    assert (given == port) == (port in NAT_PORTS)
    seen = question.copy()
    seen.sport, seen.dport = given, target
    assert_frame(hidden(node_one.ip, pod_away.ip, seen), wired)
    back = forward(outside, asks(pod_away.ip, answer(target, given), hlim=50))
    expected = answer(question.dport, port)
    assert_frame(hidden(node_one.ip, world_one.ip, expected, hlim=49), back)

    ((flow, row),) = outside.ct().items()
    assert (flow.local, flow.remote, flow.remote_port) == (a16(world_one.ip), a16(pod_away.ip), target)
    assert row.flags & CtFlags.CT_F_SEEN_REPLY
    assert {flow_of_nat(key, entry) for key, entry in outside.snat().items()} == {flow}


def test_two_clients_with_one_port_do_not_meet(outside: Datapath) -> None:
    """The second is given another port, and each gets its own answers."""
    ports = [
        seen_port(forward(outside, asks(one, udp(CLIENT, AWAY_DNS)))) for one in (world_one.ip, WORLD_TWO)
    ]
    assert ports[0] == CLIENT
    assert ports[1] in NAT_PORTS
    assert ports[1] != CLIENT
    for port, client in zip(ports, (world_one.ip, WORLD_TWO), strict=True):
        told = forward(outside, asks(pod_away.ip, udp(53, port)))
        assert_frame(hidden(node_one.ip, client, udp(AWAY_DNS, CLIENT)), told)


def test_node_and_client_share_the_nodes_ports(outside: Datapath) -> None:
    """The node's own flow to the backend keeps its port and its answers, whoever comes second."""
    own = frame(node_one.mac, GATEWAY.mac, node_one.ip, pod_away.ip, udp(CLIENT, 53))
    assert outside.run("to_netdev", own, "net0").packet == own
    assert seen_port(forward(outside, asks(world_one.ip, udp(CLIENT, AWAY_DNS)))) != CLIENT
    answer = asks(pod_away.ip, udp(53, CLIENT))
    result = arrive(outside, answer)
    assert (result.action, result.packet) == (PASS, answer)


def test_errors_pass_both_ways(outside: Datapath) -> None:
    """The backend's refusal to the client, and what the network says about an answer to the backend."""
    asked = forward(outside, asks(world_one.ip, udp(1234, AWAY_DNS)))
    told = forward(outside, asks(pod_away.ip, unreachable(asked)))
    quoted = asks(world_one.ip, udp(1234, AWAY_DNS), hlim=63)
    quoted = quoted[:60] + asked[60:62] + quoted[62:]
    assert_frame(hidden(node_one.ip, world_one.ip, unreachable(quoted)), told)

    port = seen_port(asked)
    answer = forward(outside, asks(pod_away.ip, udp(53, port)))
    error = forward(outside, asks(FAR, ICMPv6PacketTooBig(mtu=1400) / Raw(answer[14:])))
    sent = asks(pod_away.ip, udp(53, port), hlim=63)
    sent = sent[:60] + answer[60:62] + sent[62:]
    assert_frame(hidden(node_one.ip, pod_away.ip, ICMPv6PacketTooBig(mtu=1400) / Raw(sent[14:])), error)


def test_what_cannot_be_sent_on_is_refused(outside: Datapath) -> None:
    """SCTP, a last hop, no route, no port, no address, and an answer whose flow or service is gone."""
    outside.add_service(9, node_one.ip, 30099, 132, {109: (pod_away.ip, 30099)}, flags=NODE_PORT)
    outside.add_service(10, node_one.ip, 31900, TCP, {110: ("2001:db8:dead::9", 80)}, flags=NODE_PORT)
    reason = {
        DropReason.DROP_NAT_UNSUPP_PROTO: asks(world_one.ip, sctp(CLIENT, 30099)),
        DropReason.DROP_NO_FIB: asks(world_one.ip, tcp(CLIENT, 31900)),
        DropReason.DROP_INVALID_SIP: asks(pod_one.ip, tcp(CLIENT, AWAY)),
    }
    for expected, packet in reason.items():
        assert arrive(outside, packet).drop.reason == expected
    forward(outside, asks(world_one.ip, tcp(CLIENT, AWAY)))
    last = asks(pod_away.ip, tcp(80, CLIENT), hlim=1)
    assert arrive(outside, last).drop.reason == DropReason.DROP_TTL_EXCEEDED
    answer = asks(pod_away.ip, tcp(80, CLIENT, "SA"))
    frontend = outside.map("lb_revnat").lookup(u32(3))
    outside.map("lb_revnat").delete(u32(3))
    assert arrive(outside, answer).drop.reason == DropReason.DROP_NO_SERVICE
    assert frontend is not None
    outside.map("lb_revnat").update(u32(3), frontend)
    for key in outside.ct():
        outside.map("ct").delete(key.pack())
    assert arrive(outside, answer).drop.reason == DropReason.DROP_UNROUTABLE
    for port in NAT_PORTS:
        key = NatKey(a16(pod_away.ip), a16(node_one.ip), 53, port, UDP, NatDir.NAT_IN, 0)
        outside.add_snat(key, node_one.ip, port)
    assert (
        arrive(outside, asks(world_one.ip, udp(CLIENT, AWAY_DNS))).drop.reason
        == DropReason.DROP_NAT_NO_MAPPING
    )
    outside.map("devices").delete(outside.native_device("net0", node_one.place.ip).to_bytes(4, "little"))
    result = arrive(outside, asks(WORLD_TWO, tcp(CLIENT, AWAY)))
    assert result.drop.reason == DropReason.DROP_NAT_NO_MAPPING
