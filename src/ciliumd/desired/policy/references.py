# SPDX-License-Identifier: Apache-2.0
"""
What policies refer to, filled in: from policies as written to those that come into force.

Everything behind this knows peers only.  A reference to nobody is no peer: a rule with nothing but such
references applies to nobody, be it an allow or a deny.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace

from ciliumd.model.net import Prefix
from ciliumd.model.objects import CIDRGroupRow
from ciliumd.model.policy import GroupReference, Peer, PeerCIDR, Policy, Reference, Rule

Fills = Mapping[Reference, tuple[Peer, ...]]
"""The peers that each reference stands for."""


def references_of(policy: Policy) -> frozenset[Reference]:
    """What *policy* refers to."""
    return frozenset(one for rule in policy.rules for one in rule.refers)


def means_group(reference: GroupReference, group: CIDRGroupRow) -> bool:
    """Whether *group* is one of those that are meant."""
    if reference.selector is None:
        return reference.name == group.name
    return reference.selector.matches(group.labels)


def peers_of_groups(reference: GroupReference, groups: Iterable[CIDRGroupRow]) -> tuple[Peer, ...]:
    """The prefixes of *groups*, each once, with those exceptions that take something of it away."""
    prefixes = sorted({prefix for group in groups for prefix in group.prefixes}, key=_order)
    return tuple(
        PeerCIDR(prefix, tuple(one for one in reference.excepts if _holds(prefix, one)))
        for prefix in prefixes
        if not any(_holds(one, prefix) for one in reference.excepts)
    )


def filled(policy: Policy, fills: Fills) -> Policy:
    """*policy* as it comes into force: with peers in place of references."""
    return replace(policy, rules=tuple(_filled(rule, fills) for rule in policy.rules))


def missing(policy: Policy, exists: Callable[[Reference], bool]) -> Iterator[tuple[str, str]]:
    """What *policy* names that does not exist, as (field of the rule, what to say of it)."""
    for rule in policy.rules:
        for one in rule.refers:
            if one.name and not exists(one):
                yield _field(policy, rule), f"names {_name(one)}, which does not exist: it is nobody"


def _name(reference: Reference) -> str:
    return f"CiliumCIDRGroup {reference.name}"


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


def _order(prefix: Prefix) -> tuple[int, int, int]:
    return (prefix.version, int(prefix.network_address), prefix.prefixlen)


def _holds(outer: Prefix, inner: Prefix) -> bool:
    return (
        outer.version == inner.version
        and outer.prefixlen <= inner.prefixlen
        and inner.network_address in outer
    )
