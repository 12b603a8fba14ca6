# SPDX-License-Identifier: Apache-2.0
"""Fragmented datagrams: judged and translated by the ports of their first fragment."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ciliumd.abi import DropReason
from datapath.harness import DROP, PASS, REDIRECT, Datapath
from datapath.rows import ALLOW, ALLOW_ALL, DEFAULT_DENY, EGRESS, INGRESS, POD_ONE, POD_TWO, Rule
from fixtures.packets import (
    IP,
    Ether,
    Raw,
    assert_frame,
    from_pod,
    node_one,
    on_wire,
    ping,
    pod_one,
    pod_two,
    pong,
    svc_one,
    to_pod,
    udp,
    world_one,
)

if TYPE_CHECKING:
    from scapy.packet import Packet

pytestmark = pytest.mark.datapath

UDP, ICMP = 17, 1
HALF = 16  # bytes of L4 in the first fragment


def split(layer: Packet, src: str, dst: str) -> list[tuple[Packet, dict[str, object]]]:
    """An L4 packet as two fragments: what stands behind IP, and the fields of IP."""
    whole = bytes(IP(src=src, dst=dst) / layer.copy())
    l4, protocol = whole[20:], whole[9]
    return [
        (Raw(l4[:HALF]), {"flags": "MF", "id": 77, "proto": protocol}),
        (Raw(l4[HALF:]), {"frag": HALF // 8, "id": 77, "proto": protocol}),
    ]


def test_fragments_of_one_datagram_go_the_same_way(two_pods: Datapath) -> None:
    """The later one is judged and tracked by ports it does not carry."""
    for layer, fields in split(udp(5000, 53), pod_one.ip, pod_two.ip):
        result = two_pods.send(POD_ONE, from_pod(pod_one, pod_two.ip, layer, **fields))
        assert result.action == REDIRECT
        assert_frame(to_pod(pod_two, pod_one.ip, layer, **fields), result.packet)
    assert {(key.local_port, key.remote_port) for key in two_pods.ct()} == {(5000, 53), (53, 5000)}


def test_later_fragment_without_its_first_is_refused(two_pods: Datapath) -> None:
    """Order matters: nothing is kept back to wait for the first one."""
    (first, first_fields), (later, later_fields) = split(udp(5000, 53), pod_one.ip, pod_two.ip)
    early = from_pod(pod_one, pod_two.ip, later, **later_fields)
    result = two_pods.send(POD_ONE, early)
    assert (result.action, result.packet) == (DROP, early)
    assert result.drop.reason == DropReason.DROP_FRAG_NOT_FOUND

    two_pods.send(POD_ONE, from_pod(pod_one, pod_two.ip, first, **first_fields))
    assert two_pods.send(POD_ONE, early).action == REDIRECT
    other = from_pod(pod_one, pod_two.ip, later, **(later_fields | {"id": 78}))
    assert two_pods.send(POD_ONE, other).drop.reason == DropReason.DROP_FRAG_NOT_FOUND
    tcp_like = from_pod(pod_one, pod_two.ip, later, **(later_fields | {"proto": 6}))
    assert two_pods.send(POD_ONE, tcp_like).drop.reason == DropReason.DROP_FRAG_NOT_FOUND


def test_later_fragment_is_refused_by_the_rule_of_its_port(datapath: Datapath) -> None:
    """Fragmenting a datagram is no way around a port rule."""
    datapath.add_endpoint(POD_ONE, *ALLOW_ALL)
    datapath.add_endpoint(
        POD_TWO, Rule(EGRESS, ALLOW), Rule(INGRESS, ALLOW), Rule(INGRESS, DEFAULT_DENY, UDP, 53, cookie=5)
    )
    for layer, fields in split(udp(5000, 53), pod_one.ip, pod_two.ip):
        drop = datapath.send(POD_ONE, from_pod(pod_one, pod_two.ip, layer, **fields)).drop
        assert (drop.reason, drop.rule_cookie, drop.dport) == (DropReason.DROP_POLICY, 5, 53)


def test_fragments_to_a_service_are_translated_alike(two_pods: Datapath) -> None:
    """The first one's ports and the datagram's checksum, the later one's address only; and back."""
    two_pods.add_service(2, svc_one.ip, 53, UDP, {102: (pod_two.ip, 5353)})
    sent = split(udp(5000, 53), pod_one.ip, svc_one.ip)
    seen = split(udp(5000, 5353), pod_one.ip, pod_two.ip)
    for (layer, fields), (translated, _) in zip(sent, seen, strict=True):
        result = two_pods.send(POD_ONE, from_pod(pod_one, svc_one.ip, layer, **fields))
        assert_frame(to_pod(pod_two, pod_one.ip, translated, **fields), result.packet)

    sent = split(udp(5353, 5000), pod_two.ip, pod_one.ip)
    seen = split(udp(53, 5000), svc_one.ip, pod_one.ip)
    for (layer, fields), (translated, _) in zip(sent, seen, strict=True):
        result = two_pods.send(POD_TWO, from_pod(pod_two, pod_one.ip, layer, **fields))
        assert_frame(to_pod(pod_one, svc_one.ip, translated, **fields), result.packet)


@pytest.mark.parametrize(
    ("out", "answer"),
    [
        pytest.param(udp(40001, 53), udp(53, 40001), id="udp"),
        pytest.param(ping(40001), pong(40001), id="ping"),
    ],
)
def test_fragments_are_masqueraded_alike(two_pods: Datapath, out: Packet, answer: Packet) -> None:
    """Out and back, every fragment of a datagram or of a large ping."""
    two_pods.native_device("net0", node_one.ip)
    sent = split(out, pod_one.ip, world_one.ip)
    wired = split(out, node_one.ip, world_one.ip)
    for (layer, fields), (changed, _) in zip(sent, wired, strict=True):
        result = two_pods.send(POD_ONE, from_pod(pod_one, world_one.ip, layer, **fields))
        result = two_pods.run("to_netdev", result.packet, "net0", mark=result.mark)
        assert result.action == PASS
        expected = on_wire(
            pod_one.mac, pod_one.node_mac, node_one.ip, world_one.ip, changed, ttl=63, **fields
        )
        assert_frame(expected, result.packet)

    arriving = split(answer, world_one.ip, node_one.ip)
    delivered = split(answer, world_one.ip, pod_one.ip)
    for (layer, fields), (changed, _) in zip(arriving, delivered, strict=True):
        packet = on_wire(world_one.mac, node_one.mac, world_one.ip, node_one.ip, layer, **fields)
        result = two_pods.run("from_netdev", packet, "net0")
        assert result.action == REDIRECT
        assert_frame(to_pod(pod_one, world_one.ip, changed, **fields), result.packet)


def test_later_fragment_of_an_echo_reply_to_nobody_does_not_leave(two_pods: Datapath) -> None:
    """No part of it carries the pod's address, or a borrowed one, into the world."""
    two_pods.native_device("net0", node_one.ip)
    for layer, fields in split(pong(9), pod_one.ip, world_one.ip):
        packet = from_pod(pod_one, world_one.ip, layer, **fields)
        result = two_pods.run("to_netdev", packet, "net0")
        assert (result.action, result.drop.reason) == (DROP, DropReason.DROP_NAT_NO_MAPPING)
    assert two_pods.snat() == {}


def test_fragments_for_the_node_itself_pass(two_pods: Datapath) -> None:
    """Also one whose first was not seen: the node's stack reassembles."""
    two_pods.native_device("net0", node_one.ip)
    for layer, fields in reversed(split(udp(5000, 53), world_one.ip, node_one.ip)):
        packet = on_wire(world_one.mac, node_one.mac, world_one.ip, node_one.ip, layer, **fields)
        result = two_pods.run("from_netdev", packet, "net0")
        assert (result.action, result.packet, result.counted) == (PASS, packet, {})


def test_refusal_quotes_a_first_fragment_but_never_a_later_one(two_pods: Datapath) -> None:
    """An answer to a fragment without ports would help nobody."""
    two_pods.add_service(2, svc_one.ip, 53, UDP, {})
    (first, first_fields), (later, later_fields) = split(udp(5000, 53), pod_one.ip, svc_one.ip)
    answered = two_pods.send(POD_ONE, from_pod(pod_one, svc_one.ip, first, **first_fields))
    assert answered.action == REDIRECT
    assert answered.drop.reason == DropReason.DROP_NO_SERVICE
    quoted = Ether(answered.packet)[IP].payload.payload
    assert (quoted.dst, quoted.id, quoted.frag) == (svc_one.ip, 77, 0)

    packet = from_pod(pod_one, svc_one.ip, later, **later_fields)
    silent = two_pods.send(POD_ONE, packet)
    assert (silent.action, silent.packet) == (DROP, packet)
