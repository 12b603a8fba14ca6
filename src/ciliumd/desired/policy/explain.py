# SPDX-License-Identifier: Apache-2.0
"""
Why traffic passes or not: the verdict, direction by direction, with the rules and the row behind it.

The verdict comes out of the same ``select``, ``resolve`` and ``lookup`` that fill and read the maps;
only the list of rules is worked out anew, because a row names one rule where several may agree.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ciliumd import abi
from ciliumd.desired.policy.cookies import ALLOW_LOCALHOST, NO_COOKIE, cookie
from ciliumd.desired.policy.interpret import lookup_row
from ciliumd.desired.policy.mapstate import MapState
from ciliumd.desired.policy.rules import PROTOCOL_NUMBERS, NamedPorts, peers_match, port_blocks
from ciliumd.desired.policy.ruling import resolve
from ciliumd.desired.policy.select import EndpointRules, select
from ciliumd.model.identity import NumericIdentity
from ciliumd.model.labels import Labels
from ciliumd.model.policy import Direction, Enforcement, Policy

_ALLOW = abi.PolicyVerdict.POLICY_VERDICT_ALLOW
_DENY = abi.PolicyVerdict.POLICY_VERDICT_DENY
_DEFAULT_DENY = abi.PolicyVerdict.POLICY_VERDICT_DEFAULT_DENY


@dataclass(frozen=True, slots=True)
class Party:
    """
    One side of the traffic; policy applies to it only if it is an endpoint (a pod).

    *rules* are those it is under as long as others are on their way; None: those that select it.
    """

    identity: NumericIdentity
    labels: Labels
    is_endpoint: bool = True
    named_ports: NamedPorts = frozenset()
    rules: EndpointRules | None = None


@dataclass(frozen=True, slots=True)
class DirectionVerdict:
    """
    What the policy of one endpoint says in one direction.

    *origins* are all rules that decide alike (for a default deny: all policies that switched it on;
    none for a direction without policy); *row* is the one row the datapath goes by.
    """

    direction: Direction
    verdict: abi.PolicyVerdict
    rule_cookie: int
    origins: tuple[str, ...]
    row: tuple[abi.PolicyKey, abi.PolicyEntry] | None


@dataclass(frozen=True, slots=True)
class Explanation:
    """The verdicts on some traffic in the order a packet meets them: the source's, the destination's."""

    protocol: str
    port: int
    directions: tuple[DirectionVerdict, ...]

    @property
    def allowed(self) -> bool:
        """Whether a first packet arrives; the destination is not asked about what the source drops."""
        return all(direction.verdict is _ALLOW for direction in self.directions)


def explain(
    policies: Iterable[Policy],
    *,
    source: Party,
    destination: Party,
    protocol: str,
    port: int,
    states: Mapping[EndpointRules, MapState] | None = None,
    enforcement: Enforcement = Enforcement.DEFAULT,
) -> Explanation:
    """
    Explain traffic from *source* to *port* of *destination*; for ICMP the port is the type.

    *states* are the contents in force by rules, so that the row shown is the live one; an endpoint
    whose rules are not among them is judged by what its version would hold.
    """
    known = tuple(policies)
    live = states or {}
    directions: list[DirectionVerdict] = []
    for direction, endpoint, peer in (
        (Direction.EGRESS, source, destination),
        (Direction.INGRESS, destination, source),
    ):
        if not endpoint.is_endpoint:
            continue
        rules = endpoint.rules
        if rules is None:
            rules = select(known, endpoint.labels, named_ports=endpoint.named_ports, enforcement=enforcement)
        state = live.get(rules)
        if state is None:
            named = {peer.identity: peer.named_ports}
            state = resolve(rules, {peer.identity: peer.labels}, named_ports=named)
        directions.append(_judge(rules, state, direction=direction, peer=peer, protocol=protocol, port=port))
    return Explanation(protocol, port, tuple(directions))


def _judge(
    rules: EndpointRules, state: MapState, *, direction: Direction, peer: Party, protocol: str, port: int
) -> DirectionVerdict:
    row = lookup_row(state, peer.identity, direction, PROTOCOL_NUMBERS[protocol], port)
    verdict = abi.PolicyVerdict(row[1].verdict) if row else abi.PolicyVerdict.POLICY_VERDICT_NONE
    rule_cookie = row[1].rule_cookie if row else NO_COOKIE
    origins: tuple[str, ...] = ()
    if verdict is _DEFAULT_DENY:
        origins = rules.default_deny(direction)
    elif verdict in (_ALLOW, _DENY):
        named = peer.named_ports if direction is Direction.EGRESS else frozenset()
        origins = tuple(
            rule.origin
            for rule in rules.of(direction)
            if rule.deny is (verdict is _DENY)
            and peers_match(rule.peers, peer.labels)
            and any(
                block.covers(PROTOCOL_NUMBERS[protocol], port) for block in port_blocks(rule.ports, named)
            )
        )
        if not origins and rule_cookie == cookie(ALLOW_LOCALHOST):
            origins = (ALLOW_LOCALHOST,)
    return DirectionVerdict(direction, verdict, rule_cookie, origins, row)
