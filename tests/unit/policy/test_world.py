# SPDX-License-Identifier: Apache-2.0
"""What changed between two worlds: every identity is looked at, only what may differ is compared."""

import pytest

from ciliumd.desired.policy import World
from ciliumd.desired.policy.world import WorldChanges
from ciliumd.model.labels import Label
from ciliumd.model.policy import NamedPort
from unit.policy.builders import pod

pytestmark = pytest.mark.unit

HTTP = frozenset({NamedPort("http", "TCP", 80)})
OTHER_HTTP = frozenset({NamedPort("http", "TCP", 8080)})


def test_identities_come_go_and_are_given_away_anew() -> None:
    """A number that stands for other labels is altered; one that came back equal is not."""
    before = World({1: pod("a"), 2: pod("b"), 3: pod("c")})
    after = World({2: pod("b"), 3: pod("d"), 4: pod("e")})

    assert before.changes_to(after) == WorldChanges({4: pod("e")}, {3: pod("d")}, frozenset({1}))
    assert not before.changes_to(before)
    assert not before.changes_to(World(dict(before.identities)))


def test_named_ports_alter_an_identity_that_stays() -> None:
    """Got, lost or moved; those of an identity that comes or goes with them are part of that."""
    identities = {number: pod(str(number)) for number in (1, 2, 3, 4)}
    before = World({**identities, 5: pod("5")}, {1: HTTP, 2: HTTP, 4: HTTP, 5: HTTP})
    after = World({**identities, 6: pod("6")}, {2: OTHER_HTTP, 3: HTTP, 4: frozenset(HTTP), 6: HTTP})

    changes = before.changes_to(after)

    assert changes.altered.keys() == {1, 2, 3}
    assert changes.added.keys() == {6}
    assert changes.removed == {5}


def test_ports_nobody_knows_the_identity_of_change_nothing() -> None:
    """A pod of another node may be published before its identity."""
    assert not World({1: pod("a")}).changes_to(World({1: pod("a")}, {7: HTTP}))


def test_what_is_the_same_object_is_not_compared() -> None:
    """Tens of thousands of identities stay from round to round."""

    class Wary(frozenset[Label]):
        """Labels that must not be compared."""

        __hash__ = frozenset.__hash__

        def __eq__(self, other: object) -> bool:
            raise AssertionError("compared")

        def __ne__(self, other: object) -> bool:
            raise AssertionError("compared")

    same = Wary(pod("a"))

    assert World({1: same}).changes_to(World({1: same, 2: pod("b")})).added.keys() == {2}
    with pytest.raises(AssertionError, match="compared"):
        World({1: same}).changes_to(World({1: Wary(pod("a"))}))
