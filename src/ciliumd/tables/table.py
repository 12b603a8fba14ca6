# SPDX-License-Identifier: Apache-2.0
"""
A table of rows with a change feed by revision: what a watcher writes and a reconciler follows.

Theory of operation.  Every real change (a row set to something else, a row deleted) takes the next
revision and moves its key to the end of the change log, so the log holds each key once, by its last
change.  A reader remembers one number and asks for the keys changed since; it then reads the rows as
they are now, so ten changes to a row cost it one.  Deleted keys stay in the log until every reader has
passed them (:meth:`Table.forget`).  A table whose changes nobody follows key by key has no log.

One thread only.  Wakers are plain functions called after the change; nothing here waits or reads a clock.
"""

import builtins
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
Owner = TypeVar("Owner", bound=Hashable)


class Index(Generic[Owner, K]):
    """Which keys of a table belong to an owner; kept by the table, read by everybody."""

    __slots__ = ("_keys",)

    def __init__(self) -> None:
        self._keys: dict[Owner, dict[K, None]] = {}

    def get(self, owner: Owner) -> tuple[K, ...]:
        """The keys of *owner*, in order of arrival."""
        return tuple(self._keys.get(owner, ()))

    def owners(self) -> tuple[Owner, ...]:
        """Every owner with at least one key."""
        return tuple(self._keys)

    def add(self, owner: Owner, key: K) -> None:
        """Record that *key* belongs to *owner*; for the table that keeps this index."""
        self._keys.setdefault(owner, {})[key] = None

    def remove(self, owner: Owner, key: K) -> None:
        """Record that *key* no longer belongs to *owner*; for the table that keeps this index."""
        keys = self._keys[owner]
        del keys[key]
        if not keys:
            del self._keys[owner]


class Table(Generic[K, V]):
    """Rows by key.  Values are compared with ``==``: setting what is already there changes nothing."""

    def __init__(self, name: str, *, logged: bool = True) -> None:
        self.name = name
        self.initialized = False
        self._rows: dict[K, V] = {}
        self._shared = False
        self._revision = 0
        self._log: dict[K, int] | None = {} if logged else None
        self._forgotten = 0
        self._wakers: list[Callable[[], None]] = []
        self._indexes: list[tuple[Callable[[K, V], Iterable[Any]], Index[Any, K]]] = []

    def __repr__(self) -> str:
        return f"<Table {self.name}: {len(self._rows)} rows at revision {self._revision}>"

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, key: K) -> bool:
        return key in self._rows

    def __iter__(self) -> Iterator[K]:
        return iter(tuple(self._rows))

    @property
    def revision(self) -> int:
        """Number of changes so far; 0 for a table nobody wrote."""
        return self._revision

    def get(self, key: K) -> V | None:
        """The row of *key*, or None."""
        return self._rows.get(key)

    def items(self) -> tuple[tuple[K, V], ...]:
        """Every key with its row, as of now."""
        return tuple(self._rows.items())

    def values(self) -> tuple[V, ...]:
        """Every row, as of now."""
        return tuple(self._rows.values())

    def view(self) -> Mapping[K, V]:
        """
        The rows as of now, for reading; later changes do not show in it.

        Costs nothing until the table changes: the first change after a view copies the rows once.
        """
        self._shared = True
        return MappingProxyType(self._rows)

    def live(self) -> Mapping[K, V]:
        """The rows, to be read before anything changes: unlike a view it never costs a copy."""
        return MappingProxyType(self._rows)

    def set(self, key: K, row: V) -> bool:
        """Make *row* the row of *key*; whether that changed anything."""
        old = self._rows.get(key)
        if old is not None and old == row:
            return False
        self._own_rows()
        if old is not None:
            self._unindex(key, old)
        self._rows[key] = row
        for owners, index in self._indexes:
            for owner in owners(key, row):
                index.add(owner, key)
        self._replaced(old, row)
        self._changed(key)
        return True

    def delete(self, key: K) -> bool:
        """Remove the row of *key*; whether there was one."""
        if key not in self._rows:
            return False
        self._own_rows()
        old = self._rows.pop(key)
        self._unindex(key, old)
        self._replaced(old, None)
        self._changed(key)
        return True

    def changes_since(self, revision: int) -> tuple[builtins.set[K], int]:
        """
        The keys set or deleted after *revision*, and the revision to ask from next time.

        Raises ValueError for a revision before what :meth:`forget` dropped: such a reader would
        never learn of the deletions in between and must start from all rows; and of a table without a log.
        """
        if self._log is None:
            raise ValueError(f"table {self.name} has no log of changes")
        if revision < self._forgotten:
            raise ValueError(f"table {self.name}: deletions up to revision {self._forgotten} are forgotten")
        keys: builtins.set[K] = set()
        for key, changed in reversed(self._log.items()):
            if changed <= revision:
                break
            keys.add(key)
        return keys, self._revision

    def forget(self, revision: int) -> None:
        """Drop deleted keys every reader has seen: all of them have read up to *revision*."""
        if self._log is None:
            return
        gone = []
        for key, changed in self._log.items():
            if changed > revision:
                break
            if key not in self._rows:
                gone.append(key)
        for key in gone:
            del self._log[key]
        if gone:
            self._forgotten = max(self._forgotten, min(revision, self._revision))

    def subscribe(self, waker: Callable[[], None]) -> Callable[[], None]:
        """Call *waker* after every change; the result ends that."""
        self._wakers.append(waker)
        return lambda: self._wakers.remove(waker)

    def mark_initialized(self) -> None:
        """Its source has reported everything that exists: what is absent now is truly absent."""
        if not self.initialized:
            self.initialized = True
            self._wake()

    def add_index(self, owners: Callable[[K, V], Iterable[Owner]]) -> Index[Owner, K]:
        """An index of keys by the owners each row names; *owners* must be a function of the row alone."""
        index: Index[Owner, K] = Index()
        for key, row in self._rows.items():
            for owner in owners(key, row):
                index.add(owner, key)
        self._indexes.append((owners, index))
        return index

    def _own_rows(self) -> None:
        if self._shared:
            self._rows = dict(self._rows)
            self._shared = False

    def _unindex(self, key: K, row: V) -> None:
        for owners, index in self._indexes:
            for owner in owners(key, row):
                index.remove(owner, key)

    def _replaced(self, old: V | None, new: V | None) -> None:
        """A row has taken the place of another; for those that keep more than rows."""

    def _changed(self, key: K) -> None:
        self._revision += 1
        if self._log is not None:
            self._log.pop(key, None)
            self._log[key] = self._revision
        self._wake()

    def _wake(self) -> None:
        for waker in tuple(self._wakers):
            waker()
