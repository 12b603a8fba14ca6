# SPDX-License-Identifier: Apache-2.0
"""Repeated work fails without harm to anybody else, says so, and is tried again."""

import asyncio

import pytest
from structlog.testing import capture_logs

from ciliumd.daemon import controllers
from ciliumd.daemon.controllers import MAX_DELAY, Controller, Controllers, delay, rfc3339
from ciliumd.metrics.tally import Tallies

NEVER = "0001-01-01T00:00:00Z"


class Work:
    """Fails as often as told, then succeeds; ends the scenario after enough runs."""

    def __init__(self, failures, runs):
        self.failures = failures
        self.runs = runs
        self.done = 0

    async def __call__(self):
        """One run."""
        self.done += 1
        if self.done >= self.runs:
            raise asyncio.CancelledError
        if self.done <= self.failures:
            raise ValueError(f"run {self.done}")


def repeated(work, monkeypatch, *, interval=60.0):
    """Run *work* until it is cancelled; the controllers, their tallies and the pauses."""
    pauses = []

    async def sleep(seconds):
        pauses.append(seconds)

    tallies = Tallies()
    everyone = Controllers(tallies)
    monkeypatch.setattr(controllers.asyncio, "sleep", sleep)
    with capture_logs() as logs, pytest.raises(asyncio.CancelledError):
        asyncio.run(everyone.repeat("gc", interval, work))
    return everyone, tallies, pauses, logs


def test_work_is_repeated_at_its_interval(monkeypatch):
    """And counted."""
    everyone, tallies, pauses, logs = repeated(Work(0, 4), monkeypatch)
    assert pauses == [60.0, 60.0, 60.0]
    assert tallies.controller_runs.value("success") == 3
    assert logs == []
    (model,) = [one.model() for one in everyone.all()]
    assert model["name"] == "gc"
    assert model["status"]["consecutive-failure-count"] == 0
    assert model["status"]["last-failure-timestamp"] == NEVER
    assert model["status"]["last-success-timestamp"] != NEVER


def test_a_failure_is_told_and_tried_again_sooner(monkeypatch):
    """With growing pauses; success ends it."""
    everyone, tallies, pauses, logs = repeated(Work(3, 5), monkeypatch)
    assert pauses == [2.0, 4.0, 8.0, 60.0]
    assert tallies.controller_runs.value("failure") == 3
    assert [one["error"] for one in logs] == [f"ValueError: run {number}" for number in (1, 2, 3)]
    (one,) = everyone.all()
    assert one.failures == 0
    assert one.model()["status"]["last-failure-msg"] == ""
    assert one.model()["status"]["last-failure-timestamp"] != NEVER


def test_while_it_fails_its_status_says_why(monkeypatch):
    """The error is that of the last run."""
    everyone, *_ = repeated(Work(3, 4), monkeypatch)
    status = everyone.all()[0].model()["status"]
    assert status["consecutive-failure-count"] == 3
    assert status["last-failure-msg"] == "ValueError: run 3"


def test_work_that_fails_for_a_day_goes_on_being_tried(monkeypatch):
    """No number of failures ends the controller, and with it the agent."""
    everyone, _, pauses, _ = repeated(Work(3000, 3001), monkeypatch)
    assert everyone.all()[0].failures == 3000
    assert set(pauses[10:]) == {MAX_DELAY}


@pytest.mark.parametrize(
    ("interval", "failures", "expected"),
    [(60.0, 0, 60.0), (60.0, 1, 2.0), (60.0, 10, MAX_DELAY), (1.0, 1, 1.0), (1.0, 10**6, 1.0)],
)
def test_the_pause_is_never_longer_than_the_interval(interval, failures, expected):
    """Failing work is not run less often than working work, and at least every half minute."""
    assert delay(interval, failures=failures) == expected


def test_controllers_are_listed_by_name(monkeypatch):
    """Two of them, in order."""

    async def stop():
        raise asyncio.CancelledError

    async def scenario():
        everyone = Controllers(Tallies())
        for name in ("b", "a"):
            with pytest.raises(asyncio.CancelledError):
                await everyone.repeat(name, 1.0, stop)
        return [one.name for one in everyone.all()]

    assert asyncio.run(scenario()) == ["a", "b"]


def test_times_are_written_as_cilium_writes_them():
    """UTC, and the year 1 for never."""
    assert rfc3339(0) == NEVER
    assert rfc3339(1_700_000_000.9) == "2023-11-14T22:13:20Z"
    assert Controller("x").model()["status"]["last-success-timestamp"] == NEVER
