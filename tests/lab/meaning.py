# SPDX-License-Identifier: Apache-2.0
"""
What the maps of a node mean to packets, without the numbers in between.

Two agents give different numbers to the same service, policy or endpoint; what a packet meets must be
the same all the same.  Here rows are followed as the programs follow them, from an address to what becomes
of it, and rows that lead nowhere are named.  The layouts are ``abi``'s, nothing else of the agent is used.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import IPv6Address, ip_network
from typing import Final

from ciliumd import abi
from lab.maps import INNER, Dump

Backends = tuple[str, ...]
Sources = tuple[str, frozenset[str]]
Rules = frozenset[tuple[str, int, int, int]]
# By identity and direction; identity 0 is everybody who is not named.
Policy = dict[tuple[int, int], Rules]
OTHERS: Final = 0


@dataclass
class Meaning:
    """
    *services* is backends by ``address:port/protocol``, *frontends* what such a frontend is, *sources* the
    ranges that it lets in or keeps out, if it does, *policies* by the address of the endpoint that is
    under them, *identities* by address or prefix; *broken* are rows that lead nowhere.
    """

    services: dict[str, Backends] = field(default_factory=dict)
    frontends: dict[str, str] = field(default_factory=dict)
    sources: dict[str, Sources] = field(default_factory=dict)
    policies: dict[str, Policy] = field(default_factory=dict)
    identities: dict[str, int] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)

    def differences(self, other: "Meaning") -> list[str]:
        """What is not the same, one line each."""
        return [
            f"{part} {key}: {mine.get(key)} -> {theirs.get(key)}"
            for part in ("services", "frontends", "sources", "policies", "identities")
            for mine, theirs in [(getattr(self, part), getattr(other, part))]
            for key in sorted(mine.keys() | theirs.keys())
            if mine.get(key) != theirs.get(key)
        ]


def meaning(dump: Dump) -> Meaning:
    """What a dump of a node's maps (``maps.dump``) means."""
    found = Meaning()
    _services(dump, found)
    _endpoints(dump, found)
    for key, value in _rows(dump, "cilium_ipcache_v1"):
        found.identities[_address(abi.IpcacheKey.unpack(key).addr)] = abi.IpcacheEntry.unpack(value).identity
    for key, value in _rows(dump, "cilium_ipcache_lpm_v1"):
        row = abi.IpcacheLpmKey.unpack(key)
        name = f"{_address(row.addr)}/{row.prefixlen}"
        found.identities[name] = abi.IpcacheEntry.unpack(value).identity
    return found


def _services(dump: Dump, found: Meaning) -> None:
    rows = _rows(dump, "cilium_lb_services_v1")
    services = {abi.LbServiceKey.unpack(key): abi.LbService.unpack(value) for key, value in rows}
    backends = dict(_rows(dump, "cilium_lb_backends_v1"))
    revnats = dict(_rows(dump, "cilium_lb_revnat_v1"))
    needs = _Needs(dump, found)
    reached: set[bytes] = set()
    slots: set[abi.LbServiceKey] = set()
    for key, head in services.items():
        if key.slot or not key.port:
            continue
        name = f"{_address(key.addr)}:{key.port}/{key.protocol}" + (f"/{key.scope}" if key.scope else "")
        number = head.rev_nat.to_bytes(4, "little")
        revnat = abi.LbRevnat.unpack(revnats[number]) if number in revnats else None
        if revnat is None or (revnat.id, revnat.port, revnat.addr) != (head.rev_nat, key.port, key.addr):
            found.broken.append(f"{name}: its number {head.rev_nat} leads to {revnat}")
        reached.add(number)
        needs.frontend(name, key, head)
        chosen = []
        for slot in range(1, head.target + 1):
            place = abi.LbServiceKey(key.addr, key.port, key.protocol, key.scope, slot)
            slots.add(place)
            row = services.get(place)
            target = b"" if row is None else row.target.to_bytes(4, "little")
            if row is None or target not in backends:
                found.broken.append(f"{name}: slot {slot} of {head.target} leads to {row}, which is missing")
                continue
            needs.backend(name, row)
            backend = abi.LbBackend.unpack(backends[target])
            if backend.id != row.target:
                found.broken.append(f"{name}: backend {row.target} says that it is {backend.id}")
            chosen.append(f"{_address(backend.addr)}:{backend.port}/{backend.protocol}/{backend.state}")
        found.services[name] = tuple(sorted(chosen))
    found.unused += [f"slot {key}" for key in services if key.slot and key not in slots]
    found.unused += [f"revNAT {number.hex()}" for number in revnats.keys() - reached]
    used = {services[slot].target.to_bytes(4, "little") for slot in slots if slot in services}
    found.unused += [f"backend {number.hex()}" for number in backends.keys() - used]
    needs.finish()


class _Needs:
    """What a frontend depends on for its meaning, in maps beside: ranges, affinity, the ports of the node."""

    def __init__(self, dump: Dump, found: Meaning) -> None:
        self._found = found
        self._sources: dict[tuple[int, int], set[str]] = {}
        for packed, _ in _rows(dump, "cilium_lb_source_range_v1"):
            key = abi.LbSourceKey.unpack(packed)
            self._sources.setdefault((key.rev_nat, key.policy), set()).add(_range(key))
        self._matches = {
            abi.LbAffinityMatch.unpack(key) for key, _ in _rows(dump, "cilium_lb_affinity_match_v1")
        }
        self._bound = {abi.LbBindKey.unpack(key) for key, _ in _rows(dump, "cilium_lb_bind_v1")}
        self._used: set[object] = set()

    def frontend(self, name: str, key: abi.LbServiceKey, head: abi.LbService) -> None:
        """Note what a frontend is, and who may ask there."""
        flags = abi.LbServiceFlags
        words = [flag.name for flag in flags if head.flags & flag]
        self._found.frontends[name] = f"{' '.join(words)} {head.affinity_timeout}"
        if policy := head.flags & (flags.LB_F_SOURCES_ALLOW | flags.LB_F_SOURCES_DENY):
            self._used.add((head.rev_nat, policy))
            ranges = self._sources.get((head.rev_nat, policy), set())
            self._found.sources[name] = flags(policy).name, frozenset(ranges)
        if head.flags & flags.LB_F_NODE_PORT:
            bound = abi.LbBindKey(key.port, key.protocol)
            self._used.add(bound)
            if bound not in self._bound:
                self._found.broken.append(f"{name}: any socket of the node may bind its port")

    def backend(self, name: str, slot: abi.LbService) -> None:
        """Note that a frontend leads to a backend."""
        if slot.flags & abi.LbServiceFlags.LB_F_AFFINITY:
            match = abi.LbAffinityMatch(slot.target, slot.rev_nat)
            self._used.add(match)
            if match not in self._matches:
                self._found.broken.append(f"{name}: no client may keep backend {slot.target}")

    def finish(self) -> None:
        """Name the rows that nobody needs."""
        rows = [*self._sources, *sorted(self._matches, key=repr), *sorted(self._bound, key=repr)]
        self._found.unused += [f"{one}" for one in rows if one not in self._used]


def _range(key: abi.LbSourceKey) -> str:
    bits = key.prefixlen - abi.LbSourcePrefix.LB_SOURCE_PREFIX_FRONTEND
    address = _address(key.addr)
    return str(ip_network(f"{address}/{bits if ':' in address else bits - 96}"))


def _endpoints(dump: Dump, found: Meaning) -> None:
    facts, states = dict(_rows(dump, "cilium_endpoints_v1")), dict(_rows(dump, "cilium_endpoint_state_v1"))
    versions: set[bytes] = set()
    for key, value in _rows(dump, "cilium_lxc_v1"):
        address, row = _address(abi.LxcKey.unpack(key).addr), abi.LxcValue.unpack(value)
        if row.slot == abi.Slot.SLOT_HOST:
            continue
        slot = row.slot.to_bytes(4, "little")
        word = states.get(slot, bytes(8))
        generation = int.from_bytes(word[4:], "little")
        if slot not in facts or abi.Endpoint.unpack(facts[slot]).slot_gen != generation:
            found.broken.append(f"address {address} leads to slot {row.slot}, which is nobody's")
            continue
        found.identities[f"endpoint {address}"] = abi.Endpoint.unpack(facts[slot]).identity
        versions.add(word[:4])
        policy = _policy(dump, word[:4])
        if policy is None:
            found.broken.append(f"endpoint {address}: no policy version {int.from_bytes(word[:4], 'little')}")
        else:
            found.policies[address] = policy
    hung = {key for name in INNER for key, _ in _rows(dump, name)}
    found.unused += [f"policy version {int.from_bytes(version, 'little')}" for version in hung - versions]


def _policy(dump: Dump, version: bytes) -> Policy | None:
    classes = dump["cilium_policy_classes_v1"].get(version)
    rules = dump["cilium_policy_rules_v1"].get(version)
    if not isinstance(classes, dict) or not isinstance(rules, dict):
        return None
    by_class: dict[tuple[int, int], set[tuple[str, int, int, int]]] = {}
    for key, value in rules.items():
        rule, entry = abi.PolicyKey.unpack(key), abi.PolicyEntry.unpack(value)
        match = f"{rule.protocol}:{rule.dport}/{rule.prefixlen}"
        by_class.setdefault((rule.class_id, rule.direction), set()).add(
            (match, entry.verdict, entry.proxy_slot, entry.rule_cookie)
        )
    policy = {
        (OTHERS, direction): frozenset(found) for (number, direction), found in by_class.items() if not number
    }
    for key, value in classes.items():
        who, row = abi.PolicyClassKey.unpack(key), abi.PolicyClass.unpack(value)
        policy[who.identity, who.direction] = frozenset(by_class.get((row.class_id, who.direction), ()))
    # Who is named and treated like everybody else might as well not be named.
    return {
        (identity, direction): content
        for (identity, direction), content in policy.items()
        if identity == OTHERS or content != policy.get((OTHERS, direction), frozenset())
    }


def _rows(dump: Dump, name: str) -> Iterator[tuple[bytes, bytes]]:
    # Only maps of maps have rows that are no bytes.
    yield from dump.get(name, {}).items()  # type: ignore[misc]


def _address(packed: bytes) -> str:
    address = IPv6Address(packed)
    return str(address.ipv4_mapped or address)
