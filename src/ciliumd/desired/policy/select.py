# SPDX-License-Identifier: Apache-2.0
"""
Which rules an endpoint is under, and in which directions it is in default deny.

An endpoint whose pod is not known yet is closed: which policies will select it cannot be told.  The node
itself is under no policy of endpoints.

The answer is what endpoints are grouped by: equal rules share a policy version.  What the rules
mean for a peer is decided in ``mapstate``.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from ciliumd.desired.policy.cookies import ALWAYS_ORIGIN, INIT_ORIGIN
from ciliumd.desired.policy.rules import NamedPorts, resolve_names
from ciliumd.model.identity import Reserved, reserved_labels
from ciliumd.model.labels import Labels
from ciliumd.model.net import Prefix
from ciliumd.model.policy import (
    Direction,
    Enforcement,
    NamedPort,
    PeerCIDR,
    PeerPart,
    PeerSelector,
    Policy,
    Rule,
    Selector,
    all_of,
)

_INIT = reserved_labels(Reserved.INIT)
_HOST = reserved_labels(Reserved.HOST)


@dataclass(frozen=True, slots=True)
class EndpointRules:
    """
    Every rule that applies to an endpoint, sorted by origin, and who switched default deny on.

    Named ports of ingress rules are numbers here already, since the pod they are on is the endpoint; what
    rules require of the peers of others is in these.
    The default: no policy selects it, everything is allowed.
    """

    rules: tuple[Rule, ...] = ()
    default_deny_ingress: tuple[str, ...] = ()
    default_deny_egress: tuple[str, ...] = ()

    def of(self, direction: Direction) -> tuple[Rule, ...]:
        """Return the rules of one direction."""
        return tuple(rule for rule in self.rules if rule.direction is direction)

    def default_deny(self, direction: Direction) -> tuple[str, ...]:
        """Return the origins, sorted, of the policies that switched default deny on; empty: none."""
        return self.default_deny_ingress if direction is Direction.INGRESS else self.default_deny_egress

    @property
    def ingress_enforced(self) -> bool:
        """Whether traffic to the endpoint needs a rule that allows it."""
        return bool(self.default_deny_ingress)

    @property
    def egress_enforced(self) -> bool:
        """Whether traffic from the endpoint needs a rule that allows it."""
        return bool(self.default_deny_egress)


SHUT = EndpointRules((), (ALWAYS_ORIGIN,), (ALWAYS_ORIGIN,))
"""Nobody in and nobody out, as for an endpoint that is in default deny and has no rules."""


def select(
    policies: Iterable[Policy],
    labels: Labels,
    *,
    named_ports: Iterable[NamedPort] = (),
    enforcement: Enforcement = Enforcement.DEFAULT,
) -> EndpointRules:
    """
    Return what *policies* say about the endpoint with *labels* whose pod has *named_ports*.

    *enforcement* is the node's: NEVER leaves every endpoint open, ALWAYS takes each into default deny.
    """
    if enforcement is Enforcement.NEVER or labels >= _HOST:
        return EndpointRules()
    named = frozenset(named_ports)
    rules: list[Rule] = []
    ingress: set[str] = set()
    egress: set[str] = set()
    for is_closed, origin in (
        (labels == _INIT, INIT_ORIGIN),
        (enforcement is Enforcement.ALWAYS, ALWAYS_ORIGIN),
    ):
        if is_closed:
            ingress.add(origin)
            egress.add(origin)
    for policy in policies:
        if not policy.subject.matches(labels):
            continue
        if policy.default_deny_ingress:
            ingress.add(policy.origin)
        if policy.default_deny_egress:
            egress.add(policy.origin)
        rules.extend(_numbered(rule, named) for rule in policy.rules)
    effective = (rule for rule in _narrowed(rules) if rule.peers != () and rule.ports != ())
    return EndpointRules(
        tuple(sorted(effective, key=lambda rule: (rule.origin, rule.direction, rule.deny))),
        tuple(sorted(ingress)),
        tuple(sorted(egress)),
    )


def cidrs(policies: Iterable[Policy]) -> set[Prefix]:
    """
    Return the prefixes *policies* tell apart: each needs a local identity.

    Length 0 is left out: that is the world, which has an identity already.
    """
    return prefixes_of(rule for policy in policies for rule in policy.rules)


def prefixes_of(rules: Iterable[Rule]) -> set[Prefix]:
    """Return the prefixes *rules* tell apart; see :func:`cidrs`."""
    found: set[Prefix] = set()
    for rule in rules:
        for peer in rule.peers or ():
            if isinstance(peer, PeerCIDR):
                found.update(prefix for prefix in (peer.prefix, *peer.excepts) if prefix.prefixlen)
    return found


def blocks(policies: Iterable[Policy]) -> set[Prefix]:
    """Return the prefixes by which *policies* tell pods apart."""
    return parts_of(rule for policy in policies for rule in policy.rules)


def parts_of(rules: Iterable[Rule]) -> set[Prefix]:
    """Return the prefixes by which *rules* tell pods apart."""
    return {
        prefix
        for rule in rules
        for peer in rule.peers or ()
        if isinstance(peer, PeerPart)
        for prefix in (peer.block.prefix, *peer.block.excepts)
    }


def _narrowed(rules: Iterable[Rule]) -> list[Rule]:
    """*rules*, with what any of them requires in the peers of every allow rule of its direction."""
    rules = list(rules)
    required: dict[Direction, set[Selector]] = {}
    for rule in rules:
        if rule.requires:
            required.setdefault(rule.direction, set()).update(rule.requires)
    if not required:
        return rules
    wanted = {direction: all_of(selectors) for direction, selectors in required.items()}
    return [
        rule if rule.deny or rule.direction not in wanted else _narrow(rule, wanted[rule.direction])
        for rule in rules
    ]


def _narrow(rule: Rule, wanted: Selector) -> Rule:
    peers = rule.peers and tuple(
        PeerSelector(all_of((peer.selector, wanted))) if isinstance(peer, PeerSelector) else peer
        for peer in rule.peers
    )
    return replace(rule, peers=peers, requires=())


def _numbered(rule: Rule, named: NamedPorts) -> Rule:
    if rule.direction is Direction.EGRESS or not any(port.name for port in rule.ports or ()):
        return rule
    return replace(rule, ports=resolve_names(rule.ports or (), named))
