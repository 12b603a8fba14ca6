# SPDX-License-Identifier: Apache-2.0
"""
Whose every address is that this node knows, as rows of the ipcache.

Pods of other nodes are followed one by one; nodes, pods of this one and prefixes of policies are few and
gathered anew where they change (``desired.ipcache``).
"""

from collections.abc import Iterable, Mapping

from ciliumd.daemon.remote_pods import RemotePods
from ciliumd.desired import cluster
from ciliumd.desired.ipcache import Beyond, IpcacheRows, Owners, prefix_rows, single_owners
from ciliumd.desired.ipcachebook import IpcacheBook
from ciliumd.model.endpoint import EndpointSpec
from ciliumd.model.identity import NamedNode, NumericIdentity, is_pod
from ciliumd.model.net import Addr, Prefix
from ciliumd.reconcile.target import Changes
from ciliumd.tables.schema import Tables

Identities = Mapping[int, NumericIdentity]


class Addresses:
    """*pods* of other nodes, what else is *beyond* this one; *owners* of all addresses but those pods'."""

    def __init__(self, tables: Tables) -> None:
        self.pods = RemotePods(tables.remote_endpoints)
        self.beyond = Beyond()
        self.owners = Owners()
        self._book = IpcacheBook()
        self.rows = IpcacheRows(self._book.rows, {})

    @property
    def remote(self) -> tuple[Beyond, int]:
        """As long as it is the same, all that is beyond is."""
        return self.beyond, self.pods.revision

    def look_beyond(
        self,
        neighbours: cluster.Neighbours,
        *,
        api_servers: Iterable[Addr],
        nodes: Mapping[NamedNode, NumericIdentity],
    ) -> None:
        """The other nodes are these now."""
        self.beyond = cluster.beyond(neighbours, api_servers=api_servers, nodes=nodes)
        self.pods.set_tunnels(neighbours.tunnel_of)

    def gather(
        self,
        endpoints: Iterable[EndpointSpec],
        identities: Identities,
        *,
        host_addresses: Iterable[Addr],
        prefixes: Mapping[Prefix, NumericIdentity],
    ) -> None:
        """Something but pods of other nodes has changed."""
        self.owners = single_owners(
            endpoints,
            identities,
            host_addresses=host_addresses,
            prefixes=prefixes,
            beyond=self.beyond,
        )
        rows, within = prefix_rows(prefixes, self.beyond)
        self.rows = IpcacheRows(self._book.rows, rows, within)

    def write(self, judged: Mapping[Addr, NumericIdentity]) -> None:
        """Bring the rows of single addresses up to date; *judged* is what some pods are judged by."""
        self._book.update(self.owners, self.pods.owners, moved=self.pods.take_moved(), judged=judged)

    def take_changes(self) -> Changes:
        """How the rows of single addresses changed since this was last asked."""
        return Changes(*self._book.take_changes())

    def of_pods(
        self, endpoints: Iterable[EndpointSpec], identities: Identities
    ) -> dict[Addr, NumericIdentity]:
        """The identity of every pod by its addresses: of other nodes' and of the *endpoints* here."""
        owners = {
            addr: one.identity
            for addr, one in self.pods.owners.items()
            if is_pod(one.identity) and addr not in self.beyond.addresses
        }
        for endpoint in endpoints:
            identity = identities.get(endpoint.id)
            if identity is not None and is_pod(identity):
                owners.update(dict.fromkeys(endpoint.addresses, identity))
        return owners
