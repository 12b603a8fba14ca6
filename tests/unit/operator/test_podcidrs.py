# SPDX-License-Identifier: Apache-2.0
"""Which pod CIDRs each CiliumNode is to have, from the objects alone."""

from ipaddress import ip_network

from hypothesis import given, settings
from hypothesis import strategies as st

from ciliumd.operator.podcidrs import Pool, cidrs_of, plan

POOL = Pool((ip_network("10.0.0.0/21"),), 24)
NAMES = [f"node{i}" for i in range(12)]


def _cilium_node(*cidrs, created="2026-01-01T00:00:00Z"):
    return {"metadata": {"creationTimestamp": created}, "spec": {"ipam": {"podCIDRs": list(cidrs)}}}


def _node(*addresses, cidrs=()):
    status = {"addresses": [{"type": "InternalIP", "address": one} for one in addresses]}
    return {"status": status, "spec": {"podCIDRs": list(cidrs)}}


def _settle(nodes, pool=POOL):
    """What the cluster looks like once the plan is carried out, and the plan."""
    wanted = plan({}, nodes, pool=pool)
    return {one.node: _cilium_node(*one.cidrs) for one in wanted.assignments}, wanted


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(NAMES), st.booleans()),
        max_size=60,
    )
)
def test_nodes_come_and_go_and_nobody_ever_shares_or_moves(steps):
    """After every step: no overlap, nothing moves, nobody waits while a block is free; twice is once."""
    nodes, after = {}, None
    for name, joins in steps:
        before = {one: cidrs_of(row) for one, row in nodes.items() if cidrs_of(row)}
        if joins:
            nodes.setdefault(name, _cilium_node())
        else:
            nodes.pop(name, None)
        nodes, wanted = _settle(nodes, Pool(POOL.cidrs, POOL.mask_size, after))
        after = wanted.after
        blocks = [cidrs_of(row)[0] for row in nodes.values() if cidrs_of(row)]
        assert len(set(blocks)) == len(blocks) == min(len(nodes), 8)
        assert all(cidrs_of(nodes[one]) == cidrs for one, cidrs in before.items() if one in nodes)
        assert wanted.usage.used == len(blocks)
        assert sum(bool(one.error) for one in wanted.assignments) == len(nodes) - len(blocks)
        again, repeated = _settle(nodes)
        assert again == nodes
        assert repeated.usage == wanted.usage


POOL6 = Pool((ip_network("fd00::/118"),), 120)


def test_nodes_get_a_block_of_each_pool():
    """Also those that have one of IPv4 already, which stays; twice is once."""
    nodes = {
        "a": _cilium_node(),
        "b": _cilium_node("10.0.5.0/24"),
        "c": _cilium_node("10.0.6.0/24", "fd00::300/120"),
    }
    wanted = plan({}, nodes, pool=POOL, pool6=POOL6)
    told = {one.node: one.cidrs for one in wanted.assignments}
    assert told == {
        "a": ("10.0.0.0/24", "fd00::/120"),
        "b": ("10.0.5.0/24", "fd00::100/120"),
        "c": ("10.0.6.0/24", "fd00::300/120"),
    }
    assert not any(one.error for one in wanted.assignments)
    again = plan({}, {name: _cilium_node(*cidrs) for name, cidrs in told.items()}, pool=POOL, pool6=POOL6)
    assert {one.node: one.cidrs for one in again.assignments} == told
    behind = plan({}, {"d": _cilium_node()}, pool=POOL, pool6=Pool(POOL6.cidrs, 120, wanted.after6))
    assert behind.assignments[0].cidrs[1] == "fd00::200/120"


def test_nodes_without_ipv4_get_a_block_of_ipv6_alone():
    """Those that have one of IPv4 keep it; turned on again, IPv4 comes behind what a node has."""
    nodes = {"a": _cilium_node(), "b": _cilium_node("10.0.0.0/24")}
    wanted = plan({}, nodes, pool=None, pool6=POOL6)
    told = {one.node: one.cidrs for one in wanted.assignments}
    assert not [one.error for one in wanted.assignments if one.error]
    assert [len(cidrs) for cidrs in told.values()] == [1, 2]
    assert ":" in told["a"][0]
    assert told["b"][0] == "10.0.0.0/24"
    assert wanted.usage.used == 2
    both = plan({}, {"a": _cilium_node(*told["a"])}, pool=POOL, pool6=POOL6)
    (again,) = both.assignments
    assert (again.cidrs[0], ":" in again.cidrs[1], again.error) == (told["a"][0], False, "")


def test_no_block_of_ipv6_left_is_told_and_takes_nothing_away():
    """By the name of the option that helps."""
    nodes = {f"n{i}": _cilium_node(f"10.0.{i}.0/24") for i in range(5)}
    wanted = plan({}, nodes, pool=POOL, pool6=POOL6)
    (left,) = [one for one in wanted.assignments if one.error]
    assert left.cidrs == ("10.0.4.0/24",)
    assert "cluster-pool-ipv6-cidr" in left.error
    clash = {"a": _cilium_node("10.0.0.0/24", "fd00::/120"), "b": _cilium_node("10.0.1.0/24", "fd00::80/121")}
    told = {one.node: one.error for one in plan({}, clash, pool=POOL, pool6=POOL6).assignments}
    assert (told["a"], "fd00::/120" in told["b"]) == ("", True)


def test_of_two_claims_the_older_one_counts_whatever_the_names():
    """By creation, then by name; the younger keeps what it says and is told."""
    nodes = {
        "a": _cilium_node("10.0.1.0/24", created="2026-02-01T00:00:00Z"),
        "z": _cilium_node("10.0.1.0/24", created="2026-01-01T00:00:00Z"),
    }
    found = {one.node: one for one in plan({}, nodes, pool=POOL).assignments}
    assert found["z"].error == ""
    assert found["a"].error == "10.0.1.0/24 overlaps 10.0.1.0/24, a pod CIDR of node z"
    assert found["a"].cidrs == ("10.0.1.0/24",)


def test_a_block_from_outside_the_pool_stays():
    """The pool was changed, or another operator gave it: pods use it."""
    nodes = {"old": _cilium_node("172.16.3.0/26"), "new": _cilium_node()}
    found = {one.node: one for one in plan({}, nodes, pool=POOL).assignments}
    assert (found["old"].cidrs, found["old"].error) == (("172.16.3.0/26",), "")
    assert found["new"].cidrs == ("10.0.0.0/24",)


def test_addresses_and_service_ranges_are_no_pod_cidrs():
    """Of the pool's eight blocks four are services and one holds a node."""
    nodes = {name: _cilium_node() for name in NAMES[:4]}
    wanted = plan(
        {"node0": _node("10.0.5.1", "2001:db8::1")},
        nodes,
        pool=POOL,
        service_ranges=[ip_network("10.0.0.0/22"), ip_network("fd00::/112")],
    )
    assert [one.cidrs for one in wanted.assignments] == [
        ("10.0.4.0/24",),
        ("10.0.6.0/24",),
        ("10.0.7.0/24",),
        (),
    ]
    assert (wanted.usage.used, wanted.usage.free, wanted.usage.refused) == (3, 0, 5)


def test_what_is_no_cidr_is_told():
    """Somebody wrote it by hand."""
    (found,) = plan({}, {"a": _cilium_node("10.0.0.0/240")}, pool=POOL).assignments
    assert "'10.0.0.0/240' is not a CIDR" in found.error


def test_kubernetes_gives_all_families():
    """What the Node says is copied; what the CiliumNode has already is kept."""
    nodes = {"a": _node(cidrs=["10.3.0.0/24", "fd00:3::/64"]), "b": _node(cidrs=["10.4.0.0/24"])}
    nodes["c"] = {"spec": {"podCIDR": "10.5.0.0/24"}}
    wanted = plan(
        nodes, {"a": _cilium_node(), "b": _cilium_node("10.9.0.0/24"), "c": _cilium_node()}, pool=None
    )
    assert {one.node: one.cidrs for one in wanted.assignments} == {
        "a": ("10.3.0.0/24", "fd00:3::/64"),
        "b": ("10.9.0.0/24",),
        "c": ("10.5.0.0/24",),
    }
    assert wanted.usage is None


def test_a_thousand_nodes_join_at_once():
    """Each gets a block, and none of the services' or of a node's."""
    nodes = {f"n{i}": _node(f"10.0.{i // 250}.{i % 250}") for i in range(1000)}
    cilium_nodes = {name: _cilium_node() for name in nodes}
    pool = Pool((ip_network("10.0.0.0/8"),), 24)
    found = plan(nodes, cilium_nodes, pool=pool, service_ranges=[ip_network("10.2.0.0/16")])
    blocks = {ip_network(one.cidrs[0]) for one in found.assignments}
    assert len(blocks) == 1000
    assert min(blocks) == ip_network("10.0.4.0/24")
    assert not any(block.overlaps(ip_network("10.2.0.0/16")) for block in blocks)
