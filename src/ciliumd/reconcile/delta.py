# SPDX-License-Identifier: Apache-2.0
r"""
What one target should hold, what it is known to hold, and the difference, kept up to date key by key.

    desired \ realized, or values differ     -> pending updates
    realized \ desired                       -> pending deletions
    both, equal values                       -> in sync

Pure memory: no clock, no retries, no I/O.  Every change costs what it touches; nothing here ever
compares two whole maps except :meth:`DeltaTracker.replace_desired`, which is the caller's choice.
"""

from collections.abc import Collection, Iterable, Mapping
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
        self._realized: dict[K, V] = {}
        # Insertion-ordered sets: keys are written in the order they were asked for.
        self._updates: dict[K, None] = {}
        self._deletions: dict[K, None] = {}

    @property
    def desired(self) -> Mapping[K, V]:
        """What the target should hold."""
        return MappingProxyType(self._desired)

    @property
    def realized(self) -> Mapping[K, V]:
        """What the target is known to hold."""
        return MappingProxyType(self._realized)

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

    def set_desired(self, updates: Mapping[K, V], removals: Iterable[K] = ()) -> None:
        """Want *updates* and no longer want *removals*; a key in both is wanted."""
        for key in removals:
            if self._desired.pop(key, None) is not None:
                self._judge(key)
        for key, value in updates.items():
            self._desired[key] = value
            self._judge(key)

    def replace_desired(self, desired: Mapping[K, V]) -> None:
        """Want exactly *desired*."""
        gone = [key for key in self._desired if key not in desired]
        self.set_desired({k: v for k, v in desired.items() if self._desired.get(k) != v}, gone)

    def replace_realized(self, realized: Mapping[K, V]) -> None:
        """Forget what was believed: the target was read and holds exactly *realized*."""
        believed = self._realized.keys()
        self._realized = dict(realized)
        for key in believed | self._realized.keys():
            self._judge(key)

    def record_updated(self, items: Mapping[K, V]) -> None:
        """The target now holds *items*."""
        for key, value in items.items():
            self._realized[key] = value
            self._judge(key)

    def record_deleted(self, keys: Iterable[K]) -> None:
        """The target no longer holds *keys*."""
        for key in keys:
            self._realized.pop(key, None)
            self._judge(key)

    def drift(self, live: Mapping[K, V]) -> Drift[K, V]:
        """How *live*, just read from the target, differs from what it is believed to hold."""
        realized = self._realized
        changed = {key: value for key, value in live.items() if realized.get(key) != value}
        return Drift(changed=changed, lost=[key for key in realized if key not in live])

    def record_drift(self, drift: Drift[K, V]) -> None:
        """Believe what :meth:`drift` found, so that the difference becomes pending again."""
        self.record_updated(drift.changed)
        self.record_deleted(drift.lost)

    def _judge(self, key: K) -> None:
        """Put *key* into the set it belongs to."""
        wanted = self._desired.get(key)
        held = self._realized.get(key)
        if wanted == held:
            self._updates.pop(key, None)
            self._deletions.pop(key, None)
        elif wanted is None:
            self._updates.pop(key, None)
            self._deletions[key] = None
        else:
            self._deletions.pop(key, None)
            self._updates[key] = None
