# SPDX-License-Identifier: Apache-2.0
"""
F6: bits of policy rows flip in the kernel, and of the words that put endpoints under a policy.

The agent compares its maps once an hour here, so what keeps packets out is the datapath alone: it believes
no row whose check fails (docs/decisions/0014).  Denied packets are judged one by one, 2,000 each second.
"""

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path

import pytest

from ciliumd import abi
from ciliumd.bpf.map import Map
from ciliumd.desired.policy.maprows import sealed
from ciliumd.model.net import addr16
from lab.figures import Figures
from lab.maps import INNER
from lab.node import Node
from lab.pod import Pod
from lab.probers import Probers
from lab.world import World

SEED = 6
FLIPS, FLIPS_LONG = 200, 1000
# A few packets of each denied flow meet every flip.
SECONDS_EACH = 0.004
# Of each flow, while the control leaves the door open.
SEEN_BY_CONTROL = 100


@pytest.fixture(scope="module")
def node(world: World) -> Iterator[Node]:
    """A node whose agent does not look at its maps again within the test."""
    with Node(world, options={"drift-interval": "3600"}) as node:
        yield node.start()


def slot_and_version(node: Node, pod: Pod) -> tuple[bytes, bytes]:
    """The slot of a pod and the policy version it is under, as maps spell them."""
    maps = node.bpf_root / "maps"
    with Map.from_pin(maps / "cilium_lxc_v1") as slots, Map.from_pin(state_map(maps)) as states:
        row = found(slots, abi.LxcKey(addr16(ip_network(pod.address).network_address)).pack())
        slot = abi.LxcValue.unpack(row).slot.to_bytes(4, "little")
        return slot, found(states, slot)[:4]


def found(opened: Map, key: bytes) -> bytes:
    """The row of a key that is there."""
    row = opened.lookup(key)
    assert row is not None, f"{opened.name} has no row {key.hex()}"
    return row


def dropped(node: Node) -> int:
    """Packets dropped for a damaged row, on their way into a pod."""
    index = abi.DropReason.DROP_POLICY_DAMAGED * abi.Direction.DIR_MAX + abi.Direction.DIR_INGRESS
    with Map.from_pin(node.bpf_root / "maps" / "cilium_metrics_v1") as counters:
        return counters.lookup_sums(index.to_bytes(4, "little"))[0]


def state_map(maps: Path) -> Path:
    """Where the words are that put endpoints under a policy."""
    return maps / "cilium_endpoint_state_v1"


def flip_each(opened: Map, rows: dict[bytes, bytes], places: list[tuple[bytes, int]]) -> None:
    """Flip a bit of a row for a moment, one after the other; *rows* as they were are there at the end."""
    for key, bit in places:
        changed = bytearray(rows[key])
        changed[bit // 8] ^= 1 << bit % 8
        opened.update(key, bytes(changed))
        time.sleep(SECONDS_EACH)
        opened.update(key, rows[key])


def some_bits(rows: dict[bytes, bytes], chance: random.Random, count: int) -> list[tuple[bytes, int]]:
    """Places of bits, each of them at most once."""
    every = [(key, bit) for key, value in rows.items() for bit in range(len(value) * 8)]
    return chance.sample(every, min(count, len(every)))


def allow_by_hand(rules: Map) -> bytes:
    """Control: a row of everybody else that says allow and carries the check of what it says."""
    for key, value in list(rules.items()):
        place, entry = abi.PolicyKey.unpack(key), abi.PolicyEntry.unpack(value)
        is_wildcard = place.prefixlen == abi.PolicyPrefix.POLICY_PREFIX_CLASS and not place.class_id
        if is_wildcard and place.direction == abi.Direction.DIR_INGRESS:
            allow = replace(entry, verdict=abi.PolicyVerdict.POLICY_VERDICT_ALLOW)
            rules.update(key, sealed(place, allow).pack())
            return key
    raise LookupError("nobody says what becomes of everybody else")


@pytest.mark.parametrize("name", INNER)
def test_no_flipped_bit_of_a_policy_lets_anybody_through(
    node: Node, probers: Probers, is_long: bool, name: str, record_property: Callable[[str, object], None]
) -> None:
    """Nobody gets in by it, and who talks already goes on."""
    figures = Figures(f"F6-bits of {name} flipped")
    _, version = slot_and_version(node, probers.receiver)
    before = dropped(node)
    with Map.from_pin(node.bpf_root / "maps" / name) as outer, outer.open_inner(version) as inner:
        rows = dict(inner.items())
        places = some_bits(rows, random.Random(SEED), FLIPS_LONG if is_long else FLIPS)
        with probers:
            flip_each(inner, rows, places)
            figures.injected = len(places)
            figures.survived = len(places) if dict(inner.items()) == rows else 0
            probers.stop(figures)
    figures.more["dropped for a damaged row"] = dropped(node) - before
    figures.record(record_property)

    figures.assert_harmless()
    assert figures.more["dropped for a damaged row"] > 0


def test_no_flipped_bit_of_a_word_lets_anybody_through(
    node: Node, probers: Probers, record_property: Callable[[str, object], None]
) -> None:
    """Every bit of the receiver's word, which leads to a version that is not there or to no endpoint."""
    figures = Figures("F6-bits of cilium_endpoint_state_v1 flipped")
    slot, _ = slot_and_version(node, probers.receiver)
    with Map.from_pin(state_map(node.bpf_root / "maps")) as states:
        rows = {slot: found(states, slot)}
        places = [(slot, bit) for bit in range(64)]
        with probers:
            flip_each(states, rows, places)
            figures.injected = len(places)
            figures.survived = len(places) if found(states, slot) == rows[slot] else 0
            probers.stop(figures)
    # Of the flows that may, what met no version was dropped: locked down until it was right again.
    figures.record(record_property)

    assert figures.survived == figures.injected
    assert figures.wrongly_allowed == 0, figures


def test_the_probers_would_have_noticed(node: Node, probers: Probers) -> None:
    """Control: a row that is wrong but whole lets a stranger in."""
    figures = Figures("F6-control")
    _, version = slot_and_version(node, probers.receiver)
    with (
        Map.from_pin(node.bpf_root / "maps" / "cilium_policy_rules_v1") as outer,
        outer.open_inner(version) as rules,
        probers,
    ):
        before = dict(rules.items())
        key = allow_by_hand(rules)
        probers.wait_sent(SEEN_BY_CONTROL)
        rules.update(key, before[key])
        probers.stop(figures)

    assert figures.wrongly_allowed >= SEEN_BY_CONTROL // 2, figures
