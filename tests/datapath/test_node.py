# SPDX-License-Identifier: Apache-2.0
"""Between pods and the node's own stack, and the hooks that let pass what is not a pod's."""

from __future__ import annotations

import pytest

from ciliumd.abi import DropReason, EventType, Identity, TracePoint
from datapath.harness import DROP, PASS, REDIRECT, Datapath, forwarded
from datapath.rows import ALLOW, ALLOW_ALL, DEFAULT_DENY, DENY, EGRESS, INGRESS, POD_ONE, POD_TWO, Rule
from fixtures.packets import (
    assert_frame,
    from_pod,
    from_stack,
    is_at,
    node_one,
    on_wire,
    ping,
    pod_one,
    pod_three,
    pod_two,
    pong,
    router,
    tcp,
    to_host,
    to_pod,
    udp,
    who_has,
    world_one,
)

pytestmark = pytest.mark.datapath

HOST_ONLY = {(Identity.ID_HOST, INGRESS): 1, (Identity.ID_HOST, EGRESS): 1}


@pytest.fixture
def with_host(datapath: Datapath) -> Datapath:
    """Pod one talks with the node and with nobody else."""
    datapath.host_address(router.ip)
    datapath.host_address(node_one.ip)
    rules = (
        Rule(INGRESS, DEFAULT_DENY),
        Rule(EGRESS, DEFAULT_DENY),
        Rule(INGRESS, ALLOW, class_id=1, cookie=0x1A),
        Rule(EGRESS, ALLOW, class_id=1, cookie=0x1B),
    )
    datapath.add_endpoint(POD_ONE, *rules, classes=HOST_ONLY)
    return datapath


@pytest.mark.parametrize("address", [router.ip, node_one.ip])
def test_pod_to_host_goes_up_the_stack_by_cilium_host(with_host: Datapath, address: str) -> None:
    """Whatever address of the node: MACs of cilium_host, everything else as sent, no hop taken."""
    result = with_host.send(POD_ONE, from_pod(pod_one, address, tcp(30000, 10250)))

    assert (result.action, result.mark) == (REDIRECT, 0)
    assert_frame(to_host(pod_one, address, tcp(30000, 10250)), result.packet)
    assert result.counted == forwarded(EGRESS)
    assert [e.trace_point for e in result.of_type(EventType.EVENT_TRACE)] == [TracePoint.TRACE_TO_HOST]
    assert {e.dst_identity for e in result.events} == {Identity.ID_HOST}


def test_ttl_of_one_reaches_the_node(with_host: Datapath) -> None:
    """The node is no further hop."""
    assert with_host.send(POD_ONE, from_pod(pod_one, router.ip, ping(3), ttl=1)).action == REDIRECT


def test_host_reply_and_host_request_reach_the_pod(with_host: Datapath) -> None:
    """From cilium_net into the pod: the pod's MACs, TTL as the stack set it, identity host."""
    with_host.send(POD_ONE, from_pod(pod_one, router.ip, tcp(30000, 10250)))
    reply = with_host.run(
        "from_host", from_stack(router.ip, pod_one.ip, tcp(10250, 30000, "SA")), "cilium_net"
    )
    assert reply.action == REDIRECT
    assert_frame(to_pod(pod_one, router.ip, tcp(10250, 30000, "SA"), ttl=64), reply.packet)
    assert reply.counted == forwarded(INGRESS)

    probe = with_host.run("from_host", from_stack(node_one.ip, pod_one.ip, tcp(40000, 8080)), "cilium_net")
    assert probe.action == REDIRECT
    assert_frame(to_pod(pod_one, node_one.ip, tcp(40000, 8080), ttl=64), probe.packet)
    assert {(e.src_identity, e.rule_cookie) for e in probe.events} == {(Identity.ID_HOST, 0x1A)}
    answer = with_host.send(POD_ONE, from_pod(pod_one, node_one.ip, tcp(8080, 40000, "SA")))
    assert_frame(to_host(pod_one, node_one.ip, tcp(8080, 40000, "SA")), answer.packet)


def test_mark_of_the_stack_does_not_reach_the_pod(with_host: Datapath) -> None:
    """kubelet's marks are the node's own affair."""
    packet = from_stack(router.ip, pod_one.ip, udp(53, 53))
    assert with_host.run("from_host", packet, "cilium_net", mark=0x4000).mark == 0


def test_what_the_stack_forwards_has_the_identity_of_its_sender(with_host: Datapath) -> None:
    """A packet routed by the node is not the node's: ingress policy sees who sent it."""
    with_host.ipcache("203.0.113.0/24", 16777300)
    result = with_host.run("from_host", from_stack(world_one.ip, pod_one.ip, udp(53, 53)), "cilium_net")
    assert (result.drop.reason, result.drop.src_identity) == (DropReason.DROP_POLICY, 16777300)

    with_host.add_endpoint(POD_TWO, *ALLOW_ALL)
    result = with_host.run("from_host", from_stack(pod_two.ip, pod_one.ip, udp(53, 53)), "cilium_net")
    assert (result.drop.reason, result.drop.src_identity) == (DropReason.DROP_POLICY, POD_TWO.identity)


def test_stack_to_an_address_without_a_pod_is_refused(with_host: Datapath) -> None:
    """The route to pods leads nowhere else: not to a pod that is not there, nor back to the node."""
    for address in (pod_three.ip, router.ip):
        result = with_host.run("from_host", from_stack(router.ip, address, udp(53, 53)), "cilium_net")
        assert (result.action, result.drop.reason) == (DROP, DropReason.DROP_NO_LXC)


def test_stack_by_the_pods_own_device_passes_judged_and_unchanged(with_host: Datapath) -> None:
    """Ingress policy holds there too; the packet goes on as it is, and is not redirected."""
    packet = on_wire(pod_one.node_mac, pod_one.mac, router.ip, pod_one.ip, tcp(40000, 8080))
    result = with_host.run("to_container", packet, POD_ONE.device, mark=0x4000)
    assert (result.action, result.mark, result.packet) == (PASS, 0, packet)
    assert result.counted == forwarded(INGRESS)

    with_host.policy(99, Rule(INGRESS, DENY, cookie=0x99))
    with_host.use_version(POD_ONE, 99)
    result = with_host.run("to_container", packet, POD_ONE.device)
    assert (result.action, result.drop.rule_cookie) == (DROP, 0x99)


def test_stack_may_ask_for_a_pods_mac(with_host: Datapath) -> None:
    """ARP of the node towards a pod is none of our business; other protocols are refused."""
    question = who_has(pod_one, router.ip)
    assert with_host.run("to_container", question, POD_ONE.device).action == PASS
    ipv6 = question[:12] + b"\x86\xdd" + bytes(46)
    assert with_host.run("to_container", ipv6, POD_ONE.device).drop.reason == DropReason.DROP_UNKNOWN_L3


@pytest.mark.parametrize(
    ("hook", "device"), [("from_netdev", "net0"), ("to_netdev", "net0"), ("from_host", "cilium_net")]
)
def test_other_protocols_of_the_node_are_left_alone(with_host: Datapath, hook: str, device: str) -> None:
    """ARP, IPv6 and unknown EtherTypes go on untouched and uncounted."""
    for ethertype in (b"\x08\x06", b"\x86\xdd", b"\x88\xcc"):
        packet = bytes(12) + ethertype + b"`" + bytes(60)
        result = with_host.run(hook, packet, device)
        assert (result.action, result.packet, result.counted, result.events) == (PASS, packet, {}, ())


@pytest.mark.parametrize(
    "layer", [tcp(40000, 22), udp(40000, 53), ping(5), pong(5)], ids=["tcp", "udp", "ping", "pong"]
)
def test_the_nodes_own_traffic_is_left_alone(with_host: Datapath, layer: object) -> None:
    """What arrives for the node passes without policy, rows or counts."""
    packet = on_wire(world_one.mac, node_one.mac, world_one.ip, node_one.ip, layer)
    result = with_host.run("from_netdev", packet, "net0")

    assert (result.action, result.packet, result.counted, result.events) == (PASS, packet, {}, ())
    assert with_host.ct() == {}


def test_arp_question_for_the_router_is_answered_with_the_pods_own_device(with_host: Datapath) -> None:
    """The answer goes back at once; nothing is counted, nothing is told."""
    result = with_host.send(POD_ONE, who_has(pod_one, router.ip))

    assert result.action == REDIRECT
    assert_frame(is_at(pod_one, router.ip), result.packet)
    assert (result.counted, result.events) == ({}, ())
