# SPDX-License-Identifier: Apache-2.0
"""Selectors match labels as Kubernetes defines it, and the vocabulary agrees with the datapath."""

import pytest

from ciliumd import abi
from ciliumd.model.labels import K8S, RESERVED, Label
from ciliumd.model.policy import Direction, Operator, PeerEntity, Requirement, Selector

pytestmark = pytest.mark.unit

LABELS = frozenset({Label(K8S, "app", "web"), Label(K8S, "tier", ""), Label(RESERVED, "host")})


def test_directions_have_the_numbers_of_the_datapath() -> None:
    """A direction is written into map keys as it is."""
    expected = [abi.Direction.DIR_INGRESS, abi.Direction.DIR_EGRESS]

    assert expected == [Direction.INGRESS, Direction.EGRESS]


def test_empty_selector_matches_everything() -> None:
    """Nothing required, nothing refused, not even an empty set of labels."""
    assert Selector().matches(LABELS)
    assert Selector().matches(frozenset())


@pytest.mark.parametrize(
    ("source", "value", "expected"),
    [("k8s", "web", True), ("any", "web", True), ("reserved", "web", False), ("any", "db", False)],
)
def test_match_label_compares_source_key_and_value(source: str, value: str, expected: bool) -> None:
    """Source ``any`` accepts the key from every source, another source only its own."""
    selector = Selector(match_labels=frozenset({(source, "app", value)}))

    assert expected is selector.matches(LABELS)


def test_every_term_must_hold() -> None:
    """Match labels and expressions are a conjunction."""
    has_app = Requirement("k8s", "app", Operator.EXISTS)
    no_app = Requirement("k8s", "app", Operator.DOES_NOT_EXIST)
    match = frozenset({("k8s", "app", "web")})

    assert Selector(match, (has_app,)).matches(LABELS)
    assert not Selector(match, (has_app, no_app)).matches(LABELS)


@pytest.mark.parametrize(
    ("key", "op", "values", "expected"),
    [
        ("app", Operator.IN, {"web", "db"}, True),
        ("app", Operator.IN, {"db"}, False),
        ("app", Operator.IN, set(), False),
        ("gone", Operator.IN, {""}, False),
        ("app", Operator.NOT_IN, {"db"}, True),
        ("app", Operator.NOT_IN, {"web"}, False),
        ("gone", Operator.NOT_IN, {"web"}, True),
        ("tier", Operator.EXISTS, set(), True),
        ("gone", Operator.EXISTS, set(), False),
        ("tier", Operator.DOES_NOT_EXIST, set(), False),
        ("gone", Operator.DOES_NOT_EXIST, set(), True),
    ],
)
def test_requirement_operators(key: str, op: Operator, values: set[str], expected: bool) -> None:
    """An absent key fulfils NotIn and DoesNotExist, never In."""
    requirement = Requirement("any", key, op, frozenset(values))

    assert expected is requirement.matches(LABELS)


def test_unknown_entity_cannot_be_built() -> None:
    """An entity nobody knows would match nothing, which in a deny rule is a hole."""
    with pytest.raises(ValueError, match="unknown entity: 'hosts'"):
        PeerEntity("hosts")
