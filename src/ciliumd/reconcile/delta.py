# SPDX-License-Identifier: Apache-2.0
r"""
What one target should hold, what it is known to hold, and the difference, kept up to date key by key.

    desired \ realized, or values differ     -> pending updates
    realized \ desired                       -> pending deletions
    both, equal values                       -> in sync

Nearly every row is in sync nearly always, so what the target holds is kept only where it differs from what
is desired: a second copy of hundreds of thousands of rows would be most of an agent's memory.

Pure memory: no clock, no retries, no I/O.  Every change costs what it touches; nothing here ever
compares two whole maps except :meth:`DeltaTracker.replace_desired`, which is the caller's choice.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Drift(Generic[K, V]):
    """Rows of a target that changed behind our back: *changed* (new or other value) and *lost*."""

    __slots__ = ("changed", "lost")

    def __init__(self, *, changed: Mapping[K, V], lost: Collection[K]) -> None:
        self.changed = changed
        self.lost = lost

    def __len__(self) -> int:
        return len(self.changed) + len(self.lost)


class DeltaTracker(Generic[K, V]):
    """Desired and realized state of one target."""

    def __init__(self) -> None:
        self._desired: dict[K, V] = {}
        # What the target holds of keys that are not in sync: of wanted ones (None: absent), of unwanted ones.
        # Keys are written in the order they were asked for.
        self._updates: dict[K, V | None] = {}
        self._deletions: dict[K, V] = {}
        self._realized = Realized(self._desired, self._updates, self._deletions)

    @property
    def desired(self) -> Mapping[K, V]:
        """What the target should hold."""
        return MappingProxyType(self._desired)

    @property
    def realized(self) -> Mapping[K, V]:
        """What the target is known to hold; :meth:`held` is the quicker way to ask for one row."""
        return self._realized

    @property
    def pending_updates(self) -> Collection[K]:
        """Keys that are missing in the target or hold another value there."""
        return self._updates.keys()

    @property
    def pending_deletions(self) -> Collection[K]:
        """Keys the target holds that nobody wants."""
        return self._deletions.keys()

    @property
    def in_sync(self) -> bool:
        """Whether the target holds exactly what is desired."""
        return not self._updates and not self._deletions

    def held(self, key: K) -> V | None:
        """What the target is known to hold under *key*; None when it holds nothing."""
        if key in self._updates:
            return self._updates[key]
        if key in self._deletions:
            return self._deletions[key]
        return self._desired.get(key)

    def set_desired(self, updates: Mapping[K, V], removals: Iterable[K] = ()) -> None:
        """Want *updates* and no longer want *removals*; a key in both is wanted."""
        for key in removals:
            if key in self._desired:
                held = self.held(key)
                del self._desired[key]
                self._judge(key, held)
        for key, value in updates.items():
            held = self.held(key)
            self._desired[key] = value
            self._judge(key, held)

    def replace_desired(self, desired: Mapping[K, V]) -> None:
        """Want exactly *desired*."""
        gone = [key for key in self._desired if key not in desired]
        self.set_desired({k: v for k, v in desired.items() if self._desired.get(k) != v}, gone)
        # Rows that were computed anew are equal and other objects: whoever computed them keeps these.
        self._desired.clear()
        self._desired.update(desired)

    def record_updated(self, items: Mapping[K, V]) -> None:
        """The target now holds *items*."""
        for key, value in items.items():
            self._judge(key, value)
        self._give_back()

    def record_deleted(self, keys: Iterable[K]) -> None:
        """The target no longer holds *keys*."""
        for key in keys:
            self._judge(key, None)
        self._give_back()

    def drift(self, live: Mapping[K, V]) -> Drift[K, V]:
        """
        How *live*, just read from the target, differs from what it is believed to hold.

        May be called from another thread as long as nothing is wanted or recorded meanwhile.
        """
        held = self._desired.get if self.in_sync else self.held
        changed = {key: value for key, value in live.items() if held(key) != value}
        return Drift(changed=changed, lost=[key for key in self._realized if key not in live])

    def record_drift(self, drift: Drift[K, V]) -> None:
        """Believe what :meth:`drift` found, so that the difference becomes pending again."""
        self.record_updated(drift.changed)
        self.record_deleted(drift.lost)

    def _judge(self, key: K, held: V | None) -> None:
        """Put *key*, of which the target holds *held*, where it belongs."""
        wanted = self._desired.get(key)
        if held is not None and wanted is None:
            self._updates.pop(key, None)
            self._deletions[key] = held
            return
        self._deletions.pop(key, None)
        if wanted == held:
            self._updates.pop(key, None)
        else:
            self._updates[key] = held

    def _give_back(self) -> None:
        """A dictionary that was emptied key by key keeps the memory of its largest size."""
        for pending in (self._updates, self._deletions):
            if not pending:
                pending.clear()


class Realized(Mapping[K, V]):
    """What a target holds, read from what is desired and the exceptions; a view, not a copy."""

    __slots__ = ("_deletions", "_desired", "_updates")

    def __init__(
        self, desired: Mapping[K, V], updates: Mapping[K, V | None], deletions: Mapping[K, V]
    ) -> None:
        self._desired = desired
        self._updates = updates
        self._deletions = deletions

    def __getitem__(self, key: K) -> V:
        if key in self._deletions:
            return self._deletions[key]
        if key not in self._updates:
            return self._desired[key]
        held = self._updates[key]
        if held is None:
            raise KeyError(key)
        return held

    def __iter__(self) -> Iterator[K]:
        updates = self._updates
        for key in self._desired:
            if key not in updates or updates[key] is not None:
                yield key
        yield from self._deletions

    def __len__(self) -> int:
        absent = sum(held is None for held in self._updates.values())
        return len(self._desired) - absent + len(self._deletions)
