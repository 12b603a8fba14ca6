# SPDX-License-Identifier: Apache-2.0
"""
The smallest rules that would let denied traffic pass, as documents to be applied.

Each is a policy of its own for the endpoint that denies, its peer and one port, which takes nobody into
default deny.  A rule is no smaller than rules can be: labels also select who has more of them.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from ciliumd import abi
from ciliumd.desired.policy import DirectionVerdict, Explanation, Outside, Party, cidrs, explain
from ciliumd.model.identity import Reserved
from ciliumd.model.labels import (
    CIDR,
    K8S,
    POD_NAMESPACE,
    RESERVED,
    SERVICE_ACCOUNT,
    Labels,
    is_reserved_key,
)
from ciliumd.model.net import Addr
from ciliumd.model.policy import ENTITIES, Direction, Enforcement, Policy
from ciliumd.resources import parse
from ciliumd.tables.schema import ObjectKey

Json = dict[str, Any]

_LONGEST_NAME: Final = 200
_WORLD = frozenset(one.label for one in (Reserved.WORLD, Reserved.WORLD_IPV4, Reserved.WORLD_IPV6))
_ICMP: Final = {"ICMP": "IPv4", "ICMPV6": "IPv6"}
_FIELDS: Final = {
    Direction.INGRESS: {"endpoints": "fromEndpoints", "cidr": "fromCIDR", "entities": "fromEntities"},
    Direction.EGRESS: {"endpoints": "toEndpoints", "cidr": "toCIDR", "entities": "toEntities"},
}


@dataclass(frozen=True, slots=True)
class Side:
    """
    One side of explained traffic: how it was asked for, and the addresses that means; an entity has none.

    *endpoint* is its id if it is one of this node.
    """

    text: str
    party: Party
    addresses: tuple[Addr, ...] = ()
    endpoint: int | None = None


@dataclass(frozen=True, slots=True)
class Suggestion:
    """Documents that together would let the traffic pass, or a *note* that says why there are none."""

    documents: tuple[Json, ...] = ()
    note: str = ""


class _Unsayable(Exception):
    """No rule means just that; the text says what."""


def suggestion(
    found: Explanation,
    source: Side,
    destination: Side,
    *,
    policies: Mapping[ObjectKey, Policy],
    enforcement: Enforcement = Enforcement.DEFAULT,
) -> Suggestion:
    """Return what would let explained traffic pass where *policies* are in force; nothing if it passes."""
    if found.allowed:
        return Suggestion()
    for one in found.directions:
        if one.verdict is abi.PolicyVerdict.POLICY_VERDICT_DENY:
            by = " and ".join(one.origins)
            return Suggestion(note=f"no rule that allows it helps: {by} denies it, whatever others allow")
    try:
        names = {(kind, namespace, name.partition("/")[0]) for kind, namespace, name in policies}
        documents = tuple(_documents(found, source, destination, taken=names))
    except _Unsayable as unsayable:
        return Suggestion(note=f"no rule allows just that: {unsayable}")
    proposed = [row for document in documents for _, _, row in parse(document).rows()]
    if not documents or not _allowed(
        [*policies.values(), *proposed], found, source, destination, enforcement
    ):
        return Suggestion(note="no rule for it alone helps: what others require narrows it (fromRequires)")
    return Suggestion(documents)


def _allowed(
    policies: Iterable[Policy],
    found: Explanation,
    source: Side,
    destination: Side,
    enforcement: Enforcement,
) -> bool:
    """Whether the traffic passes under *policies*, where addresses outside are told apart by them."""
    known = tuple(policies)
    outside = Outside(cidrs(known))

    def party(side: Side) -> Party:
        own = replace(side.party, rules=None)
        if not side.addresses or not _is_outside(own.labels):
            return own
        return replace(own, labels=outside.labels(side.addresses[0]))

    return explain(
        known,
        source=party(source),
        destination=party(destination),
        protocol=found.protocol,
        port=found.port,
        enforcement=enforcement,
    ).allowed


def _documents(
    found: Explanation, source: Side, destination: Side, *, taken: Collection[ObjectKey]
) -> Iterator[Json]:
    """A policy for each direction that denies.  Raises _Unsayable."""
    for one in found.directions:
        if one.verdict is abi.PolicyVerdict.POLICY_VERDICT_DEFAULT_DENY:
            is_ingress = one.direction is Direction.INGRESS
            endpoint, peer = (destination, source) if is_ingress else (source, destination)
            wanted = _name(found, one, source, destination)
            names = (wanted, *(f"{wanted}-{number}" for number in range(2, len(taken) + 3)))
            kind, namespace = _kind(endpoint.party.labels)
            yield {
                "apiVersion": "cilium.io/v2",
                "kind": kind,
                "metadata": {
                    "name": next(name for name in names if (kind, namespace, name) not in taken),
                    **({"namespace": namespace} if namespace else {}),
                },
                "spec": {
                    "endpointSelector": {"matchLabels": _subject(endpoint.party.labels)},
                    # Others who have these labels may not be in default deny; they shall not be for this.
                    "enableDefaultDeny": {one.direction.name.lower(): False},
                    one.direction.name.lower(): [{**_peer(peer, one.direction, namespace), **_ports(found)}],
                },
            }


def _kind(labels: Labels) -> tuple[str, str]:
    """The kind and namespace of a policy for an endpoint."""
    namespace = _namespace(labels)
    return ("CiliumNetworkPolicy" if namespace else "CiliumClusterwideNetworkPolicy"), namespace


def _name(found: Explanation, verdict: DirectionVerdict, source: Side, destination: Side) -> str:
    """A name for a policy that says what it is for."""
    words = (
        "allow",
        verdict.direction.name,
        source.text.rpartition("/")[2],
        "to",
        destination.text.rpartition("/")[2],
        str(found.port),
        found.protocol,
    )
    return re.sub(r"[^a-z0-9]+", "-", "-".join(words).lower())[:_LONGEST_NAME].strip("-")


def _namespace(labels: Labels) -> str:
    return next((label.value for label in labels if label.source == K8S and label.key == POD_NAMESPACE), "")


def _pod(labels: Labels) -> dict[str, str]:
    """The labels a pod was given; without any the service account, which every pod has."""
    own = {
        label.key: label.value
        for label in sorted(labels)
        if label.source == K8S and not is_reserved_key(label.key)
    }
    account = {f"{K8S}:{label.key}": label.value for label in labels if label.key == SERVICE_ACCOUNT}
    return own or account


def _reserved(labels: Labels) -> str:
    """The name of a reserved identity; of the API server's that one, not that of the node it is on."""
    names = sorted(label.key for label in labels if label.source == RESERVED)
    return names[0] if names else ""


def _subject(labels: Labels) -> dict[str, str]:
    if _namespace(labels):
        return _pod(labels)
    return {f"{RESERVED}:{_reserved(labels)}": ""}


def _is_outside(labels: Labels) -> bool:
    return any(label.source == CIDR or (label.source == RESERVED and label.key in _WORLD) for label in labels)


def _peer(peer: Side, direction: Direction, own_namespace: str) -> Json:
    fields, labels = _FIELDS[direction], peer.party.labels
    namespace = _namespace(labels)
    if namespace:
        elsewhere = {f"{K8S}:{POD_NAMESPACE}": namespace} if namespace != own_namespace else {}
        return {fields["endpoints"]: [{"matchLabels": {**elsewhere, **_pod(labels)}}]}
    if peer.addresses and _is_outside(labels):
        address = peer.addresses[0]
        return {fields["cidr"]: [f"{address}/{address.max_prefixlen}"]}
    name = _reserved(labels)
    if name not in ENTITIES:
        raise _Unsayable(f"{peer.text} is nobody whom rules can name")
    return {fields["entities"]: [name]}


def _ports(found: Explanation) -> Json:
    if found.protocol in _ICMP:
        return {"icmps": [{"fields": [{"family": _ICMP[found.protocol], "type": found.port}]}]}
    if not found.port:
        raise _Unsayable("port 0 stands for every port")
    return {"toPorts": [{"ports": [{"port": str(found.port), "protocol": found.protocol}]}]}
