# SPDX-License-Identifier: Apache-2.0
"""
Endpoint rows: what the programs shared by all endpoints must know of each.

An endpoint appears only when it is complete: without an identity and a policy version it has no rows,
and packets from and to it find nothing that would let them pass.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from struct import Struct
from types import MappingProxyType

from ciliumd import abi
from ciliumd.model.endpoint import EndpointSpec
from ciliumd.model.identity import NumericIdentity
from ciliumd.model.net import Addr, addr16, fold32, mac_bytes

_U32 = Struct("<I")
_U64 = Struct("<Q")
_NO_IPV6 = bytes(16)
_Flags = abi.EndpointFlags


@dataclass(frozen=True, slots=True)
class EndpointRows:
    """
    Rows by map: ``cilium_endpoints_v1`` (*facts*), ``cilium_lxc_v1`` (*addresses*),
    ``cilium_ifindex_v1`` (*devices*), ``cilium_netns_v1`` (*namespaces*).
    """

    facts: dict[bytes, bytes] = field(default_factory=dict)
    addresses: dict[bytes, bytes] = field(default_factory=dict)
    devices: dict[bytes, bytes] = field(default_factory=dict)
    namespaces: dict[bytes, bytes] = field(default_factory=dict)


def state_word(slot_gen: int, policy_version: int) -> int:
    """What is written with one store: the generation of the slot and the policy that holds there."""
    return slot_gen << 32 | policy_version


def complete_of(
    endpoints: Iterable[EndpointSpec],
    identities: Mapping[int, NumericIdentity],
    versions: Mapping[int, int],
) -> list[EndpointSpec]:
    """The complete ones: *identities* and *versions* give identity and policy version by endpoint id."""
    return [one for one in endpoints if one.id in identities and one.id in versions]


def endpoint_rows(
    complete: Iterable[EndpointSpec],
    identities: Mapping[int, NumericIdentity],
    *,
    host_addresses: Iterable[Addr] = (),
    audited: Collection[int] = (),
    answers_denied: bool = False,
    judged: Mapping[Addr, NumericIdentity] = MappingProxyType({}),
) -> EndpointRows:
    """
    The rows of every *complete* endpoint but its word, and of the node's own addresses.

    *identities* gives the identity by endpoint id; *audited* are the ids of endpoints whose policy drops are
    only reported.  With *answers_denied* senders are told of theirs.
    *judged* is what endpoints are judged by at addresses where that is not their identity.
    """
    rows = EndpointRows()
    shared = _Flags.ENDPOINT_F_DENY_RESPONSE if answers_denied else 0
    for endpoint in complete:
        slot = _U32.pack(endpoint.slot)
        flags = shared | (_Flags.ENDPOINT_F_AUDIT if endpoint.id in audited else 0)
        rows.facts[slot] = endpoint_fact(endpoint, identities[endpoint.id], flags=flags, judged=judged).pack()
        rows.devices[_U32.pack(endpoint.ifindex)] = slot
        if endpoint.netns_cookie:
            rows.namespaces[_U64.pack(endpoint.netns_cookie)] = slot
        rows.addresses.update(address_row(addr, endpoint.slot) for addr in endpoint.addresses)
    # Last, so that an address of the node stays the node's whatever a pod claims.
    rows.addresses.update(address_row(addr, int(abi.Slot.SLOT_HOST)) for addr in host_addresses)
    return rows


def state_rows(complete: Iterable[EndpointSpec], versions: Mapping[int, int]) -> dict[bytes, bytes]:
    """Rows of ``cilium_endpoint_state_v1``, the words: all that a change of policies changes of endpoints."""
    return {_U32.pack(one.slot): _U64.pack(state_word(one.slot_gen, versions[one.id])) for one in complete}


def endpoint_fact(
    endpoint: EndpointSpec,
    identity: NumericIdentity,
    *,
    flags: int = 0,
    judged: Mapping[Addr, NumericIdentity] = MappingProxyType({}),
) -> abi.Endpoint:
    """The facts of one endpoint; *flags* are of ``abi.EndpointFlags``, *judged* as for all (see above)."""
    return abi.Endpoint(
        identity=identity,
        id=endpoint.id,
        flags=flags,
        ifindex=endpoint.ifindex,
        slot_gen=endpoint.slot_gen,
        ipv4=int(endpoint.ipv4) if endpoint.ipv4 is not None else 0,
        judged_ipv4=judged.get(endpoint.ipv4, 0) if endpoint.ipv4 is not None else 0,
        ipv6=addr16(endpoint.ipv6) if endpoint.ipv6 is not None else _NO_IPV6,
        mac=mac_bytes(endpoint.mac),
        node_mac=mac_bytes(endpoint.node_mac),
        judged_ipv6=judged.get(endpoint.ipv6, 0) if endpoint.ipv6 is not None else 0,
    )


def address_row(addr: Addr, slot: int) -> tuple[bytes, bytes]:
    """The row that leads from an address to its endpoint's slot, or to the node."""
    packed = addr16(addr)
    return abi.LxcKey(packed).pack(), abi.LxcValue(fold32(packed), slot).pack()
