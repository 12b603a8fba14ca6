# SPDX-License-Identifier: Apache-2.0
"""What the reconciler's tests share: a clock that moves when told, and an executor that does not wait."""

from concurrent.futures import Executor, Future


class Clock:
    """Seconds that pass only when the test says so."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        """The time."""
        return self.now


class Inline(Executor):
    """Runs each call at once on the caller's thread, so that tests are deterministic."""

    def submit(self, fn, /, *args, **kwargs):
        """The finished future of the call."""
        future = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # noqa: BLE001  handed to the caller, as a thread would
            future.set_exception(error)
        return future


class Counts:
    """An observer that remembers what it was told."""

    def __init__(self):
        self.writes = []
        self.drift = {}
        self.rounds = 0

    def wrote(self, stage, operation, *, rows, failed, seconds):
        """Remember a call."""
        assert seconds >= 0
        self.writes.append((stage, operation, rows, failed))

    def drifted(self, stage, *, rows):
        """Remember drift."""
        self.drift[stage] = self.drift.get(stage, 0) + rows

    def round_done(self, *, seconds):
        """Count rounds."""
        assert seconds >= 0
        self.rounds += 1
