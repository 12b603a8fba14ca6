# SPDX-License-Identifier: Apache-2.0
"""Blocks of the cluster's pool: never two nodes in one, never an address of somebody else."""

from ipaddress import ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ciliumd.operator.clusterpool import ClusterPool, Conflict, Exhausted, PoolError, Usage

POOL = (ip_network("10.0.0.0/22"), ip_network("10.8.0.0/23"))
BLOCKS = [block for cidr in POOL for block in cidr.subnets(new_prefix=24)]


def networks():
    """Prefixes in and around the pool, of every size."""
    return st.builds(
        lambda base, length: ip_network((base, length), strict=False),
        st.integers(int(POOL[0].network_address), int(POOL[1].broadcast_address) + 256),
        st.integers(20, 32),
    )


@settings(deadline=None)
@given(
    taken=st.lists(st.tuples(st.sampled_from("abcdef"), networks()), max_size=12),
    reserved=st.lists(networks(), max_size=4),
    after=st.none() | st.sampled_from(BLOCKS),
)
def test_no_two_nodes_share_an_address(taken, reserved, after):
    """Whatever nodes say they have: every block that is nobody's is handed out, and no other."""
    pool = ClusterPool(POOL, 24, dict.fromkeys(reserved, "reserved"), after)
    held = []
    for node, block in taken:
        try:
            pool.take(node, block)
        except Conflict:
            assert any(block.overlaps(other) for _, other in held)
        else:
            assert all(not block.overlaps(other) or (node, block) == (n, other) for n, other in held)
            held.append((node, block))
    given_out = []
    for i in range(len(BLOCKS) + 1):
        try:
            given_out.append(pool.allocate(f"new{i}"))
        except Exhausted:
            break
    free = [
        block
        for block in BLOCKS
        if not any(block.overlaps(other) for _, other in held)
        and not any(block.overlaps(one) for one in reserved)
    ]
    assert sorted(given_out) == free, "every block that is nobody's, and no other"
    assert pool.usage.free == 0
    assert sum((pool.usage.used, pool.usage.free, pool.usage.refused)) == len(BLOCKS)


@settings(deadline=None)
@given(order=st.permutations([f"node{i}" for i in range(5)]))
def test_a_restored_pool_goes_on_as_if_it_had_never_been_away(order):
    """What CiliumNodes say is all there is to know."""
    lasting = ClusterPool(POOL, 24)
    owners = {node: lasting.allocate(node) for node in order}
    restored = ClusterPool(POOL, 24, after=lasting.after)
    for node, block in owners.items():
        restored.take(node, block)
    assert restored.usage == lasting.usage == Usage(5, 1, 0)
    assert restored.allocate("next") == lasting.allocate("next")


def test_a_freed_block_rests_while_there_are_others():
    """Nodes may still send to pods that were in it."""
    first = ClusterPool(POOL, 24)
    one, two = first.allocate("a"), first.allocate("b")
    later = ClusterPool(POOL, 24, after=first.after)
    later.take("b", two)
    assert later.allocate("c") not in {one, two}


def test_exhaustion_names_the_pool_and_what_it_refused():
    """Whoever reads it knows what to change."""
    pool = ClusterPool((ip_network("10.0.0.0/23"),), 24, {ip_network("10.0.1.7/32"): "InternalIP of node a"})
    pool.allocate("a")
    with pytest.raises(Exhausted) as caught:
        pool.allocate("b")
    assert str(caught.value) == (
        "no free /24 in 10.0.0.0/23: 1 used, 0 free, 1 refused "
        "(10.0.0.0/23 overlaps 10.0.1.7/32, InternalIP of node a); add a CIDR to cluster-pool-ipv4-cidr"
    )


def test_a_node_may_say_twice_what_it_has():
    """That is no conflict; another node's claim is."""
    pool = ClusterPool(POOL, 24)
    pool.take("a", BLOCKS[0])
    pool.take("a", BLOCKS[0])
    with pytest.raises(Conflict, match=r"10\.0\.0\.0/24 overlaps 10\.0\.0\.0/24, a pod CIDR of node a"):
        pool.take("b", BLOCKS[0])


def test_blocks_must_fit_into_the_pool():
    """A mask that is shorter than the pool's own is no mask."""
    with pytest.raises(PoolError, match="blocks of /16 do not fit into 10"):
        ClusterPool(POOL, 16)
