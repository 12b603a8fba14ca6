# SPDX-License-Identifier: Apache-2.0
"""
Rounds: every path once, forwards, then backwards (A-B-B-A), so that a drifting machine drifts alike for
all.

One path is sampled twice in every round; its ratio to itself is the control.  When an end of that ratio's
interval leaves 0.97 to 1.03 the run cannot tell anything, and says so.
"""

import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from bench.result import Figure, Goal, Section
from bench.samples import CONTROL_RANGE, Ratio, ratio
from lab.process import CommandFailed

CONTROL = "control"
# A tool that fails once costs a round; one that fails more often is told.
FAILURES = (CommandFailed, subprocess.TimeoutExpired, ValueError)
MOST_DISCARDED = 3
Sample = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Rounds:
    """Samples of every path by quantity: rounds["ciliumd"]["gbits"] is a column."""

    columns: dict[str, dict[str, list[float]]]
    discarded: list[str] = field(default_factory=list)

    def ratio(self, ours: str, peer: str, quantity: str, *, higher_is_better: bool) -> Ratio:
        """Compare two paths."""
        return ratio(
            self.columns[ours][quantity], self.columns[peer][quantity], higher_is_better=higher_is_better
        )


def run(take: Mapping[str, Callable[[], Sample]], *, control_of: str, rounds: int, seconds: float) -> Rounds:
    """Take samples; an even number of whole rounds, fewer than asked when time is up."""
    samplers = {**take, CONTROL: take[control_of]}
    names = list(samplers)
    taken = Rounds({name: {} for name in names})
    end = time.monotonic() + seconds
    for number in range(rounds):
        if number % 2 == 0 and number and time.monotonic() > end:
            break
        order = names if number % 2 == 0 else names[::-1]
        try:
            samples = {name: samplers[name]() for name in order}
        except FAILURES as failure:
            taken.discarded.append(f"{type(failure).__name__}: {failure}")
            if len(taken.discarded) > MOST_DISCARDED:
                raise
            continue
        for name, sample in samples.items():
            for quantity, value in sample.items():
                taken.columns[name].setdefault(quantity, []).append(value)
    return taken


def report(
    section: Section,
    taken: Rounds,
    *,
    quantity: str,
    control_of: str,
    goals: Mapping[str, Goal | None],
    higher_is_better: bool,
    what: str,
) -> bool:
    """Figures of ciliumd against each peer of *goals* in one quantity; False when the run is void."""
    control = taken.ratio(CONTROL, control_of, quantity, higher_is_better=higher_is_better)
    for peer, goal in goals.items():
        compared = taken.ratio("ciliumd", peer, quantity, higher_is_better=higher_is_better)
        section.add(
            Figure.of_ratio(f"{what}: ciliumd / {peer}", compared, goal=goal, void=not sound(control))
        )
    section.add(control_figure(what, control_of, control))
    return sound(control)


def sound(control: Ratio) -> bool:
    """Whether the machine was steady enough for ratios to say something."""
    return CONTROL_RANGE[0] <= control.low and control.high <= CONTROL_RANGE[1]


def control_figure(what: str, control_of: str, control: Ratio) -> Figure:
    """The ratio of a path to itself."""
    return Figure(
        f"{what}: control ({control_of} / itself)",
        round(control.median, 4),
        low=round(control.low, 4),
        high=round(control.high, 4),
        goal="0.97 to 1.03",
        met=sound(control),
        note="" if sound(control) else "VOID: machine too unsteady, or too few pairs, for the ratios above",
    )
