# SPDX-License-Identifier: Apache-2.0
"""
The ipcache: which identity an address has, and which node's tunnel leads to it.

Single addresses and prefixes are two maps; a single address always wins, so a pod or a node keeps its
identity whatever prefixes policies mention.  Prefixes never name pods; those of other nodes' pods only
say where a pod is that nobody has published yet.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from typing import NamedTuple

from ciliumd import abi
from ciliumd.model.endpoint import EndpointSpec
from ciliumd.model.identity import NumericIdentity, Reserved
from ciliumd.model.net import Addr, Prefix, addr16, fold32, holds, is_single, prefix_bits16, prefix_order

_CLUSTER_BITS = 32
_LOCAL_CLUSTER = 0
_NO_TUNNEL = bytes(16)


class Owner(NamedTuple):
    """
    Whose an address is: its identity, and the node to encapsulate for; None: reached directly.

    *judged* is the number that policies judge it by; 0: the identity.
    """

    identity: NumericIdentity
    tunnel: Addr | None = None
    judged: NumericIdentity = 0


Within = Mapping[bytes, Collection[tuple[bool, bytes]]]


# Longest match is over mapped addresses: ::/0 covers IPv4 as well, so IPv4 needs a row of its own.
WORLD_PREFIXES: dict[Prefix, Owner] = {
    IPv4Network("0.0.0.0/0"): Owner(int(Reserved.WORLD)),
    IPv6Network("::/0"): Owner(int(Reserved.WORLD_IPV6)),
}


@dataclass(frozen=True, slots=True)
class IpcacheRows:
    """
    Rows of ``cilium_ipcache_v1`` (*addresses*) and ``cilium_ipcache_lpm_v1`` (*prefixes*).

    *within* are the keys of the next longer prefixes, and of the single addresses that policies name,
    inside each prefix that holds some: while their rows are missing they would be taken for the prefix.
    """

    addresses: dict[bytes, bytes]
    prefixes: dict[bytes, bytes]
    within: Within = field(default_factory=dict)
    """By key of a prefix: whether it is a single address, and its key."""

    def judged_as(self, addr: Addr) -> tuple[NumericIdentity, ...]:
        """What the row of *addr* says that policies judge it by; nothing if it has none."""
        row = self.addresses.get(address_key(addr))
        return () if row is None else (judged_by(row),)

    def identity_of(self, prefix: Prefix) -> NumericIdentity | None:
        """The identity that the row of *prefix* gives; None if it has none."""
        return identity_of(prefix, self.addresses.get, self.prefixes.get)


@dataclass(frozen=True, slots=True, eq=False)
class Beyond:
    """
    What is known of addresses beyond this node that are no pods' (see ``desired.cluster``).

    There may be thousands: two of them are equal when they are the same.
    """

    addresses: Mapping[Addr, Owner] = field(default_factory=dict)
    prefixes: Mapping[Prefix, Owner] = field(default_factory=dict)

    def tunnel_to(self, prefix: Prefix) -> Addr | None:
        """Where a prefix leads that a policy names inside some node's pods; None for any other."""
        for length in sorted({(one.version, one.prefixlen) for one in self.prefixes}, reverse=True):
            if length[0] == prefix.version and length[1] <= prefix.prefixlen:
                owner = self.prefixes.get(prefix.supernet(new_prefix=length[1]))
                if owner is not None:
                    return owner.tunnel
        return None


@dataclass(frozen=True, slots=True, eq=False)
class Owners:
    """
    Whose single addresses are, other nodes' pods aside: *first* win over these, and *last* lose to them.

    *fixed* are judged as what they are, whatever is said.  Two are equal when they are the same.
    """

    first: Mapping[Addr, Owner] = field(default_factory=dict)
    last: Mapping[Addr, Owner] = field(default_factory=dict)
    fixed: frozenset[Addr] = frozenset()


def single_owners(
    endpoints: Iterable[EndpointSpec],
    identities: Mapping[int, NumericIdentity],
    *,
    host_addresses: Iterable[Addr],
    prefixes: Mapping[Prefix, NumericIdentity],
    beyond: Beyond = Beyond(),
) -> Owners:
    """
    Whose the single addresses are that are no other node's pods'.

    *identities* gives the identity by endpoint id; an endpoint without one has no row and counts as
    world until it gets one.  The node's own addresses win over its endpoints, these over what is beyond,
    and all of them over the *prefixes* of policies.
    """
    first = dict(beyond.addresses)
    for endpoint in endpoints:
        if endpoint.id in identities:
            first.update(dict.fromkeys(endpoint.addresses, Owner(identities[endpoint.id])))
    hosts = dict.fromkeys(host_addresses, Owner(int(Reserved.HOST)))
    first.update(hosts)
    last = {
        prefix.network_address: Owner(number, beyond.tunnel_to(prefix))
        for prefix, number in prefixes.items()
        if is_single(prefix)
    }
    return Owners(first, last, frozenset(hosts))


def prefix_rows(
    prefixes: Mapping[Prefix, NumericIdentity], beyond: Beyond = Beyond()
) -> tuple[dict[bytes, bytes], Within]:
    """The rows of all *prefixes* that are no single address, and of what is beyond; what is within each."""
    wide = dict(WORLD_PREFIXES)
    wide.update(beyond.prefixes)
    wide.update(
        (prefix, Owner(number, beyond.tunnel_to(prefix)))
        for prefix, number in prefixes.items()
        if not is_single(prefix)
    )
    rows = dict(prefix_row(prefix, one.identity, one.tunnel) for prefix, one in wide.items())
    return rows, _within({*prefixes, *beyond.prefixes} - WORLD_PREFIXES.keys())


def _within(prefixes: Collection[Prefix]) -> dict[bytes, list[tuple[bool, bytes]]]:
    """The next longer of *prefixes* in each of them, as keys; without them all of it is the world."""
    found: dict[bytes, list[tuple[bool, bytes]]] = {}
    around: list[Prefix] = []
    for prefix in sorted(prefixes, key=prefix_order):
        while around and not holds(around[-1], prefix):
            around.pop()
        if around:
            single = is_single(prefix)
            key = address_key(prefix.network_address) if single else prefix_key(prefix)
            found.setdefault(prefix_key(around[-1]), []).append((single, key))
        around.append(prefix)
    return found


def identity_of(
    prefix: Prefix,
    addresses: Callable[[bytes], bytes | None],
    prefixes: Callable[[bytes], bytes | None],
) -> NumericIdentity | None:
    """The identity that the row of *prefix* gives, from what the two maps hold; None if there is no row."""
    if is_single(prefix):
        row = addresses(address_key(prefix.network_address))
    else:
        row = prefixes(prefix_key(prefix))
    return None if row is None else abi.IpcacheEntry.unpack(row).identity


def judged_by(row: bytes) -> NumericIdentity:
    """The number that a *row* says policies judge by."""
    entry = abi.IpcacheEntry.unpack(row)
    return entry.judged or entry.identity


def address_key(addr: Addr) -> bytes:
    """The key of a single address."""
    return abi.IpcacheKey(addr16(addr), _LOCAL_CLUSTER).pack()


def prefix_key(prefix: Prefix) -> bytes:
    """The key of a prefix."""
    bits = _CLUSTER_BITS + prefix_bits16(prefix)
    return abi.IpcacheLpmKey(bits, _LOCAL_CLUSTER, addr16(prefix.network_address)).pack()


def address_row(
    addr: Addr, identity: NumericIdentity, tunnel: Addr | None = None, judged: NumericIdentity = 0
) -> tuple[bytes, bytes]:
    """The row that gives a single address its identity."""
    return address_key(addr), _entry(fold32(addr16(addr)), identity, tunnel, judged)


def prefix_row(prefix: Prefix, identity: NumericIdentity, tunnel: Addr | None = None) -> tuple[bytes, bytes]:
    """The row that gives a prefix its identity; a prefix's row carries no fold."""
    return prefix_key(prefix), _entry(0, identity, tunnel)


def _entry(check: int, identity: int, tunnel: Addr | None, judged: int = 0) -> bytes:
    return abi.IpcacheEntry(
        check=check,
        identity=identity,
        tunnel_endpoint=_NO_TUNNEL if tunnel is None else addr16(tunnel),
        encrypt_key=0,
        flags=0,
        judged=judged,
    ).pack()
