# SPDX-License-Identifier: Apache-2.0
"""
When a number nobody wants any more may be given to somebody else.

Maps, conntrack rows and packets under way know numbers only, so a number that changes hands too early
is taken for its former owner.  Service and backend ids rest after their last row has gone; identities
rest longer than any conntrack row that may remember one.

What is decided here is a function of tables, rows and the time; deleting a row of a table of numbers
is all that is done, and the next round does the rest.
"""

from collections.abc import Callable, Collection, Container, Hashable, Iterable, Mapping
from dataclasses import fields
from functools import cache
from typing import Generic, TypeVar

import structlog

from ciliumd import abi
from ciliumd.daemon import stages
from ciliumd.daemon.plan import NodePlan
from ciliumd.desired.policy import cidrs
from ciliumd.tables.schema import Tables
from ciliumd.tables.table import Table

ROW_REST = 60.0
"""Seconds a service or backend id rests."""

IDENTITY_REST = 8100.0
"""Seconds an identity rests: a conntrack row of an idle TCP connection lives for 8000."""

Key = TypeVar("Key", bound=Hashable)
Rows = Mapping[bytes, bytes]
Wanted = Callable[[Hashable, int], bool]
"""Whether somebody wants a key with its number."""

_IDENTITY = abi.place_of(abi.IpcacheEntry, "identity")
_JUDGED = abi.place_of(abi.IpcacheEntry, "judged")
log = structlog.get_logger("release")


class Resting(Generic[Key]):
    """Keys whose numbers nobody wants, and since when."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._since: dict[Key, float] = {}

    def __len__(self) -> int:
        return len(self._since)

    def rested(self, unused: Iterable[Key], now: float) -> list[Key]:
        """Those of the *unused* keys that were unused at every look for long enough."""
        self._since = {key: self._since.get(key, now) for key in unused}
        return [key for key, since in self._since.items() if now - since >= self._seconds]


class Release:
    """
    Looks, now and then, which numbers may go.

    *rows* answers what a stage's map is known to hold, *settled* whether every map holds what is desired;
    *readers* how far those who follow a table's changes have read, by table name: its deleted keys are
    remembered until then.
    """

    def __init__(
        self,
        tables: Tables,
        plan: NodePlan,
        *,
        rows: Callable[[str], Rows],
        settled: Callable[[], bool],
        readers: Mapping[str, Callable[[], int]],
        clock: Callable[[], float],
    ) -> None:
        self._tables = tables
        self._plan = plan
        self._rows = rows
        self._settled = settled
        self._readers = {
            "services": lambda: min(plan.services.read("services"), plan.references.read("services")),
            "slices": lambda: min(plan.services.read("slices"), plan.references.read("slices")),
            "policies": lambda: plan.references.read("policies"),
            "remote_endpoints": lambda: plan.addresses.pods.read,
            "cidr_groups": lambda: plan.references.read("cidr_groups"),
            **readers,
        }
        self._clock = clock
        self._services: Resting[Hashable] = Resting(ROW_REST)
        self._backends: Resting[Hashable] = Resting(ROW_REST)
        self._identities: Resting[Hashable] = Resting(IDENTITY_REST)
        self._prefixes: Resting[Hashable] = Resting(IDENTITY_REST)
        self._nodes: Resting[Hashable] = Resting(IDENTITY_REST)
        self._parts: Resting[Hashable] = Resting(IDENTITY_REST)
        self._seen: dict[str, tuple[int, int | None]] = {}

    @property
    def resting(self) -> int:
        """Numbers that wait for their release."""
        kinds = (self._services, self._backends, self._identities, self._prefixes, self._nodes, self._parts)
        return sum(map(len, kinds))

    def look(self) -> int:
        """
        Release what is due; how many numbers that were.

        Nothing before every source is in sync, nor while a map still holds rows that should be gone:
        an identity's classes must not wait for their deletion when its number is given away.
        """
        self._forget()
        tables, plan = self._tables, self._plan
        if not tables.in_sync or not self._settled():
            return 0
        # Gathered only if a number is unwanted: there may be half a million rows.
        slots = self._rows(stages.SERVICE_SLOTS)
        services_held = cache(
            lambda: _service_ids(
                self._rows(stages.REVNAT), self._rows(stages.SOURCES), self._rows(stages.SERVICES), slots
            )
        )
        backends_held = cache(lambda: _backend_ids(slots, self._rows(stages.BACKENDS)))
        held = cache(
            lambda: _identities(
                self._rows(stages.FACTS), self._rows(stages.IPCACHE), self._rows(stages.IPCACHE_LPM)
            )
        )
        services, revision = plan.services, plan.services.revision
        return (
            self._go(
                tables.service_ids,
                self._services,
                wanted=lambda: _among_keys(one.frontend.key for one in services.each()),
                held=services_held,
                by=revision,
            )
            + self._go(
                tables.backend_ids,
                self._backends,
                wanted=lambda: _among_numbers(services.backends),
                held=backends_held,
                by=revision,
            )
            + self._release_identities(held)
            + self._go(
                tables.prefixes,
                self._prefixes,
                wanted=lambda: _among_keys(cidrs(plan.references.policies.values())),
                held=held,
            )
            + self._go(
                tables.parts,
                self._parts,
                wanted=lambda: _among_keys(plan.parts.wanted),
                held=held,
            )
            + self._go(
                tables.node_identities,
                self._nodes,
                wanted=lambda: _among_keys(plan.nodes.wanted),
                held=held,
            )
        )

    def _release_identities(self, held: Callable[[], Collection[int]]) -> int:
        """Label sets this node numbered itself; those of the cluster go with their objects."""
        if not self._plan.node.allocates:
            return 0
        return self._go(
            self._tables.identities,
            self._identities,
            wanted=lambda: _among_keys(self._plan.labels.values()),
            held=held,
        )

    def _go(
        self,
        table: Table[Key, int],
        resting: Resting[Hashable],
        *,
        wanted: Callable[[], Wanted],
        held: Callable[[], Collection[int]],
        by: int | None = None,
    ) -> int:
        """Let go of the rested numbers of one table; what is *wanted* is the same as long as *by* is."""
        seen = (table.revision, by)
        if by is not None and not resting and self._seen.get(table.name) == seen:
            # Nobody looks at a hundred thousand numbers every ten seconds to find nothing.
            return 0
        self._seen[table.name] = seen
        is_wanted = wanted()
        unused = {key for key, number in table.items() if not is_wanted(key, number) and number not in held()}
        rested = resting.rested(unused, self._clock())
        released = [key for key in unused.intersection(rested) if table.delete(key)]
        if released:
            log.info("numbers.released", table=table.name, count=len(released))
        return len(released)

    def _forget(self) -> None:
        """Drop what tables remember of deleted keys once everybody has read it."""
        for one in fields(self._tables):
            table = getattr(self._tables, one.name)
            if isinstance(table, Table):
                read = self._readers.get(table.name)
                table.forget(table.revision if read is None else read())


def _among_keys(wanted: Iterable[Hashable]) -> Wanted:
    keys = frozenset(wanted)
    return lambda key, _: key in keys


def _among_numbers(wanted: Container[int]) -> Wanted:
    return lambda _, number: number in wanted


def _service_ids(revnat: Rows, sources: Rows, *services: Rows) -> set[int]:
    """Service ids the load balancer's rows know."""
    found = {int.from_bytes(key, "little") for key in revnat}
    found.update(abi.LbSourceKey.unpack(key).rev_nat for key in sources)
    for rows in services:
        found.update(abi.LbService.unpack(row).rev_nat for row in rows.values())
    return found


def _backend_ids(slots: Rows, backends: Rows) -> set[int]:
    """Backend ids the load balancer's rows know."""
    found = {int.from_bytes(key, "little") for key in backends}
    found.update(abi.LbService.unpack(row).target for row in slots.values())
    return found


def _identities(facts: Rows, *ipcaches: Rows) -> set[int]:
    """Identities packets may carry or be judged by: of endpoints, and behind addresses."""
    found: set[int] = set()
    for one in map(abi.Endpoint.unpack, facts.values()):
        found.update((one.identity, one.judged_ipv4, one.judged_ipv6))
    for rows in ipcaches:
        for place in (_IDENTITY, _JUDGED):
            found.update(int.from_bytes(row[place], "little") for row in rows.values())
    return found
