# SPDX-License-Identifier: Apache-2.0
"""
Rules that come to more than the maps of a version hold: what is known of them, and who may go on as before.

An endpoint may stay under another version only while that lets through nothing these rules would not.  What
they come to is followed identity by identity: a selector of fifty thousand is not worked out again for each
pod that comes.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain

from ciliumd import abi
from ciliumd.desired.policy.mapstate import EVERYBODY_ELSE, ClassRow, ClassRows, MapState
from ciliumd.desired.policy.round import Version, has_room, too_large
from ciliumd.desired.policy.rules import PortBlock
from ciliumd.desired.policy.ruling import ClassesExhaustedError, Ruling
from ciliumd.desired.policy.world import World, WorldChanges
from ciliumd.model.identity import NumericIdentity
from ciliumd.model.policy import Direction

LARGEST_COMPARISON = 1 << 18
"""Rows that are looked at to learn whether one version is as strict as another: more is taken for a no."""

_ALLOW = int(abi.PolicyVerdict.POLICY_VERDICT_ALLOW)

Pair = tuple[Direction, int, int]
"""A direction, and the classes that some identity has in two versions."""


class Overflow:
    """
    What rules come to that do not fit: *content*, or None where not even its classes can be numbered.

    *problem* names the map.  It never changes; :meth:`followed` answers another one.
    """

    __slots__ = ("_as_strict", "content", "problem")

    def __init__(
        self, problem: str, content: Version | None = None, as_strict: Mapping[int, bool] | None = None
    ) -> None:
        self.problem = problem
        self.content = content
        self._as_strict = dict(as_strict or {})

    def followed(
        self, changes: WorldChanges, world: World, ruling: Ruling, versions: Mapping[int, Version]
    ) -> "Overflow | None":
        """
        Return it after *changes*, where all *versions* are; None if the rules are to be worked out again.

        Rows of classes that nobody is in any more are still counted, so only classes tell whether it fits.
        """
        if changes.altered:
            return None
        if self.content is None:
            return None if changes.removed else self
        state = self.content.state
        if any((number, direction) in state.classes for number in changes.removed for direction in Direction):
            state = state.without(changes.removed)
        try:
            addition = ruling.classify(
                changes.added.keys(), state, self.content.classes, world.named_ports, world.stand_ins
            )
        except ClassesExhaustedError:
            return None
        grown = self.content.changed(state.with_added(addition), addition)
        classes = len(grown.state.classes)
        problem = too_large(classes, len(grown.state.entries))
        if not problem or (changes.removed and has_room(classes)):
            return None
        added = changes.added.keys()
        as_strict = {
            number: known and _allows_no_more(versions[number].state, grown.state, added)
            for number, known in self._as_strict.items()
            if number in versions
        }
        return Overflow(problem, grown, as_strict)

    def admits(self, number: int, version: Version) -> bool:
        """Whether an endpoint under these rules may go on under *version*, which is called *number*."""
        if self.content is None:
            return False
        if number not in self._as_strict:
            self._as_strict[number] = _allows_no_more(version.state, self.content.state)
        return self._as_strict[number]


def _allows_no_more(one: MapState, other: MapState, among: Iterable[NumericIdentity] | None = None) -> bool:
    """Whether *other* lets through all that *one* does: of all identities, or of those *among* them."""
    mine, theirs = one.rows(), other.rows()
    looked_at = 0
    for direction, first, second in set(_pairs(one, other, among)):
        rows, judges = mine.get((direction, first), ()), theirs.get((direction, second), ())
        looked_at += len(rows) + len(judges)
        if looked_at > LARGEST_COMPARISON or not _rows_allow_no_more(rows, judges):
            return False
    return True


def _pairs(one: MapState, other: MapState, among: Iterable[NumericIdentity] | None) -> Iterator[Pair]:
    if among is None:
        # Those that nobody knows are everybody else to both.
        yield from ((direction, EVERYBODY_ELSE, EVERYBODY_ELSE) for direction in Direction)
        places = chain(one.classes, (place for place in other.classes if place not in one.classes))
    else:
        places = chain((number, direction) for number in among for direction in Direction)
    for place in places:
        yield place[1], one.classes.get(place, EVERYBODY_ELSE), other.classes.get(place, EVERYBODY_ELSE)


def _rows_allow_no_more(one: ClassRows, other: ClassRows) -> bool:
    mine, theirs = _by_block(one), _by_block(other)
    return all(not _allows(mine, block) or _allows(theirs, block) for block in mine.keys() | theirs.keys())


def _by_block(rows: ClassRows) -> dict[PortBlock, ClassRow]:
    return {PortBlock(row.prefixlen, row.protocol, row.dport): row for row in rows}


def _allows(rows: Mapping[PortBlock, ClassRow], block: PortBlock) -> bool:
    """Whether traffic of *block* that no narrower row speaks of passes."""
    found = next((rows[outer] for outer in (block, *block.enclosing()) if outer in rows), None)
    return found is not None and found.verdict == _ALLOW
