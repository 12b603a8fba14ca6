# SPDX-License-Identifier: Apache-2.0
"""
How far one stage is: its tracker, which rows failed and when they are tried again.

Bookkeeping only; the clock comes in as an argument and the loop does the writes.
"""

from collections.abc import Collection
from dataclasses import dataclass

from ciliumd.reconcile.delta import DeltaTracker
from ciliumd.reconcile.target import BeforeSync, Failures, Rows, Stage


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential delays between attempts at one row, in seconds."""

    first: float = 0.1
    longest: float = 30.0

    def delay(self, attempts: int) -> float:
        """How long to wait after the *attempts*-th failure in a row."""
        return min(self.longest, self.first * 2.0 ** min(attempts - 1, 32))


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a row could not be written (*value*) or deleted (*value* None), and when to try again."""

    error: Exception
    value: bytes | None
    attempts: int
    due: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StageStatus:
    """One stage as status and metrics show it; times are of the reconciler's clock."""

    name: str
    rows: int
    pending_updates: int
    pending_deletions: int
    failing: int
    held: str | None
    last_error: str | None
    last_error_at: float | None
    last_success: float | None

    @property
    def in_sync(self) -> bool:
        """Whether the target holds exactly what is desired, as far as is known."""
        return not (self.pending_updates or self.pending_deletions or self.failing or self.held)


class StageProgress:
    """
    The state of one stage between rounds.

    *unread* means that the target must be read before anything is written: at the start, and after a
    call that failed as a whole, when nobody knows how many of its rows were written.  *uncomputed*
    means that the tables changed since the desired rows were computed.  *fingerprint* is the target's as
    it was when it held what the tracker believes; None when that is not known, as after every write.
    """

    def __init__(self, stage: Stage, backoff: Backoff) -> None:
        self.stage = stage
        self.tracker: DeltaTracker[bytes, bytes] = DeltaTracker()
        self.failures: dict[bytes, Failure] = {}
        self.unread = True
        self.fingerprint: bytes | None = None
        self.uncomputed = True
        self.held: str | None = None
        self.last_error: str | None = None
        self.last_error_at: float | None = None
        self.last_success: float | None = None
        self._backoff = backoff
        self._broken: Failure | None = None  # reading or computing failed: the whole stage waits

    @property
    def broken(self) -> bool:
        """Whether the stage as a whole cannot be worked on (its target or its computation fails)."""
        return self._broken is not None

    @property
    def updates_failing(self) -> bool:
        """Whether something that later stages may refer to could not be written."""
        return self.broken or any(
            failure.value is not None and self._is_wanted(key, failure)
            for key, failure in self.failures.items()
        )

    def due_updates(self, now: float, *, in_sync: bool) -> dict[bytes, bytes]:
        """Rows to write now: pending, allowed before sync, and not waiting for their next attempt."""
        mode = BeforeSync.WRITE if in_sync else self.stage.before_sync
        if mode is BeforeSync.HOLD:
            return {}
        desired, held = self.tracker.desired, self.tracker.held
        rows: dict[bytes, bytes] = {}
        for key in self.tracker.pending_updates:
            value = desired[key]
            if self._may_try(key, value, now) and (mode is BeforeSync.WRITE or held(key) is None):
                rows[key] = value
        return rows

    def due_deletions(self, now: float) -> list[bytes]:
        """Keys to delete now."""
        return [key for key in self.tracker.pending_deletions if self._may_try(key, None, now)]

    def record_updates(self, rows: Rows, failed: Failures, now: float) -> None:
        """*rows* were written but for those in *failed*."""
        self.tracker.record_updated({key: value for key, value in rows.items() if key not in failed})
        for key, value in rows.items():
            self._settle(key, value, failed.get(key), now)

    def record_deletions(self, keys: Collection[bytes], failed: Failures, now: float) -> None:
        """*keys* were deleted but for those in *failed*."""
        self.tracker.record_deleted([key for key in keys if key not in failed])
        for key in keys:
            self._settle(key, None, failed.get(key), now)

    def record_broken(self, error: Exception, now: float) -> None:
        """The target could not be read, or the desired rows could not be computed."""
        attempts = self._broken.attempts + 1 if self._broken else 1
        self._broken = self._failure(error, None, attempts, now)

    def record_working(self) -> None:
        """The target could be read, or the desired rows be computed, after all."""
        self._broken = None

    def may_try_broken(self, now: float) -> bool:
        """Whether a broken stage is due for its next attempt (always when it is not broken)."""
        return self._broken is None or self._broken.due <= now

    def finish_round(self, now: float) -> None:
        """Forget failures of what nobody wants any more; note success."""
        updates, deletions = self.tracker.pending_updates, self.tracker.pending_deletions
        self.failures = {
            key: failure
            for key, failure in self.failures.items()
            if (key in updates or key in deletions) and self._is_wanted(key, failure)
        }
        if self.tracker.in_sync and not self.broken and not self.unread:
            self.last_success = now

    def next_attempt(self, after: float) -> float | None:
        """
        When the earliest failed row, or the stage itself, is due again, if later than *after*.

        What was due before and still waits is held by another stage, whose own attempt is what counts.
        """
        dues = [failure.due for failure in self.failures.values()]
        if self._broken is not None:
            dues.append(self._broken.due)
        return min((due for due in dues if due > after), default=None)

    def status(self) -> StageStatus:
        """The stage as status and metrics show it."""
        return StageStatus(
            name=self.stage.name,
            rows=len(self.tracker.realized),
            pending_updates=len(self.tracker.pending_updates),
            pending_deletions=len(self.tracker.pending_deletions),
            failing=len(self.failures) + self.broken,
            held=self.held,
            last_error=self.last_error,
            last_error_at=self.last_error_at,
            last_success=self.last_success,
        )

    def _is_wanted(self, key: bytes, failure: Failure) -> bool:
        """
        Whether what failed is still the wish.

        A row that could not be written and is to be deleted now must hold up nobody: those that wait for
        it may be the very ones whose change its deletion waits for.
        """
        return failure.value == self.tracker.desired.get(key)

    def _may_try(self, key: bytes, value: bytes | None, now: float) -> bool:
        """A row waits only while it is the same attempt that failed: new wishes are tried at once."""
        failure = self.failures.get(key)
        return failure is None or failure.due <= now or failure.value != value

    def _settle(self, key: bytes, value: bytes | None, error: Exception | None, now: float) -> None:
        """Note what became of one attempt."""
        if error is None:
            self.failures.pop(key, None)
            return
        earlier = self.failures.get(key)
        attempts = earlier.attempts + 1 if earlier is not None and earlier.value == value else 1
        self.failures[key] = self._failure(error, value, attempts, now)

    def _failure(self, error: Exception, value: bytes | None, attempts: int, now: float) -> Failure:
        self.last_error = f"{type(error).__name__}: {error}"
        self.last_error_at = now
        return Failure(error=error, value=value, attempts=attempts, due=now + self._backoff.delay(attempts))
