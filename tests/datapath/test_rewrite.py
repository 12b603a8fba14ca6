# SPDX-License-Identifier: Apache-2.0
"""
Packets that are let through and changed, however odd they are: only the bytes that may change do.

Valid checksums stay valid and wrong ones stay wrong by the same amount, because sums are changed
by difference; everything that no rewrite has to touch arrives as it was sent.
"""

from __future__ import annotations

import random
import socket
from collections import Counter

import pytest

from datapath.harness import DROP, HOOKS, PASS, REDIRECT, Datapath
from datapath.malformed import frames, mutated, runnable
from datapath.rows import POD_ONE
from fixtures.packets import ipv4_sum, node_one, pod_one, pod_two, svc_one, world_one
from reference.parser import ETHERNET

pytestmark = pytest.mark.datapath

ROUNDS = 3_000
SEED = 20240229
TCP, UDP, SCTP, ICMP = 6, 17, 132, 1
MACS, TTL, IP_SUM, SRC, DST = range(12), {22}, {24, 25}, range(26, 30), range(30, 34)


@pytest.fixture
def open_node(two_pods: Datapath) -> Datapath:
    """Every port the table of frames uses is a service, on pod two; the world is masqueraded."""
    for number, (port, protocol) in enumerate([(80, TCP), (53, UDP), (36412, SCTP)], 1):
        target = port if protocol == SCTP else port + 8000
        two_pods.add_service(number, svc_one.ip, port, protocol, {number: (pod_two.ip, target)})
    two_pods.native_device("net0", node_one.ip)
    return two_pods


def _l4_at(frame: bytes) -> int:
    return ETHERNET + (frame[14] & 15) * 4


def _later(frame: bytes) -> bool:
    return bool(int.from_bytes(frame[20:22], "big") & 0x1FFF)


def _may_change(frame: bytes, addresses: set[int]) -> set[int]:
    """Bytes that forwarding with these addresses rewritten may touch: ports and sums go with them."""
    l4 = _l4_at(frame)
    allowed = {*MACS, *TTL, *IP_SUM, *addresses}
    if _later(frame) or not addresses:
        return allowed
    sums = {TCP: (16, 17), UDP: (6, 7), ICMP: (2, 3), SCTP: ()}[frame[23]]
    ports = (4, 5) if frame[23] == ICMP else (0, 1, 2, 3)
    return allowed | {l4 + at for at in (*sums, *ports)}


def _ip_error(frame: bytes) -> int:
    """0 when the IPv4 header's sum is right; else what it is wrong by, as 0 and 0xffff are one."""
    return ipv4_sum(frame[ETHERNET : _l4_at(frame)]) % 0xFFFF


def _l4_error(frame: bytes) -> int | None:
    """The same of the L4 sum; None where there is none to keep right."""
    protocol, l4 = frame[23], _l4_at(frame)
    body = frame[l4 : ETHERNET + int.from_bytes(frame[16:18], "big")]
    if protocol == SCTP or (protocol == UDP and body[6:8] == b"\0\0"):
        return None
    pseudo = b"" if protocol == ICMP else frame[26:34] + bytes([0, protocol]) + len(body).to_bytes(2, "big")
    return ipv4_sum(pseudo + body) % 0xFFFF


def _is_error(frame: bytes) -> bool:
    return frame[23] == ICMP and not _later(frame) and frame[_l4_at(frame)] in {3, 11, 12}


def _assert_rewritten(sent: bytes, seen: bytes, addresses: set[int]) -> None:
    assert len(sent) == len(seen)
    changed = {at for at in range(len(sent)) if sent[at] != seen[at]}
    strange = changed - _may_change(sent, addresses)
    assert not strange, f"bytes {sorted(strange)} changed\n{sent.hex()}\n{seen.hex()}"
    assert _ip_error(sent) == _ip_error(seen), f"IPv4 sum\n{sent.hex()}\n{seen.hex()}"
    more = int.from_bytes(sent[20:22], "big") & 0x3FFF
    if not more:
        assert _l4_error(sent) == _l4_error(seen), f"L4 sum\n{sent.hex()}\n{seen.hex()}"


@pytest.mark.parametrize("target", [pod_two.ip, svc_one.ip], ids=["pod", "service"])
def test_forwarded_packets_are_changed_where_they_must_be_and_nowhere_else(
    open_node: Datapath, target: str
) -> None:
    """From pod to pod, plain and through a service."""
    dice = random.Random(SEED)
    table = list(frames(pod_one.mac, pod_one.node_mac, pod_one.ip, target).values())
    program = open_node.generation.entries[HOOKS["from_container"]]
    seen: Counter[int] = Counter()
    for _ in range(ROUNDS):
        sent = mutated(dice.choice(table), dice)
        if not runnable(sent):
            continue
        run = program.test_run(sent, ifindex=POD_ONE.ifindex)
        open_node.events()
        seen[run.retval] += 1
        if run.retval == DROP:
            continue
        assert run.retval == REDIRECT
        if sent[12:14] != b"\x08\0" or sent[22] <= 1 or run.data[30:34] == pod_one.address.packed:
            continue  # ARP and refusals are answers, not the packet
        _assert_rewritten(sent, run.data, set(DST) if target == svc_one.ip else set())
    assert seen[REDIRECT] > ROUNDS // 10
    assert seen[DROP] > ROUNDS // 10


def test_masqueraded_packets_are_changed_where_they_must_be_and_nowhere_else(open_node: Datapath) -> None:
    """From pod to world, at the device; errors that quote a flow have more to change, and none here does."""
    dice = random.Random(SEED)
    table = list(frames(pod_one.mac, pod_one.node_mac, pod_one.ip, world_one.ip).values())
    program = open_node.generation.entries[HOOKS["to_netdev"]]
    changed = 0
    for _ in range(ROUNDS):
        sent = mutated(dice.choice(table), dice)
        if not runnable(sent):
            continue
        run = program.test_run(sent, ifindex=socket.if_nametoindex("net0"))
        open_node.events()
        assert run.retval in {PASS, DROP}
        if run.retval == DROP or run.data == sent:
            assert run.data == sent
            continue
        assert run.data[26:30] == node_one.address.packed
        assert not _is_error(sent)
        _assert_rewritten(sent, run.data, set(SRC))
        changed += 1
    assert changed > ROUNDS // 10
