# SPDX-License-Identifier: Apache-2.0
"""
What samples say: ratios of pairs with a bootstrap interval, percentiles.

Pure.  A pair is two samples of the same round; machines drift between rounds, so only pairs are compared.
"""

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

RESAMPLES = 4000
CONFIDENCE = 0.95
SEED = 20
CONTROL_RANGE = (0.97, 1.03)


@dataclass(frozen=True, slots=True)
class Ratio:
    """Ours over a peer's: the median of the pairs, its interval, and the ratio of best quartiles."""

    median: float
    low: float
    high: float
    best: float
    pairs: int

    def __str__(self) -> str:
        return f"{self.median:.3f} [{self.low:.3f}, {self.high:.3f}]"


def ratio(ours: Sequence[float], peers: Sequence[float], *, higher_is_better: bool) -> Ratio:
    """Compare two columns of the same rounds.  The resampling is seeded: the same samples say the same."""
    pairs = [one / other for one, other in zip(ours, peers, strict=True)]
    low, high = _interval(pairs)
    best = best_quartile(ours, higher_is_better=higher_is_better)
    return Ratio(
        median=statistics.median(pairs),
        low=low,
        high=high,
        best=best / best_quartile(peers, higher_is_better=higher_is_better),
        pairs=len(pairs),
    )


def best_quartile(values: Sequence[float], *, higher_is_better: bool) -> float:
    """Mean of the best quarter: what the path does when the machine lets it."""
    ordered = sorted(values, reverse=higher_is_better)
    return statistics.fmean(ordered[: max(1, len(ordered) // 4)])


def _interval(values: Sequence[float]) -> tuple[float, float]:
    """Bootstrap interval of the median."""
    chance = random.Random(SEED)
    medians = sorted(statistics.median(chance.choices(values, k=len(values))) for _ in range(RESAMPLES))
    outside = int(RESAMPLES * (1 - CONFIDENCE) / 2)
    return medians[outside], medians[-1 - outside]


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of the values does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -int(-share * len(ordered) // 1) - 1))]


def spread(values: Sequence[float], digits: int = 3) -> str:
    """``min / median / max``."""
    return " / ".join(f"{one:.{digits}f}" for one in (min(values), statistics.median(values), max(values)))
