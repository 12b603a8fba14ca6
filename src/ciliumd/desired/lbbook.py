# SPDX-License-Identifier: Apache-2.0
"""
Load-balancer rows of every service, kept up to date service by service, and how they changed.

The same rows as ``desired.lbrows.lb_rows`` and ``desired.bindports.bind_rows`` answer for all services at
once, at the cost of those that a change touches.  What several services share is counted: it goes with the
last of them.  Rows themselves are not kept here, for whoever reconciles them keeps them: those that a service
had are computed once more when it changes.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from ciliumd.desired.bindports import bind_rows
from ciliumd.desired.lbrows import (
    Fit,
    LbRows,
    SlotRow,
    backend_row,
    is_whole_address,
    no_row,
    rows_but_backends,
    with_backends,
)
from ciliumd.desired.services import ServedFrontend, ServiceProblem
from ciliumd.model.objects import NamespacedName
from ciliumd.model.service import BackendKey, FrontendKey

PARTS = ("backends", "revnat", "matches", "sources", "binds", "slots", "frontends")
"""What the rows of services are divided into."""

Frontends = tuple[ServedFrontend, ...]
_Rows = dict[bytes, bytes]
_Names = tuple[NamespacedName, ...]


@dataclass(slots=True)
class Pending:
    """How the rows of one part changed since they were last asked for; an update may change nothing."""

    updates: _Rows = field(default_factory=dict)
    removals: dict[bytes, None] = field(default_factory=dict)

    def put(self, rows: Mapping[bytes, bytes]) -> None:
        """Rows are wanted."""
        for key in rows.keys() & self.removals.keys():
            del self.removals[key]
        self.updates.update(rows)

    def drop(self, keys: Iterable[bytes]) -> None:
        """Rows are wanted no more."""
        for key in keys:
            self.updates.pop(key, None)
            self.removals[key] = None


@dataclass(slots=True)
class ServiceRows:
    """The rows of one service: its own by part, and those that others may have too."""

    own: dict[str, _Rows]
    shared: dict[str, _Rows]
    fit: Mapping[int, Fit]
    problems: tuple[ServiceProblem, ...]


_NOTHING = ServiceRows({}, {}, {}, ())


class LbBook:
    """
    Rows by service, from :meth:`update`.

    *service_ids* and *backend_ids* answer the numbers there are, ``slot_row`` the row that a slot has, or is
    to have, in the map.
    """

    def __init__(
        self,
        service_ids: Callable[[], Mapping[FrontendKey, int]],
        backend_ids: Callable[[], Mapping[BackendKey, int]],
        *,
        external_cluster_ip: bool = False,
    ) -> None:
        self.slot_row: SlotRow = no_row
        self._service_ids = service_ids
        self._backend_ids = backend_ids
        self._external_cluster_ip = external_cluster_ip
        self._served: dict[NamespacedName, Frontends] = {}
        self._problems: dict[NamespacedName, tuple[ServiceProblem, ...]] = {}
        self._sharing: dict[tuple[str, bytes], int] = {}
        self._users: dict[int, _Names] = {}
        self._pending = {part: Pending() for part in PARTS}

    @property
    def backends(self) -> Mapping[int, object]:
        """Ids of the backends of all services."""
        return self._users

    def problems(self) -> Iterator[ServiceProblem]:
        """Why rows are missing."""
        for problems in self._problems.values():
            yield from problems

    def take(self, part: str) -> Pending:
        """How the rows of one of :data:`PARTS` changed since this was last asked."""
        pending, self._pending[part] = self._pending[part], Pending()
        return pending

    def update(self, served: Mapping[NamespacedName, Frontends]) -> None:
        """Take the frontends of these services for what they are now; a service without any is gone."""
        known = {name: frontends for name, frontends in served.items() if name in self._served}
        # What can fail is done before anything is changed.
        before = {name: self._rows_of(self._served[name]) for name in known}
        after = {name: self._rows_of(frontends) for name, frontends in known.items()}
        # A frontend may go from one service to another: what one has now is put after what others drop.
        for name, new in after.items():
            self._drop(before[name], new)
        for name, new in after.items():
            self._put(name, served[name], before[name], new)
        # Those that had nothing drop nothing: of ten thousand at the start one is in memory at a time.
        for name in served.keys() - known.keys():
            self._put(name, served[name], _NOTHING, self._rows_of(served[name]))

    def all(self) -> LbRows:
        """Every row, put together; for views and tests."""
        return with_backends(self._computed(one for served in self._served.values() for one in served))

    def _computed(self, served: Iterable[ServedFrontend]) -> LbRows:
        return rows_but_backends(
            served,
            self._service_ids(),
            self._backend_ids(),
            external_cluster_ip=self._external_cluster_ip,
            slot_row=self._slot_now,
        )

    def _slot_now(self, key: bytes) -> bytes | None:
        """The row of a slot as it was made last, whether that is written or not."""
        made = self._pending["slots"].updates.get(key)
        return self.slot_row(key) if made is None else made

    def _rows_of(self, served: Frontends) -> ServiceRows:
        """The rows of one service, but those of its backends, which depend on others."""
        rows = self._computed(served)
        whole = {key: value for key, value in rows.frontends.items() if is_whole_address(key)}
        own = {
            "revnat": rows.revnat,
            "matches": rows.matches,
            "sources": rows.sources,
            "slots": rows.slots,
            "frontends": {key: value for key, value in rows.frontends.items() if key not in whole},
        }
        shared = {"frontends": whole, "binds": bind_rows(served)}
        return ServiceRows(own, shared, rows.fit, tuple(rows.problems))

    def _drop(self, old: ServiceRows, new: ServiceRows) -> None:
        for part, rows in old.own.items():
            self._pending[part].drop(rows.keys() - new.own[part].keys())
        for part, rows in old.shared.items():
            for key in rows.keys() - new.shared[part].keys():
                self._sharing[part, key] -= 1
                if not self._sharing[part, key]:
                    del self._sharing[part, key]
                    self._pending[part].drop([key])

    def _put(self, name: NamespacedName, served: Frontends, old: ServiceRows, new: ServiceRows) -> None:
        self._served.pop(name, None)
        self._problems.pop(name, None)
        if served:
            self._served[name] = served
        if new.problems:
            self._problems[name] = new.problems
        for part, rows in new.own.items():
            self._pending[part].put(rows)
        for part, rows in new.shared.items():
            self._pending[part].put(rows)
            for key in rows.keys() - old.shared.get(part, {}).keys():
                self._sharing[part, key] = self._sharing.get((part, key), 0) + 1
        self._put_backends(name, old.fit, new.fit)

    def _put_backends(self, name: NamespacedName, old: Mapping[int, Fit], new: Mapping[int, Fit]) -> None:
        """A backend of several services is as fit as any of them knows it to be."""
        alone, pending, rows = (name,), self._pending["backends"], _Rows()
        fit = {name: new}
        changed = [number for number, one in new.items() if old.get(number) != one]
        for number in (*changed, *(old.keys() - new.keys())):
            others = tuple(one for one in self._users.get(number, ()) if one != name)
            if number in new:
                self._users[number] = (*others, name) if others else alone
            elif others:
                self._users[number] = others
            else:
                self._users.pop(number, None)
                pending.drop([number.to_bytes(4, "little")])
                continue
            for one in others:
                if one not in fit:
                    fit[one] = self._rows_of(self._served[one]).fit
            key, _ = new.get(number) or old[number]
            state = min(fit[one][number][1] for one in self._users[number])
            rows.update([backend_row(key, number, state)])
        pending.put(rows)
