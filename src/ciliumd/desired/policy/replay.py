# SPDX-License-Identifier: Apache-2.0
"""
What policies would say of traffic that was judged before, also of policies that are not in force.

The same ``select`` and ``resolve`` as fill the maps, over those peers only that the traffic had.  A peer
outside the cluster is an address here: which identity it has depends on the prefixes that the policies
name.  Several hundred endpoints and some thousand flows are asked at once, so rows are looked for in their
class, not one after the other.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from ciliumd import abi
from ciliumd.desired.policy.cookies import NO_COOKIE
from ciliumd.desired.policy.mapstate import EVERYBODY_ELSE, ClassRows
from ciliumd.desired.policy.rules import NamedPorts, PortBlock
from ciliumd.desired.policy.ruling import resolve
from ciliumd.desired.policy.select import blocks, cidrs, select
from ciliumd.desired.policy.world import Subject, World
from ciliumd.model.identity import NumericIdentity, Reserved, cidr_labels, part_labels, reserved_labels
from ciliumd.model.labels import Labels
from ciliumd.model.net import Addr, LongestPrefix, Prefix
from ciliumd.model.policy import Direction, Enforcement, Policy

# Numbers of identities that are made up for a replay: beyond those that a packet can carry.
_BEYOND = 1 << 32


class Judged(NamedTuple):
    """
    Traffic that the policy of *subject* has a say in; *peer* is an address outside, or an identity.

    *at* is the address of a pod, by which policies may tell it from others of its identity.
    """

    subject: Subject
    direction: Direction
    peer: NumericIdentity | Addr
    protocol: int
    port: int
    at: Addr | None = None


class Said(NamedTuple):
    """A verdict and the cookie of the rule behind it."""

    verdict: abi.PolicyVerdict
    rule_cookie: int

    @property
    def allows(self) -> bool:
        """Whether packets pass."""
        return self.verdict is abi.PolicyVerdict.POLICY_VERDICT_ALLOW


class Outside:
    """Who addresses outside the cluster are where *prefixes* are told apart: the longest one decides."""

    def __init__(self, prefixes: Iterable[Prefix]) -> None:
        self._prefixes = LongestPrefix(prefixes)

    def labels(self, address: Addr) -> Labels:
        """The labels of the identity that packets of *address* carry."""
        for prefix in self._prefixes.around(address):
            return cidr_labels(prefix)
        return reserved_labels(Reserved.WORLD if address.version == 4 else Reserved.WORLD_IPV6)


def replay(
    policies: Iterable[Policy],
    traffic: Sequence[Judged],
    *,
    world: World,
    enforcement: Enforcement = Enforcement.DEFAULT,
) -> list[Said]:
    """Return what *policies* say of each of *traffic*, whose peers *world* knows by their identities."""
    known = tuple(policies)
    outside = Outside(cidrs(known))
    inside = LongestPrefix(blocks(known))
    made_up: dict[Labels, NumericIdentity] = {}
    identities: dict[NumericIdentity, Labels] = {}
    named_ports: dict[NumericIdentity, NamedPorts] = {}

    def made(labels: Labels) -> NumericIdentity:
        identity = made_up.setdefault(labels, _BEYOND + len(made_up))
        identities[identity] = labels
        return identity

    def number(peer: NumericIdentity | Addr, at: Addr | None) -> NumericIdentity:
        if not isinstance(peer, int):
            return made(outside.labels(peer))
        labels = world.identities[peer]
        block = None if at is None else next(inside.around(at), None)
        if block is None:
            identity, identities[peer] = peer, labels
        else:
            identity = made(part_labels(labels, block))
        if peer in world.named_ports:
            named_ports[identity] = world.named_ports[peer]
        return identity

    peers = [number(one.peer, one.at) for one in traffic]
    contents: dict[Subject, _Content] = {}
    for subject in {one.subject for one in traffic}:
        rules = select(known, subject.labels, named_ports=subject.named_ports, enforcement=enforcement)
        state = resolve(rules, identities, named_ports=named_ports)
        contents[subject] = _Content(state.classes, state.rows())
    return [
        contents[one.subject].lookup(peer, one.direction, one.protocol, one.port)
        for one, peer in zip(traffic, peers, strict=True)
    ]


class _Content(NamedTuple):
    """A map state, its rows by class."""

    classes: Mapping[tuple[NumericIdentity, Direction], int]
    rows: Mapping[tuple[Direction, int], ClassRows]

    def lookup(self, peer: NumericIdentity, direction: Direction, protocol: int, port: int) -> Said:
        class_id = self.classes.get((peer, direction), EVERYBODY_ELSE)
        matching = (
            row
            for row in self.rows.get((direction, class_id), ())
            if PortBlock(row.prefixlen, row.protocol, row.dport).covers(protocol, port)
        )
        row = max(matching, key=lambda row: row.prefixlen, default=None)
        if row is None:
            return Said(abi.PolicyVerdict.POLICY_VERDICT_NONE, NO_COOKIE)
        return Said(abi.PolicyVerdict(row.verdict), row.rule_cookie)
