# SPDX-License-Identifier: Apache-2.0
"""Which addresses no service may take, and what an explicit list changes about that."""

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ciliumd.desired.guard import NO_GUARD, Guard, guard
from ciliumd.model.net import Addr, Prefix
from ciliumd.model.objects import CILIUM_INTERNAL_IP, EXTERNAL_IP, INTERNAL_IP, NodeRow

pytestmark = pytest.mark.unit

NODE = NodeRow(
    "one",
    addresses=(
        (INTERNAL_IP, ip_address("192.0.2.1")),
        (EXTERNAL_IP, ip_address("203.0.113.1")),
        (CILIUM_INTERNAL_IP, ip_address("10.0.0.1")),
        (INTERNAL_IP, ip_address("2001:db8::1")),
    ),
    pod_cidrs=(ip_network("10.0.0.0/24"), ip_network("fd00:1::/64")),
    health=(ip_address("10.0.0.9"),),
)


def kept(*allowed: str) -> Guard:
    """The guard of a cluster with one node, an API server and a resolver; *allowed* networks may be taken."""
    return guard(
        [NODE],
        protected=[(ip_address("192.0.2.100"), "the API server"), (ip_address("192.0.2.53"), "a resolver")],
        pods=[ip_network("10.0.7.0/24")],
        allowed=[ip_network(one) for one in allowed],
    )


@pytest.mark.parametrize(
    ("address", "objection"),
    [
        ("192.0.2.1", "192.0.2.1 is an address of node one"),
        ("203.0.113.1", "203.0.113.1 is an address of node one"),
        ("10.0.0.1", "10.0.0.1 is an address of node one"),
        ("2001:db8::1", "2001:db8::1 is an address of node one"),
        ("10.0.0.9", "10.0.0.9 is an address of node one"),
        ("10.0.0.200", "10.0.0.200 is a pod's: it is in the pod CIDR of node one"),
        ("fd00:1::77", "fd00:1::77 is a pod's: it is in the pod CIDR of node one"),
        ("10.0.7.7", "10.0.7.7 is a pod's: it is in this node's pod CIDR"),
        ("192.0.2.100", "192.0.2.100 is the API server"),
        ("192.0.2.53", "192.0.2.53 is a resolver"),
        ("198.51.100.7", ""),
        ("10.0.1.1", ""),
        ("2001:db8::2", ""),
    ],
)
def test_what_is_somebodys_is_kept(address: str, objection: str) -> None:
    """And it is said whose it is."""
    assert kept().objection(ip_address(address)) == objection


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.255.255.254", "::1"),
        *("224.0.0.251", "239.1.1.1", "ff02::1", "ff0e::1"),
        *("169.254.169.254", "fe80::1"),
        *("0.0.0.0", "0.1.2.3", "::", "255.255.255.255"),
    ],
)
def test_special_addresses_are_nobodys(address: str) -> None:
    """Not even of who is allowed every other."""
    addr = ip_address(address)

    assert kept("0.0.0.0/0", "::/0").objection(addr)
    assert NO_GUARD.objection(addr)


def test_a_list_gives_away_what_it_names_and_nothing_else() -> None:
    """A node's address, one of a pod network, both families."""
    lent = kept("192.0.2.1/32", "10.0.0.128/25", "2001:db8::/64")

    free = ["192.0.2.1", "10.0.0.200", "2001:db8::1"]
    assert [lent.objection(ip_address(one)) for one in free] == [""] * 3
    assert lent.objection(ip_address("10.0.0.100"))
    assert lent.objection(ip_address("192.0.2.100"))


def test_the_longest_network_tells_whose_an_address_is() -> None:
    """A block inside a block."""
    found = guard(
        [
            NodeRow("wide", pod_cidrs=(ip_network("10.0.0.0/8"),)),
            NodeRow("near", pod_cidrs=(ip_network("10.1.0.0/24"),)),
        ]
    )

    assert found.objection(ip_address("10.1.0.1")).endswith("node near")
    assert found.objection(ip_address("10.1.1.1")).endswith("node wide")


NETWORKS = st.one_of(
    st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 32)).map(
        lambda one: ip_network((one[0], one[1]), strict=False)
    ),
    st.tuples(st.integers(0, 2**128 - 1), st.integers(0, 128)).map(
        lambda one: ip_network((one[0], one[1]), strict=False)
    ),
)
ADDRESSES = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6))


@given(st.lists(NETWORKS, max_size=6), st.lists(NETWORKS, max_size=3), st.lists(ADDRESSES, max_size=4))
def test_an_address_is_kept_exactly_if_a_network_holds_it(
    pods: list[Prefix], allowed: list[Prefix], addresses: list[Addr]
) -> None:
    """As the standard library reads networks."""
    judge = guard([], pods=pods, allowed=allowed)
    addresses += [network.network_address for network in pods] + [one[-1] for one in allowed]

    for addr in addresses:
        if NO_GUARD.objection(addr):
            continue
        taken = any(addr in network for network in pods)
        lent = any(addr in network for network in allowed)
        assert bool(judge.objection(addr)) == (taken and not lent)
        assert judge.allows(addr) == lent
