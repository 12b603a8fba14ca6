# SPDX-License-Identifier: Apache-2.0
"""
What one update of the policy versions is going to do; nothing is done before all of it is known.

Plain data and its small questions; who fills it is ``versions``.
"""

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ciliumd import abi
from ciliumd.desired.policy.mapstate import EVERYBODY_ELSE, MapState
from ciliumd.desired.policy.ruling import Classes, Ruling, classes_of
from ciliumd.desired.policy.select import EndpointRules, parts_of, prefixes_of
from ciliumd.desired.policy.selectorcache import SelectorCache
from ciliumd.desired.policy.world import Subject, World
from ciliumd.model.identity import NumericIdentity
from ciliumd.model.net import Prefix
from ciliumd.model.policy import Direction, Peer, Policy
from ciliumd.tables.schema import ObjectKey

if TYPE_CHECKING:
    from ciliumd.desired.policy.overflow import Overflow

Meaning = frozenset[Hashable]

Place = tuple[NumericIdentity, Direction]


class RuleSet:
    """Rules some endpoints are under, and their version; compared by identity: hashing rules is dear."""

    __slots__ = ("_parts", "_peers", "_prefixes", "_ruling", "overflow", "rules", "version")

    def __init__(self, rules: EndpointRules) -> None:
        self.rules = rules
        self.version: int | None = None
        self.overflow: Overflow | None = None
        self._ruling: Ruling | None = None
        self._peers: frozenset[Peer] | None = None
        self._parts: frozenset[Prefix] | None = None
        self._prefixes: frozenset[Prefix] | None = None

    @property
    def peers(self) -> frozenset[Peer]:
        """Whom the rules name."""
        if self._peers is None:
            self._peers = frozenset(peer for rule in self.rules.rules for peer in rule.peers or ())
        return self._peers

    @property
    def parts(self) -> frozenset[Prefix]:
        """The prefixes by which the rules tell pods apart."""
        if self._parts is None:
            self._parts = frozenset(parts_of(self.rules.rules))
        return self._parts

    @property
    def prefixes(self) -> frozenset[Prefix]:
        """The prefixes that the rules tell apart, pods by their addresses among them."""
        if self._prefixes is None:
            self._prefixes = self.parts | prefixes_of(self.rules.rules)
        return self._prefixes

    def ruling(self, cache: SelectorCache) -> Ruling:
        """What the rules come to over the identities of *cache*, which is always the same one."""
        if self._ruling is None:
            self._ruling = Ruling(self.rules, cache)
        return self._ruling


class Version:
    """A version's content, and what is asked of it again and again; content never changes, it is replaced."""

    __slots__ = ("_classes", "_meaning", "_others", "state")

    def __init__(self, state: MapState) -> None:
        self.state = state
        self._classes: Classes | None = None
        self._meaning: Meaning | None = None
        self._others: Meaning | None = None

    @property
    def classes(self) -> Classes:
        """The classes an identity may join."""
        if self._classes is None:
            self._classes = classes_of(self.state)
        return self._classes

    @property
    def meaning(self) -> Meaning:
        """What it says, whatever its classes are called."""
        if self._meaning is None:
            self._meaning = self.state.meaning()
        return self._meaning

    @property
    def others(self) -> Meaning:
        """What it says about everybody else: never changes, and tells most versions apart."""
        if self._others is None:
            self._others = frozenset(
                (key, entry) for key, entry in self.state.entries.items() if key.class_id == EVERYBODY_ELSE
            )
        return self._others

    def says_the_same(self, other: "Version") -> bool:
        """Whether packets fare alike under both."""
        return self.others == other.others and self.meaning == other.meaning

    def changed(self, state: MapState, addition: MapState) -> "Version":
        """Return it with *state*: the rows of *addition* more, and perhaps fewer identities."""
        successor = Version(state)
        successor._others = self._others
        if not addition.entries:
            successor._classes = self._classes
        return successor


@dataclass(slots=True)
class Round:
    """
    Additions and removals, and who is under which version after them.

    *selected* are the rules that apply to each subject, *sets* those that every endpoint is under: not the
    same for endpoints that are *waiting*, which stay under those of before, or without any.  *added* is what
    is written to each version (all of a new one), after *removed* is gone from it.  *overflows* are rules
    that do not fit: an endpoint under them is *kept* under the version it has, or under *shut*.
    *next_version* is the first number that no version has after this.
    """

    policies: Mapping[ObjectKey, Policy]
    world: World
    selected: Mapping[Subject, RuleSet]
    subjects: Mapping[int, Subject]
    sets: Mapping[int, RuleSet]
    waiting: frozenset[int]
    next_version: int
    contents: dict[int, Version] = field(default_factory=dict)
    added: dict[int, MapState] = field(default_factory=dict)
    removed: dict[int, list[Place]] = field(default_factory=dict)
    housed: dict[RuleSet, int] = field(default_factory=dict)
    overflows: "dict[RuleSet, Overflow]" = field(default_factory=dict)
    kept: dict[int, int] = field(default_factory=dict)
    shut: int | None = None

    def rule_sets(self) -> Iterator[RuleSet]:
        """The rules in use, each once."""
        return iter(dict.fromkeys(self.sets.values()))


CLASSES_MAP, RULES_MAP = "cilium_policy_classes_v1", "cilium_policy_rules_v1"


def room(name: str) -> int:
    """How many rows the map *name* of a version holds."""
    inner = abi.MAPS[name].inner
    if inner is None:
        raise ValueError(f"{name} is no map of maps")
    return inner.max_entries


def too_large(classes: int, entries: int) -> str:
    """
    Why so many rows do not fit into the maps of a version; empty if they do.

    How many they are is not said: it changes with every pod that comes, and what is wrong does not.
    """
    for name, rows in ((CLASSES_MAP, classes), (RULES_MAP, entries)):
        if rows > room(name):
            return f"needs more rows of {name} than there are: at most {room(name)} fit"
    return ""


def has_room(classes: int) -> bool:
    """Whether so many identities fit into the classes of a version."""
    return classes <= room(CLASSES_MAP)
