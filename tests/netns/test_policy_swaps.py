# SPDX-License-Identifier: Apache-2.0
"""
Policies are swapped whole: an endpoint sees the old ones or the new ones, at every millisecond.

Random changes, one after the other, under a prober of 1 kHz for each pair of endpoints (``swaps``): nothing
passes that neither the policies before nor those after a change allow, nothing is lost that both allow, and
what was revoked stops at once for connections that last as well.
"""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack

import pytest

from lab.figures import Figures
from lab.metronome import Metronome, Side
from lab.node import Node
from netns import swaps

pytestmark = pytest.mark.netns

SEED = 7
PAIRS, LONG_PAIRS = 2, 3
CHANGES, LONG_CHANGES = 16, 500
# Milliseconds before the first change, and for which one is in force alone.
QUIET_SECONDS = 0.5
PAUSE_SECONDS = (0.05, 0.2)
# Of all verdicts, as a share: a draw in which everything passes, or nothing, would show little.
LEAST_SHARE = 0.1


@pytest.fixture(scope="module")
def pairs(*, is_long: bool) -> list[swaps.Pair]:
    """Whose flows are probed."""
    return [swaps.pair(number) for number in range(LONG_PAIRS if is_long else PAIRS)]


@pytest.fixture(scope="module")
def metronomes(node: Node, pairs: list[swaps.Pair]) -> Iterator[list[Metronome]]:
    """A prober for each pair, between a client and a server; the control's policy is in force."""
    made = []
    node.apply_policy("control", swaps.control())
    with ExitStack() as stack:
        for one in pairs:
            client, server = (
                node.pod(pod.name, {key: str(value) for key, value in pod.labels.items()}) for pod in one
            )
            sides = (Side(client.netns.path), Side(server.netns.path))
            made.append(stack.enter_context(Metronome(*sides, server.address, swaps.LANES)))
        yield made


def change_over_and_over(node: Node, pairs: list[swaps.Pair], count: int) -> list[swaps.Step]:
    """That many changes, each waited for; the first step is the beginning, the last one the end."""
    chance = random.Random(SEED)
    policies: swaps.Policies = {}
    steps = [swaps.Step(0, time.monotonic_ns(), swaps.allowed((), pairs))]
    time.sleep(QUIET_SECONDS)
    for _ in range(count):
        name, policies = swaps.change(chance, policies, pairs)
        began = time.monotonic_ns()
        if name in policies:
            node.apply_policy(name, policies[name])
        else:
            node.delete_policy(name)
        steps.append(swaps.Step(began, time.monotonic_ns(), swaps.allowed(policies.values(), pairs)))
        time.sleep(chance.uniform(*PAUSE_SECONDS))
    return [*steps, swaps.Step(time.monotonic_ns(), 0, frozenset())]


def told(books: Sequence[swaps.Books], steps: Sequence[swaps.Step]) -> str:
    """The changes that harmed somebody."""
    wrong = [
        f"change {number}: {one}, allowed {sorted(steps[number].allowed)} "
        f"after {sorted(steps[number - 1].allowed)}"
        for number, one in enumerate(books, 1)
        if one.lost or one.wrongly_allowed
    ]
    return "\n".join(wrong)


def test_nothing_but_the_old_or_the_new(
    node: Node,
    pairs: list[swaps.Pair],
    metronomes: list[Metronome],
    *,
    is_long: bool,
    record_property: Callable[[str, object], None],
) -> None:
    """W = 0, lost 0; and the same judge finds the same packets wrong for the policies of another time."""
    steps = change_over_and_over(node, pairs, LONG_CHANGES if is_long else CHANGES)
    for one in metronomes:
        assert one.running
        one.stop()
    records = [one.record for one in metronomes]
    books = list(swaps.judge(records, steps))
    elsewhere = list(swaps.judge(records, swaps.steps_of_another(steps)))

    figures = Figures(
        "W0 policies changed",
        injected=len(books),
        survived=sum(not (one.lost or one.wrongly_allowed) for one in books),
        lost=sum(one.lost for one in books),
        wrongly_allowed=sum(one.wrongly_allowed for one in books),
        packets=sum(one.sent for one in books),
        more={
            "flows opened": sum(one.opened for one in books),
            "flows closed": sum(one.closed for one in books),
            "packets always allowed": sum(one.always_allowed for one in books),
            "packets never allowed": sum(one.never_allowed for one in books),
            "wrong by the next policies": sum(one.lost + one.wrongly_allowed for one in elsewhere),
            "longest pause of a prober in us": max(
                one.longest_pause(one.since(steps[0].settled), one.count) // 1000 for one in records
            ),
        },
    )
    figures.record(record_property)

    assert figures.wrongly_allowed == figures.lost == 0, f"{figures}\n{told(books, steps)}"
    figures.assert_harmless()
    assert figures.more["wrong by the next policies"] > figures.packets // 1000, figures
    shares = [figures.more[f"packets {ever} allowed"] / figures.packets for ever in ("always", "never")]
    assert min(shares) > LEAST_SHARE, figures
    assert min(sum(one.opened for one in books), sum(one.closed for one in books)) >= len(books) // 8, figures
