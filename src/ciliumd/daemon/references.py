# SPDX-License-Identifier: Apache-2.0
"""
The policies in force, kept equal to those that are written and to what these refer to.

A change costs what it touches: of a group or service that changes, the references that mean it are filled in
again, and of policies those that have such a reference.  All others stay the same objects.  What is filled in
is a function of the tables (``desired.policy.references``); what is kept here only saves asking.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Generic, TypeVar

from ciliumd.desired.policy import RuleNames
from ciliumd.desired.policy.references import (
    filled,
    means_group,
    means_service,
    missing,
    peers_behind,
    peers_in_block,
    peers_of_groups,
    references_of,
)
from ciliumd.model.net import Addr, Prefix
from ciliumd.model.objects import NamespacedName
from ciliumd.model.policy import BlockReference, GroupReference, Peer, Policy, Reference, ServiceReference
from ciliumd.tables.schema import ObjectKey, Problem, Tables
from ciliumd.tables.table import Table

if TYPE_CHECKING:
    from ciliumd.model.objects import CIDRGroupRow
    from ciliumd.model.service import Service

Key = TypeVar("Key", bound=Hashable)
Row = TypeVar("Row")
Asked = TypeVar("Asked", bound=Reference)


class References:
    """
    *policies* are those in force; *revision* grows whenever they change; *missing* does not exist.

    *names* are what cookies of their rules stand for.
    """

    def __init__(self, tables: Tables) -> None:
        self.policies: Mapping[ObjectKey, Policy] = tables.policies.view()
        self.revision = 0
        self.missing: frozenset[Reference] = frozenset()
        self.names = RuleNames()
        self._tables = tables
        self._groups: Meant[GroupReference, str, CIDRGroupRow] = Meant(tables.cidr_groups, means_group)
        self._services: Meant[ServiceReference, NamespacedName, Service] = Meant(
            tables.services, means_service
        )
        self._addresses: dict[NamespacedName, frozenset[Addr]] = {}
        self._pods: frozenset[Prefix] = frozenset()
        self._read = {"policies": 0, "slices": 0}
        self._having: dict[ObjectKey, frozenset[Reference]] = {}
        self._users: dict[Reference, set[ObjectKey]] = {}
        self._fills: dict[Reference, tuple[Peer, ...]] = {}
        self._filled: dict[ObjectKey, Policy] = {}
        # What is yet to be done, also after a refresh that failed.
        self._changed: set[ObjectKey] = set()
        self._stale: set[Reference] = set()

    def read(self, table: str) -> int:
        """Up to which revision of a table this has read."""
        return {**self._read, "cidr_groups": self._groups.read, "services": self._services.read}[table]

    def set_pods(self, networks: frozenset[Prefix]) -> None:
        """Say in which *networks* the pods of the cluster are."""
        if networks != self._pods:
            self._pods = networks
            self._stale |= {one for one in self._users if isinstance(one, BlockReference)}

    def refresh(self) -> None:
        """Bring :attr:`policies` up to date with the tables."""
        changed, self._read["policies"] = self._tables.policies.changes_since(self._read["policies"])
        self._changed |= changed
        for key in changed:
            self._connect(key)
            self.names.put(key, self._tables.policies.get(key))
        self._stale |= self._groups.refresh(one for one in self._users if isinstance(one, GroupReference))
        self._stale |= self._services.refresh(one for one in self._users if isinstance(one, ServiceReference))
        self._look_at_slices()
        # One policy may have taken up a reference in the very moment another dropped it.
        self._fills = {one: peers for one, peers in self._fills.items() if one in self._users}
        self._stale |= self._users.keys() - self._fills.keys()
        if self._stale or self._changed:
            self.missing = frozenset(one for one in self._users if not self._exists(one))
        self._changed |= self._fill()
        if not self._changed:
            return
        written = self._tables.policies.view()
        for key in self._changed & self._having.keys():
            self._filled[key] = filled(written[key], self._fills)
        self.policies = {**written, **self._filled} if self._filled else written
        self.revision += 1
        self._changed = set()

    def problems(self) -> dict[ObjectKey, Problem]:
        """Policies that name what does not exist, by the object they are written in."""
        found: dict[ObjectKey, list[tuple[str, str]]] = {}
        for key in sorted(self._having):
            policy = self._tables.policies.get(key)
            if policy is not None:
                name = (policy.kind, policy.namespace, policy.name)
                found.setdefault(name, []).extend(missing(policy, self._exists))
        return {name: problem(all_of_it) for name, all_of_it in found.items() if all_of_it}

    def _exists(self, one: Reference) -> bool:
        match one:
            case GroupReference():
                return bool(self._groups.of(one))
            case ServiceReference():
                return bool(self._services.of(one))
            case BlockReference():
                return True

    def _connect(self, key: ObjectKey) -> None:
        """A policy is new, other than before, or gone: it has other references."""
        policy = self._tables.policies.get(key)
        before = self._having.pop(key, frozenset())
        after = frozenset() if policy is None else references_of(policy)
        if after:
            self._having[key] = after
        else:
            self._filled.pop(key, None)
        for one in after - before:
            self._users.setdefault(one, set()).add(key)
        for one in before - after:
            self._users[one].discard(key)
            if not self._users[one]:
                del self._users[one]

    def _look_at_slices(self) -> None:
        """The addresses behind services without a selector: they are few, of all the services there are."""
        changed, self._read["slices"] = self._tables.slices.changes_since(self._read["slices"])
        if changed:
            moved = {key for key, known in self._addresses.items() if self._behind(key) != known}
            self._stale |= self._services.meaning(moved)

    def _behind(self, service: NamespacedName) -> frozenset[Addr]:
        rows = self._tables.slices_behind(service)
        return frozenset(backend.addr for row in rows for _, backend in row.backends)

    def _peers(self, one: Reference) -> tuple[Peer, ...]:
        if isinstance(one, BlockReference):
            return peers_in_block(one.block, self._pods)
        if isinstance(one, GroupReference):
            return peers_of_groups(one, self._groups.of(one))
        peers: dict[Peer, None] = {}
        for service in sorted(self._services.of(one), key=lambda service: service.key):
            addresses: frozenset[Addr] = frozenset()
            if not service.selector:
                self._addresses[service.key] = addresses = self._behind(service.key)
            peers.update(dict.fromkeys(peers_behind(service, addresses)))
        return tuple(peers)

    def _fill(self) -> set[ObjectKey]:
        """Fill in what is new or means something else; the policies that have it."""
        concerned: set[ObjectKey] = set()
        for one in self._stale & self._users.keys():
            peers = self._peers(one)
            if self._fills.get(one) != peers:
                self._fills[one] = peers
                concerned |= self._users[one]
        if self._stale:
            kept = self._services.keys()
            self._addresses = {key: known for key, known in self._addresses.items() if key in kept}
        self._stale = set()
        return concerned


def problem(found: list[tuple[str, str]]) -> Problem:
    """All that was *found* wrong with one object, as (field, message)."""
    field, message = found[0]
    return Problem(field, "; ".join([message, *(f"{field} {message}" for field, message in found[1:])]))


class Meant(Generic[Asked, Key, Row]):
    """Which rows of *table* each reference *means*; asked again only of rows that changed."""

    def __init__(self, table: Table[Key, Row], means: Callable[[Asked, Row], bool]) -> None:
        self.read = 0
        self._table = table
        self._means = means
        self._found: dict[Asked, set[Key]] = {}

    def refresh(self, wanted: Iterable[Asked]) -> set[Asked]:
        """Look for all that is *wanted*; those that are new, or mean a row that changed, came or went."""
        changed, self.read = self._table.changes_since(self.read)
        before, self._found = self._found, {}
        touched: set[Asked] = set()
        for one in wanted:
            found = before.get(one)
            if found is None:
                found = {key for key, row in self._table.items() if self._means(one, row)}
                touched.add(one)
            elif changed:
                now = {key for key in changed if self._is_meant(one, key)}
                if now or not found.isdisjoint(changed):
                    touched.add(one)
                    found = (found - changed) | now
            self._found[one] = found
        return touched

    def of(self, one: Asked) -> list[Row]:
        """The rows that it means."""
        rows = (self._table.get(key) for key in self._found.get(one, ()))
        return [row for row in rows if row is not None]

    def keys(self) -> set[Key]:
        """The keys of all rows that are meant."""
        return set().union(*self._found.values())

    def meaning(self, keys: AbstractSet[Key]) -> set[Asked]:
        """The references that mean one of the rows."""
        return {one for one, found in self._found.items() if not found.isdisjoint(keys)}

    def _is_meant(self, one: Asked, key: Key) -> bool:
        row = self._table.get(key)
        return row is not None and self._means(one, row)
