# SPDX-License-Identifier: Apache-2.0
"""What this node makes of the others: owners of addresses, tunnels, routes, rows of nodes."""

from dataclasses import replace
from ipaddress import IPv4Address, ip_address, ip_network

import pytest

from ciliumd import abi
from ciliumd.desired.cluster import Neighbours, api_server_addresses, beyond, node_rows
from ciliumd.desired.ipcache import Beyond, Owner
from ciliumd.model.net import addr16, fold32
from ciliumd.model.objects import EndpointSliceRow, NodeRow
from unit.desired.worlds import backend, ipcache_rows

pytestmark = pytest.mark.unit

HEALTH, REMOTE_NODE, UNMANAGED, KUBE_APISERVER = 4, 6, 3, 7


def node(number: int) -> NodeRow:
    """Node *number*, whose every address says so."""
    return NodeRow(
        name=f"node{number}",
        addresses=(
            ("InternalIP", ip_address(f"192.0.2.{number}")),
            ("ExternalIP", ip_address(f"198.51.100.{number}")),
            ("CiliumInternalIP", ip_address(f"10.0.{number}.1")),
        ),
        pod_cidrs=(ip_network(f"10.0.{number}.0/24"),),
        health=(ip_address(f"10.0.{number}.2"),),
    )


def cluster(*, tunnel: bool = True) -> Neighbours:
    """Nodes 1 to 3, seen from node 1."""
    return Neighbours([node(1), node(2), node(3)], this="node1", tunnel=tunnel)


def test_addresses_of_other_nodes() -> None:
    """What a node is reached by is direct, what lies behind it is in its tunnel; ours is not among them."""
    owners = cluster().addresses()
    tunnel = ip_address("192.0.2.2")

    assert owners[ip_address("192.0.2.2")] == owners[ip_address("198.51.100.2")] == Owner(REMOTE_NODE)
    assert owners[ip_address("10.0.2.1")] == Owner(REMOTE_NODE, tunnel)
    assert owners[ip_address("10.0.2.2")] == Owner(HEALTH, tunnel)
    assert ip_address("192.0.2.1") not in owners


def test_without_a_tunnel_everything_is_direct() -> None:
    """The same owners, no tunnel and no route of ours."""
    neighbours = cluster(tunnel=False)
    found = beyond(neighbours)

    assert {owner.tunnel for owner in (*found.addresses.values(), *found.prefixes.values())} == {None}
    assert neighbours.tunnel_of(ip_address("192.0.2.2")) is None
    assert neighbours.routes() == ()


def test_pods_are_behind_their_node() -> None:
    """A pod published with any address of its node is reached by the node's first."""
    found = beyond(cluster())

    for address in ("192.0.2.2", "198.51.100.2"):
        assert cluster().tunnel_of(ip_address(address)) == ip_address("192.0.2.2")
    assert found.prefixes[ip_network("10.0.3.0/24")] == Owner(UNMANAGED, ip_address("192.0.2.3"))
    assert cluster().routes() == (ip_network("10.0.2.0/24"), ip_network("10.0.3.0/24"))
    six = ip_network("fd00:2::/112")
    both = Neighbours(
        [node(1), replace(node(2), pod_cidrs=(*node(2).pod_cidrs, six))], this="node1", tunnel=True
    )
    assert both.routes() == (ip_network("10.0.2.0/24"),)
    assert both.routes(families={4, 6}) == (ip_network("10.0.2.0/24"), six)
    assert both.routes(families={6}) == (six,)


def test_a_node_nobody_knows_yet_is_believed() -> None:
    """Its pods may be published before it is."""
    assert cluster().tunnel_of(ip_address("192.0.2.9")) == ip_address("192.0.2.9")


def test_api_server_is_its_own_entity_wherever_it_runs() -> None:
    """On a node or beyond the cluster; reached directly."""
    slices = [
        EndpointSliceRow(
            "default", "kubernetes", "kubernetes", (("https", backend("192.0.2.2", port=6443)),)
        ),
        EndpointSliceRow("default", "other", "other", (("https", backend("203.0.113.7", port=6443)),)),
    ]
    addresses = api_server_addresses(slices)
    found = beyond(cluster(), api_servers=addresses)

    assert addresses == {ip_address("192.0.2.2")}
    assert found.addresses[ip_address("192.0.2.2")] == Owner(KUBE_APISERVER)


def test_prefix_of_a_policy_inside_a_pod_network_keeps_the_tunnel() -> None:
    """Naming a prefix must not cut off the pods in it that are not published yet."""
    rows = ipcache_rows(
        [],
        {},
        host_addresses=[],
        prefixes={
            ip_network("10.0.2.128/25"): 1 << 24,
            ip_network("10.0.2.7/32"): (1 << 24) + 1,
            ip_network("203.0.113.0/24"): (1 << 24) + 2,
        },
        beyond=beyond(cluster()),
    )
    tunnels = {
        entry.identity: entry.tunnel_endpoint
        for entry in map(abi.IpcacheEntry.unpack, (*rows.prefixes.values(), *rows.addresses.values()))
    }

    assert tunnels[1 << 24] == tunnels[(1 << 24) + 1] == addr16(ip_address("192.0.2.2"))
    assert tunnels[(1 << 24) + 2] == bytes(16)


def test_own_addresses_win_over_what_others_say() -> None:
    """A published pod cannot take the node's address."""
    own = ip_address("192.0.2.1")
    rows = ipcache_rows(
        [], {}, host_addresses=[own], prefixes={}, beyond=Beyond({own: Owner(300, ip_address("192.0.2.2"))})
    )
    (entry,) = map(abi.IpcacheEntry.unpack, rows.addresses.values())

    assert (entry.identity, entry.tunnel_endpoint) == (1, bytes(16))


def test_rows_of_nodes_carry_one_number_per_node() -> None:
    """Every address of a node leads to the same number, which no other node has."""
    rows = {key: abi.NodeValue.unpack(value) for key, value in node_rows([node(1), node(2)]).items()}

    assert {key: value.node_id for key, value in rows.items()} == {
        addr16(addr): int(IPv4Address(f"192.0.2.{number}"))
        for number in (1, 2)
        for _, addr in node(number).addresses
    }
    assert all(value.check == fold32(key) for key, value in rows.items())


@pytest.mark.parametrize("turn", [1, -1])
def test_what_two_nodes_claim_is_the_younger_nodes(turn: int) -> None:
    """A machine that joins under another name has the addresses of the one it was."""
    old = replace(node(2), name="old", created="2026-01-01T00:00:00Z")
    inside = (("InternalIP", ip_address("192.0.2.7")), *old.addresses[1:])
    new = replace(old, name="new", addresses=inside, created="2026-01-01T00:00:09Z")
    nodes = [old, new][::turn]
    found = beyond(Neighbours(nodes, this="node1", tunnel=True))
    rows = {key: abi.NodeValue.unpack(value).node_id for key, value in node_rows(nodes).items()}

    assert found.addresses[ip_address("10.0.2.1")].tunnel == ip_address("192.0.2.7")
    assert found.prefixes[ip_network("10.0.2.0/24")].tunnel == ip_address("192.0.2.7")
    assert rows[addr16(ip_address("198.51.100.2"))] == int(IPv4Address("192.0.2.7"))


def six(number: int, address: str) -> NodeRow:
    """A node with an InternalIP of each family; the lower the number, the older."""
    addresses = (("InternalIP", ip_address(f"192.0.2.{number}")), ("InternalIP", ip_address(address)))
    return NodeRow(f"node{number}", addresses=addresses, created=f"2026-01-0{number}T00:00:00Z")


def test_a_tunnel_of_ipv6_leads_to_the_nodes_address_of_that_family() -> None:
    """One whose InternalIP is of IPv4 alone cannot be reached by it, nor who is known by one of IPv4."""
    neighbours = Neighbours([six(2, "2001:db8::2"), node(3)], this="node1", tunnel=True, underlay=6)
    assert neighbours.tunnel_of(ip_address("192.0.2.2")) == ip_address("2001:db8::2")
    assert neighbours.tunnel_of(ip_address("2001:db8::9")) == ip_address("2001:db8::9")
    assert neighbours.tunnel_of(ip_address("192.0.2.3")) is None
    assert neighbours.tunnel_of(ip_address("192.0.2.9")) is None


def test_numbers_of_nodes_reached_over_ipv6_are_their_own() -> None:
    """All addresses of a node have its number; of two that fold to one the younger has the next."""
    one, two = "2001:db8::500:0:6400:0", "2001:db8::600:0:4500:0"
    folded = fold32(ip_address(one).packed)
    assert fold32(ip_address(two).packed) == folded
    rows = node_rows([six(2, two), six(1, one), node(3)], underlay=6)
    found = {
        addr: abi.NodeValue.unpack(rows[abi.NodeKey(addr16(ip_address(addr))).pack()]).node_id
        for addr in ("192.0.2.1", one, "192.0.2.2", two)
    }
    assert found == {"192.0.2.1": folded, one: folded, "192.0.2.2": folded + 1, two: folded + 1}
    assert len(rows) == len(found)
