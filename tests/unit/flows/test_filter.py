# SPDX-License-Identifier: Apache-2.0
"""A watcher gets what it asked for."""

import pytest

from ciliumd.flows.filter import FlowFilter, parse_types
from unit.flows.samples import TRACE, VERDICT, flow


def only(*ids):
    """A set of endpoint ids."""
    return frozenset(ids)


@pytest.mark.parametrize(
    ("wanted", "matches"),
    [
        (FlowFilter(), True),
        (FlowFilter(types=frozenset({"drop"})), True),
        (FlowFilter(types=frozenset({"trace"})), False),
        (FlowFilter(source=only(7)), True),
        (FlowFilter(source=only(12)), False),
        (FlowFilter(destination=only(12, 99)), True),
        (FlowFilter(destination=only(7)), False),
        (FlowFilter(related=only(7)), True),
        (FlowFilter(related=only(12)), True),
        (FlowFilter(related=only(13)), False),
        (FlowFilter(types=frozenset({"drop"}), source=only(7), destination=only(13)), False),
    ],
)
def test_every_condition_must_hold(wanted, matches):
    """Conditions are joined by and, values of one condition by or."""
    assert wanted.matches(flow()) is matches


def test_each_type_has_its_name():
    """The names of -t."""
    for changes, name in (({}, "drop"), (TRACE, "trace"), (VERDICT, "policy-verdict")):
        assert FlowFilter(types=frozenset({name})).matches(flow(**changes))


def test_types_are_read_with_commas_and_repeats():
    """Both spellings of several types."""
    assert parse_types(["drop,trace", "policy-verdict", ""]) == {"drop", "trace", "policy-verdict"}


def test_unknown_type_is_named():
    """The error says which, and what there is."""
    with pytest.raises(ValueError, match=r"'drops'; known are drop, trace, policy-verdict"):
        parse_types(["drop,drops"])
