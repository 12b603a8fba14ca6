# SPDX-License-Identifier: Apache-2.0
"""Who may send what, slots that change hands, rows recycled under our eyes, missing programs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ciliumd.abi import Call, DropReason, Hook, Metric
from ciliumd.model.net import mac_bytes
from datapath.harness import DROP, HOOKS, PASS, REDIRECT, Datapath
from datapath.rows import ALLOW, ALLOW_ALL, DEFAULT_DENY, EGRESS, INGRESS, POD_ONE, POD_TWO, Rule, u32
from fixtures.packets import (
    ARP,
    Ether,
    from_pod,
    node_one,
    on_wire,
    pod_away,
    pod_one,
    pod_three,
    pod_two,
    router,
    udp,
    who_has,
    wire,
    world_one,
)

pytestmark = pytest.mark.datapath

QUERY = from_pod(pod_one, pod_two.ip, udp(5000, 53))


def _refused(datapath: Datapath, packet: bytes, device: str = POD_ONE.device) -> DropReason:
    """The reason a packet of pod one is dropped for; it must stay as it was."""
    result = datapath.run("from_container", packet, device)
    assert (result.action, result.packet) == (DROP, packet)
    return DropReason(result.drop.reason)


def test_frame_with_the_mac_of_another_is_refused(two_pods: Datapath) -> None:
    """Every bit of the sender's MAC counts."""
    for byte in range(6):
        packet = bytearray(QUERY)
        packet[6 + byte] ^= 1
        assert _refused(two_pods, bytes(packet)) == DropReason.DROP_INVALID_SMAC


@pytest.mark.parametrize("source", [pod_two.ip, router.ip, world_one.ip, "0.0.0.0", "127.0.0.1"])
def test_packet_with_the_address_of_another_is_refused(two_pods: Datapath, source: str) -> None:
    """A pod speaks in its own name only."""
    packet = from_pod(replace(pod_one, ip=source), pod_two.ip, udp(5000, 53))
    assert _refused(two_pods, packet) == DropReason.DROP_INVALID_SIP


def test_arp_in_the_name_of_another_or_for_another_is_refused(two_pods: Datapath) -> None:
    """Only the router is asked for, only under one's own address, and nobody announces himself."""
    assert _refused(two_pods, who_has(pod_one, pod_two.ip)) == DropReason.DROP_UNKNOWN_TARGET
    assert (
        _refused(two_pods, who_has(replace(pod_one, ip=pod_two.ip), router.ip)) == DropReason.DROP_INVALID_SIP
    )
    assert (
        _refused(two_pods, who_has(replace(pod_one, ip="0.0.0.0"), router.ip)) == DropReason.DROP_INVALID_SIP
    )
    answer = Ether(src=pod_one.mac, dst=pod_one.node_mac) / ARP(
        op=2, hwsrc=pod_one.mac, psrc=router.ip, hwdst=pod_one.node_mac, pdst=pod_two.ip
    )
    assert _refused(two_pods, wire(answer)) == DropReason.DROP_INVALID
    assert _refused(two_pods, who_has(pod_one, router.ip)[:40]) == DropReason.DROP_INVALID


@pytest.mark.parametrize("ethertype", ["86dd", "8100", "88cc", "0000"])
def test_other_protocols_of_pods_are_refused(two_pods: Datapath, ethertype: str) -> None:
    """What cannot be judged does not leave a pod."""
    packet = QUERY[:12] + bytes.fromhex(ethertype) + bytes(60)
    assert _refused(two_pods, packet) == DropReason.DROP_UNKNOWN_L3


@pytest.mark.parametrize("source", [pod_one.ip, pod_two.ip, node_one.ip], ids=["itself", "a pod", "the node"])
def test_packet_from_the_network_with_an_address_of_this_node_is_refused(
    two_pods: Datapath, source: str
) -> None:
    """Nobody out there is a local pod, or this node."""
    two_pods.host_address(node_one.ip)
    packet = on_wire(world_one.mac, node_one.mac, source, pod_one.ip, udp(5000, 53))
    result = two_pods.run("from_netdev", packet, "net0")
    assert (result.action, result.drop.reason) == (DROP, DropReason.DROP_INVALID_SIP)


def test_packet_from_the_network_without_a_hop_left_is_refused(two_pods: Datapath) -> None:
    """It would leave the node, into the pod, with a TTL of zero."""
    packet = on_wire(world_one.mac, node_one.mac, world_one.ip, pod_one.ip, udp(5000, 53), ttl=1)
    assert two_pods.run("from_netdev", packet, "net0").drop.reason == DropReason.DROP_TTL_EXCEEDED


# ---- slots -------------------------------------------------------------------------------------


def test_device_without_an_endpoint_may_not_send(two_pods: Datapath) -> None:
    """Neither a device nobody knows nor one whose slot is another's."""
    assert _refused(two_pods, QUERY, "lxc3") == DropReason.DROP_HOST_NOT_READY
    two_pods.map("ifindex").update(u32(replace(POD_ONE, device="lxc3").ifindex), u32(POD_ONE.slot))
    assert _refused(two_pods, QUERY, "lxc3") == DropReason.DROP_HOST_NOT_READY


@pytest.mark.parametrize("word", ["free", "of the next tenant"])
def test_slot_that_is_free_or_changes_hands_sends_nothing(two_pods: Datapath, word: str) -> None:
    """Facts and state word must be of one generation; a word of zero is nobody."""
    two_pods.use_version(
        POD_ONE, 11 if word == "of the next tenant" else 0, generation=8 if word != "free" else 0
    )
    if word == "free":
        assert two_pods.state[POD_ONE.slot] == 0
    assert _refused(two_pods, QUERY) == DropReason.DROP_HOST_NOT_READY


@pytest.mark.parametrize("generation", [0, 8])
def test_slot_that_is_free_or_changes_hands_receives_nothing(two_pods: Datapath, generation: int) -> None:
    """Its address still leads to the slot, but nobody is in: judged by ipcache, then refused."""
    two_pods.use_version(POD_TWO, 12 if generation else 0, generation=generation)
    drop = two_pods.send(POD_ONE, QUERY).drop
    assert (drop.reason, drop.direction) == (DropReason.DROP_NO_LXC, INGRESS)
    assert drop.dst_identity == 2


def test_address_that_is_no_longer_the_slots_is_refused(two_pods: Datapath) -> None:
    """An address row that outlived its endpoint does not deliver to the slot's next tenant."""
    two_pods.local_address(pod_three.ip, POD_TWO.slot)
    drop = two_pods.send(POD_ONE, from_pod(pod_one, pod_three.ip, udp(5000, 53))).drop
    assert drop.reason == DropReason.DROP_NO_LXC


def test_unknown_pod_of_this_node_is_unroutable(two_pods: Datapath) -> None:
    """The route to our own pods would only bring the packet back."""
    packet = from_pod(pod_one, pod_three.ip, udp(5000, 53))
    assert _refused(two_pods, packet) == DropReason.DROP_UNROUTABLE


def test_destination_without_a_route_is_refused(two_pods: Datapath) -> None:
    """As the node's routing table says."""
    packet = from_pod(pod_one, "198.51.100.9", udp(5000, 53))
    assert _refused(two_pods, packet) == DropReason.DROP_NO_FIB


@pytest.mark.parametrize(
    "destination", ["255.255.255.255", "224.0.0.251", "239.255.255.250", "0.0.0.0", "0.1.2.3"]
)
def test_destination_that_no_router_sends_on_is_refused(world: Datapath, destination: str) -> None:
    """A default route leads there, but the kernel sends nothing: told as sent, and seen by nobody."""
    packet = from_pod(pod_one, destination, udp(5000, 53))
    assert _refused(world, packet) == DropReason.DROP_NO_FIB


# ---- identities --------------------------------------------------------------------------------


def _identity_of(datapath: Datapath, ip: str) -> int:
    """The identity that egress policy sees behind an address."""
    return datapath.send(POD_ONE, from_pod(pod_one, ip, udp(5000, 53))).events[0].dst_identity


def test_identity_is_of_the_address_then_of_the_longest_prefix_then_world(two_pods: Datapath) -> None:
    """A single address beats every prefix."""
    assert _identity_of(two_pods, pod_away.ip) == 2
    two_pods.ipcache("10.0.0.0/8", 16777217)
    two_pods.ipcache("10.0.2.0/24", 16777218)
    assert _identity_of(two_pods, "10.3.0.1") == 16777217
    assert _identity_of(two_pods, "10.0.2.22") == 16777218
    two_pods.ipcache(f"{pod_away.ip}/32", 4321)
    two_pods.age(100)
    assert _identity_of(two_pods, pod_away.ip) == 4321


# ---- rows that were recycled while they were read ----------------------------------------------


def test_recycled_address_row_is_no_row(two_pods: Datapath) -> None:
    """A row that shows another address's fold says nothing about this one."""
    two_pods.local_address(pod_two.ip, POD_TWO.slot, check=1)
    assert _refused(two_pods, QUERY) == DropReason.DROP_UNROUTABLE


def test_recycled_identity_row_falls_back_to_the_prefix(two_pods: Datapath) -> None:
    """Better the prefix's identity than a stranger's."""
    two_pods.ipcache("10.0.2.0/24", 16777218)
    two_pods.ipcache(f"{pod_away.ip}/32", 4321, check=1)
    assert _identity_of(two_pods, pod_away.ip) == 16777218


def test_recycled_class_row_is_no_verdict(datapath: Datapath) -> None:
    """An identity whose class cannot be read is dropped: a stranger may have more rights than it."""
    datapath.add_endpoint(POD_ONE, *ALLOW_ALL)
    classes = {(POD_ONE.identity, INGRESS): 1}
    rules = (Rule(INGRESS, DEFAULT_DENY, cookie=9), Rule(INGRESS, ALLOW, class_id=1))
    datapath.add_endpoint(POD_TWO, *rules, classes=classes)
    assert datapath.send(POD_ONE, QUERY).action == REDIRECT

    datapath.reset()
    datapath.add_endpoint(POD_ONE, *ALLOW_ALL)
    datapath.add_endpoint(POD_TWO, *rules)
    datapath.policy(POD_TWO.version, *rules, recycled={(POD_ONE.identity, INGRESS): 1})
    assert datapath.send(POD_ONE, QUERY).drop.reason == DropReason.DROP_POLICY_DAMAGED


def test_recycled_conntrack_row_is_no_row(two_pods: Datapath) -> None:
    """The flow is judged as new, and gets a row of its own."""
    two_pods.send(POD_ONE, QUERY)
    for key, row in two_pods.ct().items():
        two_pods.map("ct").update(key.pack(), replace(row, check=row.check ^ 1).pack())
    assert len(two_pods.send(POD_ONE, QUERY).events) == 3, "two verdicts and a trace, as of a new flow"
    assert len(two_pods.send(POD_ONE, QUERY).events) == 0


# ---- missing programs --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "direction"),
    [(Call.CALL_SERVICE, EGRESS), (Call.CALL_EGRESS, EGRESS), (Call.CALL_INGRESS, EGRESS)],
)
def test_missing_part_of_the_programs_drops_and_is_counted(
    two_pods: Datapath, call: Call, direction: int
) -> None:
    """A tail call that leads nowhere never lets a packet through."""
    with two_pods.without_call(call):
        drop = two_pods.send(POD_ONE, QUERY).drop
    assert (drop.reason, drop.direction) == (DropReason.DROP_MISSED_TAIL_CALL, direction)
    assert two_pods.send(POD_ONE, QUERY).action == REDIRECT


@pytest.mark.parametrize(
    ("name", "action", "direction"),
    [
        ("from_container", DROP, EGRESS),
        ("to_container", DROP, INGRESS),
        ("from_host", DROP, INGRESS),
        ("from_netdev", PASS, INGRESS),
        ("to_netdev", PASS, EGRESS),
    ],
)
def test_missing_hook_program_closes_pods_and_leaves_the_node_open(
    two_pods: Datapath, name: str, action: int, direction: int
) -> None:
    """Counted either way; there is nobody to send an event."""
    assert name in HOOKS
    with two_pods.without_hook(Hook[f"HOOK_{name.upper()}"]):
        result = two_pods.run(name, QUERY, POD_ONE.device)
    assert (result.action, result.packet, result.events) == (action, QUERY, ())
    assert result.counted == {(DropReason.DROP_MISSED_TAIL_CALL, direction): 1}


def test_bytes_are_counted_beside_packets(two_pods: Datapath) -> None:
    """By reason and direction, whole frames."""
    row = u32(DropReason.DROP_INVALID_SMAC * 4 + EGRESS)
    before = Metric(*two_pods.map("metrics").lookup_sums(row))
    bad = QUERY[:6] + mac_bytes(pod_two.mac) + QUERY[12:]
    for _ in range(3):
        two_pods.send(POD_ONE, bad)
    after = Metric(*two_pods.map("metrics").lookup_sums(row))
    assert (after.packets - before.packets, after.bytes - before.bytes) == (3, 3 * len(bad))
