# SPDX-License-Identifier: Apache-2.0
"""
Host-scope IPAM: hands out the addresses of this node's own pod CIDR.

The first usable address is the router's; the network address and the IPv4 broadcast address are
never handed out.  A freed address goes to the end of a queue and is used again only when every
address that was never used is gone, oldest first, so that packets still under way for a deleted pod
do not reach its successor.

Memory only: the caller restores the owners after a restart and configures the addresses.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from ciliumd.model.net import Addr, Prefix

ROUTER_OWNER = "router"


class IpamError(Exception):
    """The request cannot be served; the text says which pool or address and why."""


class PoolExhausted(IpamError):
    """No address is left in *cidr*."""

    def __init__(self, cidr: Prefix, *, used: int, free: int) -> None:
        super().__init__(
            f"no free address in {cidr}: {used} used, {free} free; "
            "delete endpoints or give the node a larger pod CIDR"
        )
        self.cidr = cidr
        self.used = used
        self.free = free


class AddressInUse(IpamError):
    """*address* already belongs to *owner*."""

    def __init__(self, address: Addr, owner: str) -> None:
        super().__init__(f"address {address} is in use by {owner}")
        self.address = address
        self.owner = owner


class AddressNotInPool(IpamError):
    """*address* is not one the pool of *cidr* may hand out."""

    def __init__(self, address: Addr, cidr: Prefix) -> None:
        super().__init__(f"address {address} is not a usable address of {cidr}")
        self.address = address
        self.cidr = cidr


@dataclass(frozen=True, slots=True)
class PoolUsage:
    """Counts of one pool; *used* includes the router, *quarantined* is the part of *free* used before."""

    cidr: Prefix
    used: int
    free: int
    quarantined: int


class HostScope:
    """The pool of one pod CIDR."""

    def __init__(self, cidr: Prefix) -> None:
        self.cidr = cidr
        self._first = int(cidr.network_address) + 1
        self._last = int(cidr.broadcast_address) - (1 if cidr.version == 4 else 0)
        if self._last <= self._first:
            raise IpamError(f"pod CIDR {cidr} has no room for a router and an endpoint; use a larger one")
        self._owners: dict[Addr, str] = {}
        self._fresh = self._first
        self._freed: deque[Addr] = deque()
        self._quarantined: set[Addr] = set()
        self.router = self.reserve(self._address(self._first), ROUTER_OWNER)

    @property
    def usage(self) -> PoolUsage:
        """How full the pool is."""
        used = len(self._owners)
        return PoolUsage(
            cidr=self.cidr,
            used=used,
            free=self._last - self._first + 1 - used,
            quarantined=len(self._quarantined),
        )

    def owner(self, address: Addr) -> str | None:
        """Who holds *address*, if anybody."""
        return self._owners.get(address)

    def owners(self) -> dict[Addr, str]:
        """Every address in use and its owner, the router included."""
        return dict(self._owners)

    def allocate(self, owner: str) -> Addr:
        """Give *owner* an address: one never used so far, else the one that has been free the longest."""
        while self._fresh <= self._last:
            address = self._address(self._fresh)
            self._fresh += 1
            if address not in self._owners and address not in self._quarantined:
                self._owners[address] = owner
                return address
        while self._freed:
            address = self._freed.popleft()
            if address in self._quarantined:  # not taken by reserve() in the meantime
                self._quarantined.discard(address)
                self._owners[address] = owner
                return address
        usage = self.usage
        raise PoolExhausted(self.cidr, used=usage.used, free=usage.free)

    def reserve(self, address: Addr, owner: str) -> Addr:
        """Give *owner* exactly *address*; asking again for what one already holds is no error."""
        if address.version != self.cidr.version or not self._first <= int(address) <= self._last:
            raise AddressNotInPool(address, self.cidr)
        holder = self._owners.get(address)
        if holder is not None and holder != owner:
            raise AddressInUse(address, holder)
        if address in self._quarantined:
            self._quarantined.discard(address)
            self._freed.remove(address)
        self._owners[address] = owner
        return address

    def release(self, address: Addr) -> bool:
        """Free *address*; tell whether it was in use.  The router's is never freed."""
        if address == self.router or self._owners.pop(address, None) is None:
            return False
        self._freed.append(address)
        self._quarantined.add(address)
        return True

    def restore(self, owners: Iterable[tuple[Addr, str]]) -> dict[Addr, IpamError]:
        """Reserve what endpoints held before a restart; answer those that could not be, and why."""
        refused: dict[Addr, IpamError] = {}
        for address, owner in owners:
            try:
                self.reserve(address, owner)
            except IpamError as error:
                refused[address] = error
        return refused

    def _address(self, value: int) -> Addr:
        return IPv4Address(value) if self.cidr.version == 4 else IPv6Address(value)
