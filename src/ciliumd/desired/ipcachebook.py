# SPDX-License-Identifier: Apache-2.0
"""
The rows of single addresses, address by address: of a hundred thousand pods one comes or goes.

Pure memory, like the load balancer's book; what a row says is ``ipcache``'s.
"""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import TypeVar

from ciliumd.desired.ipcache import Owner, Owners, address_key, address_row
from ciliumd.model.identity import NumericIdentity
from ciliumd.model.net import Addr

V = TypeVar("V")
_Judged = Mapping[Addr, NumericIdentity]


class IpcacheBook:
    """*rows* by key, and what changed of them since that was last asked."""

    def __init__(self) -> None:
        self.rows: dict[bytes, bytes] = {}
        self._owners = Owners()
        self._judged: _Judged = {}
        self._updates: dict[bytes, bytes] = {}
        self._removals: dict[bytes, None] = {}

    def update(
        self,
        owners: Owners,
        pods: Mapping[Addr, Owner] = MappingProxyType({}),
        *,
        moved: Iterable[Addr] = (),
        judged: _Judged = MappingProxyType({}),
    ) -> None:
        """
        Bring the rows up to date.

        *pods* are other nodes', of whom *moved* are not as they were; *judged* is what pods are judged by at
        addresses where that is not their identity.
        """
        stale = dict.fromkeys(moved)
        if owners is not self._owners:
            stale.update(dict.fromkeys(_differences(self._owners.first, owners.first)))
            stale.update(dict.fromkeys(_differences(self._owners.last, owners.last)))
            stale.update(dict.fromkeys(self._owners.fixed ^ owners.fixed))
        if judged is not self._judged:
            stale.update(dict.fromkeys(_differences(self._judged, judged)))
        self._owners, self._judged = owners, judged
        for addr in stale:
            owner = owners.first.get(addr) or pods.get(addr) or owners.last.get(addr)
            if owner is None:
                self._remove(address_key(addr))
                continue
            if addr in judged and addr not in owners.fixed:
                owner = owner._replace(judged=judged[addr])
            self._set(*address_row(addr, *owner))

    def take_changes(self) -> tuple[dict[bytes, bytes], Iterable[bytes]]:
        """Which of :attr:`rows` are new or others since this was last asked, and which are gone."""
        changes = self._updates, self._removals
        self._updates, self._removals = {}, {}
        return changes

    def _set(self, key: bytes, value: bytes) -> None:
        if self.rows.get(key) != value:
            self.rows[key] = self._updates[key] = value
            self._removals.pop(key, None)

    def _remove(self, key: bytes) -> None:
        if self.rows.pop(key, None) is not None:
            self._updates.pop(key, None)
            self._removals[key] = None


def _differences(before: Mapping[Addr, V], after: Mapping[Addr, V]) -> Iterable[Addr]:
    """Keys of which the two say different things, in an order that is the same for the same."""
    yield from (addr for addr, value in after.items() if before.get(addr) != value)
    yield from (addr for addr in before if addr not in after)
