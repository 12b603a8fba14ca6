# SPDX-License-Identifier: Apache-2.0
"""Other nodes' pods, followed one by one: always what all of them at once would come to."""

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ciliumd.daemon.addresses import Addresses
from ciliumd.daemon.remote_pods import RemotePods
from ciliumd.desired.cluster import Neighbours
from ciliumd.desired.ipcache import Owner
from ciliumd.model.objects import NodeRow, RemoteEndpointRow
from ciliumd.tables import Tables
from ciliumd.tables.table import Table
from unit.daemon.nodes import remote_ports
from unit.desired.worlds import endpoint, ipcache_rows

ADDRESSES = [ip_address(f"10.0.2.{number}") for number in range(4)] + [ip_address("fd00::2")]
NODES = [ip_address("192.0.2.2"), ip_address("192.0.2.3"), None]
NAMES = ["one", "two", "three"]
TUNNELS = [ip_address("192.0.2.2"), ip_address("198.51.100.1"), None]


def remote(name, address="10.0.2.9", *, identity=300, created="", at="192.0.2.2", ports=None):
    """A pod somewhere else."""
    return RemoteEndpointRow(
        "default", name, identity, (ip_address(address),), ip_address(at), ports or {}, created
    )


ROWS = st.builds(
    RemoteEndpointRow,
    st.just("default"),
    st.sampled_from(NAMES),
    st.sampled_from([300, 301]),
    st.lists(st.sampled_from(ADDRESSES), max_size=3).map(tuple),
    st.sampled_from(NODES),
    st.dictionaries(
        st.sampled_from(["http", "dns"]), st.sampled_from([("TCP", 80), ("TCP", 81)]), max_size=2
    ),
    st.sampled_from(["", "2026-01-01T00:00:00Z", "2026-01-01T00:00:09Z"]),
)
STEPS = st.one_of(
    ROWS,
    ROWS,
    st.sampled_from(NAMES),
    st.fixed_dictionaries({node: st.sampled_from(TUNNELS) for node in NODES}),
    st.none(),
)


def at_once(rows, tunnels):
    """Whose every address is: the youngest pod's that has it."""
    owners = {}
    for row in sorted(rows, key=lambda row: (row.created, row.key)):
        owners.update(dict.fromkeys(row.addresses, Owner(row.identity, tunnels.get(row.node))))
    return owners


@given(st.lists(STEPS, max_size=25))
def test_one_by_one_is_all_at_once(steps):
    """Pods come, change, claim each other's addresses and go, tunnels move; who asks is told every move."""
    table = Table("remote_endpoints")
    pods, tunnels, seen = RemotePods(table), {}, {}
    for step in steps:
        match step:
            case RemoteEndpointRow():
                table.set(step.key, step)
            case str():
                table.delete(("default", step))
            case dict():
                tunnels = step
                pods.set_tunnels(tunnels.get)
            case None:
                pods.refresh()
                for addr in pods.take_moved():
                    seen.pop(addr, None)
                    if addr in pods.owners:
                        seen[addr] = pods.owners[addr]
                assert seen == pods.owners == at_once(table.values(), tunnels)
                assert pods.named_ports == remote_ports(table.values())
    pods.refresh()
    assert pods.owners == at_once(table.values(), tunnels)
    for key in list(table.view()):
        table.delete(key)
    pods.refresh()
    assert not any((pods.owners, pods.named_ports, pods._holders, pods._rivals, pods._ports, pods._rows))


@pytest.mark.parametrize("turn", [1, -1])
def test_an_address_claimed_twice_is_the_younger_pods(turn):
    """A pod that is gone may still be published when its address has the next one, whoever is heard first."""
    table = Table("remote_endpoints")
    old = remote("old", created="2026-01-01T00:00:00Z")
    new = remote("new", identity=301, created="2026-01-01T00:00:09Z")
    pods = RemotePods(table)
    for row in [old, new][::turn]:
        table.set(row.key, row)
        pods.refresh()
    assert pods.owners[ip_address("10.0.2.9")].identity == 301


def test_nothing_changes_for_what_says_the_same():
    """A status that is written again wakes nobody."""
    table = Table("remote_endpoints")
    pods = RemotePods(table)
    row = remote("one", ports={"http": ("TCP", 80)})
    table.set(row.key, row)
    pods.refresh()
    before = pods.revision, pods.ports_revision
    table.set(row.key, replace(row, created="2026-01-01T00:00:00Z"))
    pods.refresh()
    assert (pods.revision, pods.ports_revision) == before


class Cluster:
    """A node and two others, and what it makes of addresses."""

    def __init__(self):
        self.tables = Tables()
        self.addresses = Addresses(self.tables)
        self.prefixes, self.identities, self.judged = {}, {}, {}
        self.endpoints = [endpoint(1), endpoint(2)]
        self.nodes = [self.node(2), self.node(3)]
        self.kept = {}

    @staticmethod
    def node(number):
        """One of the others."""
        return NodeRow(
            f"node{number}",
            addresses=(("InternalIP", ip_address(f"192.0.2.{number}")),),
            pod_cidrs=(ip_network(f"10.0.{number}.0/24"),),
        )

    def write(self):
        """All that a round does; the rows that somebody has who is told of changes only."""
        neighbours = Neighbours(self.nodes, this="node1", tunnel=True)
        hosts = [ip_address("10.0.0.254")]
        self.addresses.pods.refresh()
        self.addresses.look_beyond(neighbours, api_servers=(), nodes={})
        self.addresses.gather(self.endpoints, self.identities, host_addresses=hosts, prefixes=self.prefixes)
        self.addresses.write(self.judged)
        changes = self.addresses.take_changes()
        for key in changes.removals:
            del self.kept[key]
        self.kept.update(changes.updates)
        expected = ipcache_rows(
            self.endpoints,
            self.identities,
            host_addresses=hosts,
            prefixes=self.prefixes,
            beyond=self.addresses.beyond,
            pods=self.addresses.pods.owners,
            judged=self.judged,
        )
        assert self.addresses.rows == expected
        assert self.kept == expected.addresses
        return changes


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("pod"), ROWS),
            st.tuples(st.just("gone"), st.sampled_from(NAMES)),
            st.tuples(st.just("identities"), st.dictionaries(st.sampled_from([1, 2]), st.integers(256, 258))),
            st.tuples(
                st.just("prefixes"),
                st.dictionaries(
                    st.sampled_from([ip_network("10.0.2.1/32"), ip_network("10.0.2.0/30")]),
                    st.integers(1 << 24, (1 << 24) + 2),
                ),
            ),
            st.tuples(
                st.just("judged"),
                st.dictionaries(
                    st.sampled_from([*ADDRESSES, ip_address("10.0.0.1"), ip_address("10.0.0.254")]),
                    st.integers(3 << 24, (3 << 24) + 2),
                ),
            ),
            st.tuples(st.just("nodes"), st.sets(st.sampled_from([2, 3]))),
        ),
        max_size=12,
    )
)
def test_rows_follow_address_by_address(steps):
    """After any change they are what is computed at once, and who follows the changes has the same."""
    cluster = Cluster()
    cluster.write()
    for what, value in steps:
        match what:
            case "pod":
                cluster.tables.remote_endpoints.set(value.key, value)
            case "gone":
                cluster.tables.remote_endpoints.delete(("default", value))
            case "nodes":
                cluster.nodes = [cluster.node(number) for number in sorted(value)]
            case _:
                setattr(cluster, what, value)
        cluster.write()


def test_one_pod_more_is_one_row():
    """Of a thousand: nobody looks at the others."""
    cluster = Cluster()
    for number in range(1000):
        row = remote(f"p{number}", f"10.0.{2 + number // 250}.{1 + number % 250}")
        cluster.tables.remote_endpoints.set(row.key, row)
    assert len(cluster.write().updates) > 1000

    row = remote("late", "10.0.9.9")
    cluster.tables.remote_endpoints.set(row.key, row)
    changes = cluster.write()
    assert (len(changes.updates), list(changes.removals)) == (1, [])

    cluster.tables.remote_endpoints.delete(row.key)
    changes = cluster.write()
    assert (len(changes.updates), len(list(changes.removals))) == (0, 1)
