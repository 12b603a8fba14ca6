# SPDX-License-Identifier: Apache-2.0
"""
The numbers others hold on to, read back from the live maps of an earlier agent.

Service, backend, endpoint and identity numbers, slot generations and policy versions must survive a
restart: packets, conntrack rows and flows refer to them.  Pure functions over packed rows; nothing is
read or written here, and a row that makes no sense is left out (the reconciler replaces it).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_network

from ciliumd import abi
from ciliumd.model.identity import LOCAL_MAX, LOCAL_MIN, NumericIdentity, is_node
from ciliumd.model.net import Addr, Prefix, addr_from16, mac_str
from ciliumd.model.service import PROTOCOL_NUMBERS, BackendKey, FrontendKey

Rows = Mapping[bytes, bytes]

_PROTOCOLS = {number: name for name, number in PROTOCOL_NUMBERS.items()}
_CLUSTER_ID_BITS = 32
_MAPPED_BITS = 96
_NO_ADDRESS = bytes(16)


@dataclass(frozen=True, slots=True)
class LiveEndpoint:
    """What the datapath knows of the endpoint in *slot*, and the policy version it is judged by."""

    slot: int
    slot_gen: int
    policy_version: int
    id: int
    identity: NumericIdentity
    ifindex: int
    ipv4: IPv4Address | None
    ipv6: IPv6Address | None
    mac: str
    node_mac: str


def service_ids(services: Rows) -> dict[FrontendKey, int]:
    """Service (revNAT) id of every frontend, from ``cilium_lb_services``."""
    ids: dict[FrontendKey, int] = {}
    for raw_key, raw in services.items():
        key = abi.LbServiceKey.unpack(raw_key)
        protocol = _PROTOCOLS.get(key.protocol)
        if key.slot == 0 and protocol is not None:
            frontend = FrontendKey(addr_from16(key.addr), key.port, protocol, key.scope)
            ids[frontend] = abi.LbService.unpack(raw).rev_nat
    return ids


def backend_ids(backends: Rows) -> dict[BackendKey, int]:
    """Id of every backend, from ``cilium_lb_backends``; of two with one address the lower id stays."""
    ids: dict[BackendKey, int] = {}
    for raw in backends.values():
        row = abi.LbBackend.unpack(raw)
        protocol = _PROTOCOLS.get(row.protocol)
        if protocol is not None:
            key = BackendKey(addr_from16(row.addr), row.port, protocol)
            ids[key] = min(row.id, ids.get(key, row.id))
    return ids


def endpoints(facts: Rows, states: Rows) -> dict[int, LiveEndpoint]:
    """
    Every endpoint the datapath serves, by slot, from ``cilium_endpoints`` and ``cilium_endpoint_state``.

    A slot whose state word is 0, or of another generation than its facts, has no endpoint.
    """
    live: dict[int, LiveEndpoint] = {}
    for raw_slot, raw_word in states.items():
        word = int.from_bytes(raw_word, "little")
        raw = facts.get(raw_slot)
        if not word or raw is None:
            continue
        row = abi.Endpoint.unpack(raw)
        if row.slot_gen != word >> 32:
            continue
        slot = int.from_bytes(raw_slot, "little")
        live[slot] = LiveEndpoint(
            slot=slot,
            slot_gen=row.slot_gen,
            policy_version=word & 0xFFFFFFFF,
            id=row.id,
            identity=row.identity,
            ifindex=row.ifindex,
            ipv4=IPv4Address(row.ipv4) if row.ipv4 else None,
            ipv6=IPv6Address(row.ipv6) if row.ipv6 != _NO_ADDRESS else None,
            mac=mac_str(row.mac),
            node_mac=mac_str(row.node_mac),
        )
    return live


def identities(ipcache: Rows) -> dict[Addr, NumericIdentity]:
    """
    Identity of every single address, from ``cilium_ipcache``.

    Maps know no labels: whoever knows the labels of the pod behind an address learns from this which
    number they had.
    """
    found: dict[Addr, NumericIdentity] = {}
    for raw_key, raw in ipcache.items():
        key = abi.IpcacheKey.unpack(raw_key)
        if key.cluster_id == 0:
            found[addr_from16(key.addr)] = abi.IpcacheEntry.unpack(raw).identity
    return found


def prefixes(ipcache: Rows, ipcache_lpm: Rows) -> dict[Prefix, NumericIdentity]:
    """Local identity of every prefix policies name, from both ipcache maps (a /32 is in the first)."""
    found: dict[Prefix, NumericIdentity] = {
        ip_network(address): identity
        for address, identity in identities(ipcache).items()
        if LOCAL_MIN <= identity <= LOCAL_MAX
    }
    for raw_key, raw in ipcache_lpm.items():
        key = abi.IpcacheLpmKey.unpack(raw_key)
        identity = abi.IpcacheEntry.unpack(raw).identity
        prefix = _prefix(key)
        if key.cluster_id == 0 and LOCAL_MIN <= identity <= LOCAL_MAX and prefix is not None:
            found[prefix] = identity
    return found


def nodes(ipcache: Rows) -> dict[Addr, NumericIdentity]:
    """Local identity of every address of another node that has one of its own."""
    return {addr: identity for addr, identity in identities(ipcache).items() if is_node(identity)}


def _prefix(key: abi.IpcacheLpmKey) -> Prefix | None:
    """The prefix *key* spells; None if its length is impossible."""
    bits = key.prefixlen - _CLUSTER_ID_BITS
    if not 0 <= bits <= 128:
        return None
    network = IPv6Network((key.addr, bits), strict=False)
    mapped = network.network_address.ipv4_mapped
    if mapped is not None and bits >= _MAPPED_BITS:
        return ip_network((mapped, bits - _MAPPED_BITS))
    return network
