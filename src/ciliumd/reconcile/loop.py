# SPDX-License-Identifier: Apache-2.0
"""
The one loop that writes: rounds of ordered stages, coalesced, retried, checked against drift.

A round computes what every stage should hold from one state of the tables, writes new and changed
rows stage by stage (create before reference), then deletes in the reverse order (delete after
dereference), and deletes only when every source is in sync.  A row that fails is tried again with
growing delays and stops nothing but the stages that declared to need its stage.

The loop's thread computes and keeps the books; targets are called in the writer thread, whose
executor is passed in.  What the rows mean is not known here.
"""

import asyncio
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Protocol, TypeVar

import structlog

from ciliumd.reconcile.delta import DeltaTracker, Drift
from ciliumd.reconcile.order import Order
from ciliumd.reconcile.progress import Backoff, Failure, StageProgress, StageStatus
from ciliumd.reconcile.target import Changes, Failures, Fingerprinted, Stage, Target, Whole

T = TypeVar("T")

# Rows per call of a target: long enough to be a batch, short enough that status stays fresh.
CHUNK = 8192

log = structlog.get_logger("reconcile")


class Observer(Protocol):
    """Where the loop reports what metrics count; called on the loop's thread."""

    def wrote(self, stage: str, operation: str, *, rows: int, failed: int, seconds: float) -> None:
        """One call of a target ended; *operation* is ``load``, ``update`` or ``delete``."""

    def drifted(self, stage: str, *, rows: int) -> None:
        """A full round found *rows* that somebody else had changed."""

    def round_done(self, *, seconds: float) -> None:
        """A round ended."""


class NoObserver:
    """Counts nothing."""

    def wrote(self, stage: str, operation: str, *, rows: int, failed: int, seconds: float) -> None:
        """Ignore it."""

    def drifted(self, stage: str, *, rows: int) -> None:
        """Ignore it."""

    def round_done(self, *, seconds: float) -> None:
        """Ignore it."""


@dataclass(frozen=True, slots=True)
class Running:
    """The call the writer thread is in; one that hangs is seen by its growing *seconds*."""

    stage: str
    operation: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ReconcilerStatus:
    """The loop as status and metrics show it."""

    rounds: int
    may_delete: bool
    running: Running | None
    last_round: float | None
    stages: tuple[StageStatus, ...]

    @property
    def in_sync(self) -> bool:
        """Whether every stage holds exactly what is desired."""
        return all(stage.in_sync for stage in self.stages)


class Reconciler:
    """
    Keeps the targets of *stages* equal to what their ``compute`` answers.

    *unfinished* is asked after every round whether what it wrote makes another one necessary.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        *,
        executor: Executor,
        may_delete: Callable[[], bool],
        unfinished: Callable[[], bool] = lambda: False,
        observer: Observer | None = None,
        clock: Callable[[], float] = time.monotonic,
        backoff: Backoff | None = None,
        throttle: float = 0.02,
        drift_interval: float = 60.0,
    ) -> None:
        progress = [StageProgress(stage, backoff or Backoff()) for stage in stages]
        self._order = Order(progress)
        self._progress = {each.stage.name: each for each in progress}
        self._executor = executor
        self._may_delete = may_delete
        self._unfinished = unfinished
        self._observer: Observer = observer or NoObserver()
        self._clock = clock
        self._throttle = throttle
        self._drift_interval = drift_interval
        self._next_drift = clock() + drift_interval
        self._dirty = True
        self._wake = asyncio.Event()
        self._one_round = asyncio.Lock()
        self._waiters: list[asyncio.Future[None]] = []
        self._rounds = 0
        self._last_round: float | None = None
        self._running: tuple[str, str, float] | None = None

    # ---- what others see -------------------------------------------------------------------

    def tracker(self, stage: str) -> DeltaTracker[bytes, bytes]:
        """The tracker of *stage*, for those who feed it themselves and for views of what is realized."""
        return self._progress[stage].tracker

    def failures(self, stage: str) -> Mapping[bytes, Failure]:
        """Rows of *stage* that failed and wait for their next attempt."""
        return dict(self._progress[stage].failures)

    def status(self) -> ReconcilerStatus:
        """What is pending, failing and running."""
        running = None
        if self._running is not None:
            stage, operation, since = self._running
            running = Running(stage, operation, self._clock() - since)
        return ReconcilerStatus(
            rounds=self._rounds,
            may_delete=self._may_delete(),
            running=running,
            last_round=self._last_round,
            stages=tuple(progress.status() for progress in self._progress.values()),
        )

    def trigger(self) -> None:
        """Something changed: compute and write in the next round.  Call it on the loop's thread."""
        self._dirty = True
        self._wake.set()

    async def flush(self) -> ReconcilerStatus:
        """Wait for a whole round that began after this call (:meth:`run` must be running)."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        self.trigger()
        await waiter
        return self.status()

    # ---- the loop --------------------------------------------------------------------------

    async def load(self) -> None:
        """Read every target once, so that ids can be restored before anything is computed."""
        async with self._one_round:
            for progress in self._progress.values():
                await self._read(progress)

    async def run(self) -> None:
        """Write rounds until cancelled: on triggers, for retries, and against drift."""
        try:
            while True:
                started = self._clock()
                check_drift = started >= self._next_drift
                await self.round(check_drift=check_drift)
                await asyncio.sleep(max(0.0, self._throttle - (self._clock() - started)))
                await self._sleep_until_needed(started)
        finally:
            for waiter in self._waiters:
                waiter.cancel()

    async def round(self, *, check_drift: bool = False) -> None:
        """Write what is pending and due, once; with *check_drift* read every target first."""
        async with self._one_round:
            waiters, self._waiters = self._waiters, []
            try:
                await self._round(check_drift=check_drift)
                if self._unfinished():
                    self.trigger()
            finally:
                for waiter in waiters:
                    if not waiter.done():
                        waiter.set_result(None)

    async def _round(self, *, check_drift: bool) -> None:
        started = self._clock()
        self._wake.clear()
        if check_drift:
            self._next_drift = started + self._drift_interval
        for progress in self._progress.values():
            if progress.may_try_broken(started) and (progress.unread or check_drift):
                await self._read(progress, count_drift=check_drift)

        # No await from here until all are computed: permission to delete and every desired row belong to
        # one state of the tables.  Asked the other way round, a source could finish in between and rows
        # computed without it would be swept.
        in_sync = self._may_delete()
        dirty, self._dirty = self._dirty, False
        for progress in self._progress.values():
            progress.uncomputed |= dirty
            if progress.uncomputed and not progress.unread and (dirty or progress.may_try_broken(started)):
                self._compute(progress)

        for progress in self._progress.values():
            await self._clear_the_way(progress, in_sync=in_sync)
            await self._update(progress, in_sync=in_sync)
        if in_sync:
            for progress in reversed(self._progress.values()):
                await self._delete(progress)
        now = self._clock()
        for progress in self._progress.values():
            progress.finish_round(now)
        self._rounds += 1
        self._last_round = now
        self._observer.round_done(seconds=now - started)

    async def _sleep_until_needed(self, round_started: float) -> None:
        """Wait for a trigger, the next attempt at something that failed, or the next drift check."""
        attempts = (progress.next_attempt(round_started) for progress in self._progress.values())
        delay = min([self._next_drift, *(due for due in attempts if due is not None)]) - self._clock()
        try:
            async with asyncio.timeout(max(0.0, delay)):
                await self._wake.wait()
        except TimeoutError:
            return

    # ---- one stage -------------------------------------------------------------------------

    def _compute(self, progress: StageProgress) -> None:
        """Bring the desired rows of one stage up to date."""
        compute = progress.stage.compute
        if compute is None:
            progress.uncomputed = False
            return
        try:
            answer = compute()
        except Exception as error:  # task's edge: one stage's bug must not stop the others
            log.exception("reconcile.compute_failed", stage=progress.stage.name)
            progress.record_broken(error, self._clock())
            return
        match answer:
            case Whole(rows):
                progress.tracker.replace_desired(rows)
            case Changes(updates, removals):
                progress.tracker.set_desired(updates, removals)
        progress.uncomputed = False
        progress.record_working()

    async def _update(self, progress: StageProgress, *, in_sync: bool) -> None:
        """Write the due rows of one stage but those that refer to something which is not there."""
        due = progress.due_updates(self._clock(), in_sync=in_sync)
        while True:
            progress.held = None
            ready = self._order.ready_updates(progress, due)
            for chunk in _chunks(ready):
                call = partial(progress.stage.target.update, chunk)
                failed = await self._write(progress, "update", call, chunk)
                progress.record_updates(chunk, failed, self._clock())
                if progress.unread:
                    return
            if progress.stage.covers is None or not ready:
                return
            # Rows of the stage itself waited for those just written.
            due = {key: value for key, value in due.items() if key not in ready}

    async def _delete(self, progress: StageProgress) -> None:
        """Delete the due rows of one stage but those that something may still refer to."""
        due = progress.due_deletions(self._clock())
        await self._delete_rows(progress, self._order.ready_deletions(progress, due) if due else ())

    async def _clear_the_way(self, progress: StageProgress, *, in_sync: bool) -> None:
        """Delete what nobody reads, and rows of later stages would read when they are written."""
        if not in_sync or progress.stage.set_of is None:
            return
        due = progress.due_deletions(self._clock())
        await self._delete_rows(progress, self._order.in_the_way(progress, due))

    async def _delete_rows(self, progress: StageProgress, ready: Iterable[bytes]) -> None:
        for chunk in _chunks(dict.fromkeys(ready, b"")):
            keys = tuple(chunk)
            failed = await self._write(progress, "delete", partial(progress.stage.target.delete, keys), keys)
            progress.record_deletions(keys, failed, self._clock())
            if progress.unread:
                return

    async def _write(
        self,
        progress: StageProgress,
        operation: str,
        call: Callable[[], Failures],
        keys: Collection[bytes],
    ) -> Failures:
        """Call the target in the writer thread; answer the failures by key."""
        began = self._clock()
        # Put back to what it was before this write it would look untouched.
        progress.fingerprint = None
        try:
            failed = await self._in_writer_thread(progress.stage.name, operation, call)
        except Exception as error:  # noqa: BLE001  task's edge: whatever a target raises fails its rows
            progress.unread = True
            failed = dict.fromkeys(keys, error)
        name = progress.stage.name
        self._observer.wrote(
            name, operation, rows=len(keys) - len(failed), failed=len(failed), seconds=self._clock() - began
        )
        if failed:
            example = repr(next(iter(failed.values())))
            log.warning(
                "reconcile.rows_failed", stage=name, operation=operation, rows=len(failed), error=example
            )
        return failed

    async def _read(self, progress: StageProgress, *, count_drift: bool = False) -> None:
        """Read one target and believe it."""
        name, target, tracker = progress.stage.name, progress.stage.target, progress.tracker
        first, known = progress.unread, progress.fingerprint
        progress.fingerprint = None
        began = self._clock()
        try:
            drift, progress.fingerprint = await self._in_writer_thread(
                name, "load", lambda: _read_drift(target, tracker, known)
            )
        except Exception as error:  # noqa: BLE001  task's edge: an unreadable target holds its own stage only
            log.warning("reconcile.load_failed", stage=name, error=repr(error))
            self._observer.wrote(name, "load", rows=0, failed=1, seconds=self._clock() - began)
            progress.unread = True
            progress.record_broken(error, self._clock())
            return
        tracker.record_drift(drift)
        progress.unread = False
        if first:
            progress.record_working()
        rows = len(tracker.realized)
        self._observer.wrote(name, "load", rows=rows, failed=0, seconds=self._clock() - began)
        if count_drift and not first and len(drift):
            log.warning("reconcile.drift", stage=name, rows=len(drift))
            self._observer.drifted(name, rows=len(drift))

    async def _in_writer_thread(self, stage: str, operation: str, call: Callable[[], T]) -> T:
        self._running = (stage, operation, self._clock())
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, call)
        finally:
            self._running = None


def _read_drift(
    target: Target, tracker: DeltaTracker[bytes, bytes], known: bytes | None
) -> tuple[Drift[bytes, bytes], bytes | None]:
    """
    Read and compare, both in the writer thread: only rounds change what is believed, and this is one.

    Not read at all if the target's fingerprint is the *known* one.  Answers the drift, and the fingerprint of
    what was read: None if rows may have changed while they were.
    """
    before = _fingerprint(target)
    if before is not None and before == known:
        return Drift(changed={}, lost=()), before
    drift = tracker.drift(target.load())
    return drift, before if before == _fingerprint(target) else None


def _fingerprint(target: Target) -> bytes | None:
    return target.fingerprint() if isinstance(target, Fingerprinted) else None


def _chunks(rows: Mapping[bytes, bytes]) -> list[dict[bytes, bytes]]:
    """*rows* in pieces of at most :data:`CHUNK`, in order."""
    items = iter(rows.items())
    return [chunk for _ in range(0, len(rows), CHUNK) if (chunk := dict(islice(items, CHUNK)))]
