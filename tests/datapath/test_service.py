# SPDX-License-Identifier: Apache-2.0
"""Services, packet by packet: translated on the way out, shown again on the way back, or refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ciliumd.abi import CtKind, DropReason, LbBackend, LbService, LbServiceKey
from datapath.harness import REDIRECT, Datapath, forwarded
from datapath.rows import (
    ALLOW,
    ALLOW_ALL,
    DEFAULT_DENY,
    EGRESS,
    INGRESS,
    POD_ONE,
    POD_THREE,
    POD_TWO,
    Rule,
    a16,
    u32,
)
from fixtures.packets import (
    IP,
    Ether,
    assert_frame,
    from_pod,
    from_stack,
    node_one,
    on_wire,
    ping,
    pod_one,
    pod_three,
    pod_two,
    sctp,
    svc_one,
    svc_two,
    tcp,
    to_host,
    to_pod,
    udp,
    unreachable,
    world_one,
)

pytestmark = pytest.mark.datapath

TCP, UDP, SCTP = 6, 17, 132
WEB, DNS = 80, 53
TO_WEB = from_pod(pod_one, svc_one.ip, tcp(30000, WEB))


def _chosen(packet: bytes) -> tuple[str, int]:
    """The backend a packet was sent to."""
    ip = Ether(packet)[IP]
    return ip.dst, ip.dport


def test_tcp_is_translated_there_and_back(service: Datapath) -> None:
    """The backend sees its own address and port, the client sees the service; sums are right."""
    there = service.send(POD_ONE, TO_WEB)
    assert there.action == REDIRECT
    assert_frame(to_pod(pod_two, pod_one.ip, tcp(30000, 8080)), there.packet)
    assert there.counted == forwarded(EGRESS, INGRESS)

    back = service.send(POD_TWO, from_pod(pod_two, pod_one.ip, tcp(8080, 30000, "SA")))
    assert_frame(to_pod(pod_one, svc_one.ip, tcp(WEB, 30000, "SA")), back.packet)

    on = service.send(POD_ONE, from_pod(pod_one, svc_one.ip, tcp(30000, WEB, "PA", b"GET /")))
    assert_frame(to_pod(pod_two, pod_one.ip, tcp(30000, 8080, "PA", b"GET /")), on.packet)


@pytest.mark.parametrize("fields", [{}, {"chksum": 0}], ids=["with checksum", "without"])
def test_udp_is_translated_there_and_back(service: Datapath, fields: dict[str, int]) -> None:
    """A datagram without a checksum stays without."""
    there = service.send(POD_ONE, from_pod(pod_one, svc_one.ip, udp(5000, DNS, **fields)))
    assert_frame(to_pod(pod_two, pod_one.ip, udp(5000, 5353, **fields)), there.packet)
    back = service.send(POD_TWO, from_pod(pod_two, pod_one.ip, udp(5353, 5000, **fields)))
    assert_frame(to_pod(pod_one, svc_one.ip, udp(DNS, 5000, **fields)), back.packet)


def test_udp_checksum_that_becomes_zero_is_sent_as_ffff(service: Datapath) -> None:
    """0 would say "no checksum": its other form, 0xffff, must be used."""
    # A payload that is the checksum of the datagram with zeros in its place brings the sum to zero.
    body = to_pod(pod_two, pod_one.ip, udp(5000, 5353, b"\0\0"))[40:42]
    arrives = to_pod(pod_two, pod_one.ip, udp(5000, 5353, body))
    assert arrives[40:42] == b"\xff\xff"
    result = service.send(POD_ONE, from_pod(pod_one, svc_one.ip, udp(5000, DNS, body)))
    assert_frame(arrives, result.packet)


def test_sctp_is_translated_while_the_port_stays(service: Datapath) -> None:
    """Its CRC covers no addresses; another port would need it computed, and is refused."""
    service.add_service(3, svc_two.ip, 99, SCTP, {103: (pod_two.ip, 99)})
    service.add_service(4, svc_two.ip, 98, SCTP, {104: (pod_two.ip, 99)})
    there = service.send(POD_ONE, from_pod(pod_one, svc_two.ip, sctp(4000, 99)))
    assert_frame(to_pod(pod_two, pod_one.ip, sctp(4000, 99)), there.packet)
    drop = service.send(POD_ONE, from_pod(pod_one, svc_two.ip, sctp(4000, 98))).drop
    assert drop.reason == DropReason.DROP_NAT_UNSUPP_PROTO


def test_policy_judges_the_backend_not_the_service(datapath: Datapath) -> None:
    """Verdict and conntrack name the translated flow; the service's port is nothing to policy."""
    rules = (*ALLOW_ALL, Rule(EGRESS, DEFAULT_DENY, cookie=1), Rule(EGRESS, ALLOW, TCP, 8080, cookie=2))
    datapath.add_endpoint(POD_ONE, *rules)
    datapath.add_endpoint(POD_TWO, *ALLOW_ALL)
    datapath.add_service(1, svc_one.ip, WEB, TCP, {101: (pod_two.ip, 8080)})
    datapath.add_service(2, svc_one.ip, 8080, TCP, {102: (pod_two.ip, 9090)})

    event = datapath.send(POD_ONE, TO_WEB).events[0]
    assert (event.dst, event.dport, event.rule_cookie) == (a16(pod_two.ip), 8080, 2)
    refused = datapath.send(POD_ONE, from_pod(pod_one, svc_one.ip, tcp(30001, 8080)))
    assert (refused.drop.rule_cookie, refused.drop.dport) == (1, 9090)


def test_flow_keeps_its_backend(service: Datapath) -> None:
    """SYN, its repetitions and all that follows go to one backend, whatever chance would say."""
    service.add_endpoint(POD_THREE, *ALLOW_ALL)
    service.add_service(1, svc_one.ip, WEB, TCP, {101: (pod_two.ip, 8080), 103: (pod_three.ip, 8081)})
    for sport in range(30000, 30010):
        seen = {
            _chosen(service.send(POD_ONE, from_pod(pod_one, svc_one.ip, tcp(sport, WEB, flags))).packet)
            for flags in ("S", "S", "S", "A", "PA", "A", "FA")
        }
        assert len(seen) == 1
    assert len(service.ct(CtKind.CT_KIND_SERVICE)) == 10


def test_every_backend_is_chosen(service: Datapath) -> None:
    """64 flows over two backends miss one of them once in 2^63 runs."""
    service.add_endpoint(POD_THREE, *ALLOW_ALL)
    service.add_service(1, svc_one.ip, WEB, TCP, {101: (pod_two.ip, 8080), 103: (pod_three.ip, 8081)})
    chosen = {
        _chosen(service.send(POD_ONE, from_pod(pod_one, svc_one.ip, tcp(sport, WEB))).packet)
        for sport in range(30000, 30064)
    }
    assert chosen == {(pod_two.ip, 8080), (pod_three.ip, 8081)}


def test_flow_whose_backend_is_gone_takes_another(service: Datapath) -> None:
    """The next packet finds one that is alive, and the flow stays there."""
    service.add_endpoint(POD_THREE, *ALLOW_ALL)
    service.send(POD_ONE, TO_WEB)
    service.add_service(1, svc_one.ip, WEB, TCP, {103: (pod_three.ip, 8081)})
    service.remove_backend(101)

    data = from_pod(pod_one, svc_one.ip, tcp(30000, WEB, "A"))
    for _ in range(2):
        result = service.send(POD_ONE, data)
        assert_frame(to_pod(pod_three, pod_one.ip, tcp(30000, 8081, "A")), result.packet)
    assert [row.backend_id for row in service.ct(CtKind.CT_KIND_SERVICE).values()] == [103]


def test_connection_opened_again_after_close_chooses_again(service: Datapath) -> None:
    """A SYN over a closed connection is a new one: it is not bound to the old backend."""
    service.send(POD_ONE, TO_WEB)
    service.send(POD_ONE, from_pod(pod_one, svc_one.ip, tcp(30000, WEB, "R")))
    service.add_endpoint(POD_THREE, *ALLOW_ALL)
    service.add_service(1, svc_one.ip, WEB, TCP, {103: (pod_three.ip, 8081)})

    assert _chosen(service.send(POD_ONE, TO_WEB).packet) == (pod_three.ip, 8081)


def test_service_that_was_replaced_takes_no_flow_of_the_old_one(service: Datapath) -> None:
    """The same address and port under another service id is another service."""
    service.send(POD_ONE, TO_WEB)
    service.add_endpoint(POD_THREE, *ALLOW_ALL)
    service.add_service(9, svc_one.ip, WEB, TCP, {103: (pod_three.ip, 8081)})

    assert _chosen(service.send(POD_ONE, TO_WEB).packet) == (pod_three.ip, 8081)


def test_ports_and_protocols_that_are_no_service_are_not_translated(service: Datapath) -> None:
    """Address, port and protocol together are the frontend; what is none takes the route."""
    for layer in (tcp(30000, 81), udp(30000, WEB), tcp(30000, DNS), ping(3)):
        result = service.send(POD_ONE, from_pod(pod_one, svc_one.ip, layer))
        assert result.counted == forwarded(EGRESS)
        assert_frame(from_pod(pod_one, svc_one.ip, layer, ttl=63), result.packet)
    assert service.ct(CtKind.CT_KIND_SERVICE) == {}


def test_replies_of_a_service_that_is_gone_are_refused(service: Datapath) -> None:
    """Better no answer than one from an address the client never spoke to."""
    service.send(POD_ONE, TO_WEB)
    service.map("lb_revnat").delete(u32(1))
    drop = service.send(POD_TWO, from_pod(pod_two, pod_one.ip, tcp(8080, 30000, "SA"))).drop
    assert (drop.reason, drop.direction) == (DropReason.DROP_NO_SERVICE, INGRESS)


def test_one_socket_may_talk_to_the_service_and_to_its_backend(service: Datapath) -> None:
    """UDP from one port: answers come from whom the last question went to."""
    answer = from_pod(pod_two, pod_one.ip, udp(5353, 5000))
    by_service = from_pod(pod_one, svc_one.ip, udp(5000, DNS))
    directly = from_pod(pod_one, pod_two.ip, udp(5000, 5353))
    for question, source in [(directly, (pod_two.ip, 5353)), (by_service, (svc_one.ip, DNS))] * 2:
        service.send(POD_ONE, question)
        assert_frame(to_pod(pod_one, source[0], udp(source[1], 5000)), service.send(POD_TWO, answer).packet)


# ---- other kinds of backends ------------------------------------------------------------------


def test_backend_on_the_node_itself_answers_as_the_service(service: Datapath) -> None:
    """As the API server does: up the stack, and back through cilium_net."""
    service.host_address(node_one.ip)
    service.add_service(5, svc_two.ip, 443, TCP, {105: (node_one.ip, 6443)})

    there = service.send(POD_ONE, from_pod(pod_one, svc_two.ip, tcp(30000, 443)))
    assert_frame(to_host(pod_one, node_one.ip, tcp(30000, 6443)), there.packet)
    back = service.run("from_host", from_stack(node_one.ip, pod_one.ip, tcp(6443, 30000, "SA")), "cilium_net")
    assert_frame(to_pod(pod_one, svc_two.ip, tcp(443, 30000, "SA"), ttl=64), back.packet)


def test_backend_in_the_world_answers_as_the_service_through_the_masquerade(service: Datapath) -> None:
    """Translated, masqueraded, and both undone on the way back, in the right order."""
    service.native_device("net0", node_one.ip)
    service.add_service(6, svc_two.ip, 443, TCP, {106: (world_one.ip, 8443)})

    out = service.send(POD_ONE, from_pod(pod_one, svc_two.ip, tcp(40001, 443)))
    assert_frame(from_pod(pod_one, world_one.ip, tcp(40001, 8443), ttl=63), out.packet)
    wired = service.run("to_netdev", out.packet, "net0", mark=out.mark)
    assert Ether(wired.packet)[IP].src == node_one.ip
    reply = on_wire(world_one.mac, node_one.mac, world_one.ip, node_one.ip, tcp(8443, 40001, "SA"), ttl=50)
    back = service.run("from_netdev", reply, "net0")
    assert_frame(to_pod(pod_one, svc_two.ip, tcp(443, 40001, "SA"), ttl=49), back.packet)


# ---- errors about translated flows -------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "seen"),
    [
        pytest.param(udp(5000, DNS, b"12345678"), udp(5000, 5353, b"12345678"), id="udp"),
        pytest.param(tcp(30000, WEB), tcp(30000, 8080), id="tcp"),
    ],
)
def test_error_of_a_backend_quotes_the_service(service: Datapath, sent: object, seen: object) -> None:
    """The client's socket is found by what it sent; the quoted L4 sum is the backend's business."""
    service.send(POD_ONE, from_pod(pod_one, svc_one.ip, sent))
    arrived = to_pod(pod_two, pod_one.ip, seen)
    result = service.send(POD_TWO, from_pod(pod_two, pod_one.ip, unreachable(arrived)))

    as_sent = bytearray(from_pod(pod_one, svc_one.ip, sent, ttl=63))
    sum_at = 34 + (16 if arrived[23] == TCP else 6)
    as_sent[sum_at : sum_at + 2] = arrived[sum_at : sum_at + 2]
    assert_frame(to_pod(pod_one, pod_two.ip, unreachable(bytes(as_sent))), result.packet)


# ---- rows in flux ------------------------------------------------------------------------------


def test_rows_that_do_not_belong_together_are_not_followed(service: Datapath) -> None:
    """A slot of another service, or a backend row of another id, is as good as none: refused."""
    slot = LbServiceKey(a16(svc_one.ip), WEB, TCP, 0, 1).pack()
    service.map("lb_services").update(slot, LbService(101, 77, 0, 0).pack())
    assert service.send(POD_ONE, TO_WEB).drop.reason == DropReason.DROP_NO_SERVICE

    service.map("lb_services").update(slot, LbService(101, 1, 0, 0).pack())
    row = LbBackend(101, 8080, TCP, 0, a16(pod_two.ip))
    for recycled in (replace(row, id=102), replace(row, protocol=UDP)):
        service.map("lb_backends").update(u32(101), recycled.pack())
        assert service.send(POD_ONE, TO_WEB).drop.reason == DropReason.DROP_NO_SERVICE

    service.map("lb_backends").update(u32(101), row.pack())
    assert service.send(POD_ONE, TO_WEB).action == REDIRECT


def test_recycled_revnat_row_is_no_frontend(service: Datapath) -> None:
    """A reply is not shown under another service's address."""
    service.send(POD_ONE, TO_WEB)
    other = service.map("lb_revnat").lookup(u32(2))
    assert other is not None
    service.map("lb_revnat").update(u32(1), other)
    drop = service.send(POD_TWO, from_pod(pod_two, pod_one.ip, tcp(8080, 30000, "SA"))).drop
    assert drop.reason == DropReason.DROP_NO_SERVICE
