# SPDX-License-Identifier: Apache-2.0
"""What the reconciler's tests share: a clock moved by hand, an executor that does not wait, and a world."""

import asyncio
from concurrent.futures import Executor, Future

from ciliumd.reconcile.fake import FakeMap
from ciliumd.reconcile.loop import Reconciler
from ciliumd.reconcile.progress import Backoff
from ciliumd.reconcile.target import Stage, Whole


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


class World:
    """A reconciler over fakes named in order; each stage wants what ``want[name]`` says."""

    def __init__(self, *names, live=None, executor=None, stages=None, **settings):
        self.clock = Clock()
        self.counts = Counts()
        self.journal = []
        self.in_sync = True
        self.maps = {name: FakeMap(name, rows=(live or {}).get(name), journal=self.journal) for name in names}
        self.want = {name: {} for name in names}
        self.reconciler = Reconciler(
            stages(self) if stages else [self.stage(name) for name in names],
            executor=executor or Inline(),
            may_delete=lambda: self.in_sync,
            observer=self.counts,
            clock=self.clock,
            backoff=Backoff(first=1.0, longest=30.0),
            **settings,
        )

    def stage(self, name, **settings):
        """The stage of the fake *name*."""
        return Stage(
            name=name, target=self.maps[name], compute=lambda: Whole(dict(self.want[name])), **settings
        )

    def round(self, *, dirty=True, **settings):
        """Run one round to its end."""
        if dirty:
            self.reconciler.trigger()
        asyncio.run(self.reconciler.round(**settings))

    def status(self, name):
        """Status of one stage."""
        return next(stage for stage in self.reconciler.status().stages if stage.name == name)
