# SPDX-License-Identifier: Apache-2.0
"""
The ipcache: which identity an address has.

Single addresses and prefixes are two maps; a single address always wins, so a pod or a node keeps its
identity whatever prefixes policies mention.  Prefixes never name pods.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network

from ciliumd import abi
from ciliumd.model.endpoint import EndpointSpec
from ciliumd.model.identity import NumericIdentity, Reserved
from ciliumd.model.net import Addr, Prefix, addr16, fold32, is_single, prefix_bits16

_CLUSTER_BITS = 32
_LOCAL_CLUSTER = 0
_NO_TUNNEL = bytes(16)
# Longest match is over mapped addresses: ::/0 covers IPv4 as well, so IPv4 needs a row of its own.
WORLD_PREFIXES: dict[Prefix, NumericIdentity] = {
    IPv4Network("0.0.0.0/0"): int(Reserved.WORLD),
    IPv6Network("::/0"): int(Reserved.WORLD_IPV6),
}


@dataclass(frozen=True, slots=True)
class IpcacheRows:
    """Rows of ``cilium_ipcache_v1`` (*addresses*) and ``cilium_ipcache_lpm_v1`` (*prefixes*)."""

    addresses: dict[bytes, bytes]
    prefixes: dict[bytes, bytes]


def ipcache_rows(
    endpoints: Iterable[EndpointSpec],
    identities: Mapping[int, NumericIdentity],
    *,
    host_addresses: Iterable[Addr],
    prefixes: Mapping[Prefix, NumericIdentity],
) -> IpcacheRows:
    """
    Every address whose identity this node knows.

    *identities* gives the identity by endpoint id; an endpoint without one has no row and counts as
    world until it gets one.  The node's own addresses win over endpoints, endpoints over prefixes.
    """
    owners: dict[Addr, NumericIdentity] = {}
    for prefix, identity in prefixes.items():
        if is_single(prefix):
            owners[prefix.network_address] = identity
    for endpoint in endpoints:
        if endpoint.id in identities:
            owners.update(dict.fromkeys(endpoint.addresses, identities[endpoint.id]))
    owners.update(dict.fromkeys(host_addresses, int(Reserved.HOST)))

    wide: dict[Prefix, NumericIdentity] = dict(WORLD_PREFIXES)
    wide.update((prefix, identity) for prefix, identity in prefixes.items() if not is_single(prefix))
    return IpcacheRows(
        addresses=dict(address_row(addr, identity) for addr, identity in owners.items()),
        prefixes=dict(prefix_row(prefix, identity) for prefix, identity in wide.items()),
    )


def address_row(addr: Addr, identity: NumericIdentity) -> tuple[bytes, bytes]:
    """The row that gives a single address its identity."""
    packed = addr16(addr)
    return abi.IpcacheKey(packed, _LOCAL_CLUSTER).pack(), _entry(fold32(packed), identity)


def prefix_row(prefix: Prefix, identity: NumericIdentity) -> tuple[bytes, bytes]:
    """The row that gives a prefix its identity; a prefix's row carries no fold."""
    bits = _CLUSTER_BITS + prefix_bits16(prefix)
    key = abi.IpcacheLpmKey(bits, _LOCAL_CLUSTER, addr16(prefix.network_address))
    return key.pack(), _entry(0, identity)


def _entry(check: int, identity: NumericIdentity) -> bytes:
    return abi.IpcacheEntry(
        check=check, identity=identity, tunnel_endpoint=_NO_TUNNEL, encrypt_key=0, flags=0
    ).pack()
