# SPDX-License-Identifier: Apache-2.0
"""Which backends are nearest: the table of Kubernetes' own proxy, and laws about it."""

from dataclasses import replace
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ciliumd.desired.topology import nearest
from ciliumd.model.service import Backend, Hints, Place, TrafficDistribution

pytestmark = pytest.mark.unit

HERE = Place("n1", "a")
SAME_NODE, SAME_ZONE = TrafficDistribution.SAME_NODE, TrafficDistribution.SAME_ZONE


def ready(*hints: tuple[str, str] | None, places: tuple[tuple[str, str], ...] = ()) -> tuple[Backend, ...]:
    """A backend for each (zones, nodes) in *hints*, words in both; *places* is where each one is."""
    made = []
    for number, words in enumerate(hints):
        zones, nodes = (tuple(one.split()) for one in words or ("", ""))
        node, zone = places[number] if places else ("", "")
        one = Backend(ip_address(f"10.0.0.{number + 1}"), 80, "TCP", node or None, zone=zone)
        made.append(replace(one, hints=Hints(zones, nodes) if words else None))
    return tuple(made)


@pytest.mark.parametrize(
    ("hints", "chosen"),
    [
        pytest.param([None, None], [1, 2], id="no hints"),
        pytest.param([("a", ""), ("b", "")], [1], id="zone"),
        pytest.param([("a b", ""), ("b", ""), ("a", "")], [1, 3], id="zones"),
        pytest.param([("a", ""), None], [1, 2], id="one without a hint"),
        pytest.param([("b", ""), ("c", "")], [1, 2], id="nothing for this zone"),
        pytest.param([("a", "n1"), ("a", "n2")], [1], id="node"),
        pytest.param([("a", "n2"), ("a", "n3"), ("b", "n4")], [1, 2], id="nothing for this node, zone"),
        pytest.param([("b", "n2"), ("c", "n3")], [1, 2], id="nothing for either"),
        pytest.param([("a", "n1"), ("a", ""), ("b", "n1")], [1, 2], id="a node's hint is missing: zone"),
        pytest.param([("", "n1"), ("", "n2")], [1], id="node alone"),
        pytest.param([("", "n2"), ("", "n3")], [1, 2], id="node alone, nothing for here"),
        pytest.param([], [], id="nobody"),
    ],
)
@pytest.mark.parametrize("distribution", [None, SAME_ZONE, SAME_NODE])
def test_hints_are_followed_as_kubernetes_does(
    hints: list[tuple[str, str] | None], chosen: list[int], distribution: TrafficDistribution | None
) -> None:
    """Whatever the service says itself, what slices say counts."""
    backends = ready(*hints)

    assert nearest(backends, HERE, distribution) == tuple(backends[number - 1] for number in chosen)


@pytest.mark.parametrize("here", [Place(), Place("n1"), Place(None, ""), Place("n9", "z")])
def test_who_does_not_know_where_he_is_gets_all(here: Place) -> None:
    """A node without a zone label, or where nobody meant."""
    backends = ready(("a", "n2"), ("b", "n3"))

    assert nearest(backends, here, None) == backends


PLACES = (("n1", "a"), ("n2", "a"), ("n3", "b"))


@pytest.mark.parametrize(
    ("here", "distribution", "chosen"),
    [
        (Place("n1", "a"), SAME_NODE, [1]),
        (Place("n1", "a"), SAME_ZONE, [1, 2]),
        (Place("n9", "a"), SAME_NODE, [1, 2]),
        (Place("n9", "b"), SAME_NODE, [3]),
        (Place("n9", "c"), SAME_NODE, [1, 2, 3]),
        (Place("n9", "c"), SAME_ZONE, [1, 2, 3]),
        (Place("n1", "a"), None, [1, 2, 3]),
    ],
)
def test_without_hints_the_service_is_taken_at_its_word(
    here: Place, distribution: TrafficDistribution | None, chosen: list[int]
) -> None:
    """Slices somebody else writes say where endpoints are, which is what hints would be made of."""
    backends = ready(None, None, None, places=PLACES)

    assert nearest(backends, here, distribution) == tuple(backends[number - 1] for number in chosen)


def test_backends_of_unknown_place_are_not_left_out() -> None:
    """One of them makes all count."""
    backends = ready(None, None, places=(("n1", "a"), ("", "")))

    assert nearest(backends, HERE, SAME_NODE) == nearest(backends, HERE, SAME_ZONE) == backends


WORDS = st.sets(st.sampled_from(["a", "b"]), max_size=2).map(lambda one: tuple(sorted(one)))
NODES = st.sets(st.sampled_from(["n1", "n2"]), max_size=2).map(lambda one: tuple(sorted(one)))
HINTS = st.one_of(st.none(), st.builds(Hints, WORDS, NODES))


@given(st.lists(HINTS, max_size=5), st.sampled_from(PLACES), st.sampled_from([None, SAME_NODE, SAME_ZONE]))
def test_somebody_is_always_near(
    hints: list[Hints | None], place: tuple[str, str], distribution: TrafficDistribution | None
) -> None:
    """If anybody is ready; who is chosen is listed, in order; where hints decide, all of them have one."""
    backends = tuple(
        Backend(ip_address(f"10.0.0.{number}"), 80, "TCP", hints=one) for number, one in enumerate(hints, 1)
    )
    found = nearest(backends, Place(*place), distribution)

    assert bool(found) == bool(backends)
    assert found == tuple(one for one in backends if one in found)
    if found != backends:
        kept = [one.hints for one in found]
        node = all(one.hints and one.hints.nodes for one in backends)
        zone = all(one.hints and one.hints.zones for one in backends)
        by_node = node and all(one and place[0] in one.nodes for one in kept)
        by_zone = zone and all(one and place[1] in one.zones for one in kept)
        assert by_node or by_zone
