# SPDX-License-Identifier: Apache-2.0
"""
How fast requests may follow each other, and how long to wait after one that failed.

An API server that comes back must not meet a wave of requests from every node: whoever fails loses what
it saved up and goes on at the steady rate.
"""

import random
import threading
import time
from collections.abc import Callable, Iterator

RATE = 10.0
"""Requests per second."""
BURST = 40.0
"""Requests that may be made at once by who has been quiet: an agent's start."""


class Pace:
    """A bucket of tokens, one for each request.  For any thread."""

    def __init__(
        self, *, rate: float = RATE, burst: float = BURST, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._lock = threading.Lock()
        self._tokens = burst
        self._at = clock()

    def reserve(self) -> float:
        """Take the next place in the queue; how many seconds to wait for it."""
        with self._lock:
            self._refill()
            self._tokens -= 1
            return max(0.0, -self._tokens / self._rate)

    def slow_down(self) -> None:
        """A request failed: what was saved up is gone."""
        with self._lock:
            self._refill()
            self._tokens = min(self._tokens, 0.0)

    def _refill(self) -> None:
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now


class Backoff:
    """Endless growing delays with chance in them, so that nodes do not move in step; seconds."""

    def __init__(self, first: float = 0.5, last: float = 5.0) -> None:
        self._first = first
        self._last = last

    def __iter__(self) -> Iterator[float]:
        delay = self._first
        while True:
            yield delay * random.uniform(0.5, 1.0)  # noqa: S311  spreads load, guards nothing
            delay = min(delay * 2, self._last)
