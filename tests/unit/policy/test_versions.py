# SPDX-License-Identifier: Apache-2.0
"""Versions are reused by content, never renumbered, and never named twice."""

import pytest

from ciliumd.desired.policy import EndpointRules, VersionsExhaustedError, classify, plan_versions, resolve
from unit.policy.builders import WEB, app, identities, pod, rule, rules_of

pytestmark = pytest.mark.unit

OPEN = resolve(EndpointRules(), identities())
RULES = rules_of(rule(app("db")))
CLOSED = resolve(RULES, identities())


def test_equal_content_shares_one_new_version() -> None:
    """Endpoints are keys here; what they are under decides."""
    plan = plan_versions({"a": OPEN, "b": CLOSED, "c": OPEN}, {}, next_version=7)

    assert plan.assigned == {"a": 7, "b": 8, "c": 7}
    assert plan.create == {7: OPEN, 8: CLOSED}
    assert plan.states == {7: OPEN, 8: CLOSED}
    assert plan.next_version == 9
    assert plan.obsolete == frozenset()


def test_restart_keeps_every_version_that_still_says_the_right_thing() -> None:
    """Nothing is written and no endpoint flips when nothing changed."""
    plan = plan_versions({1: OPEN, 2: CLOSED}, {7: OPEN, 8: CLOSED}, next_version=9)

    assert plan.create == {}
    assert plan.assigned == {1: 7, 2: 8}
    assert plan.next_version == 9


def test_version_grown_by_additions_is_reused_as_it_is() -> None:
    """Class numbers may differ from a rebuild; the content in force is what is handed on."""
    late = {3000: pod("late")}
    rules = rules_of(rule(app("web"), deny=True), rule(app("late")))
    before = resolve(rules, identities())
    grown = before.with_added(classify(rules, late, before))
    rebuilt = resolve(rules, identities() | late)

    plan = plan_versions({1: rebuilt}, {5: grown}, next_version=6)

    assert grown != rebuilt
    assert plan.assigned == {1: 5}
    assert plan.states == {5: grown}


def test_version_with_a_stale_identity_is_not_reused() -> None:
    """An identity that is gone, and judged by name there, could come back as something else."""
    stale = resolve(rules_of(rule(app("db"))), identities() | {3000: pod("db")})

    plan = plan_versions({1: CLOSED}, {5: stale}, next_version=6)

    assert plan.assigned == {1: 6}
    assert plan.obsolete == {5}


def test_half_written_version_is_not_reused() -> None:
    """A predecessor killed while writing leaves rows missing."""
    half = CLOSED.__class__(CLOSED.classes, dict(list(CLOSED.entries.items())[:-1]))

    plan = plan_versions({1: CLOSED}, {5: half}, next_version=6)

    assert plan.create == {6: CLOSED}
    assert plan.obsolete == {5}


def test_numbers_are_never_used_twice() -> None:
    """Not zero, and not below what the maps hold, whatever the counter says."""
    assert plan_versions({1: OPEN}, {}, next_version=0).assigned == {1: 1}
    assert plan_versions({1: OPEN}, {41: CLOSED}, next_version=3).assigned == {1: 42}


def test_lowest_of_equal_versions_is_taken() -> None:
    """Two versions that say the same are merged into the older one."""
    plan = plan_versions({1: OPEN}, {9: OPEN, 4: OPEN}, next_version=10)

    assert plan.assigned == {1: 4}
    assert plan.obsolete == {9}


def test_running_out_of_numbers_is_an_error() -> None:
    """The counter does not wrap into versions that packets may still name."""
    with pytest.raises(VersionsExhaustedError, match="4294967296"):
        plan_versions({1: OPEN}, {}, next_version=2**32)


def test_no_endpoints_makes_every_version_obsolete() -> None:
    """Nobody wants them; when they may go is for the caller to see."""
    plan = plan_versions({}, {3: OPEN}, next_version=4)

    assert plan.obsolete == {3}
    assert (WEB, 1) not in CLOSED.classes
