# SPDX-License-Identifier: Apache-2.0
"""
What policies refer to, filled in: from policies as written to those that come into force.

Everything behind this knows peers only.  A reference to nobody is no peer: a rule with nothing but such
references applies to nobody, be it an allow or a deny.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from ipaddress import ip_network

from ciliumd.model.identity import Reserved
from ciliumd.model.labels import K8S, POD_NAMESPACE, is_reserved_key
from ciliumd.model.net import Addr, Prefix, holds, prefix_order
from ciliumd.model.objects import API_SERVER, CIDRGroupRow
from ciliumd.model.policy import (
    BlockReference,
    GroupReference,
    NamedReference,
    Peer,
    PeerCIDR,
    PeerEntity,
    PeerPart,
    PeerSelector,
    Policy,
    Reference,
    Rule,
    Selector,
    ServiceReference,
)
from ciliumd.model.service import Service

Fills = Mapping[Reference, tuple[Peer, ...]]
"""The peers that each reference stands for."""


def references_of(policy: Policy) -> frozenset[Reference]:
    """What *policy* refers to."""
    return frozenset(one for rule in policy.rules for one in rule.refers)


def objects_named_by(policy: Policy) -> frozenset[NamedReference]:
    """What of that are objects, or selects some."""
    return frozenset(one for one in references_of(policy) if not isinstance(one, BlockReference))


def means_group(reference: GroupReference, group: CIDRGroupRow) -> bool:
    """Whether *group* is one of those that are meant."""
    if reference.selector is None:
        return reference.name == group.name
    return reference.selector.matches(group.labels)


def peers_of_groups(reference: GroupReference, groups: Iterable[CIDRGroupRow]) -> tuple[Peer, ...]:
    """The prefixes of *groups*, each once, with those exceptions that take something of it away."""
    prefixes = sorted({prefix for group in groups for prefix in group.prefixes}, key=prefix_order)
    return tuple(
        PeerCIDR(prefix, tuple(one for one in reference.excepts if holds(prefix, one)))
        for prefix in prefixes
        if not any(holds(one, prefix) for one in reference.excepts)
    )


def means_service(reference: ServiceReference, service: Service) -> bool:
    """Whether *service* is one of those that are meant."""
    if reference.namespace not in ("", service.namespace):
        return False
    if reference.selector is None:
        return reference.name == service.name
    return reference.selector.matches(service.labels)


def peers_behind(service: Service, addresses: Iterable[Addr]) -> tuple[Peer, ...]:
    """
    Who is behind *service*: the pods it selects, or the *addresses* of its endpoints if it selects none.

    Addresses are those outside the cluster, as in any rule; those of the API server have an identity.
    """
    if service.selector:
        if any(is_reserved_key(key) for key, _ in service.selector):
            return ()  # A pod has no such label of its own.
        labels = {(K8S, key, value) for key, value in service.selector}
        return (PeerSelector(Selector(frozenset({*labels, (K8S, POD_NAMESPACE, service.namespace)}))),)
    prefixes = sorted({ip_network(addr) for addr in addresses}, key=prefix_order)
    peers: tuple[Peer, ...] = tuple(PeerCIDR(prefix) for prefix in prefixes)
    return (*peers, PeerEntity(Reserved.KUBE_APISERVER.label)) if service.key == API_SERVER else peers


def peers_in_block(block: PeerCIDR, pods: Iterable[Prefix]) -> tuple[Peer, ...]:
    """The pods in *block*: nobody if none of the networks that *pods* are in reaches into it."""

    def reaches_into(network: Prefix) -> bool:
        return (holds(block.prefix, network) or holds(network, block.prefix)) and not any(
            holds(one, network) or holds(one, block.prefix) for one in block.excepts
        )

    return (PeerPart(block),) if any(map(reaches_into, pods)) else ()


def filled(policy: Policy, fills: Fills) -> Policy:
    """*policy* as it comes into force: with peers in place of references."""
    return replace(policy, rules=tuple(_filled(rule, fills) for rule in policy.rules))


def missing(policy: Policy, exists: Callable[[NamedReference], bool]) -> Iterator[tuple[str, str]]:
    """What *policy* names that does not exist, as (field of the rule, what to say of it)."""
    for rule in policy.rules:
        for one in rule.refers:
            if not isinstance(one, BlockReference) and one.name and not exists(one):
                yield _field(policy, rule), f"names {_name(one)}, which does not exist: it is nobody"


def _name(reference: NamedReference) -> str:
    match reference:
        case GroupReference(name):
            return f"CiliumCIDRGroup {name}"
        case ServiceReference("", name):
            return f"Service {name} of any namespace"
        case ServiceReference(namespace, name):
            return f"Service {namespace}/{name}"


def _field(policy: Policy, rule: Rule) -> str:
    """Where *rule* is written: ``specs[1].ingress[0]``."""
    _, _, number = policy.origin.partition("/specs/")
    section, _, index = rule.origin.removeprefix(f"{policy.origin}/").partition("/")
    return f"{f'specs[{number}]' if number else 'spec'}.{section}[{index}]"


def _filled(rule: Rule, fills: Fills) -> Rule:
    if not rule.refers:
        return rule
    # The same peer may be written and referred to, or referred to twice.
    peers = dict.fromkeys([*(rule.peers or ()), *(peer for one in rule.refers for peer in fills[one])])
    return replace(rule, peers=tuple(peers), refers=())
