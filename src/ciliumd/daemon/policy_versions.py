# SPDX-License-Identifier: Apache-2.0
"""
Which policy version each endpoint is under, and the rows of every version: the part that remembers.

The content of a version is a pure function (``desired.policy``); what is kept here makes a change cost
what it touches.  Endpoints are selected for again when a policy that touches them changes, a version is
resolved from scratch when its rules are new, and identities that appear are classified one by one and
added to the maps packets read: nobody carries them yet.

Never in place: what an identity means that was there before.  Packets of established connections go by
the verdict they were given under a version, so such a change needs another version.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import structlog

from ciliumd import abi
from ciliumd.bpf.policy_maps import CLASSES, RULES, flat_key, split_key
from ciliumd.desired.policy import (
    ClassesExhaustedError,
    CorruptRowsError,
    EndpointRules,
    MapState,
    NamedPorts,
    SelectorCache,
    VersionsExhaustedError,
    classify,
    packed_classes,
    packed_rules,
    resolve,
    select,
    unpacked,
)
from ciliumd.desired.policy.mapstate import EVERYBODY_ELSE
from ciliumd.desired.policy.versions import VERSION_MAX
from ciliumd.model.labels import Labels
from ciliumd.model.policy import Direction, Policy
from ciliumd.reconcile.target import Changes
from ciliumd.tables.schema import ObjectKey

RETIRE_AFTER = 2.0
"""Seconds an unused policy version stays: packets that read its number just before may still need it."""

Meaning = frozenset[Hashable]

log = structlog.get_logger("policy")


@dataclass(frozen=True, slots=True)
class Subject:
    """What of an endpoint decides about its rules."""

    labels: Labels
    named_ports: NamedPorts


@dataclass(frozen=True, slots=True)
class World:
    """Every identity a packet may carry, and the named ports of the pods behind it."""

    identities: Mapping[int, Labels] = field(default_factory=dict)
    named_ports: Mapping[int, NamedPorts] = field(default_factory=dict)

    def changes_to(self, other: "World") -> "WorldChanges":
        """What happened between this world and *other*."""
        before, after = self.identities, other.identities
        ports, other_ports = self.named_ports, other.named_ports
        return WorldChanges(
            added={number: labels for number, labels in after.items() if number not in before},
            altered={
                number: labels
                for number, labels in after.items()
                if number in before
                and (before[number] != labels or ports.get(number) != other_ports.get(number))
            },
            removed=before.keys() - after.keys(),
        )


@dataclass(frozen=True, slots=True)
class WorldChanges:
    """Identities that appeared, that mean something else than before, and that are gone."""

    added: Mapping[int, Labels]
    altered: Mapping[int, Labels]
    removed: set[int]

    def __bool__(self) -> bool:
        return bool(self.added or self.altered or self.removed)


class _RuleSet:
    """Rules some endpoints are under, and their version; compared by identity: hashing rules is dear."""

    __slots__ = ("problem", "rules", "version")

    def __init__(self, rules: EndpointRules) -> None:
        self.rules = rules
        self.version: int | None = None
        self.problem = ""


@dataclass(slots=True)
class _Round:
    """What one update is going to do; nothing is done before all of it is known."""

    next_version: int
    states: dict[int, MapState] = field(default_factory=dict)
    others: dict[int, Meaning] = field(default_factory=dict)
    meanings: dict[int, Meaning] = field(default_factory=dict)
    rows: list[tuple[bytes, bytes | None]] = field(default_factory=list)
    versions: dict[_RuleSet, int] = field(default_factory=dict)
    problems: dict[_RuleSet, str] = field(default_factory=dict)


class PolicyVersions:
    """All versions of the node; *rules*, *versions* and *problems* are by endpoint id."""

    def __init__(self, *, reserve_version: Callable[[int], None], next_version: int) -> None:
        self.rules: dict[int, EndpointRules] = {}
        self.versions: dict[int, int] = {}
        self.problems: dict[int, str] = {}
        self.states: dict[int, MapState] = {}
        self._reserve_version = reserve_version
        self._next_version = next_version
        self._retired: dict[int, float] = {}
        self._packed: dict[int, dict[bytes, bytes]] = {}
        self._untold: dict[bytes, bytes | None] = {}
        self._policies: Mapping[ObjectKey, Policy] = {}
        self._world = World()
        # Memos; what they answer is a function of policies and world.
        self._sets: dict[EndpointRules, _RuleSet] = {}
        self._selected: dict[Subject, _RuleSet] = {}
        self._cache = SelectorCache()
        self._learned = World()
        self._others: dict[int, Meaning] = {}
        self._meanings: dict[int, Meaning] = {}

    @property
    def rows(self) -> dict[bytes, bytes]:
        """The flat rows of every version."""
        return {
            key: value for version in sorted(self._packed) for key, value in self._packed[version].items()
        }

    def take_changes(self) -> Changes:
        """How :attr:`rows` changed since this was last asked."""
        untold, self._untold = self._untold, {}
        return Changes(
            {key: value for key, value in untold.items() if value is not None},
            [key for key, value in untold.items() if value is None],
        )

    def restore(self, rows: Mapping[bytes, bytes], versions: Mapping[int, int]) -> None:
        """
        Start from the versions the kernel holds, and from those it judges endpoints by.

        A version that no agent wrote is left out.
        """
        grouped: dict[int, dict[int, dict[bytes, bytes]]] = {}
        for key, value in rows.items():
            version, which, inner = split_key(key)
            grouped.setdefault(version, {CLASSES: {}, RULES: {}})[which][inner] = value
        self._next_version = max(self._next_version, max(grouped, default=0) + 1)
        for version, maps in grouped.items():
            try:
                self.states[version] = unpacked(maps[CLASSES], maps[RULES])
            except CorruptRowsError as error:
                log.warning("policy.version_corrupt", version=version, error=str(error))
                continue
            self._write(
                (flat_key(version, which, key), value)
                for which in (RULES, CLASSES)
                for key, value in maps[which].items()
            )
        self.versions = {number: version for number, version in versions.items() if version in self.states}

    def update(
        self,
        policies: Mapping[ObjectKey, Policy],
        subjects: Mapping[int, Subject],
        world: World,
        *,
        now: float,
    ) -> None:
        """
        Bring everything up to date; an endpoint whose rules do not fit keeps the version it has.

        If this raises, nothing has changed.
        """
        touched = [
            policy
            for key in policies.keys() | self._policies.keys()
            if (before := self._policies.get(key)) is not (after := policies.get(key)) and before != after
            for policy in (before, after)
            if policy is not None
        ]
        selected = self._select(policies, subjects, touched)
        rule_sets = dict.fromkeys(selected[subject] for subject in subjects.values())
        changes = self._world.changes_to(world)
        self._learn(world)
        if touched:
            rules = (rule for policy in policies.values() for rule in policy.rules)
            self._cache.keep_only({peer for rule in rules for peer in rule.peers or ()})
        todo = _Round(max(self._next_version, 1))
        homeless = [one for one in rule_sets if one.version is None]
        if changes:
            homeless += self._grow(todo, rule_sets, changes, world)
        now_under: dict[_RuleSet, set[int]] = {one: set() for one in homeless}
        for number, subject in subjects.items():
            if number in self.versions and selected[subject] in now_under:
                now_under[selected[subject]].add(self.versions[number])
        for one, preferred in now_under.items():
            self._house(todo, one, world, preferred)
        if todo.next_version != self._next_version:
            # Before the number is in any map: a number is never used twice, even if we die here.
            self._reserve_version(todo.next_version)
            self._next_version = todo.next_version
        self._commit(todo, rule_sets)
        self._policies, self._world, self._selected = policies, world, selected
        self.rules = {number: selected[subject].rules for number, subject in subjects.items()}
        self.problems = {
            number: problem for number, subject in subjects.items() if (problem := selected[subject].problem)
        }
        self.versions = {
            number: version
            for number, subject in subjects.items()
            if (version := self._version(number, selected[subject])) is not None
        }
        used = set(self.versions.values())
        self._retired = {v: self._retired.get(v, now + RETIRE_AFTER) for v in self.states if v not in used}

    def next_retirement(self) -> float | None:
        """When an unused version may go; None when there is none."""
        return min(self._retired.values(), default=None)

    def retire(self, now: float) -> None:
        """Let go of the versions nobody has used for a while."""
        for version in [version for version, when in self._retired.items() if when <= now]:
            del self._retired[version], self.states[version]
            self._others.pop(version, None)
            self._meanings.pop(version, None)
            self._untold.update(dict.fromkeys(self._packed.pop(version)))

    # ---- which rules -------------------------------------------------------------------------

    def _select(
        self, policies: Mapping[ObjectKey, Policy], subjects: Mapping[int, Subject], touched: Sequence[Policy]
    ) -> dict[Subject, _RuleSet]:
        """The rules of every subject; asked anew only where a *touched* policy selects or selected it."""
        found: dict[Subject, _RuleSet] = {}
        for subject in subjects.values():
            if subject in found:
                continue
            known = self._selected.get(subject)
            if known is None or any(policy.subject.matches(subject.labels) for policy in touched):
                rules = select(policies.values(), subject.labels, named_ports=subject.named_ports)
                known = self._sets.setdefault(rules, _RuleSet(rules))
            found[subject] = known
        return found

    def _learn(self, world: World) -> None:
        """Bring the memo of who matches what up to date, also after an update that failed."""
        changes = self._learned.changes_to(world)
        for number in changes.removed:
            self._cache.remove(number)
        for number, labels in (*changes.added.items(), *changes.altered.items()):
            self._cache.add(number, labels)
        self._learned = world

    def _version(self, number: int, rule_set: _RuleSet) -> int | None:
        """The version of an endpoint: that of its rules, or while they do not fit the one it has."""
        if not rule_set.problem:
            return rule_set.version
        kept = self.versions.get(number)
        return kept if kept in self.states else None

    # ---- what they mean ----------------------------------------------------------------------

    def _grow(
        self, todo: _Round, rule_sets: Iterable[_RuleSet], changes: WorldChanges, world: World
    ) -> list[_RuleSet]:
        """
        Follow *changes* in the versions in use; returns the rules that need another version.

        A version that several rule sets share grows only if all of them want the same.
        """
        sharing: dict[int, list[_RuleSet]] = {version: [] for version in self.states}
        for one in rule_sets:
            if one.version is not None:
                sharing[one.version].append(one)
        leaving: list[_RuleSet] = []
        for version, sharers in sharing.items():
            state = self.states[version]
            # Also where nobody is: a number that is used again must not find its old class anywhere.
            gone = (
                [place for place in state.classes if place[0] in changes.removed] if changes.removed else []
            )
            base = state.without(changes.removed) if gone else state
            wishes = {one: _addition(one.rules, base, changes, world) for one in sharers}
            addition = next(iter(wishes.values()), MapState())
            if addition is None or any(wish != addition for wish in wishes.values()):
                addition = MapState()
                leaving += [one for one, wish in wishes.items() if wish != addition]
            if gone or addition.classes:
                todo.states[version] = base.with_added(addition)
                todo.rows += [(_class_key(version, *place), None) for place in gone]
                todo.rows += _packed(version, addition)
        return leaving

    def _house(self, todo: _Round, rule_set: _RuleSet, world: World, preferred: set[int]) -> None:
        """Find the version that says what *rule_set* wants, or make one; *preferred* its endpoints have."""
        try:
            state = resolve(rule_set.rules, self._cache, named_ports=world.named_ports)
        except ClassesExhaustedError as error:
            todo.problems[rule_set] = str(error)
            return
        if problem := _too_large(state):
            todo.problems[rule_set] = problem
            return
        version = self._same(todo, state, preferred)
        if version is None:
            version = todo.next_version
            if version > VERSION_MAX:
                raise VersionsExhaustedError(f"policy version {version} does not fit in 32 bits")
            todo.next_version += 1
            todo.states[version] = state
            todo.rows += _packed(version, state)
        todo.versions[rule_set] = version

    def _same(self, todo: _Round, state: MapState, preferred: set[int]) -> int | None:
        """The version whose content is that of *state*; of several a *preferred* one, else the lowest."""
        others = _others(state)
        alike = (
            version
            for version in sorted(
                self.states.keys() | todo.states.keys(), key=lambda one: (one not in preferred, one)
            )
            if self._others_of(todo, version) == others
        )
        meaning: Meaning | None = None
        for version in alike:
            meaning = state.meaning() if meaning is None else meaning
            if self._meaning_of(todo, version) == meaning:
                return version
        return None

    def _others_of(self, todo: _Round, version: int) -> Meaning:
        known = self._others if version in self.states else todo.others
        if version not in known:
            known[version] = _others(self.states.get(version) or todo.states[version])
        return known[version]

    def _meaning_of(self, todo: _Round, version: int) -> Meaning:
        known = todo.meanings if version in todo.states else self._meanings
        if version not in known:
            known[version] = (todo.states.get(version) or self.states[version]).meaning()
        return known[version]

    # ---- doing it ----------------------------------------------------------------------------

    def _commit(self, todo: _Round, rule_sets: Iterable[_RuleSet]) -> None:
        for version, state in todo.states.items():
            self.states[version] = state
            self._meanings.pop(version, None)
        for one, version in todo.versions.items():
            one.version, one.problem = version, ""
        for one, problem in todo.problems.items():
            one.version, one.problem = None, problem
        self._write(todo.rows)
        living = set(rule_sets)
        for gone in [one for one in self._sets.values() if one not in living]:
            del self._sets[gone.rules]

    def _write(self, rows: Iterable[tuple[bytes, bytes | None]]) -> None:
        """Rows by flat key; None takes one away."""
        for key, value in rows:
            packed = self._packed.setdefault(split_key(key)[0], {})
            if value is None:
                packed.pop(key, None)
            else:
                packed[key] = value
            self._untold[key] = value


def _addition(rules: EndpointRules, base: MapState, changes: WorldChanges, world: World) -> MapState | None:
    """What *changes* add to *base* for *rules*; None when adding is not enough."""
    named = world.named_ports
    try:
        if changes.altered and classify(rules, changes.altered, base, named_ports=named).classes:
            return None
        addition = classify(rules, changes.added, base, named_ports=named) if changes.added else MapState()
    except ClassesExhaustedError:
        return None
    return None if addition.classes and _too_large(base.with_added(addition)) else addition


def _too_large(state: MapState) -> str:
    """Why *state* does not fit into the maps of a version; empty if it does."""
    for name, rows in (
        ("cilium_policy_classes_v1", state.classes),
        ("cilium_policy_rules_v1", state.entries),
    ):
        inner = abi.MAPS[name].inner
        if inner is not None and len(rows) > inner.max_entries:
            return f"needs {len(rows)} rows of {name}, at most {inner.max_entries} fit"
    return ""


def _others(state: MapState) -> Meaning:
    """What *state* says about everybody else: never changes in a version, and tells most of them apart."""
    return frozenset((key, entry) for key, entry in state.entries.items() if key.class_id == EVERYBODY_ELSE)


def _packed(version: int, state: MapState) -> Iterator[tuple[bytes, bytes]]:
    """Flat rows, those of a class before the identities that lead to it."""
    for which, rows in ((RULES, packed_rules(state)), (CLASSES, packed_classes(state))):
        for key, value in rows.items():
            yield flat_key(version, which, key), value


def _class_key(version: int, identity: int, direction: Direction) -> bytes:
    return flat_key(version, CLASSES, abi.PolicyClassKey(identity=identity, direction=int(direction)).pack())
