# SPDX-License-Identifier: Apache-2.0
"""Host-scope IPAM: every address has one owner, none is used again before it must be."""

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from ciliumd.ipam.hostscope import (
    AddressInUse,
    AddressNotInPool,
    HostScope,
    IpamError,
    PoolExhausted,
)
from ciliumd.model.net import Addr

CIDR = ip_network("10.1.0.0/29")  # .1 is the router's, .2 to .6 are for endpoints


def test_first_usable_address_is_the_routers() -> None:
    """The router's address is fixed by the CIDR and never handed out or freed."""
    pool = HostScope(CIDR)

    assert pool.router == ip_address("10.1.0.1")
    assert not pool.release(pool.router)
    assert pool.allocate("pod") == ip_address("10.1.0.2")


def test_network_and_broadcast_addresses_are_never_handed_out() -> None:
    """A /29 has five addresses for endpoints."""
    pool = HostScope(CIDR)
    given_out = {pool.allocate(f"pod-{number}") for number in range(5)}

    assert given_out == {ip_address(f"10.1.0.{last}") for last in range(2, 7)}


def test_exhaustion_names_the_pool_and_its_counts() -> None:
    """The operator learns which CIDR is full and how full."""
    pool = HostScope(CIDR)
    for number in range(5):
        pool.allocate(f"pod-{number}")
    with pytest.raises(PoolExhausted, match=r"10\.1\.0\.0/29: 6 used, 0 free") as raised:
        pool.allocate("one too many")

    assert (raised.value.cidr, raised.value.used, raised.value.free) == (CIDR, 6, 0)


def test_freed_address_is_used_again_last_and_in_order() -> None:
    """Fresh addresses first, then the one that has been free the longest."""
    pool = HostScope(CIDR)
    two, three = pool.allocate("a"), pool.allocate("b")
    assert pool.release(three)
    assert pool.release(two)
    fresh = [pool.allocate(f"fresh-{number}") for number in range(3)]

    assert fresh == [ip_address(f"10.1.0.{last}") for last in (4, 5, 6)]
    assert [pool.allocate("again"), pool.allocate("again")] == [three, two]


def test_specific_address_is_given_to_who_asks_first() -> None:
    """Asking again for one's own is no error; asking for another's names its owner."""
    pool = HostScope(CIDR)
    address = ip_address("10.1.0.4")
    assert pool.reserve(address, "a") == address
    assert pool.reserve(address, "a") == address
    with pytest.raises(AddressInUse, match=r"10\.1\.0\.4 is in use by a"):
        pool.reserve(address, "b")

    assert pool.owner(address) == "a"


def test_quarantined_address_can_be_asked_for_by_name() -> None:
    """Who wants exactly this address gets it, and it is not handed out a second time."""
    pool = HostScope(CIDR)
    address = pool.allocate("a")
    pool.release(address)
    pool.reserve(address, "b")
    others = {pool.allocate(f"pod-{number}") for number in range(4)}

    assert address not in others
    assert pool.usage.quarantined == 0
    with pytest.raises(PoolExhausted):
        pool.allocate("full")


@pytest.mark.parametrize("text", ["10.1.0.0", "10.1.0.7", "10.1.1.2", "192.0.2.1", "fd00::2"])
def test_address_outside_of_the_usable_ones_is_refused(text: str) -> None:
    """Network, broadcast, another network, another family."""
    with pytest.raises(AddressNotInPool, match="is not a usable address of"):
        HostScope(CIDR).reserve(ip_address(text), "a")


def test_restored_owners_keep_their_addresses() -> None:
    """What cannot be restored is answered with its reason; the rest is."""
    pool = HostScope(CIDR)
    inside, outside = ip_address("10.1.0.3"), ip_address("10.9.0.3")
    refused = pool.restore([(inside, "a"), (outside, "b"), (pool.router, "c")])

    assert pool.owner(inside) == "a"
    assert {type(error) for error in refused.values()} == {AddressNotInPool, AddressInUse}
    assert refused.keys() == {outside, pool.router}
    assert pool.allocate("next") == ip_address("10.1.0.2")


@pytest.mark.parametrize("text", ["10.1.0.0/31", "10.1.0.0/32", "10.1.0.0/30"])
def test_cidr_needs_room_for_a_router_and_an_endpoint(text: str) -> None:
    """A /30 has room for both, smaller ones have not."""
    if text.endswith("/30"):
        assert HostScope(ip_network(text)).usage.free == 1
        return
    with pytest.raises(IpamError, match="no room for a router and an endpoint"):
        HostScope(ip_network(text))


def test_ipv6_pool_is_not_enumerated() -> None:
    """A /64 costs nothing; its last address is usable."""
    pool = HostScope(ip_network("fd00::/64"))

    assert pool.router == ip_address("fd00::1")
    assert pool.allocate("a") == ip_address("fd00::2")
    assert pool.reserve(ip_address("fd00::ffff:ffff:ffff:ffff"), "b")


@given(st.integers(24, 30), st.data())
def test_pool_hands_out_exactly_its_capacity(length: int, data: st.DataObject) -> None:
    """However many are reserved beforehand, allocation gives the rest, each once."""
    pool = HostScope(ip_network(f"10.1.0.0/{length}"))
    usable = list(ip_network(f"10.1.0.0/{length}").hosts())[1:]
    reserved = data.draw(st.sets(st.sampled_from(usable)))
    for address in reserved:
        pool.reserve(address, "reserved")
    allocated = [pool.allocate("pod") for _ in range(len(usable) - len(reserved))]

    assert sorted([*allocated, *reserved]) == usable
    assert pool.usage.free == 0


class Pool(RuleBasedStateMachine):
    """Against a model that keeps owners and the queue of freed addresses."""

    @initialize()
    def start(self) -> None:
        """Begin with an empty pool."""
        self.pool = HostScope(CIDR)
        self.owners: dict[Addr, str] = {self.pool.router: "router"}
        self.freed: list[Addr] = []
        self.number = 0

    @rule()
    def allocate(self) -> None:
        """A new pod."""
        self.number += 1
        owner = f"pod-{self.number}"
        try:
            address = self.pool.allocate(owner)
        except PoolExhausted:
            assert len(self.owners) == 6
            return
        assert address not in self.owners
        if address in self.freed:
            assert address == self.freed.pop(0), "the one that has been free the longest"
            assert len(self.owners) + len(self.freed) + 1 == 6, "only when no fresh one is left"
        self.owners[address] = owner

    @rule(last=st.integers(1, 6), owner=st.sampled_from(["a", "b"]))
    def reserve(self, last: int, owner: str) -> None:
        """Somebody wants one address."""
        address = ip_address(f"10.1.0.{last}")
        holder = self.owners.get(address)
        if holder not in {None, owner}:
            with pytest.raises(AddressInUse):
                self.pool.reserve(address, owner)
            return
        self.pool.reserve(address, owner)
        self.owners[address] = owner
        if address in self.freed:
            self.freed.remove(address)

    @rule(last=st.integers(1, 6))
    def release(self, last: int) -> None:
        """A pod is deleted, or was already."""
        address = ip_address(f"10.1.0.{last}")
        expected = last != 1 and address in self.owners
        assert self.pool.release(address) == expected
        if expected:
            del self.owners[address]
            self.freed.append(address)

    @invariant()
    def agrees_with_the_model(self) -> None:
        """Owners and counts are the model's."""
        if hasattr(self, "pool"):
            usage = self.pool.usage
            assert self.pool.owners() == self.owners
            assert (usage.used, usage.free, usage.quarantined) == (
                len(self.owners),
                6 - len(self.owners),
                len(self.freed),
            )


TestPool = Pool.TestCase
