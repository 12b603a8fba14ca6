# SPDX-License-Identifier: Apache-2.0
"""
The part of the plan that is about services: from rows of tables to rows of maps, service by service.

A change costs what it touches: its service, those that claim the same frontends, and those that share its
backends.  Host ports and services without slices depend on this node's few pods, and are looked at whole.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from ciliumd.desired import services as service_stage
from ciliumd.desired.guard import NO_GUARD, Guard
from ciliumd.desired.hostports import host_ports
from ciliumd.desired.hostports import pod_of as host_port_pod
from ciliumd.desired.lbbook import LbBook
from ciliumd.desired.lbrows import LbRows, SlotRow
from ciliumd.desired.servicebook import ServiceBook
from ciliumd.desired.services import NOWHERE, ServedFrontend, ServiceProblem
from ciliumd.desired.slices import derived_slices
from ciliumd.model.net import Addr
from ciliumd.model.objects import EndpointSliceRow, NamespacedName, NodeRow
from ciliumd.model.service import EVERY_KIND, BackendKey, FrontendKey, Place, Service, ServiceKind
from ciliumd.reconcile.target import Changes
from ciliumd.tables.schema import ObjectKey, Tables

ZONE_LABEL = "topology.kubernetes.io/zone"


@dataclass(frozen=True, slots=True)
class Surroundings:
    """
    What services depend on besides objects: this node, what it serves of each family, and whose addresses
    nobody may take.

    *proxy* is the name of this proxy, for services that ask for one; empty serves those that do not.
    """

    addresses: tuple[Addr, ...] = ()
    serves: frozenset[ServiceKind] = EVERY_KIND
    serves6: frozenset[ServiceKind] = frozenset()
    here: Place = NOWHERE
    guard: Guard = NO_GUARD
    proxy: str = ""

    @property
    def kinds(self) -> dict[int, frozenset[ServiceKind]]:
        """The kinds of frontends that are served here, by address family."""
        return {4: self.serves, 6: self.serves6}


@dataclass(frozen=True, slots=True)
class Local:
    """
    What is made of this node's pods: services of host ports, slices of these and of services that have none.

    *seen* is what all this was made of.
    """

    services: Mapping[NamespacedName, Service] = field(default_factory=dict)
    slices: Mapping[NamespacedName, EndpointSliceRow] = field(default_factory=dict)
    problems: tuple[ServiceProblem, ...] = ()
    seen: tuple[object, ...] = ()


class ServicePlan:
    """Frontends and rows of every service; :meth:`refresh` brings them up to date with the tables."""

    def __init__(self, tables: Tables, *, external_cluster_ip: bool) -> None:
        self.revision = 0
        self._tables = tables
        self._book = ServiceBook(self._slices_of)
        self._rows = LbBook(
            tables.service_ids.live, tables.backend_ids.live, external_cluster_ip=external_cluster_ip
        )
        self._around = Surroundings()
        self._read = {"services": 0, "slices": 0}
        self._service_of: dict[NamespacedName, NamespacedName] = {}
        # What has been read and is not yet in the book: services, those with other slices, and those whose
        # rows are to be made; kept until it is done.
        self._changed: set[NamespacedName] = set()
        self._stale: set[NamespacedName] = set()
        self._unwritten: set[NamespacedName] = set()
        # Those that lack a number, of their own or of a backend: they get one as soon as one is free.
        self._starving: set[NamespacedName] = set()
        self._numbers_seen = (0, 0)
        # Services with a selector for which nobody writes slices.
        self._undescribed: set[NamespacedName] = set()
        self._local = Local()
        self._in_order: tuple[int, list[ServedFrontend]] = (0, [])

    def restore_slots(self, row: SlotRow) -> None:
        """*row* answers the row that a slot has in the map, or is to have: whoever is there stays there."""
        self._rows.slot_row = row

    # ---- what others see -------------------------------------------------------------------

    @property
    def served(self) -> list[ServedFrontend]:
        """Every frontend of the node, by address and port; for views."""
        if self._in_order[0] != self.revision:
            self._in_order = (self.revision, service_stage.in_order(self._book.served()))
        return self._in_order[1]

    @property
    def count(self) -> int:
        """How many frontends there are."""
        return sum(len(entry.served) for entry in self._book.entries.values())

    def each(self) -> Iterator[ServedFrontend]:
        """The same in no particular order, for those who look at all of them often."""
        return self._book.served()

    @property
    def backends(self) -> Mapping[int, object]:
        """Ids of the backends of all services."""
        return self._rows.backends

    @property
    def rows(self) -> LbRows:
        """Every row, put together; for views."""
        return self._rows.all()

    def changes(self, part: str) -> Changes:
        """How rows changed since this was last asked; parts are those of ``desired.lbbook``."""
        pending = self._rows.take(part)
        return Changes(pending.updates, pending.removals)

    def problems(self) -> dict[NamespacedName, tuple[str, str]]:
        """What is wrong with each service, as ``desired.services.by_service`` tells it."""
        refused = (problem for entry in self._book.entries.values() for problem in entry.problems)
        return service_stage.by_service((*refused, *self._local.problems, *self._rows.problems()))

    def read(self, table: str) -> int:
        """Up to which revision of a table this has read."""
        return self._read[table]

    # ---- refreshing ------------------------------------------------------------------------

    def refresh(self, around: Surroundings) -> None:
        """Bring everything up to date.  What fails is done again next time."""
        self._read_tables()
        if _shape(around) != _shape(self._around):
            self._changed.update(self._tables.services, self._local.services)
        self._around = around
        self._look_at_pods()
        changed = {name: service for name in self._changed for service in self._prepared(name)}
        touched = self._book.update(
            changed, self._stale, guard=around.guard, here=around.here, proxy=around.proxy
        )
        self._changed, self._stale = set(), set()
        self._unwritten |= touched
        self._write()

    def _read_tables(self) -> None:
        tables = self._tables
        services, revision = tables.services.changes_since(self._read["services"])
        self._changed |= services
        self._read["services"] = revision
        slices, revision = tables.slices.changes_since(self._read["slices"])
        for key in slices:
            # A slice that is gone, or somebody else's now, says no more whose it was.
            row, before = tables.slices.get(key), self._service_of.pop(key, None)
            if row is not None:
                self._service_of[key] = row.service_key
                self._stale.add(row.service_key)
            if before is not None:
                self._stale.add(before)
        self._read["slices"] = revision

    def _look_at_pods(self) -> None:
        """Host ports, and the pods of services that nobody writes slices for."""
        tables, undescribed = self._tables, self._undescribed
        names = self._changed | self._stale
        now = {name for name in names if self._is_undescribed(name)}
        concerned = bool(now) or not undescribed.isdisjoint(names)
        self._undescribed = undescribed = undescribed - names | now
        seen = (tables.pods.revision, tables.endpoints.revision, _shape(self._around))
        if seen == self._local.seen and not concerned:
            return
        pods, endpoints = tables.pods.view(), tables.endpoints.values()
        node = self._around.here.node
        services = [service for name in undescribed if (service := tables.services.get(name))]
        derived = derived_slices(services, (), pods, endpoints, node=node)
        kinds = self._around.kinds
        addresses = [addr for addr in self._around.addresses if kinds[addr.version]]
        ports = host_ports(pods, endpoints, addresses, node=node)
        slices = {row.service_key: row for row in (*derived.values(), *ports.slices)}
        self._stale |= _differing(self._local.slices, slices)
        mapped = {service.key: service for service in ports.services}
        self._changed |= _differing(self._local.services, mapped)
        self._local = Local(mapped, slices, tuple(ports.problems), seen)

    def _is_undescribed(self, name: NamespacedName) -> bool:
        service = self._tables.services.get(name)
        return bool(service and service.selector and not self._tables.slices_of_service.get(name))

    def _prepared(self, name: NamespacedName) -> Iterator[Service | None]:
        """A service with the frontends it has on this node; nothing if it is in the book as it is."""
        service = self._tables.services.get(name)
        prepared: Iterable[Service] = (
            service_stage.with_node_ports([service], self._around.addresses)
            if service
            else filter(None, [self._local.services.get(name)])
        )
        now = next(service_stage.of_kinds(prepared, self._around.kinds), None)
        entry = self._book.entries.get(name)
        if now != (entry and entry.service):
            yield now

    def _slices_of(self, name: NamespacedName) -> Iterator[EndpointSliceRow]:
        yield from self._tables.slices_behind(name)
        local = self._local.slices.get(name)
        if local is not None:
            yield local

    def _write(self) -> None:
        """Rows, and the numbers in them."""
        service_ids, backend_ids = self._tables.service_ids, self._tables.backend_ids
        numbers = (service_ids.revision, backend_ids.revision)
        names = self._unwritten | (self._starving if numbers != self._numbers_seen else set())
        if not names:
            return
        entries = self._book.entries
        served = {name: entries[name].served if name in entries else () for name in names}
        each = [one for some in served.values() for one in some]
        services = service_stage.allocate_service_ids(service_ids.live(), each, service_ids.free)
        for frontend, number in services.assigned.items():
            service_ids.set(frontend, number)
        backends = service_stage.allocate_backend_ids(backend_ids.live(), each, backend_ids.free)
        for backend, number in backends.assigned.items():
            backend_ids.set(backend, number)
        self._rows.update(served)
        refused: set[FrontendKey | BackendKey] = {*services.refused, *backends.refused}
        self._starving = (self._starving - names) | {
            name for name, some in served.items() if refused and any(_lacks(one, refused) for one in some)
        }
        self._numbers_seen = (service_ids.revision, backend_ids.revision)
        self._unwritten = set()
        self.revision += 1


def _lacks(one: ServedFrontend, refused: Collection[FrontendKey | BackendKey]) -> bool:
    return one.frontend.key in refused or any(backend.key in refused for backend in one.backends)


def _differing(
    before: Mapping[NamespacedName, object], now: Mapping[NamespacedName, object]
) -> set[NamespacedName]:
    return {name for name in before.keys() | now.keys() if before.get(name) != now.get(name)}


def _shape(around: Surroundings) -> tuple[object, ...]:
    """What decides which frontends a service has here."""
    return around.addresses, around.kinds


def place_of(name: str, node: NodeRow | None) -> Place:
    """Where the node called *name* is, by the labels of its Node."""
    return Place(name, node.labels.get(ZONE_LABEL, "") if node else "")


def object_of(service: NamespacedName) -> ObjectKey:
    """The object whose author a problem of this service is told to."""
    pod = host_port_pod(service)
    return ("Service", *service) if pod is None else ("Pod", *pod)
