# SPDX-License-Identifier: Apache-2.0
"""
What one policy version's two maps hold: classes of identities, and each class's verdicts.

The datapath knows no precedence: it takes the class of the peer and the longest matching row.  So
everything is decided here.  For every block of ports some rule names there is one row, and its
verdict already weighs every rule that covers the block, however wide that rule is:

1. a deny rule of any width, for any peer that includes this one, wins;
2. else an allow rule of any width allows (the node itself may always reach its own pods);
3. else default deny, if some policy switched it on in this direction; else allowed.

A row's cookie names the lexically smallest origin among the rules that decide alike.  Rows are
computed once per distinct set of matching rules, never per identity.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from ciliumd import abi
from ciliumd.desired.policy.cookies import ALLOW_LOCALHOST, NO_COOKIE, cookie
from ciliumd.desired.policy.rules import (
    EVERYTHING,
    NamedPorts,
    PortBlock,
    SelectorCache,
    is_anybody,
    port_blocks,
)
from ciliumd.desired.policy.select import EndpointRules
from ciliumd.model.identity import NumericIdentity, Reserved
from ciliumd.model.labels import Labels
from ciliumd.model.policy import Direction

EVERYBODY_ELSE = 0
"""The class of every identity without a row of its own."""

CLASS_MAX = 0xFFFF

Identities = Mapping[NumericIdentity, Labels] | SelectorCache
_Verdict = abi.PolicyVerdict


class ClassesExhaustedError(Exception):
    """A version needs more classes in one direction than a key can number."""


class ClassRow(NamedTuple):
    """One row of a class: where it applies and what it says."""

    prefixlen: int
    protocol: int
    dport: int
    verdict: int
    flags: int
    proxy_slot: int
    rule_cookie: int


ClassRows = tuple[ClassRow, ...]
"""The rows of one class in one direction, sorted: the content by which classes are equal."""


@dataclass(frozen=True, slots=True)
class MapState:
    """
    Content of both maps of a policy version, or an addition to it.

    Entries must be in the kernel before the classes that lead to them.
    """

    classes: Mapping[tuple[NumericIdentity, Direction], int] = field(default_factory=dict)
    entries: Mapping[abi.PolicyKey, abi.PolicyEntry] = field(default_factory=dict)

    def with_added(self, addition: "MapState") -> "MapState":
        """Return this content after *addition* was written over it."""
        return MapState({**self.classes, **addition.classes}, {**self.entries, **addition.entries})

    def without(self, identities: Iterable[NumericIdentity]) -> "MapState":
        """Return this content with *identities* belonging to everybody else; no row of a class goes."""
        gone = set(identities)
        return MapState({k: v for k, v in self.classes.items() if k[0] not in gone}, self.entries)

    def rows(self) -> dict[tuple[Direction, int], ClassRows]:
        """Return the rows by direction and class."""
        found: dict[tuple[Direction, int], list[ClassRow]] = {}
        for key, entry in self.entries.items():
            row = ClassRow(
                key.prefixlen,
                key.protocol,
                key.dport,
                int(entry.verdict),
                entry.flags,
                entry.proxy_slot,
                entry.rule_cookie,
            )
            found.setdefault((Direction(key.direction), key.class_id), []).append(row)
        return {place: tuple(sorted(rows)) for place, rows in found.items()}

    def meaning(self) -> frozenset[tuple[NumericIdentity | None, Direction, ClassRows]]:
        """
        Return what this content says, whatever its classes are called.

        Rows no identity leads to, and identities that differ in nothing from everybody else (None),
        do not show.
        """
        rows = self.rows()
        others = {direction: rows.get((direction, EVERYBODY_ELSE), ()) for direction in Direction}
        said: set[tuple[NumericIdentity | None, Direction, ClassRows]] = {
            (None, direction, content) for direction, content in others.items()
        }
        for (identity, direction), class_id in self.classes.items():
            content = rows.get((direction, class_id), ())
            if content != others[direction]:
                said.add((identity, direction, content))
        return frozenset(said)


def resolve(
    rules: EndpointRules,
    identities: Identities,
    *,
    named_ports: Mapping[NumericIdentity, NamedPorts] | None = None,
) -> MapState:
    """
    Return the whole content of a version for endpoints under *rules*.

    *identities* are all that packets may carry, reserved ones included; *named_ports* are those of
    the pods behind an identity, for egress rules.  Equal arguments give equal content, in any order.
    """
    cache = _cache(identities)
    classes: dict[tuple[NumericIdentity, Direction], int] = {}
    entries: dict[abi.PolicyKey, abi.PolicyEntry] = {}
    for direction in Direction:
        side = _Side(rules, direction)
        others = side.rows(_Match(side.anybody))
        entries.update(_entries(direction, EVERYBODY_ELSE, others))
        content = dict(side.content(cache, named_ports or {}))
        fresh = {rows for rows in content.values() if rows != others}
        class_ids = _number(fresh, first=EVERYBODY_ELSE + 1)
        for rows, class_id in class_ids.items():
            entries.update(_entries(direction, class_id, rows))
        for identity in sorted(content):
            if content[identity] != others:
                classes[identity, direction] = class_ids[content[identity]]
    return MapState(classes, entries)


def classify(
    rules: EndpointRules,
    identities: Mapping[NumericIdentity, Labels],
    state: MapState,
    *,
    named_ports: Mapping[NumericIdentity, NamedPorts] | None = None,
) -> MapState:
    """
    Return what must be added to *state*, a content for *rules*, when *identities* appear or change.

    Existing rows stay as they are: an identity joins a class of equal content or gets a fresh one.
    """
    cache = SelectorCache(identities)
    present = state.rows()
    classes: dict[tuple[NumericIdentity, Direction], int] = {}
    entries: dict[abi.PolicyKey, abi.PolicyEntry] = {}
    for direction in Direction:
        side = _Side(rules, direction)
        others = side.rows(_Match(side.anybody))
        named = {identity: ports for identity, ports in (named_ports or {}).items() if identity in identities}
        content = dict.fromkeys(identities, others)
        content |= {identity: rows for identity, rows in side.content(cache, named) if identity in identities}
        taken = {class_id: rows for (where, class_id), rows in present.items() if where is direction}
        class_ids = {rows: class_id for class_id, rows in sorted(taken.items(), reverse=True)}
        fresh = {rows for rows in content.values() if rows not in class_ids}
        numbered = _number(fresh, first=max(taken, default=EVERYBODY_ELSE) + 1)
        for rows, class_id in numbered.items():
            entries.update(_entries(direction, class_id, rows))
        class_ids |= numbered
        for identity in sorted(content):
            class_id = class_ids[content[identity]]
            if state.classes.get((identity, direction), EVERYBODY_ELSE) != class_id:
                classes[identity, direction] = class_id
    return MapState(classes, entries)


class _Match(NamedTuple):
    """Everything the rows of an identity depend on; identities that match alike share a class."""

    rules: int  # bit i: rule i of the side has this peer
    named_ports: NamedPorts = frozenset()
    is_node: bool = False


class _Side:
    """The rules of one direction, with what can be worked out before any identity is looked at."""

    def __init__(self, rules: EndpointRules, direction: Direction) -> None:
        self._direction = direction
        self._rules = rules.of(direction)
        self._default_deny = rules.default_deny(direction)
        self._names = {port.name for rule in self._rules for port in rule.ports or () if port.name}
        self._numbered = [port_blocks(rule.ports) for rule in self._rules]
        self.anybody = sum(1 << i for i, rule in enumerate(self._rules) if is_anybody(rule.peers))

    def content(
        self, cache: SelectorCache, named_ports: Mapping[NumericIdentity, NamedPorts]
    ) -> Iterator[tuple[NumericIdentity, ClassRows]]:
        """Yield the rows of every identity whose rows may differ from everybody else's."""
        memo: dict[_Match, ClassRows] = {}
        for identity, match in self._matches(cache, named_ports).items():
            if match not in memo:
                memo[match] = self.rows(match)
            yield identity, memo[match]

    def _matches(
        self, cache: SelectorCache, named_ports: Mapping[NumericIdentity, NamedPorts]
    ) -> dict[NumericIdentity, _Match]:
        masks: dict[NumericIdentity, int] = {}
        for i, rule in enumerate(self._rules):
            if self.anybody >> i & 1:
                continue
            for identity in set().union(*(cache.matching(peer) for peer in rule.peers or ())):
                masks[identity] = masks.get(identity, 0) | 1 << i
        named: dict[NumericIdentity, NamedPorts] = {}
        if self._names:
            for identity, ports in named_ports.items():
                if used := frozenset(port for port in ports if port.name in self._names):
                    named[identity] = used
        touched = masks.keys() | named.keys()
        if self._direction is Direction.INGRESS and self._default_deny:
            touched = touched | {int(Reserved.HOST)}
        return {
            identity: _Match(
                masks.get(identity, 0) | self.anybody,
                named.get(identity, frozenset()),
                self._direction is Direction.INGRESS and identity == Reserved.HOST,
            )
            for identity in touched
        }

    def rows(self, match: _Match) -> ClassRows:
        """Return the rows of a class of identities that match alike."""
        allow: dict[PortBlock, str] = {}
        deny: dict[PortBlock, str] = {}
        if match.is_node and self._default_deny:
            allow[EVERYTHING] = ALLOW_LOCALHOST
        for i, rule in enumerate(self._rules):
            if not match.rules >> i & 1:
                continue
            origins = deny if rule.deny else allow
            named = any(port.name for port in rule.ports or ())
            for block in port_blocks(rule.ports, match.named_ports) if named else self._numbered[i]:
                origins[block] = min(origins.get(block, rule.origin), rule.origin)
        return self._weigh(allow, deny)

    def _weigh(self, allow: dict[PortBlock, str], deny: dict[PortBlock, str]) -> ClassRows:
        # A block inherits what covers the block around it, so wide rules reach into every narrow row.
        covering: dict[PortBlock, tuple[str | None, str | None]] = {}
        said: dict[PortBlock, tuple[int, int]] = {}
        rows: list[ClassRow] = []
        for block in sorted({EVERYTHING, *allow, *deny}):
            around = next((outer for outer in block.enclosing() if outer in covering), None)
            outer_allow, outer_deny = covering[around] if around is not None else (None, None)
            allowed_by = _smallest(allow.get(block), outer_allow)
            denied_by = _smallest(deny.get(block), outer_deny)
            covering[block] = allowed_by, denied_by
            said[block] = self._verdict(allowed_by, denied_by)
            if around is None or said[block] != said[around]:
                verdict, rule_cookie = said[block]
                rows.append(ClassRow(*block, verdict, flags=0, proxy_slot=0, rule_cookie=rule_cookie))
        return tuple(sorted(rows))

    def _verdict(self, allowed_by: str | None, denied_by: str | None) -> tuple[int, int]:
        if denied_by is not None:
            return int(_Verdict.POLICY_VERDICT_DENY), cookie(denied_by)
        if allowed_by is not None:
            return int(_Verdict.POLICY_VERDICT_ALLOW), cookie(allowed_by)
        if self._default_deny:
            return int(_Verdict.POLICY_VERDICT_DEFAULT_DENY), cookie(self._default_deny[0])
        return int(_Verdict.POLICY_VERDICT_ALLOW), NO_COOKIE


def _cache(identities: Identities) -> SelectorCache:
    return identities if isinstance(identities, SelectorCache) else SelectorCache(identities)


def _smallest(*origins: str | None) -> str | None:
    return min((origin for origin in origins if origin is not None), default=None)


def _number(contents: set[ClassRows], *, first: int) -> dict[ClassRows, int]:
    if first + len(contents) - 1 > CLASS_MAX:
        raise ClassesExhaustedError(f"{first + len(contents)} classes, at most {CLASS_MAX + 1} fit")
    return {rows: class_id for class_id, rows in enumerate(sorted(contents), first)}


def _entries(
    direction: Direction, class_id: int, rows: ClassRows
) -> Iterator[tuple[abi.PolicyKey, abi.PolicyEntry]]:
    for row in rows:
        key = abi.PolicyKey(
            prefixlen=row.prefixlen,
            class_id=class_id,
            direction=int(direction),
            protocol=row.protocol,
            dport=row.dport,
        )
        entry = abi.PolicyEntry(
            verdict=row.verdict, flags=row.flags, proxy_slot=row.proxy_slot, rule_cookie=row.rule_cookie
        )
        yield key, entry
