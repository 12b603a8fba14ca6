# SPDX-License-Identifier: Apache-2.0
"""
Other nodes' pods: whose their addresses are, and which named ports the pods of an identity have.

Kept up to date pod by pod: there may be a hundred thousand, of which one changes.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from ciliumd.desired.identities import named_ports_of_row
from ciliumd.desired.ipcache import Owner
from ciliumd.model.net import Addr
from ciliumd.model.objects import NamespacedName, RemoteEndpointRow
from ciliumd.tables.table import Table

if TYPE_CHECKING:
    from ciliumd.desired.policy import NamedPorts
    from ciliumd.model.identity import NumericIdentity
    from ciliumd.model.policy import NamedPort

TunnelOf = Callable[[Addr | None], Addr | None]


class RemotePods:
    """
    *owners* by address, *named_ports* by identity; *revision* and *ports_revision* grow whenever they change.
    *read* is up to which revision of the *table* this has come.

    An address that two pods claim is that of the younger one, for the older is on its way out: which it is
    must not depend on who was heard of first.
    """

    def __init__(self, table: Table[NamespacedName, RemoteEndpointRow]) -> None:
        self.read = 0
        self.owners: dict[Addr, Owner] = {}
        self.named_ports: dict[NumericIdentity, NamedPorts] = {}
        self.revision = 0
        self.ports_revision = 0
        self._table = table
        self._rows: dict[NamespacedName, RemoteEndpointRow] = {}
        self._holders: dict[Addr, NamespacedName] = {}
        # Of an address that several claim, all of them.
        self._rivals: dict[Addr, set[NamespacedName]] = {}
        self._ports: dict[NumericIdentity, Counter[NamedPort]] = {}
        self._tunnel_of: TunnelOf = _nowhere
        self._moved: dict[Addr, None] = {}

    def refresh(self) -> None:
        """Bring all of it up to date with the table."""
        changed, self.read = self._table.changes_since(self.read)
        for key in sorted(changed):
            self._put(key, self._table.get(key))

    def set_tunnels(self, tunnel_of: TunnelOf) -> None:
        """Where pods are behind the address of a node is said by *tunnel_of* from now on."""
        self._tunnel_of = tunnel_of
        tunnels = {node: tunnel_of(node) for node in {row.node for row in self._rows.values()}}
        rows, owners = self._rows, self.owners
        self._judge(
            [addr for addr, key in self._holders.items() if owners[addr].tunnel != tunnels[rows[key].node]]
        )

    def take_moved(self) -> Iterable[Addr]:
        """The addresses whose owner is another than when this was last asked."""
        moved, self._moved = self._moved, {}
        return moved

    def _put(self, key: NamespacedName, row: RemoteEndpointRow | None) -> None:
        before = self._rows.pop(key, None)
        addresses: dict[Addr, None] = {}
        if before is not None:
            addresses.update(dict.fromkeys(before.addresses))
            for addr in dict.fromkeys(before.addresses):
                self._release(addr, key)
        if row is not None:
            self._rows[key] = row
            addresses.update(dict.fromkeys(row.addresses))
            for addr in dict.fromkeys(row.addresses):
                self._claim(addr, key)
        self._judge(addresses)
        self._count(before, row)

    def _claim(self, addr: Addr, key: NamespacedName) -> None:
        holder = self._holders.get(addr)
        if holder is None:
            self._holders[addr] = key
            return
        rivals = self._rivals.setdefault(addr, {holder})
        rivals.add(key)
        self._holders[addr] = self._youngest(rivals)

    def _release(self, addr: Addr, key: NamespacedName) -> None:
        rivals = self._rivals.get(addr)
        if rivals is None:
            del self._holders[addr]
            return
        rivals.discard(key)
        self._holders[addr] = self._youngest(rivals)
        if len(rivals) == 1:
            del self._rivals[addr]

    def _youngest(self, keys: Iterable[NamespacedName]) -> NamespacedName:
        return max(keys, key=lambda key: (self._rows[key].created, key))

    def _judge(self, addresses: Iterable[Addr]) -> None:
        """Whose these are now."""
        for addr in addresses:
            key = self._holders.get(addr)
            owner = None
            if key is not None:
                row = self._rows[key]
                owner = Owner(row.identity, self._tunnel_of(row.node))
            if self.owners.get(addr) == owner:
                continue
            if owner is None:
                del self.owners[addr]
            else:
                self.owners[addr] = owner
            self._moved[addr] = None
            self.revision += 1

    def _count(self, before: RemoteEndpointRow | None, after: RemoteEndpointRow | None) -> None:
        """Which ports have which names, at the identities of one pod."""
        touched: dict[NumericIdentity, None] = {}
        for row, number in ((before, -1), (after, 1)):
            if row is None or not row.named_ports:
                continue
            ports = self._ports.setdefault(row.identity, Counter())
            for port in named_ports_of_row(row):
                ports[port] += number
                if not ports[port]:
                    del ports[port]
            touched[row.identity] = None
        for identity in touched:
            named = frozenset(self._ports[identity])
            if named == self.named_ports.get(identity, frozenset()):
                continue
            self.ports_revision += 1
            if named:
                self.named_ports[identity] = named
            else:
                del self.named_ports[identity], self._ports[identity]


def _nowhere(_: Addr | None) -> Addr | None:
    """Until nodes are known."""
    return None
