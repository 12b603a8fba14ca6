# SPDX-License-Identifier: Apache-2.0
"""
Keeps the tables equal to the cluster: what the watch tells, and what listings prove.

A table counts as complete when a listing of each of its kinds was read and every object in it has arrived;
from then on absence means deletion.  Listings (names only) are read at the start, whenever the watch had
to begin again, when the API server is back, and every few minutes.  An API server that is away changes
nothing.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import structlog
from lightkube.config.kubeconfig import SingleConfig

from ciliumd.kubernetes.client import Api, Listing, Observe
from ciliumd.kubernetes.errors import ApiError
from ciliumd.kubernetes.kinds import POD, TABLES_OF, Kind, selector
from ciliumd.kubernetes.lastgood import REMEMBERED, LastGoodPolicies
from ciliumd.kubernetes.pace import Backoff, Pace
from ciliumd.kubernetes.read import NODE_OBJECTS, number
from ciliumd.kubernetes.session import Health
from ciliumd.kubernetes.store import Change, Event, KindStore
from ciliumd.kubernetes.watch import Watch
from ciliumd.model.objects import NamespacedName
from ciliumd.resources import Parse, parse
from ciliumd.resources.node import KubernetesNode
from ciliumd.tables import Problem, Tables

# Seconds between listings of a kind, and until one that was just told from the beginning is listed.
PERIOD = 300.0
SETTLE = 1.0
# Seconds without news after which something that is shown and not told is fetched by a new watch.
PATIENCE = 10.0
_STAYS = "; its last good version stays"

Received = Callable[[str, str, bool, bool], None]
"""Told of each event: kind, ``create``, ``update`` or ``delete``, whether valid, whether no news."""

log = structlog.get_logger("k8s")


@dataclass(frozen=True, slots=True)
class KindStatus:
    """One kind: objects known, how many of them are invalid, events so far, whether all is known."""

    objects: int
    problems: int
    events: int
    complete: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class KubernetesStatus:
    """The source as status and metrics show it; *apis* are in Cilium's spelling."""

    server: str
    server_version: str
    apis: tuple[str, ...]
    connected: bool
    initialized: bool
    error: str | None
    kinds: dict[str, KindStatus]
    restarts: int

    @property
    def objects(self) -> int:
        """Objects of all kinds, valid or not."""
        return sum(kind.objects for kind in self.kinds.values())

    @property
    def problems(self) -> int:
        """Invalid objects of all kinds."""
        return sum(kind.problems for kind in self.kinds.values())


@dataclass(slots=True)
class _Followed:
    """What is known of a kind and when it is listed next (*due*, by the clock)."""

    store: KindStore
    backoff: Iterator[float]
    due: float
    last_event: float
    events: int = 0


def _nobody(_kind: str, _action: str, _valid: bool, _equal: bool) -> None:
    """Nobody counts."""


class KubernetesSource:
    """
    Keeps *tables* equal to the cluster as the agent of *node* must know it.

    *node_changed* is told of the node's own Node, and of its end; *last_good* outlives the agent.  *parse*
    reads objects.
    """

    def __init__(
        self,
        config: SingleConfig,
        api: Api,
        tables: Tables,
        *,
        node: str,
        pace: Pace,
        observe: Observe,
        last_good: LastGoodPolicies,
        node_changed: Callable[[KubernetesNode | None], None],
        received: Received = _nobody,
        parse: Parse = parse,
        period: float = PERIOD,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api = api
        self._tables = tables
        self._last_good = last_good
        self._last_good.failed = self._tell_of_last_good
        self._node_changed = node_changed
        self._received = received
        self._period = period
        self._clock = clock
        self._selectors = {kind: selector(kind, node=node) for kind in TABLES_OF}
        self._kinds = {
            kind: _Followed(KindStore(), iter(Backoff()), due=clock() + 0.3, last_event=clock())
            for kind in TABLES_OF
        }
        self._problems: set[tuple[str, str, str]] = set()
        self._wake = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._run = 0
        self._restarts = 0
        self._health = Health(self._recovered)
        self._watch = Watch(
            config,
            self._selectors,
            deliver=self.deliver,
            listed=self._told_all,
            health=self._health,
            pace=pace,
            observe=observe,
            recalled=last_good.recall.document,
            parse=parse,
        )

    def status(self) -> KubernetesStatus:
        """What the source has seen."""
        problems = [key[0] for key in self._problems]
        return KubernetesStatus(
            server=self._api.server,
            server_version=self._health.server_version,
            apis=tuple(sorted(kind.shown for kind in self._kinds)),
            connected=self._health.connected,
            initialized=all(self._tables.named(name).initialized for name in TABLES_OF.values() if name),
            error=self._health.error,
            kinds={
                kind.kind: KindStatus(
                    len(one.store), problems.count(kind.kind), one.events, one.store.complete
                )
                for kind, one in self._kinds.items()
            },
            restarts=self._restarts,
        )

    def pod_uid(self, pod: NamespacedName) -> str | None:
        """The uid of a pod of this node; None while it is not known."""
        return self._kinds[POD].store.uid(pod)

    async def run(self) -> None:
        """Follow the cluster until cancelled."""
        self._loop = asyncio.get_running_loop()
        writing = asyncio.create_task(self._last_good.run())
        self._watch.start()
        try:
            while True:
                self._wake.clear()
                kind, one = min(self._kinds.items(), key=lambda item: item[1].due)
                delay = one.due - self._clock()
                if delay <= 0:
                    await self._list(kind)
                    continue
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(delay):
                        await self._wake.wait()
        finally:
            await self._watch.stop()
            writing.cancel()
            await asyncio.wait([writing])

    def deliver(self, events: list[Event]) -> None:
        """Take what the watch tells."""
        for event in events:
            if event.run < self._run:
                continue
            one = self._kinds[event.kind]
            one.events += 1
            one.last_event = self._clock()
            known = one.store.uid(event.key) is not None
            change = one.store.apply(event)
            if change is not None:
                self._write(event.kind, change)
                if change.rows and event.document:
                    self._last_good.keep(event.kind, event.key, event.document)
                elif not change.stays:
                    self._last_good.forget(event.kind, event.key)
            action = "delete" if event.gone else "update" if known else "create"
            self._received(event.kind.kind, action, event.problem is None, change is None)
        for kind in {event.kind for event in events}:
            self._settle(kind)

    # ---- listings ---------------------------------------------------------------------------

    async def _list(self, kind: Kind) -> None:
        """Compare what is known of *kind* with what there is."""
        one = self._kinds[kind]
        asked_at = one.store.highest
        try:
            listing = await self._api.names(kind, fields=self._selectors[kind])
        except ApiError as error:
            one.due = self._clock() + next(one.backoff)
            if self._health.failed(f"list {kind.plural}", str(error)):
                log.warning("kubernetes.list_failed", kind=kind.kind, error=str(error))
            return
        self._health.answered(f"list {kind.plural}")
        one.backoff = iter(Backoff())
        self._compare(kind, listing, asked_at=asked_at)

    def _compare(self, kind: Kind, listing: Listing, *, asked_at: int) -> None:
        one = self._kinds[kind]
        awaited = one.store.awaited
        objects = {
            (found.namespace, found.name): (found.uid, number(found.resource_version))
            for found in listing.objects
        }
        sweep = one.store.sweep(number(listing.version), objects, asked_at=asked_at)
        if sweep.reset:
            log.warning("kubernetes.history_put_back", kind=kind.kind, version=listing.version)
            for other in self._kinds.values():
                other.store.forget()
            self._restart()
            return
        for change in sweep.changes:
            self._write(kind, change)
            self._last_good.forget(kind, change.key)
        if sweep.changes:
            log.info("kubernetes.swept", kind=kind.kind, gone=len(sweep.changes))
        self._settle(kind)
        now = self._clock()
        # Other agents do the same: not all at the same moment.
        one.due = now + self._period * random.uniform(0.8, 1.2)  # noqa: S311  spreads load, guards nothing
        if one.store.awaited:
            one.due = now + PATIENCE / 2
            if awaited & one.store.awaited and now - one.last_event > PATIENCE and self._health.connected:
                log.warning("kubernetes.watch_incomplete", kind=kind.kind, missing=len(one.store.awaited))
                self._restart()

    def _restart(self) -> None:
        self._restarts += 1
        self._run = self._watch.restart()
        for one in self._kinds.values():
            one.due = one.last_event = self._clock() + SETTLE

    def _told_all(self, kind: Kind) -> None:
        """The watch tells of *kind* from the beginning: what was deleted meanwhile it does not tell."""
        one = self._kinds[kind]
        one.due = min(one.due, self._clock() + SETTLE)
        self._wake.set()

    def _recovered(self) -> None:
        """The API server is back.  Any thread."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed already
                self._loop.call_soon_threadsafe(self._look_again)

    def _look_again(self) -> None:
        log.info("kubernetes.connected", server=self._api.server)
        for kind in self._kinds:
            self._told_all(kind)

    def _settle(self, kind: Kind) -> None:
        """Say that a table is complete once all its kinds are."""
        name = TABLES_OF[kind]
        if not name or self._tables.named(name).initialized:
            return
        if all(self._kinds[other].store.complete for other, table in TABLES_OF.items() if table == name):
            self._tables.named(name).mark_initialized()
            if all(self._tables.named(TABLES_OF[one]).initialized for one in REMEMBERED):
                self._last_good.complete()
            log.info("kubernetes.table_complete", table=name, rows=len(self._tables.named(name)))

    # ---- rows -------------------------------------------------------------------------------

    def _write(self, kind: Kind, change: Change) -> None:
        for name, key in change.gone:
            if name == NODE_OBJECTS:
                self._node_changed(None)
            else:
                self._tables.named(name).delete(key)
        for name, key, row in change.rows:
            if name == NODE_OBJECTS:
                self._node_changed(row)
            else:
                self._tables.named(name).set(key, row)
        where = (kind.kind, *change.key)
        problem = change.problem
        if problem is not None:
            message = f"{problem.message}{_STAYS if change.stays else ''}"
            self._tables.problems.set(where, replace(problem, message=message))
            self._problems.add(where)
            log.warning(
                "kubernetes.object_refused",
                object="/".join(part for part in where if part),
                field=problem.field,
                error=message,
            )
        elif where in self._problems:
            self._problems.discard(where)
            self._tables.problems.delete(where)

    def _tell_of_last_good(self) -> None:
        """Whether the memory of last good policies can be written is a problem of its own."""
        where = ("State", "", self._last_good.name)
        error = self._last_good.error
        if error is None:
            self._tables.problems.delete(where)
            return
        message = (
            f"cannot be written: {error}; policies that are spoilt during a restart would not be in force"
        )
        self._tables.problems.set(where, Problem("", message, self._last_good.name))
