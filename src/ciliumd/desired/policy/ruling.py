# SPDX-License-Identifier: Apache-2.0
"""
What rules come to: the class of every identity, and the verdicts of every class.

For every block of ports some rule names there is one row, and its verdict already weighs every rule that
covers the block, however wide that rule is:

1. a deny rule of any width, for any peer that includes this one, wins;
2. else an allow rule of any width allows (the node itself may always reach its own pods);
3. else default deny, if some policy switched it on in this direction; else allowed.

An identity that stands in for others, as the world does for a prefix without a row in the ipcache, is
allowed by rules that allow all of them, and denied by those that deny any.

A row's cookie names the lexically smallest origin among the rules that decide alike.  Rows are
computed once per distinct set of matching rules, never per identity.
"""

from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from functools import reduce
from operator import and_, or_
from typing import NamedTuple

from ciliumd import abi
from ciliumd.desired.policy.cookies import ALLOW_LOCALHOST, NO_COOKIE, cookie
from ciliumd.desired.policy.mapstate import EVERYBODY_ELSE, ClassRow, ClassRows, MapState, class_entries
from ciliumd.desired.policy.rules import EVERYTHING, NamedPorts, PortBlock, is_anybody, port_blocks
from ciliumd.desired.policy.select import EndpointRules
from ciliumd.desired.policy.selectorcache import SelectorCache
from ciliumd.desired.policy.world import StandIns
from ciliumd.model.identity import NumericIdentity, Reserved, is_carried
from ciliumd.model.labels import Labels
from ciliumd.model.policy import Direction

CLASS_MAX = 0xFFFF

NamedPortsOf = Mapping[NumericIdentity, NamedPorts]
"""The named ports of the pods behind an identity, for egress rules."""

_NOBODY: StandIns = {}

_Verdict = abi.PolicyVerdict


class Classes(NamedTuple):
    """The classes of a content: by direction and rows the lowest that has them, and how far they go."""

    numbers: Mapping[tuple[Direction, ClassRows], int]
    highest: Mapping[Direction, int]


class ClassesExhaustedError(Exception):
    """A version needs more classes in one direction than a key can number."""


def resolve(
    rules: EndpointRules,
    identities: Mapping[NumericIdentity, Labels],
    *,
    named_ports: NamedPortsOf | None = None,
) -> MapState:
    """
    Return the whole content of a version for endpoints under *rules*.

    *identities* are all that packets may carry, reserved ones included.  Equal arguments give equal
    content, in any order.
    """
    return Ruling(rules, SelectorCache(identities)).resolve(named_ports or {})


def classify(
    rules: EndpointRules,
    identities: Mapping[NumericIdentity, Labels],
    state: MapState,
    *,
    named_ports: NamedPortsOf | None = None,
) -> MapState:
    """
    Return what must be added to *state*, a content for *rules*, when *identities* appear or change.

    Existing rows stay as they are: an identity joins a class of equal content or gets a fresh one.
    """
    ruling = Ruling(rules, SelectorCache(identities))
    return ruling.classify(identities.keys(), state, classes_of(state), named_ports or {})


def classes_of(state: MapState) -> Classes:
    """Return which classes of *state* an identity with given rows may join."""
    numbers: dict[tuple[Direction, ClassRows], int] = {}
    highest = dict.fromkeys(Direction, EVERYBODY_ELSE)
    for (direction, class_id), rows in state.rows().items():
        numbers[direction, rows] = min(class_id, numbers.get((direction, rows), class_id))
        highest[direction] = max(class_id, highest[direction])
    return Classes(numbers, highest)


class Ruling:
    """
    Rules with what can be worked out before any identity is looked at, over the identities of *cache*.

    It stays right while the cache learns and forgets identities, as long as its peers are kept there.
    """

    def __init__(self, rules: EndpointRules, cache: SelectorCache) -> None:
        self.rules = rules
        self._sides = {direction: _Side(rules, direction, cache) for direction in Direction}

    def resolve(self, named_ports: NamedPortsOf, stand_ins: StandIns = _NOBODY) -> MapState:
        """Return the whole content of a version; see :func:`resolve`."""
        classes: dict[tuple[NumericIdentity, Direction], int] = {}
        entries: dict[abi.PolicyKey, abi.PolicyEntry] = {}
        for direction, side in self._sides.items():
            entries.update(class_entries(direction, EVERYBODY_ELSE, side.others))
            content = side.content(named_ports, stand_ins)
            fresh = {rows for rows in content.values() if rows != side.others}
            numbers = _number(fresh, first=EVERYBODY_ELSE + 1)
            for rows, class_id in numbers.items():
                entries.update(class_entries(direction, class_id, rows))
            for identity in sorted(content):
                if content[identity] != side.others and is_carried(identity):
                    classes[identity, direction] = numbers[content[identity]]
        return MapState(classes, entries)

    def classify(
        self,
        identities: AbstractSet[NumericIdentity],
        state: MapState,
        known: Classes,
        named_ports: NamedPortsOf,
        stand_ins: StandIns = _NOBODY,
    ) -> MapState:
        """
        Return what *identities* of the cache add to *state*, whose classes are *known*.

        Costs what the identities match; see :func:`classify`.
        """
        classes: dict[tuple[NumericIdentity, Direction], int] = {}
        entries: dict[abi.PolicyKey, abi.PolicyEntry] = {}
        for direction, side in self._sides.items():
            content = dict.fromkeys(identities, side.others)
            content |= side.content(named_ports, stand_ins, identities)
            fresh = {rows for rows in content.values() if (direction, rows) not in known.numbers}
            numbers = _number(fresh, first=known.highest[direction] + 1)
            for rows, class_id in numbers.items():
                entries.update(class_entries(direction, class_id, rows))
            for identity in sorted(content):
                rows, before = content[identity], state.classes.get((identity, direction), EVERYBODY_ELSE)
                class_id = numbers[rows] if rows in numbers else known.numbers[direction, rows]
                if class_id != before and is_carried(identity):
                    classes[identity, direction] = class_id
        return MapState(classes, entries)


class _Match(NamedTuple):
    """Everything the rows of an identity depend on; identities that match alike share a class."""

    rules: int  # bit i: rule i of the side has this peer
    named_ports: NamedPorts = frozenset()
    is_node: bool = False


class _Side:
    """The rules of one direction; *others* are the rows of everybody no rule tells apart."""

    def __init__(self, rules: EndpointRules, direction: Direction, cache: SelectorCache) -> None:
        self._rules = rules.of(direction)
        self._default_deny = rules.default_deny(direction)
        self._spares_node = direction is Direction.INGRESS and bool(self._default_deny)
        self._cache = cache
        self._names = {port.name for rule in self._rules for port in rule.ports or () if port.name}
        self._numbered = [port_blocks(rule.ports) for rule in self._rules]
        self._denying = sum(1 << i for i, rule in enumerate(self._rules) if rule.deny)
        self._anybody = sum(1 << i for i, rule in enumerate(self._rules) if is_anybody(rule.peers))
        self._watched = [
            (1 << i, cache.matching(peer))
            for i, rule in enumerate(self._rules)
            if not self._anybody >> i & 1
            for peer in rule.peers or ()
        ]
        self.others = self._rows_of(_Match(self._anybody))

    def content(
        self,
        named_ports: NamedPortsOf,
        stand_ins: StandIns,
        among: AbstractSet[NumericIdentity] | None = None,
    ) -> dict[NumericIdentity, ClassRows]:
        """Return the rows of every identity, or those *among* them, that may differ from everybody else's."""
        memo: dict[_Match, ClassRows] = {}
        content: dict[NumericIdentity, ClassRows] = {}
        for identity, match in self._matches(named_ports, stand_ins, among):
            if match not in memo:
                memo[match] = self._rows_of(match)
            content[identity] = memo[match]
        return content

    def _matches(
        self, named_ports: NamedPortsOf, stand_ins: StandIns, among: AbstractSet[NumericIdentity] | None
    ) -> Iterator[tuple[NumericIdentity, _Match]]:
        wanted = None if among is None else set(among)
        masks = self._masks(wanted)
        shared: dict[NumericIdentity, int] = {}
        for identity, others in stand_ins.items():
            if wanted is None or identity in wanted:
                known = masks if wanted is None else self._masks({identity, *others})
                shared[identity] = self._shared(identity, others, known)
        masks |= shared
        named = self._named(named_ports, wanted) if self._names else {}
        touched = masks.keys() | named.keys()
        if self._spares_node and (wanted is None or Reserved.HOST in wanted):
            touched.add(int(Reserved.HOST))
        for identity in touched:
            is_node = self._spares_node and identity == Reserved.HOST
            ports = named.get(identity, frozenset())
            yield identity, _Match(masks.get(identity, self._anybody), ports, is_node)

    def _masks(self, wanted: set[NumericIdentity] | None) -> dict[NumericIdentity, int]:
        """The rules of the side whose peer an identity is, as bits; the others are like anybody."""
        masks: dict[NumericIdentity, int] = {}
        for bit, identities in self._watched:
            for identity in identities if wanted is None else wanted & identities:
                masks[identity] = masks.get(identity, self._anybody) | bit
        return masks

    def _shared(
        self,
        identity: NumericIdentity,
        others: AbstractSet[NumericIdentity],
        masks: Mapping[NumericIdentity, int],
    ) -> int:
        """What all of them may do, and what is forbidden to any: nobody can tell which it is."""
        every = [masks.get(one, self._anybody) for one in (identity, *others)]
        return reduce(and_, every) & ~self._denying | reduce(or_, every) & self._denying

    def _named(
        self, named_ports: NamedPortsOf, wanted: set[NumericIdentity] | None
    ) -> dict[NumericIdentity, NamedPorts]:
        """The named ports that the rules ask for, of the identities that have any."""
        found: dict[NumericIdentity, NamedPorts] = {}
        for identity in named_ports.keys() if wanted is None else wanted & named_ports.keys():
            used = frozenset(port for port in named_ports[identity] if port.name in self._names)
            if used and identity in self._cache:
                found[identity] = used
        return found

    def _rows_of(self, match: _Match) -> ClassRows:
        """Return the rows of a class of identities that match alike."""
        allow: dict[PortBlock, str] = {}
        deny: dict[PortBlock, str] = {}
        if match.is_node and self._default_deny:
            allow[EVERYTHING] = ALLOW_LOCALHOST
        for i in _bits(match.rules):
            rule = self._rules[i]
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


def _bits(mask: int) -> Iterator[int]:
    while mask:
        lowest = mask & -mask
        yield lowest.bit_length() - 1
        mask ^= lowest


def _smallest(*origins: str | None) -> str | None:
    return min((origin for origin in origins if origin is not None), default=None)


def _number(contents: set[ClassRows], *, first: int) -> dict[ClassRows, int]:
    if first + len(contents) - 1 > CLASS_MAX:
        raise ClassesExhaustedError(f"needs more classes than there are: at most {CLASS_MAX + 1} fit")
    return {rows: class_id for class_id, rows in enumerate(sorted(contents), first)}
