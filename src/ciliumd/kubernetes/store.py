# SPDX-License-Identifier: Apache-2.0
"""
Which objects of a kind are in force, from what a watch tells and a listing proves.

A watch may tell late, twice or out of order, and it loses deletions when it has to start again.  Versions
(``metadata.resourceVersion``) put its events in order: one older than what is known is not news, and one
older than a listing is about an object that the listing either shows or proves gone.  A listing holds
names only; what it shows and the watch has not brought yet is awaited.  What a listing does not show is
deleted, unless it is younger than the listing: absence of news deletes nothing.

Versions are numbers of one history (KEP-5504).  A listing that is older than events before it tells of a
cluster put back to an earlier state: then versions mean nothing any more, see :meth:`KindStore.forget`.

An invalid object changes nothing but the problem it has: its last good version stays in force, unless
another object has taken its name.  One that was never valid here has the version an earlier agent knew,
if it brings it along (see ``lastgood``).  No clock, no I/O, no log.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from ciliumd.kubernetes.kinds import Kind
from ciliumd.model.objects import NamespacedName
from ciliumd.resources import Row
from ciliumd.tables import Problem

RowKey = tuple[str, object]
"""(table, key)."""


@dataclass(frozen=True, slots=True)
class Event:
    """
    An object as it was told of, or its end (*gone*).

    *namespace* is empty in cluster scope.  *version* is 0 where it is no number.  *problem* is what is
    wrong with an invalid object; its *rows* are then those of the last version an earlier agent knew as
    good.  *document* is what the rows were read from, where that is remembered.  *run* is the watch it came
    from.
    """

    kind: Kind
    namespace: str
    name: str
    uid: str
    version: int
    gone: bool = False
    rows: tuple[Row, ...] = ()
    problem: Problem | None = None
    document: str = ""
    run: int = 0

    @property
    def key(self) -> NamespacedName:
        """(namespace, name)."""
        return (self.namespace, self.name)


@dataclass(frozen=True, slots=True)
class Change:
    """
    What becomes of the rows of the object *key*: *rows* are set, those of *gone* deleted.

    *problem* replaces the one the object had; *stays* tells that older rows of an invalid object are
    still in force.
    """

    key: NamespacedName
    rows: tuple[Row, ...] = ()
    gone: tuple[RowKey, ...] = ()
    problem: Problem | None = None
    stays: bool = False


@dataclass(frozen=True, slots=True)
class Sweep:
    """What a listing changed; with *reset* nothing, for it shows that history was put back."""

    changes: tuple[Change, ...] = ()
    reset: bool = False


@dataclass(slots=True)
class _Entry:
    uid: str
    version: int
    rows: tuple[RowKey, ...]


class KindStore:
    """The objects of one kind: versions and names of rows, no bodies."""

    def __init__(self) -> None:
        self._entries: dict[NamespacedName, _Entry] = {}
        self._gone: dict[NamespacedName, int] = {}
        self._awaited: dict[NamespacedName, int] = {}
        self._listed = 0
        self._swept = False
        self.highest = 0
        """The highest version told so far; a listing asked for now must not be older."""

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def complete(self) -> bool:
        """Whether every object of the last listing is known."""
        return self._swept and not self._awaited

    @property
    def awaited(self) -> frozenset[NamespacedName]:
        """What the last listing shows and the watch has not brought yet."""
        return frozenset(self._awaited)

    def uid(self, key: NamespacedName) -> str | None:
        """The uid of an object; None when it is not known."""
        entry = self._entries.get(key)
        return None if entry is None else entry.uid

    def apply(self, event: Event) -> Change | None:
        """What *event* changes; None when it is not news."""
        self.highest = max(self.highest, event.version)
        return self._end(event) if event.gone else self._put(event)

    def sweep(
        self, version: int, objects: Mapping[NamespacedName, tuple[str, int]], *, asked_at: int
    ) -> Sweep:
        """
        What a listing at *version* of *objects* (uid and version by key) changes.

        *asked_at* is :attr:`highest` at the time the listing was asked for.
        """
        if 0 < version < asked_at or any(
            self._contradicts(key, at, version) for key, (_, at) in objects.items()
        ):
            return Sweep(reset=True)
        vanished = [
            key
            for key, entry in self._entries.items()
            if key not in objects and version and entry.version <= version
        ]
        changes = tuple(Change(key, gone=self._entries.pop(key).rows) for key in vanished)
        self._awaited = {key: at for key, (uid, at) in objects.items() if not self._knows(key, uid, at)}
        self._listed = max(self._listed, version)
        self.highest = max(self.highest, version)
        self._gone = {key: at for key, at in self._gone.items() if at > self._listed}
        self._swept = True
        return Sweep(changes)

    def forget(self) -> None:
        """Every version is forgotten: whatever is told next of an object is news."""
        for entry in self._entries.values():
            entry.version = 0
        self._gone.clear()
        self._awaited.clear()
        self._listed = self.highest = 0

    def _contradicts(self, key: NamespacedName, version: int, listed: int) -> bool:
        """Whether a listing shows an object as it was before a version it must have seen."""
        entry = self._entries.get(key)
        return entry is not None and version < entry.version <= listed

    def _knows(self, key: NamespacedName, uid: str, version: int) -> bool:
        entry = self._entries.get(key)
        if entry is None:
            return self._gone.get(key, 0) >= version
        return entry.version > version or (entry.version, entry.uid) == (version, uid)

    def _end(self, event: Event) -> Change | None:
        key, version = event.key, event.version
        entry = self._entries.get(key)
        if entry is not None and 0 < version < entry.version:
            return None
        if self._awaited.get(key, version) <= version:
            self._awaited.pop(key, None)
        if version > self._listed:
            self._gone[key] = max(version, self._gone.get(key, 0))
        if entry is None:
            return None
        del self._entries[key]
        return Change(key, gone=entry.rows)

    def _put(self, event: Event) -> Change | None:
        key, version = event.key, event.version
        entry = self._entries.get(key)
        first = entry is None or entry.uid != event.uid
        if entry is None:
            if self._outdated(key, version):
                return None
            entry = _Entry(event.uid, version, ())
            self._entries[key] = entry
        elif 0 < version < entry.version or (0 < version == entry.version and event.uid == entry.uid):
            return None
        if self._awaited.get(key, version) <= version:
            self._awaited.pop(key, None)
        self._gone.pop(key, None)
        before = entry.rows
        # What an earlier agent knew is older than what this one has seen of the object.
        rows = event.rows if event.problem is None or first else ()
        if event.problem is None or first:
            entry.rows = tuple((table, row_key) for table, row_key, _ in rows)
        entry.uid, entry.version = event.uid, version
        return Change(
            key,
            rows=rows,
            gone=tuple(row for row in before if row not in entry.rows),
            problem=event.problem,
            stays=event.problem is not None and bool(entry.rows),
        )

    def _outdated(self, key: NamespacedName, version: int) -> bool:
        """Whether an object that is not there is told of as it was before it went."""
        if not version:
            return False
        if self._gone.get(key, 0) >= version:
            return True
        awaited = self._awaited.get(key)
        return version < awaited if awaited is not None else version <= self._listed
