# SPDX-License-Identifier: Apache-2.0
"""
Pods judged by their addresses: which number policies go by where they tell pods of one label set apart.

The blocks that policies in force name divide addresses into parts: that of an address is the narrowest
block it lies in.  The pods of an identity in a part have a number of their own, which this node's policies
judge them by and nobody else ever sees.

As for prefixes (``daemon.prefixes``) rows come first and rules a round later: until the rows of its pods
say so, packets of a part are judged by the number of what is around it.  A number that could not be written
is stood in for by the one that is there, so that what is around is as closed.  A part goes when no rule in
force names it and no version that packets may still meet tells it apart.

Whoever had an address before is judged as itself, in the part of the address, until its rows are gone.

See docs/decisions/0005-ipblock-and-pods.md.
"""

from collections.abc import Callable, Collection, Iterable, Mapping

from ciliumd.daemon.prefixes import Rules
from ciliumd.desired.allocation import allocate, free_numbers
from ciliumd.desired.policy import NamedPorts, StandIns
from ciliumd.model.identity import (
    PART_MAX,
    PART_MIN,
    NumericIdentity,
    PartOf,
    is_pod,
    part_labels,
)
from ciliumd.model.labels import Labels
from ciliumd.model.net import Addr, LongestPrefix, Prefix, prefix_order
from ciliumd.tables.schema import ObjectKey, Problem, Tables

Owners = Mapping[Addr, NumericIdentity]
"""The identity, in the cluster, of every pod's address."""

_Rows = Mapping[Addr, Collection[NumericIdentity]]
"""By address the numbers it is judged by as of now."""


class Parts:
    """
    How far the parts that policies name have got.

    *awaited* are written in this round; *stand_ins* are the numbers by which packets of others are judged
    meanwhile, *unseen* those of the others that nobody is judged by so far.  *judged* is, by address, what
    rows must say from this round on.  *wanted* are the parts whose numbers somebody needs.  *judged_as*
    answers all the numbers that an address is judged by as of now.
    """

    def __init__(self, tables: Tables, judged_as: Callable[[Addr], Collection[NumericIdentity]]) -> None:
        self.judged_as = judged_as
        self.awaited: frozenset[Prefix] = frozenset()
        self.stand_ins: StandIns = {}
        self.unseen: frozenset[NumericIdentity] = frozenset()
        self.judged: Mapping[Addr, NumericIdentity] = {}
        self.wanted: frozenset[PartOf] = frozenset()
        self._tables = tables
        self._named: frozenset[Prefix] = frozenset()
        self._kept: frozenset[Prefix] = frozenset()
        self._asked: frozenset[Prefix] = frozenset()
        # What is known of addresses, found anew only for other blocks or owners; how often that was so.
        self._owners: Owners = {}
        # Other pods that rows still tell of: of an address that has an owner now, or has none any more.
        self._former: tuple[tuple[Addr, NumericIdentity], ...] = ()
        self._leaving: frozenset[Addr] = frozenset()
        self._around: dict[Addr, tuple[Prefix, ...]] = {}
        self._found_for: tuple[object, object] = (frozenset(), None)
        self._findings = 0
        self._judged_for: tuple[int, frozenset[Prefix]] = (0, frozenset())
        self._missing: dict[Addr, frozenset[NumericIdentity]] = {}
        self._told = False
        self._refused: tuple[PartOf, ...] = ()
        self._labels: dict[PartOf, tuple[Labels, Labels]] = {}

    def restore(
        self, judged_as: Callable[[Addr], Collection[NumericIdentity]], addresses: Iterable[Addr]
    ) -> None:
        """Start from the rows of an earlier agent, which judge these *addresses*."""
        self.judged_as = judged_as
        self._leaving = frozenset(addresses)

    @property
    def numbers(self) -> Mapping[PartOf, NumericIdentity]:
        """The number of every part that has one."""
        return self._tables.parts.view()

    def look(self, named: Collection[Prefix], owners: Callable[[], Owners], of: object) -> None:
        """
        A round begins; *named* are the blocks of policies.

        *owners* are asked for if there are some, and again when what they are a function *of* is another.
        """
        self._named, self._told = frozenset(named), False
        blocks = self._named | self._kept
        are_others = self._found_for != (blocks, of) or bool(self._refused)
        before, stand_ins = self._asked, self.stand_ins
        if are_others or self._missing or self._former:
            self._leaving |= self._owners.keys()
            found = (owners() if blocks else {}) if are_others else self._owners
            rows = {addr: self.judged_as(addr) for addr in found.keys() | self._leaving} if blocks else {}
            self._find(blocks, found, rows)
            self._found_for = blocks, of
            self._missing, stand_ins, self.unseen = self._written_otherwise(rows)
            self._asked = frozenset(one for addr in self._missing for one in self._around.get(addr, ()))
        # Replaced only by others: who compares them is quick if they are the same.
        self.awaited = _unless_equal(self.awaited, self._asked - before)
        if stand_ins != self.stand_ins:
            self.stand_ins = stand_ins

    def settle(self, rules: Rules) -> None:
        """The *rules* of the round are known: say which number every address is judged by."""
        former = self._kept - self._named
        if former:
            in_force = rules.parts()
            former = frozenset(
                block for block in former if block in in_force or self._tell_apart(block, rules)
            )
        self._kept = self._named | former
        if self._judged_for == (self._findings, self._kept):
            return
        self._judged_for = self._findings, self._kept
        judged = self._numbers_within(self._kept)
        if judged != self.judged:
            self.judged = judged

    def known(self, identities: Mapping[NumericIdentity, Labels]) -> dict[NumericIdentity, Labels]:
        """The labels of every part's number, from those of *identities*."""
        before, self._labels = self._labels, {}
        found: dict[NumericIdentity, Labels] = {}
        for part, number in self.numbers.items():
            labels = identities.get(part.identity)
            if labels is None or part.prefix is None:
                continue
            memo = before.get(part)
            if memo is None or memo[0] is not labels:
                memo = labels, part_labels(labels, part.prefix)
            self._labels[part] = memo
            found[number] = memo[1]
        return found

    def named_ports(self, ports: Mapping[NumericIdentity, NamedPorts]) -> dict[NumericIdentity, NamedPorts]:
        """The named ports of every part: a pod has its *ports* whichever part it is in."""
        return {n: ports[part.identity] for part, n in self.numbers.items() if part.identity in ports}

    def problems(self) -> dict[ObjectKey, Problem]:
        """What is to be told of parts without a number."""
        text = "no identity is left for pods in it: rules that name it do not apply to them"
        return {("CIDR", "", str(part.prefix)): Problem("", text) for part in self._refused}

    def unfinished(self) -> bool:
        """Whether another round now would do more than the last one; that is said once a round."""
        if self._told:
            return False
        self._told = bool(self.awaited) or any(
            set(self.judged_as(addr)) == wanted for addr, wanted in self._missing.items()
        )
        return self._told

    def _find(self, blocks: Collection[Prefix], owners: Owners, rows: _Rows) -> None:
        """
        Learn which of the *blocks* hold each address, the narrowest first, and number the parts.

        Every block around an address gets a number: the narrowest may be gone before the others.
        """
        index = LongestPrefix(blocks)
        around = ((addr, tuple(index.around(addr))) for addr in rows)
        self._owners = owners
        self._around = {addr: found for addr, found in around if found}
        self._findings += 1
        base = self._base()
        self._former = tuple(
            (addr, identity)
            for addr in self._around
            for identity in {base.get(number, number) for number in rows[addr]}
            if identity != owners.get(addr) and is_pod(identity)
        )
        self._leaving = frozenset(addr for addr, numbers in rows.items() if numbers and addr not in owners)
        dwellers = (*((addr, owners[addr]) for addr in self._around if addr in owners), *self._former)
        self.wanted = frozenset(
            PartOf(identity, block) for addr, identity in dwellers for block in self._around[addr]
        )
        table = self._tables.parts
        free = free_numbers(table.view(), PART_MIN, PART_MAX)
        allocation = allocate(table.view(), self.wanted, free, order=_part_order)
        for part, number in allocation.assigned.items():
            table.set(part, number)
        self._refused = allocation.refused

    def _written_otherwise(
        self, rows: _Rows
    ) -> tuple[dict[Addr, frozenset[NumericIdentity]], StandIns, frozenset[NumericIdentity]]:
        """
        Addresses that are judged by another number than they will be, or whose pod is gone: by which they
        will be; who stands in for which numbers, and which of these are of parts that nobody is judged by.
        """
        blocks, base = self._named | self._kept, self._base()
        found: dict[Addr, frozenset[NumericIdentity]] = {}
        stand_ins: dict[NumericIdentity, set[NumericIdentity]] = {}
        for addr, identity in (*self._owners.items(), *self._former):
            number = self._number_within(blocks, addr, identity) or identity
            for current in rows[addr]:
                # Who has other labels now is another one, whom policies knew before.
                if current != number and base.get(current, current) == identity:
                    stand_ins.setdefault(current, set()).add(number)
                    owner = self._owners.get(addr)
                    wanted = () if owner is None else (self._number_within(blocks, addr, owner) or owner,)
                    found[addr] = frozenset(wanted)
        seen = {number for numbers in rows.values() for number in numbers}
        unseen = frozenset(
            number
            for others in stand_ins.values()
            for number in others
            if number in base and number not in seen
        )
        return found, {number: frozenset(others) for number, others in stand_ins.items()}, unseen

    def _base(self) -> dict[NumericIdentity, NumericIdentity]:
        """Whose every part is."""
        return {number: part.identity for part, number in self.numbers.items()}

    def _numbers_within(self, blocks: Collection[Prefix]) -> dict[Addr, NumericIdentity]:
        """The number of each address in one of *blocks*; if its part has none, it is as in no block."""
        found = {
            addr: self._number_within(blocks, addr, self._owners[addr])
            for addr in self._around
            if addr in self._owners
        }
        return {addr: number for addr, number in found.items() if number is not None}

    def _number_within(
        self, blocks: Collection[Prefix], addr: Addr, identity: NumericIdentity
    ) -> NumericIdentity | None:
        """The number of the narrowest part, made by *blocks*, that pods of *identity* at *addr* are in."""
        narrowest = next((block for block in self._around.get(addr, ()) if block in blocks), None)
        return None if narrowest is None else self._tables.parts.get(PartOf(identity, narrowest))

    def _tell_apart(self, block: Prefix, rules: Rules) -> bool:
        """Whether a version that packets may still meet judges pods in *block* otherwise than around it."""
        numbers = self.numbers
        pairs = set()
        for addr, blocks in self._around.items():
            if block in blocks and addr in self._owners:
                identity, wider = self._owners[addr], blocks[blocks.index(block) + 1 :]
                inner = numbers.get(PartOf(identity, block), identity)
                outer = numbers.get(PartOf(identity, wider[0]), identity) if wider else identity
                pairs.add((inner, outer))
        return any(rules.tell_apart(*pair) for pair in pairs)


def _part_order(part: PartOf) -> tuple[int, tuple[int, int, int]]:
    # What stands for a number that was lost has that number, and wants none.
    return part.identity, prefix_order(part.prefix) if part.prefix else (0, 0, 0)


def _unless_equal(before: frozenset[Prefix], after: frozenset[Prefix]) -> frozenset[Prefix]:
    return before if before == after else after
