# SPDX-License-Identifier: Apache-2.0
"""
What would change if policies were written otherwise: nothing of it comes into force.

Documents are read as the agent reads any and put in place of those of the same kind, namespace and name, and
what they refer to is filled in; the flows that were recorded on this node are then asked about both.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from ciliumd.daemon.references import References
from ciliumd.desired.policy import Judged, Said, Subject, World, replay
from ciliumd.flows.enrich import parse_origin
from ciliumd.flows.record import RecordedFlow
from ciliumd.model.identity import LOCAL_MAX, LOCAL_MIN, NumericIdentity, Reserved
from ciliumd.model.labels import CIDR
from ciliumd.model.net import Addr, Prefix
from ciliumd.model.policy import Direction, Enforcement, Policy
from ciliumd.resources import Parse, ResourceError, parse
from ciliumd.tables.schema import ObjectKey, Problem, Tables

POLICIES: Final = frozenset({"CiliumNetworkPolicy", "CiliumClusterwideNetworkPolicy", "NetworkPolicy"})
GROUP: Final = "CiliumCIDRGroup"

_WORLD = frozenset({Reserved.WORLD, Reserved.WORLD_IPV4, Reserved.WORLD_IPV6})


class ProposalError(Exception):
    """Documents that cannot be judged; the text says which and why."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """Policies as they would be in force, and what those documents name that is not there."""

    policies: Mapping[ObjectKey, Policy]
    problems: Mapping[ObjectKey, Problem]


def copied(tables: Tables) -> Tables:
    """What decides about the policies in force, as of now, in tables of their own."""
    own = Tables()
    for name in ("policies", "cidr_groups", "services", "slices"):
        table = getattr(own, name)
        for key, row in getattr(tables, name).items():
            table.set(key, row)
    return own


def propose(
    tables: Tables,
    documents: Iterable[object],
    deleted: Iterable[str] = (),
    *,
    parse: Parse = parse,
    pods: frozenset[Prefix] = frozenset(),
) -> Proposal:
    """
    Write *documents*, as *parse* reads them, into *tables* (see :func:`copied`), and delete the policies of
    the origins *deleted*.  *pods* are the networks that pods are in.

    Raises ProposalError.
    """
    wanted = _Written(tables, parse)
    objects = [wanted.put(document) for document in documents]
    for origin in deleted:
        wanted.take_away(origin)
    references = References(tables)
    references.set_pods(pods)
    references.refresh()
    problems = references.problems()
    return Proposal(references.policies, {key: problems[key] for key in objects if key in problems})


class _Written:
    """Tables in which policies and groups are written as documents say."""

    def __init__(self, tables: Tables, parse: Parse) -> None:
        self.tables = tables
        self._parse = parse

    def put(self, document: object) -> ObjectKey:
        """Write an object, in place of the one of its name; its key."""
        try:
            resource = self._parse(document)
        except ResourceError as error:
            raise ProposalError(str(error)) from error
        if resource.kind not in POLICIES | {GROUP}:
            known = ", ".join(sorted(POLICIES | {GROUP}))
            raise ProposalError(f"{'/'.join(filter(None, resource.key))} is no policy; there are {known}")
        self._delete(resource.key)
        for name, key, row in resource.rows():
            getattr(self.tables, name).set(key, row)
        return resource.key

    def take_away(self, origin: str) -> None:
        """Delete the policy of an *origin*, as explanations and events call it."""
        policy = parse_origin(origin)
        if policy.kind not in POLICIES or policy.rule:
            raise ProposalError(
                f"{origin} names no policy: write cnp:NAMESPACE/NAME, knp:NAMESPACE/NAME or ccnp:NAME"
            )
        if not self._delete((policy.kind, policy.namespace, policy.name)):
            raise ProposalError(f"there is no policy {origin}")

    def _delete(self, wanted: ObjectKey) -> bool:
        """Delete an object's rows, of which a policy with ``specs`` has several; whether there were any."""
        kind, namespace, name = wanted
        if kind == GROUP:
            return self.tables.cidr_groups.delete(name)
        rows = [
            key
            for key in self.tables.policies
            if key[:2] == (kind, namespace) and key[2].partition("/specs/")[0] == name
        ]
        for key in rows:
            self.tables.policies.delete(key)
        return bool(rows)


class Traffic(NamedTuple):
    """A flow without its opener's port."""

    source: Addr
    destination: Addr
    protocol: int
    port: int

    def side(self, direction: Direction) -> Addr:
        """Whose policy judges in this direction."""
        return self.source if direction is Direction.EGRESS else self.destination


class Hop(NamedTuple):
    """What the policy of one endpoint says of a flow now, and what it would say."""

    direction: Direction
    before: Said
    after: Said


@dataclass(slots=True)
class Recorded:
    """
    A flow as recorded: who judged it in which direction, and which identities these endpoints saw.

    *times* counts connections that were let through, or else packets.
    """

    endpoints: dict[Direction, int] = field(default_factory=dict)
    peers: dict[Direction, NumericIdentity] = field(default_factory=dict)
    times: int = 0
    last_seen_ns: int = 0


@dataclass(frozen=True, slots=True)
class Change:
    """A flow that would fare otherwise."""

    traffic: Traffic
    recorded: Recorded
    hops: tuple[Hop, ...]

    @property
    def passes(self) -> bool:
        """Whether it passes now."""
        return all(hop.before.allows for hop in self.hops)

    @property
    def would_pass(self) -> bool:
        """Whether it would pass then."""
        return all(hop.after.allows for hop in self.hops)


@dataclass(frozen=True, slots=True)
class Difference:
    """What would change for recorded flows: of *flows*; of *unknown* ones an end is no longer who it was."""

    changes: tuple[Change, ...]
    flows: int
    unknown: int


@dataclass(frozen=True, slots=True)
class Node:
    """Who is on the node: endpoint ids by address, what decides about their rules, their identities."""

    endpoints: Mapping[Addr, int]
    subjects: Mapping[int, Subject]
    identities: Mapping[int, NumericIdentity]
    world: World
    enforcement: Enforcement = Enforcement.DEFAULT


class _Unknown(Exception):
    """An end of a flow is no longer who it was."""


def difference(
    flows: Iterable[RecordedFlow],
    before: Mapping[ObjectKey, Policy],
    after: Mapping[ObjectKey, Policy],
    *,
    node: Node,
) -> Difference:
    """Return which of *flows* pass under one of *before* and *after* and not under the other."""
    touched = [
        policy
        for key in before.keys() | after.keys()
        if before.get(key) != after.get(key)
        for policy in (before.get(key), after.get(key))
        if policy is not None
    ]
    is_touched = {
        subject: any(policy.subject.matches(subject.labels) for policy in touched)
        for subject in set(node.subjects.values())
    }
    recorded = _merged(flows)
    touched_by: dict[Traffic, list[Judged]] = {}
    others: dict[Traffic, list[Judged]] = {}
    unknown = 0
    for traffic, one in recorded.items():
        try:
            hops = list(_hops(traffic, one, node))
        except _Unknown:
            unknown += 1
            continue
        for hop in hops:
            (touched_by if is_touched[hop.subject] else others).setdefault(traffic, []).append(hop)
    # Endpoints that no policy touches are asked about flows only that another's verdict has changed for.
    found = _asked(touched_by, before, after, node)
    decided = {
        traffic: hops
        for traffic, hops in found.items()
        if any(hop.before.allows != hop.after.allows for hop in hops)
    }
    rest = _asked({traffic: others.get(traffic, []) for traffic in decided}, before, before, node)
    changes = (
        Change(traffic, recorded[traffic], tuple(sorted([*hops, *rest.get(traffic, ())], key=_way)))
        for traffic, hops in decided.items()
    )
    return Difference(tuple(one for one in changes if one.passes != one.would_pass), len(recorded), unknown)


def _asked(
    asked: Mapping[Traffic, list[Judged]],
    before: Mapping[ObjectKey, Policy],
    after: Mapping[ObjectKey, Policy],
    node: Node,
) -> dict[Traffic, list[Hop]]:
    """What all of that is judged like under both."""
    whose = [(traffic, hop) for traffic, hops in asked.items() for hop in hops]
    judged = [hop for _, hop in whose]
    now = replay(before.values(), judged, world=node.world, enforcement=node.enforcement)
    then = now
    if after is not before:
        then = replay(after.values(), judged, world=node.world, enforcement=node.enforcement)
    found: dict[Traffic, list[Hop]] = {}
    for (traffic, hop), says, would_say in zip(whose, now, then, strict=True):
        found.setdefault(traffic, []).append(Hop(hop.direction, says, would_say))
    return found


def _way(hop: Hop) -> int:
    """A packet meets its source's policy first."""
    return -int(hop.direction)


def _merged(flows: Iterable[RecordedFlow]) -> dict[Traffic, Recorded]:
    """The flows, each once: both its ends may be here.  The latest are first."""
    found: dict[Traffic, Recorded] = {}
    for flow in flows:
        one = found.setdefault(Traffic(flow.source, flow.destination, flow.protocol, flow.port), Recorded())
        direction = Direction(flow.direction)
        if direction not in one.endpoints:
            one.endpoints[direction] = flow.endpoint_id
            one.peers[direction] = flow.peer_identity
        one.times = max(one.times, flow.times)
        one.last_seen_ns = max(one.last_seen_ns, flow.last_seen_ns)
    return found


def _hops(traffic: Traffic, recorded: Recorded, node: Node) -> Iterator[Judged]:
    """Every policy that has a say.  Raises _Unknown."""
    for direction, other in ((Direction.EGRESS, Direction.INGRESS), (Direction.INGRESS, Direction.EGRESS)):
        endpoint = node.endpoints.get(traffic.side(direction))
        if recorded.endpoints.get(direction, endpoint) != endpoint:
            raise _Unknown
        if endpoint is None:
            continue
        seen = recorded.peers.get(other)
        if seen is not None and node.identities.get(endpoint) != seen:
            raise _Unknown
        subject = node.subjects.get(endpoint)
        if subject is None:
            raise _Unknown
        peer = _peer(traffic.side(other), recorded.peers.get(direction), node)
        at = traffic.side(other) if isinstance(peer, int) else None
        yield Judged(subject, direction, peer, traffic.protocol, traffic.port, at)


def _peer(address: Addr, seen: NumericIdentity | None, node: Node) -> NumericIdentity | Addr:
    """Who is at an end, *seen* with an identity unless only it judged itself.  Raises _Unknown."""
    if seen is not None and _is_outside(seen, node.world):
        return address
    endpoint = node.endpoints.get(address)
    identity = seen if endpoint is None else node.identities.get(endpoint)
    if identity is None or identity not in node.world.identities:
        raise _Unknown
    return identity


def _is_outside(identity: NumericIdentity, world: World) -> bool:
    """Whether it is the world's, or that of a prefix, which may be gone with the rules that named it."""
    if identity in _WORLD:
        return True
    labels = world.identities.get(identity)
    if labels is None:
        return LOCAL_MIN <= identity <= LOCAL_MAX
    return any(label.source == CIDR for label in labels)
