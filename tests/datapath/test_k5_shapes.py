# SPDX-License-Identifier: Apache-2.0
"""
K5: any frame at all through every tc program; verdict, reason and every byte are the reference's.

tests/datapath/test_parser.py says the same of a node that allows nothing, where every packet that is
understood shows the flow that was read.  Here everything is allowed, so that packets are translated,
masqueraded, answered and delivered.
"""

from __future__ import annotations

import random

import pytest

from datapath.contest import Contest
from datapath.malformed import frames, mutated, replaced
from datapath.shapes import spoiled, table
from datapath.tally import Tally
from datapath.ways import WAYS, macs_of

pytestmark = pytest.mark.datapath

SEED = 20261128
MUTATIONS, MUTATIONS_LONG = 4_000, 750_000  # a hook
SPOILED = 3  # ways of a hook on which frames are cut and lie; --long: all of them
CHUNK = 50_000  # mutated frames that are held at once
HOOKS = list(WAYS)


@pytest.mark.parametrize("hook", HOOKS)
def test_every_shape_of_the_table(hook: str, contest: Contest, tally: Tally, is_long: bool) -> None:
    """At least 250 shapes a hook, on every way that it tells apart; then cut and lying ones."""
    shapes = 0
    for number, (source, target, port) in enumerate(WAYS[hook]):
        macs = macs_of(hook, source, target)
        named = table(*macs, source.ip, target.ip, port)
        shapes = len(named)
        # In their order, so that first fragments are known, and each alone.
        contest.play(named.values())
        if is_long or number < SPOILED:
            contest.play(spoiled(frames(*macs, source.ip, target.ip)))

    assert shapes >= 250
    contest.tell(tally, f"K5 {hook}, shapes", shapes=shapes, ways=len(WAYS[hook]))


@pytest.mark.parametrize("hook", ["from_container", "from_netdev", "to_netdev"])
def test_udp_sum_that_would_become_zero(hook: str, contest: Contest) -> None:
    """Zero says "no sum": where translation leads there, all ones are written, which means the same."""
    at = 40
    met = 0
    for source, target, port in WAYS[hook]:
        udp = table(*macs_of(hook, source, target), source.ip, target.ip, port)["udp"]
        # From the range of shared ports, so that masquerading is the same every time.
        udp = udp[:34] + (40001).to_bytes(2, "big") + udp[36:]
        (seen,) = contest.play([udp[:at] + b"\0\1" + udp[at + 2 :]])
        behind = int.from_bytes(seen.verdict.frame[at : at + 2], "big")
        if seen.verdict.reason or len(seen.verdict.frame) != len(udp) or behind == 1:
            continue
        # One's complement: what is added to a sum stays added.
        zero = (1 - behind) % 0xFFFF
        for value in (zero - 1, zero, zero + 1):
            contest.play([udp[:at] + (value % 0x10000).to_bytes(2, "big") + udp[at + 2 :]])
        (edge,) = contest.play([udp[:at] + zero.to_bytes(2, "big") + udp[at + 2 :]])
        met += edge.verdict.frame[at : at + 2] == b"\xff\xff"

    assert contest.wrong == []
    assert met


@pytest.mark.parametrize("hook", HOOKS)
def test_frames_changed_at_random(hook: str, contest: Contest, tally: Tally, is_long: bool) -> None:
    """Any header byte replaced, and up to four random changes at once."""
    dice = random.Random(f"{SEED} {hook}")
    stock = [
        frame
        for source, target, port in WAYS[hook]
        for frame in table(*macs_of(hook, source, target), source.ip, target.ip, port).values()
    ]
    plain = [
        frame
        for source, target, _ in WAYS[hook][:3]
        for frame in frames(*macs_of(hook, source, target), source.ip, target.ip).values()
    ]
    contest.play(
        changed for frame in dice.sample(plain, 25 if is_long else 5) for changed in replaced(frame, dice)
    )
    left = MUTATIONS_LONG if is_long else MUTATIONS
    while left > 0:
        contest.play(mutated(dice.choice(stock), dice) for _ in range(min(CHUNK, left)))
        left -= CHUNK

    assert contest.outcomes.total() > (MUTATIONS_LONG if is_long else MUTATIONS) * 8 // 10
    contest.tell(tally, f"K5 {hook}, mutations", seed=SEED)
