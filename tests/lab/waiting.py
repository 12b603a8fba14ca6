# SPDX-License-Identifier: Apache-2.0
"""Waiting with a deadline: conditions are polled, nothing sleeps in the hope that it is enough."""

import os
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
# How many times longer deadlines are: in an emulated machine everything takes longer, and there is as much
# more time between two looks, which would take the processor from what is waited for.
PATIENCE = float(os.environ.get("CILIUMD_PATIENCE", "1"))


class NotInTime(AssertionError):
    """A condition did not come true before its deadline."""


def eventually(condition: Callable[[], T], what: str, *, seconds: float = 10.0, every: float = 0.05) -> T:
    """The first true answer of *condition*.  Raises :class:`NotInTime` with its last answer."""
    seconds *= PATIENCE
    deadline = time.monotonic() + seconds
    while True:
        answer = condition()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise NotInTime(f"not within {seconds:g} s: {what}; last seen: {answer!r}")
        time.sleep(every * PATIENCE)
