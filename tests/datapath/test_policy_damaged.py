# SPDX-License-Identifier: Apache-2.0
"""Rows of policies that somebody changed in the kernel: no packet believes any of them."""

from __future__ import annotations

import socket
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from ciliumd import abi
from ciliumd.abi import DropReason
from datapath.harness import REDIRECT, Datapath
from datapath.rows import ALLOW, ALLOW_ALL, DEFAULT_DENY, DENY, EGRESS, INGRESS, POD_ONE, POD_TWO, Rule, u32
from fixtures.packets import from_pod, pod_one, pod_two, udp

if TYPE_CHECKING:
    from collections.abc import Callable

    from ciliumd.bpf import Map

pytestmark = pytest.mark.datapath

PORT, UDP = 53, socket.IPPROTO_UDP
QUERY = from_pod(pod_one, pod_two.ip, udp(5000, PORT))
CLASSES = {(POD_ONE.identity, INGRESS): 1, (POD_TWO.identity, INGRESS): 2}
# Everybody else and the peer itself are kept out; the classes and rows beside those let everybody in.
DENIED = (
    *(Rule(INGRESS, DEFAULT_DENY, cookie=1), Rule(EGRESS, ALLOW, cookie=2)),
    *(Rule(INGRESS, ALLOW, class_id=1), Rule(INGRESS, DENY, UDP, PORT, cookie=4, class_id=1)),
    *(Rule(INGRESS, ALLOW, class_id=number) for number in (0x8001, 2, 3, 5, 9, 0x101)),
)
ALLOWED = (
    *(Rule(INGRESS, DEFAULT_DENY, cookie=1), Rule(EGRESS, ALLOW, cookie=2)),
    *(Rule(INGRESS, DEFAULT_DENY, class_id=1), Rule(INGRESS, ALLOW, UDP, PORT, cookie=4, class_id=1)),
)


def flipped(inner: Map, key: bytes, is_harmless: Callable[[], bool]) -> int:
    """Every bit of a row's value flipped in turn, and put right again; after how many all was harmless."""
    value = dict(inner.items())[key]
    harmless = 0
    for bit in range(len(value) * 8):
        changed = bytearray(value)
        changed[bit // 8] ^= 1 << bit % 8
        inner.update(key, bytes(changed))
        harmless += is_harmless()
    inner.update(key, value)
    return harmless


def outcome(datapath: Datapath) -> DropReason | None:
    """What becomes of a new flow; None when it gets through."""
    ct = datapath.map("ct")
    ct.delete_batch(list(ct.keys()))
    result = datapath.send(POD_ONE, QUERY)
    return None if result.action == REDIRECT else DropReason(result.drop.reason)


@pytest.mark.parametrize("rules", [DENIED, ALLOWED], ids=["denied", "allowed"])
@pytest.mark.parametrize("name", ["policy_rules", "policy_classes"])
def test_no_flipped_bit_is_believed(datapath: Datapath, name: str, rules: tuple[Rule, ...]) -> None:
    """The row that a packet meets, every bit of it: the packet is dropped, and the reason says why."""
    datapath.add_endpoint(POD_ONE, *ALLOW_ALL)
    datapath.add_endpoint(POD_TWO, *rules, classes=CLASSES)
    whole = outcome(datapath)
    assert whole == (DropReason.DROP_POLICY_DENY if rules is DENIED else None)
    key = abi.PolicyClassKey(POD_ONE.identity, INGRESS).pack()
    if name == "policy_rules":
        key = next(rule.key.pack() for rule in rules if rule.port)
    seen: Counter[DropReason | None] = Counter()

    def is_damaged() -> bool:
        found = outcome(datapath)
        seen[found] += 1
        return found == DropReason.DROP_POLICY_DAMAGED

    with datapath.map(name).open_inner(u32(POD_TWO.version)) as inner:
        bits = len(dict(inner.items())[key]) * 8
        assert flipped(inner, key, is_damaged) == bits, seen
    assert outcome(datapath) == whole


def test_a_row_of_another_class_is_not_believed(datapath: Datapath) -> None:
    """A whole row written over one of another class carries the check of the other."""
    datapath.add_endpoint(POD_ONE, *ALLOW_ALL)
    datapath.add_endpoint(POD_TWO, *DENIED, classes=CLASSES)
    denied = next(rule for rule in DENIED if rule.verdict == DENY)
    other = next(rule for rule in DENIED if rule.class_id == 2)
    with datapath.map("policy_rules").open_inner(u32(POD_TWO.version)) as inner:
        inner.update(denied.key.pack(), other.entry.pack())
    assert outcome(datapath) == DropReason.DROP_POLICY_DAMAGED
