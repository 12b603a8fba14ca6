# SPDX-License-Identifier: Apache-2.0
"""
Which policy version each endpoint is under, and what every version holds: planned, then committed.

The content of a version is a pure function of policies and world (``ruling``); what is kept here makes a
change cost what it touches.  Endpoints are selected for again when a policy that touches them changes, a
version is resolved from scratch when its rules are new, and identities that appear are classified one by
one and added to the maps packets read: nobody carries them yet.

Rules that name a prefix which the ipcache does not tell apart yet come into force a round later: until
then packets of the prefix carry a wider one's identity.  See docs/decisions/0019-prefixes-before-rules.md.

Never in place: what an identity means that was there before.  Packets of established connections go by
the verdict they were given under a version, so such a change needs another version.

Nothing here has an effect: rows are written, and numbers reserved, by whoever commits a round.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence

from ciliumd import abi
from ciliumd.desired.policy.mapstate import EVERYBODY_ELSE, MapState
from ciliumd.desired.policy.overflow import Overflow
from ciliumd.desired.policy.round import CLASSES_MAP, RULES_MAP, Place, Round, RuleSet, Version, too_large
from ciliumd.desired.policy.ruling import ClassesExhaustedError, Ruling
from ciliumd.desired.policy.select import SHUT, EndpointRules, select
from ciliumd.desired.policy.selectorcache import Selected, SelectorCache
from ciliumd.desired.policy.world import Subject, World, WorldChanges
from ciliumd.model.identity import NumericIdentity
from ciliumd.model.net import Prefix
from ciliumd.model.policy import Direction, Enforcement, Peer, Policy
from ciliumd.tables.schema import ObjectKey

RETIRE_AFTER = 2.0
"""Seconds an unused policy version stays: packets that read its number just before may still need it."""

LONGEST_WAIT = 10
"""Rounds in a row an endpoint waits for prefixes: who names new ones in each is not put off for ever."""

VERSION_MAX = int(abi.CtVersion.CT_VERSION_AUDITED) - 1
"""The bit above says in conntrack that a flow passes by audit alone."""

_KEPT = "it goes on under the rules of before, which let nothing more through"
_SHUT = "nothing passes"

APART = 3
"""Versions are multiples of this: no power of two is, so one flipped bit never leads to another version."""


class VersionsExhaustedError(Exception):
    """Every version number was used once; a node reboot starts over."""


class Versions:
    """
    All versions of a node; *rules*, *versions* and *problems* are by endpoint id, *states* by version.

    *rules* are those in force; whose endpoints are *waiting* have others coming.  *next_version* is the first
    number never used so far.
    """

    def __init__(self, *, next_version: int, enforcement: Enforcement = Enforcement.DEFAULT) -> None:
        self.rules: dict[int, EndpointRules] = {}
        self.versions: dict[int, int] = {}
        self.problems: dict[int, str] = {}
        self.states: dict[int, MapState] = {}
        self.waiting: frozenset[int] = frozenset()
        self.next_version = next_version
        self._enforcement = enforcement
        self._contents: dict[int, Version] = {}
        self._retired: dict[int, float] = {}
        self._policies: Mapping[ObjectKey, Policy] = {}
        self._world = World()
        self._in_force: Mapping[int, RuleSet] = {}
        self._waited: dict[int, int] = {}
        # Memos; what they answer is a function of policies and world.
        self._sets: dict[EndpointRules, RuleSet] = {}
        self._selected: Mapping[Subject, RuleSet] = {}
        self._cache = SelectorCache()
        self._learned = World()

    def restore(self, states: Mapping[int, MapState], versions: Mapping[int, int]) -> None:
        """Start from versions that are there already, and from those endpoints are judged by."""
        self.states.update(states)
        self._contents = {number: Version(state) for number, state in states.items()}
        self.versions = {number: version for number, version in versions.items() if version in states}

    def plan(
        self, policies: Mapping[ObjectKey, Policy], subjects: Mapping[int, Subject], world: World
    ) -> Round:
        """
        Return what it takes to bring everything up to date; nothing has changed until it is committed.

        Raises VersionsExhaustedError; rules that do not fit into a version are a problem of the round.
        """
        touched = [
            policy
            for key in policies.keys() | self._policies.keys()
            if (before := self._policies.get(key)) is not (after := policies.get(key)) and before != after
            for policy in (before, after)
            if policy is not None
        ]
        # By endpoint id: numbers must not depend on who was heard of first.
        subjects = dict(sorted(subjects.items()))
        selected = self._select(policies, subjects, touched)
        sets, waiting = self._let_in(selected, subjects, world.awaited)
        todo = Round(policies, world, selected, subjects, sets, waiting, max(self.next_version, 1))
        changes = self._world.changes_to(world)
        self._learn(world, changes)
        rule_sets = list(todo.rule_sets())
        homeless = [one for one in rule_sets if one.version is None]
        if changes:
            homeless += self._grow(todo, rule_sets, changes)
        under: dict[RuleSet, set[int]] = {one: set() for one in homeless}
        for number, one in sets.items():
            if number in self.versions and one in under:
                under[one].add(self.versions[number])
        for one, preferred in under.items():
            self._house(todo, one, preferred, changes)
        self._lock_down(todo)
        return todo

    def commit(self, todo: Round, *, now: float) -> None:
        """Take *todo*, the round planned last, as done."""
        self.next_version = todo.next_version
        self._contents |= todo.contents
        self.states.update((number, content.state) for number, content in todo.contents.items())
        for one, home in todo.housed.items():
            one.version = home
        for one in self._sets.values():
            one.overflow = todo.overflows.get(one)
            if one.overflow is not None:
                one.version = None
        self._forget_unused({*todo.rule_sets(), *todo.selected.values()})
        self._policies, self._world, self._selected = todo.policies, todo.world, todo.selected
        self._in_force, self.waiting = todo.sets, todo.waiting
        self._waited = {number: self._waited.get(number, 0) + 1 for number in todo.waiting}
        sets = todo.sets
        self.rules = {
            number: sets.get(number, todo.selected[subject]).rules
            for number, subject in todo.subjects.items()
        }
        self.problems = {
            number: f"{one.overflow.problem}; {_KEPT if number in todo.kept else _SHUT}"
            for number, one in sets.items()
            if one.overflow is not None
        }
        self.versions = {
            number: version
            for number, one in sets.items()
            if (version := todo.kept.get(number, todo.shut) if one.overflow else one.version) is not None
        }
        used = set(self.versions.values())
        self._retired = {v: self._retired.get(v, now + RETIRE_AFTER) for v in self._contents if v not in used}

    def next_retirement(self) -> float | None:
        """When an unused version may go; None when there is none."""
        return min(self._retired.values(), default=None)

    def retire(self, now: float) -> list[int]:
        """Let go of the versions nobody has used for a while; these."""
        gone = [version for version, when in self._retired.items() if when <= now]
        for version in gone:
            del self._retired[version], self._contents[version], self.states[version]
        return gone

    def named(self) -> set[Prefix]:
        """The prefixes that rules in force name."""
        return {prefix for one in set(self._in_force.values()) for prefix in one.prefixes}

    def parts(self) -> set[Prefix]:
        """Those of them by which rules in force tell pods apart."""
        return {prefix for one in set(self._in_force.values()) for prefix in one.parts}

    def selectors(self) -> dict[Peer, Selected]:
        """The peers of the rules in force."""
        users: dict[Peer, set[str]] = {}
        for one in set(self._in_force.values()):
            for rule in one.rules.rules:
                for peer in rule.peers or ():
                    users.setdefault(peer, set()).add(rule.origin)
        return {
            peer: Selected(frozenset(origins), frozenset(self._cache.matching(peer)))
            for peer, origins in users.items()
        }

    def fullest(self) -> dict[str, int]:
        """Of each map of a version the most rows that any holds, or would hold if there were room."""
        overflows = [one.overflow for one in set(self._in_force.values()) if one.overflow is not None]
        states = [*self.states.values(), *(one.content.state for one in overflows if one.content is not None)]
        return {
            CLASSES_MAP: max((len(state.classes) for state in states), default=0),
            RULES_MAP: max((len(state.entries) for state in states), default=0),
        }

    def tell_apart(self, one: NumericIdentity, other: NumericIdentity) -> bool:
        """
        Whether a version of other rules than those in force judges the two differently.

        Packets may still be judged by it, or an endpoint whose rules do not fit.
        """
        current = {rule_set.version for rule_set in self._in_force.values()}
        return any(
            classes.get((one, direction), EVERYBODY_ELSE) != classes.get((other, direction), EVERYBODY_ELSE)
            for number, content in self._contents.items()
            if number not in current
            for classes in [content.state.classes]
            for direction in Direction
        )

    # ---- which rules -------------------------------------------------------------------------

    def _select(
        self, policies: Mapping[ObjectKey, Policy], subjects: Mapping[int, Subject], touched: Sequence[Policy]
    ) -> dict[Subject, RuleSet]:
        """The rules of every subject; asked anew only where a *touched* policy selects or selected it."""
        found: dict[Subject, RuleSet] = {}
        for subject in subjects.values():
            if subject in found:
                continue
            known = self._selected.get(subject)
            if known is None or any(policy.subject.matches(subject.labels) for policy in touched):
                rules = self._rules_of(subject, policies.values())
                known = self._sets.setdefault(rules, RuleSet(rules))
            found[subject] = known
        return found

    def _rules_of(self, subject: Subject, policies: Iterable[Policy]) -> EndpointRules:
        if subject.shut and self._enforcement is not Enforcement.NEVER:
            return SHUT
        return select(
            policies, subject.labels, named_ports=subject.named_ports, enforcement=self._enforcement
        )

    def _let_in(
        self,
        selected: Mapping[Subject, RuleSet],
        subjects: Mapping[int, Subject],
        awaited: Collection[Prefix],
    ) -> tuple[dict[int, RuleSet], frozenset[int]]:
        """
        The rules every endpoint is under now, and who waits for others: those that name *awaited* prefixes.

        Who had none waits shut.  Under a version of an earlier agent nobody knows what an identity that
        appears would be: there the rules come at once, as closed as it takes (``ruling``).
        """
        sets: dict[int, RuleSet] = {}
        waiting: set[int] = set()
        for number, subject in subjects.items():
            wanted, before = selected[subject], self._in_force.get(number)
            if (
                awaited
                and wanted is not before
                and not wanted.prefixes.isdisjoint(awaited)
                and (before is not None or number not in self.versions)
                and self._waited.get(number, 0) < LONGEST_WAIT
            ):
                waiting.add(number)
                if before is not None:
                    sets[number] = before
            else:
                sets[number] = wanted
        return sets, frozenset(waiting)

    def _learn(self, world: World, changes: WorldChanges) -> None:
        """Bring the memo of who matches what up to date, also after a round that was never committed."""
        if self._learned is not self._world:
            changes = self._learned.changes_to(world)
        for number in changes.removed:
            self._cache.remove(number)
        for number, labels in (*changes.added.items(), *changes.altered.items()):
            self._cache.add(number, labels)
        self._learned = world

    def _forget_unused(self, living: Collection[RuleSet]) -> None:
        gone = [one for one in self._sets.values() if one not in living]
        for one in gone:
            del self._sets[one.rules]
        peers = frozenset[Peer]().union(*(one.peers for one in gone))
        self._cache.forget(peers.difference(*(one.peers for one in living)))

    def _kept(self, number: int) -> int | None:
        """The version an endpoint has, if it is still there."""
        kept = self.versions.get(number)
        return kept if kept in self._contents else None

    # ---- what they mean ----------------------------------------------------------------------

    def _grow(self, todo: Round, rule_sets: Iterable[RuleSet], changes: WorldChanges) -> list[RuleSet]:
        """
        Follow *changes* in the versions in use; returns the rules that need another version.

        A version that several rule sets share grows only if all of them want the same.
        """
        sharing: dict[int, list[RuleSet]] = {version: [] for version in self._contents}
        for one in rule_sets:
            if one.version is not None:
                sharing[one.version].append(one)
        leaving: list[RuleSet] = []
        for version, sharers in sharing.items():
            content = self._contents[version]
            # Also where nobody is: a number that is used again must not find its old class anywhere.
            gone = _places(content.state, changes.removed)
            base = content.state.without(changes.removed) if gone else content.state
            wishes = {one: self._addition(one, content, base, changes, todo.world) for one in sharers}
            addition = next(iter(wishes.values()), _as_stood_for(base, todo.world))
            if addition is None or any(wish != addition for wish in wishes.values()):
                addition = MapState()
                leaving += [one for one, wish in wishes.items() if wish != addition]
            if gone or addition.classes:
                todo.contents[version] = content.changed(base.with_added(addition), addition)
                todo.removed[version] = gone
                todo.added[version] = addition
        return leaving

    def _addition(
        self, rule_set: RuleSet, content: Version, base: MapState, changes: WorldChanges, world: World
    ) -> MapState | None:
        """What *changes* add to *base* for a rule set; None when adding is not enough."""
        ruling = rule_set.ruling(self._cache)
        around = world.named_ports, world.stand_ins
        try:
            if ruling.classify(changes.altered.keys(), base, content.classes, *around).classes:
                return None
            addition = ruling.classify(changes.added.keys(), base, content.classes, *around)
        except ClassesExhaustedError:
            return None
        grown = len(base.classes) + len(addition.classes), len(base.entries) + len(addition.entries)
        return None if addition.classes and too_large(*grown) else addition

    def _house(
        self, todo: Round, rule_set: RuleSet, preferred: Collection[int], changes: WorldChanges
    ) -> None:
        """Find the version that says what a rule set wants, or make one; *preferred* its endpoints have."""
        ruling, world = rule_set.ruling(self._cache), todo.world
        if rule_set.overflow is not None:
            overflow = rule_set.overflow.followed(changes, world, ruling, self._contents | todo.contents)
            if overflow is not None:
                todo.overflows[rule_set] = overflow
                return
        try:
            state = ruling.resolve(world.named_ports, world.stand_ins)
        except ClassesExhaustedError as error:
            todo.overflows[rule_set] = Overflow(str(error))
            return
        if problem := too_large(len(state.classes), len(state.entries)):
            todo.overflows[rule_set] = Overflow(problem, Version(state))
            return
        todo.housed[rule_set] = self._home(todo, state, preferred)

    def _lock_down(self, todo: Round) -> None:
        """
        Say under which version endpoints are whose rules do not fit.

        The one they have, if it lets nothing through that these rules would not; else one that lets nobody in
        or out.  Rules that do not fit may well be a deny.
        """
        if not todo.overflows:
            return
        contents = self._contents | todo.contents
        shut = Version(Ruling(SHUT, self._cache).resolve(todo.world.named_ports, todo.world.stand_ins))
        for number, rule_set in todo.sets.items():
            overflow = todo.overflows.get(rule_set)
            if overflow is None:
                continue
            kept = self._kept(number)
            may_stay = kept is not None and not shut.says_the_same(contents[kept])
            if kept is not None and may_stay and overflow.admits(kept, contents[kept]):
                todo.kept[number] = kept
            elif todo.shut is None:
                todo.shut = self._home(todo, shut.state, () if kept is None else (kept,))

    def _home(self, todo: Round, state: MapState, preferred: Collection[int]) -> int:
        """The version that says what *state* does, which is made if there is none."""
        wanted = Version(state)
        version = self._same(todo, wanted, preferred)
        if version is None:
            version = -(-todo.next_version // APART) * APART
            if version > VERSION_MAX:
                raise VersionsExhaustedError(
                    f"policy version {version} is larger than conntrack has room for"
                )
            todo.next_version = version + 1
            todo.contents[version] = wanted
            todo.added[version] = state
        return version

    def _same(self, todo: Round, wanted: Version, preferred: Collection[int]) -> int | None:
        """The version that says what is *wanted*; of several a *preferred* one, else the lowest."""
        contents = self._contents | todo.contents
        for version in sorted(contents, key=lambda one: (one not in preferred, one)):
            if contents[version].says_the_same(wanted):
                return version
        return None


def _as_stood_for(state: MapState, world: World) -> MapState:
    """
    What a version nobody's rules are behind must know of prefixes before they are told apart.

    Its endpoints go on as before: a prefix is judged as what its packets carried so far.  A number that some
    packets have already is left alone: that the version does not have it says what these are judged as.
    """
    found: dict[Place, int] = {}
    for identity, others in world.stand_ins.items():  # the narrower the later
        for place in ((number, direction) for number in others & world.unseen for direction in Direction):
            class_id = state.classes.get((identity, place[1]), EVERYBODY_ELSE)
            if place not in state.classes:
                found[place] = class_id
    return MapState({place: class_id for place, class_id in found.items() if class_id != EVERYBODY_ELSE})


def _places(state: MapState, identities: Iterable[int]) -> list[Place]:
    """The rows of the classes map that *identities* have."""
    places = ((identity, direction) for identity in identities for direction in Direction)
    return [place for place in places if place in state.classes]
