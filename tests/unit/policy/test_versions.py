# SPDX-License-Identifier: Apache-2.0
"""Versions are reused by content and never renumbered, and nothing changes before a commit."""

from collections.abc import Mapping

import pytest

from ciliumd.desired.policy import (
    RETIRE_AFTER,
    EndpointRules,
    MapState,
    Round,
    Subject,
    Versions,
    VersionsExhaustedError,
    World,
    classify,
    lookup,
    resolve,
)
from ciliumd.desired.policy.ruling import Ruling
from ciliumd.model.labels import Labels
from ciliumd.model.policy import Direction, Enforcement, Policy, PortRule, Selector
from unit.policy.builders import (
    CIDR_8,
    CIDR_16,
    DB,
    TCP,
    WEB,
    WORLD,
    app,
    cidr,
    identities,
    pod,
    policy,
    rule,
    rules_of,
    verdicts,
)

pytestmark = pytest.mark.unit

OPEN = resolve(EndpointRules(), identities())
CLOSED = resolve(rules_of(rule(app("db"))), identities())
WEB_ONLY = Selector(frozenset({("k8s", "app", "web")}))
POLICIES = {("CNP", "default", "p"): policy(rule(app("db")), subject=WEB_ONLY)}
SUBJECTS = {1: Subject(pod("web"), frozenset()), 2: Subject(pod("db"), frozenset())}


def planned(
    versions: Versions,
    policies: Mapping[tuple[str, str, str], Policy] = POLICIES,
    *,
    subjects: Mapping[int, Subject] = SUBJECTS,
    known: Mapping[int, Labels] | None = None,
    now: float = 0.0,
) -> Round:
    """Plan and commit."""
    todo = versions.plan(policies, subjects, World(known if known is not None else identities()))
    versions.commit(todo, now=now)
    return todo


def restored(states: Mapping[int, MapState], *, next_version: int) -> Versions:
    """Versions after a restart that found *states*."""
    versions = Versions(next_version=next_version)
    versions.restore(states, {})
    return versions


def test_equal_content_shares_one_new_version() -> None:
    """What endpoints are under decides."""
    versions = Versions(next_version=7)
    todo = planned(versions, subjects={**SUBJECTS, 3: Subject(pod("other"), frozenset())})

    assert versions.versions == {1: 9, 2: 12, 3: 12}
    assert versions.states == todo.added == {9: CLOSED, 12: OPEN}
    assert versions.next_version == 13
    assert versions.problems == {}


def test_nothing_changes_before_the_commit() -> None:
    """A round that is dropped leaves no trace; planned again it is the same."""
    versions = Versions(next_version=1)
    dropped = versions.plan(POLICIES, SUBJECTS, World(identities()))

    assert (versions.versions, versions.states, versions.next_version) == ({}, {}, 1)
    again = planned(versions)
    assert again.added == dropped.added
    assert versions.versions == {1: 3, 2: 6}


def test_identities_of_a_dropped_round_are_not_remembered() -> None:
    """What was learnt of them is taken back by the next round."""
    versions = Versions(next_version=1)
    planned(versions)
    versions.plan(POLICIES, SUBJECTS, World(identities() | {3000: pod("db")}))

    todo = planned(versions, known=identities())

    assert todo.added == {}
    assert versions.states[3] == CLOSED


def test_restart_keeps_every_version_that_still_says_the_right_thing() -> None:
    """Nothing is written and no endpoint flips when nothing changed."""
    versions = restored({7: OPEN, 8: CLOSED}, next_version=9)
    todo = planned(versions)

    assert todo.added == {}
    assert versions.versions == {1: 8, 2: 7}
    assert versions.next_version == 9


def test_version_grown_by_additions_is_reused_as_it_is() -> None:
    """Class numbers may differ from a rebuild; the content in force is what is handed on."""
    late = {3000: pod("late")}
    policies = {("CNP", "default", "p"): policy(rule(app("web"), deny=True), rule(app("late")))}
    rules = rules_of(rule(app("web"), deny=True), rule(app("late")))
    before = resolve(rules, identities())
    grown = before.with_added(classify(rules, late, before))
    versions = restored({5: grown}, next_version=6)

    planned(versions, policies, subjects={1: SUBJECTS[1]}, known=identities() | late)

    assert grown != resolve(rules, identities() | late)
    assert versions.versions == {1: 5}
    assert versions.states == {5: grown}


def test_version_with_a_stale_identity_is_not_reused() -> None:
    """An identity that is gone, and judged by name there, could come back as something else."""
    stale = resolve(rules_of(rule(app("db"))), identities() | {3000: pod("db")})
    versions = restored({5: stale}, next_version=6)
    planned(versions, subjects={1: SUBJECTS[1]})

    assert versions.versions == {1: 6}


def test_half_written_version_is_not_reused() -> None:
    """A predecessor killed while writing leaves rows missing."""
    half = MapState(CLOSED.classes, dict(list(CLOSED.entries.items())[:-1]))
    versions = restored({5: half}, next_version=6)
    todo = planned(versions, subjects={1: SUBJECTS[1]})

    assert todo.added == {6: CLOSED}
    assert versions.versions == {1: 6}


def test_lowest_of_equal_versions_is_taken_unless_an_endpoint_has_another() -> None:
    """Two versions that say the same are merged into the older one, but nobody is moved for that."""
    versions = restored({9: OPEN, 4: OPEN}, next_version=10)
    planned(versions, {}, subjects={1: SUBJECTS[1]})
    assert versions.versions == {1: 4}

    versions = Versions(next_version=10)
    versions.restore({9: OPEN, 4: OPEN}, {1: 9})
    planned(versions, {}, subjects={1: SUBJECTS[1]})
    assert versions.versions == {1: 9}


def test_numbers_start_above_none_and_do_not_wrap() -> None:
    """Version 0 is no version, and after the last there is none."""
    versions = Versions(next_version=0)
    planned(versions)
    assert versions.versions == {1: 3, 2: 6}

    with pytest.raises(VersionsExhaustedError, match="2147483649"):
        Versions(next_version=2**31).plan(POLICIES, SUBJECTS, World(identities()))


def test_unused_version_stays_for_a_while() -> None:
    """Packets that read its number just before may still need it."""
    versions = Versions(next_version=1)
    planned(versions)
    planned(versions, {}, now=10.0)
    assert versions.next_retirement() == 10.0 + RETIRE_AFTER

    assert versions.retire(10.0 + RETIRE_AFTER / 2) == []
    assert versions.retire(10.0 + RETIRE_AFTER) == [3]
    assert versions.states == {6: OPEN}
    assert versions.next_retirement() is None


def test_a_new_identity_costs_one_row_in_the_versions_it_matters_to() -> None:
    """One row of the classes map where a rule tells it from everybody else; nothing elsewhere."""
    versions = Versions(next_version=1)
    planned(versions)
    todo = planned(versions, known=identities() | {3000: pod("db")})

    assert {version: (len(one.classes), len(one.entries)) for version, one in todo.added.items()} == {
        3: (1, 0)
    }
    assert todo.removed == {3: []}
    assert versions.versions == {1: 3, 2: 6}

    todo = planned(versions)
    assert {version: len(places) for version, places in todo.removed.items()} == {3: 1}
    assert todo.added == {3: MapState()}
    assert versions.states[3] == CLOSED


def test_an_identity_that_comes_resolves_no_rules_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """64 identities that matter, one by one, among hundreds: no version is worked out from scratch again."""
    known = identities() | {1100 + number: pod(f"app-{number}") for number in range(300)}
    versions = Versions(next_version=1)
    planned(versions, known=known)
    resolved: list[object] = []
    monkeypatch.setattr(Ruling, "resolve", lambda *args: resolved.append(args))

    for number in range(64):
        known = known | {3000 + number: pod("db")}
        todo = planned(versions, known=known)
        assert [(len(one.classes), len(one.entries)) for one in todo.added.values()] == [(1, 0)]
    assert resolved == []
    assert {3000 + number for number in range(64)} < {identity for identity, _ in versions.states[3].classes}


@pytest.mark.parametrize(
    ("enforcement", "expected"),
    [
        (Enforcement.DEFAULT, {1: "DEFAULT_DENY", 2: "ALLOW"}),
        (Enforcement.ALWAYS, {1: "DEFAULT_DENY", 2: "DEFAULT_DENY"}),
        (Enforcement.NEVER, {1: "ALLOW", 2: "ALLOW"}),
    ],
)
def test_enforcement_of_the_node_holds_for_every_endpoint(
    enforcement: Enforcement, expected: dict[int, str]
) -> None:
    """Always closes what no policy selects, never opens what one does."""
    versions = Versions(next_version=1, enforcement=enforcement)
    planned(versions)

    said = {
        number: verdicts(versions.states[version], [WEB], (6, 80))[WEB][0]
        for number, version in versions.versions.items()
    }
    assert said == expected
    assert verdicts(versions.states[versions.versions[1]], [DB], (6, 80))[DB] == ("ALLOW",)


def test_one_flipped_bit_leads_from_no_version_to_another() -> None:
    """The word an endpoint is judged by names one of many versions, or none."""
    versions = Versions(next_version=1)
    for number in range(40):
        port = rule(app("db"), ports=(PortRule("TCP", 1 + number),))
        planned(versions, {("CNP", "default", "p"): policy(port, subject=WEB_ONLY)})
    known = set(versions.states)
    assert len(known) > 40
    assert not {one ^ 1 << bit for one in known for bit in range(32)} & known


def test_an_identity_that_stands_in_for_others_may_do_what_all_of_them_may() -> None:
    """A prefix that is not told apart yet: the world is denied what the prefix is, its packets carry it."""
    allow_world = rule(cidr("0.0.0.0/0", "10.0.0.0/8"))
    deny_ten = rule(
        cidr("10.1.0.0/16"), ports=(PortRule("TCP", 22),), deny=True, origin="cnp:default/p/deny/0"
    )
    known = World(identities(), stand_ins={WORLD: frozenset({CIDR_8}), CIDR_8: frozenset({CIDR_16})})
    versions = Versions(next_version=1)
    policies = {
        ("CNP", "default", "p"): policy(allow_world, subject=WEB_ONLY),
        ("CNP", "default", "q"): policy(
            rule(anybody=True), deny_ten, subject=Selector(frozenset({("k8s", "app", "db")}))
        ),
    }
    versions.commit(versions.plan(policies, SUBJECTS, known), now=0.0)

    def says(endpoint: int, identity: int, port: int) -> str:
        verdict, _ = lookup(
            versions.states[versions.versions[endpoint]], identity, Direction.INGRESS, TCP, port
        )
        return verdict.name.removeprefix("POLICY_VERDICT_")

    before = versions.versions
    assert [says(1, one, 80) for one in (WORLD, CIDR_8, CIDR_16)] == ["DEFAULT_DENY"] * 3
    assert [says(2, one, 22) for one in (WORLD, CIDR_8, CIDR_16)] == ["ALLOW", "DENY", "DENY"]
    assert says(2, CIDR_8, 80) == "ALLOW"

    versions.commit(versions.plan(policies, SUBJECTS, World(identities())), now=0.0)
    assert [says(1, one, 80) for one in (WORLD, CIDR_8, CIDR_16)] == ["ALLOW", "DEFAULT_DENY", "DEFAULT_DENY"]
    assert [says(2, one, 22) for one in (WORLD, CIDR_8, CIDR_16)] == ["ALLOW", "ALLOW", "DENY"]
    assert versions.versions[1] != before[1], "never in place: what an identity means that was there before"


def test_selectors_are_the_peers_of_rules_in_force_and_follow_identities() -> None:
    """Each once, with every rule that has it; of rules that endpoints are not under none is told."""
    web = [
        rule(app("db"), cidr("10.0.0.0/8"), origin="cnp:default/p/ingress/0"),
        rule(app("db"), ports=(PortRule("TCP", 80),), origin="cnp:default/p/ingress/1"),
    ]
    policies = {
        ("CNP", "default", "p"): policy(*web, subject=WEB_ONLY),
        ("CNP", "default", "q"): policy(
            rule(app("other")), subject=Selector(frozenset({("k8s", "app", "nobody")}))
        ),
    }
    versions = Versions(next_version=1)
    planned(versions, policies)

    assert versions.selectors() == {
        app("db"): ({"cnp:default/p/ingress/0", "cnp:default/p/ingress/1"}, {DB}),
        cidr("10.0.0.0/8"): ({"cnp:default/p/ingress/0"}, {CIDR_8, CIDR_16}),
    }
    planned(versions, policies, known={**identities(), 2000: pod("db", "elsewhere")})
    assert versions.selectors()[app("db")].identities == {DB, 2000}
