# SPDX-License-Identifier: Apache-2.0
"""
Prefixes first, rules one round later: which of the prefixes that policies name packets are told apart by.

A rule that names a prefix means it only while the ipcache has its row: until then packets of the prefix
carry the identity of what is around it, and an exception would be let in with what it is an exception of.
So a round writes the rows, and the next one brings the rules (``desired.policy.versions``).  What could not
be written by then closes what is around it instead (``desired.policy.ruling``): nobody waits for a full map.
A row goes when no rule in force names it and no version packets may still meet tells it apart.

See docs/decisions/0019-prefixes-before-rules.md.
"""

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Protocol

from ciliumd.desired.ipcache import WORLD_PREFIXES, Owner
from ciliumd.desired.policy import StandIns
from ciliumd.model.identity import NumericIdentity
from ciliumd.model.net import Prefix, holds, is_single, prefix_order
from ciliumd.tables.schema import ObjectKey, Problem

Numbers = Mapping[Prefix, NumericIdentity]
_WORLD = {prefix.version: owner.identity for prefix, owner in WORLD_PREFIXES.items()}


class Rules(Protocol):
    """What of policy versions decides which rows must stay."""

    def named(self) -> set[Prefix]:
        """The prefixes that rules in force name."""

    def parts(self) -> set[Prefix]:
        """Those of them by which rules in force tell pods apart."""

    def tell_apart(self, one: NumericIdentity, other: NumericIdentity) -> bool:
        """Whether a version of other rules than those in force judges the two differently."""


class Prefixes:
    """
    How far the prefixes that policies name have got.

    *awaited* are written in this round, *missing* could not be written in an earlier one; *stand_ins* are
    the identities that packets of both carry meanwhile, and those of prefixes that no number was left for;
    *unseen* are the numbers of both, which nothing carries.
    *carried* are those whose rows the ipcache must hold.  *identity_at* answers the identity of the row that
    a prefix has.
    """

    def __init__(self, identity_at: Callable[[Prefix], NumericIdentity | None]) -> None:
        self.identity_at = identity_at
        self.awaited: frozenset[Prefix] = frozenset()
        self.missing: frozenset[Prefix] = frozenset()
        self.stand_ins: StandIns = {}
        self.unseen: frozenset[NumericIdentity] = frozenset()
        self.carried: Numbers = {}
        self._named: Numbers = {}
        self._there: set[Prefix] = set()
        self._asked: frozenset[Prefix] = frozenset()
        self._told: frozenset[Prefix] = frozenset()
        self._leaned_on: set[Prefix] = set()
        self._weighed: tuple[object, ...] = ()

    def restore(self, numbers: Numbers) -> None:
        """Start from the rows of an earlier agent, by the *numbers* it gave."""
        self.carried = {
            prefix: number for prefix, number in numbers.items() if self.identity_at(prefix) == number
        }

    def look(
        self, named: Numbers, beyond: Mapping[Prefix, Owner], unnumbered: Numbers = MappingProxyType({})
    ) -> None:
        """
        A round begins; *named* are the prefixes of policies, *beyond* those of other nodes' pods.

        *unnumbered* are prefixes of policies as well, which will not be told apart: no number was left.
        """
        self._named = named
        absent = frozenset(one for one in named.keys() - self._there if not self._is_there(one))
        self._there = named.keys() - absent
        # Replaced only by others: who compares them is quick if they are the same.
        self.missing = _unless_equal(self.missing, absent & self._asked)
        self.awaited = _unless_equal(self.awaited, absent - self._asked)
        self._asked = absent
        self.unseen = frozenset(named[one] for one in absent)
        self._told = frozenset()
        lost = {prefix: one for prefix, one in unnumbered.items() if not self._is_somebodys(prefix)}
        if not absent and not lost:
            self._leaned_on, self._weighed = set(), ()
            if self.stand_ins:
                self.stand_ins = {}
            return
        # Thousands may be absent for hours: only what changed is worth another look.
        weighed = (absent, self.awaited, self._there, lost, named, beyond, self.carried)
        if weighed == self._weighed:
            return
        self._weighed = weighed
        stand_ins = self._find_stand_ins(absent | lost.keys(), beyond, {**named, **lost})
        if stand_ins != self.stand_ins:
            self.stand_ins = stand_ins

    def settle(self, numbers: Numbers, rules: Rules) -> None:
        """The *rules* of the round are known: say which rows must be there; *numbers* are all of them."""
        carried = self._named
        if former := self.carried.keys() - carried.keys():
            still = self._still_needed(former, numbers, rules)
            carried = {**carried, **{prefix: numbers[prefix] for prefix in still}}
        if carried is not self.carried and carried != self.carried:
            self.carried = carried

    def problems(self) -> dict[ObjectKey, Problem]:
        """What is to be told of the *missing* ones."""
        text = "it is not in the ipcache: what is around it is as closed"
        return {("CIDR", "", str(prefix)): Problem("", text) for prefix in self.missing}

    def unfinished(self) -> bool:
        """Whether another round now would do more than the last one; of each prefix that is said once."""
        news = self.awaited | {one for one in self.missing if self._is_there(one)}
        told, self._told = self._told, news
        return not news <= told

    def _is_there(self, prefix: Prefix) -> bool:
        """Whether packets are told apart by *prefix*; the address of a pod or a node is theirs."""
        return self.identity_at(prefix) == self._named[prefix] or self._is_somebodys(prefix)

    def _is_somebodys(self, prefix: Prefix) -> bool:
        return is_single(prefix) and self.identity_at(prefix) is not None

    def _find_stand_ins(
        self, absent: frozenset[Prefix], beyond: Mapping[Prefix, Owner], numbers: Numbers
    ) -> StandIns:
        """
        By identity those that carry it instead of their own: of every *absent* prefix the next one around it.

        The row of that one stays for the round in which the prefix is written.  Where that failed the row
        may be what takes up the room: it goes if nobody names it, so that the next one around counts as well.
        """
        self._leaned_on = set()
        rows = {prefix: owner.identity for prefix, owner in beyond.items()}
        rows.update((prefix, number) for prefix, number in self.carried.items() if prefix not in absent)
        rows.update((prefix, self._named[prefix]) for prefix in self._there)
        found: dict[NumericIdentity, set[NumericIdentity]] = {number: set() for number in _WORLD.values()}
        for prefix, around in _nested({*absent, *rows}):
            if prefix in rows:
                found.setdefault(rows[prefix], set())
            if prefix not in absent:
                continue
            number = numbers[prefix]
            for outer in reversed([one for one in (*around, prefix) if one in rows]):
                found[rows[outer]].add(number)
                if outer in self._there:
                    break
                if prefix in self.awaited and outer in self.carried:
                    self._leaned_on.add(outer)
                    break
            else:
                found[_WORLD[prefix.version]].add(number)
        return {identity: frozenset(others) for identity, others in found.items() if others}

    def _still_needed(self, former: set[Prefix], numbers: Numbers, rules: Rules) -> Iterator[Prefix]:
        """Those of the *former* prefixes whose rows must stay; what lies in others is what is around."""
        in_force = rules.named()
        kept: set[Prefix] = set()
        for prefix, around in _nested({*former, *self._named}):
            if prefix not in former or prefix not in numbers:
                continue
            outer = next((one for one in reversed(around) if one in self._named or one in kept), None)
            identity = _WORLD[prefix.version] if outer is None else numbers[outer]
            if prefix in in_force or prefix in self._leaned_on or rules.tell_apart(numbers[prefix], identity):
                kept.add(prefix)
                yield prefix


def _nested(prefixes: set[Prefix]) -> Iterator[tuple[Prefix, list[Prefix]]]:
    """Every prefix with those of *prefixes* around it, the widest first."""
    around: list[Prefix] = []
    for prefix in sorted(prefixes, key=prefix_order):
        while around and not holds(around[-1], prefix):
            around.pop()
        yield prefix, around
        around.append(prefix)


def _unless_equal(before: frozenset[Prefix], after: frozenset[Prefix]) -> frozenset[Prefix]:
    return before if before == after else after
