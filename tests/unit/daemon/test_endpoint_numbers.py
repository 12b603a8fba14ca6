# SPDX-License-Identifier: Apache-2.0
"""Ids and slots: each one's own, and none given again while somebody may still know it."""

import pytest

from ciliumd.daemon import endpoint_numbers as module
from ciliumd.daemon.endpoint_numbers import SLOT_QUARANTINE, EndpointNumbers, NumbersExhausted
from ciliumd.tables import Tables
from unit.daemon import nodes


@pytest.fixture
def clock():
    """Seconds."""
    return nodes.Clock()


def numbers(clock, *, slots=4, present=()):
    """Numbers over a table with these endpoints."""
    tables = Tables()
    for number in present:
        tables.endpoints.set(number, nodes.endpoint(number))
    return EndpointNumbers(tables, slots=slots, clock=clock)


def test_what_is_claimed_is_nobody_elses(clock):
    """Although the table does not know it yet."""
    some = numbers(clock, present=[2])
    assert [some.claim() for _ in range(3)] == [(3, 0), (4, 2), (5, 3)]
    with pytest.raises(NumbersExhausted, match="all 4 endpoint slots"):
        some.claim()


def test_a_claim_that_came_to_nothing_frees_its_slot_but_not_its_id(clock):
    """Nobody ever saw the slot; the id may be in a log."""
    some = numbers(clock)
    number, slot = some.claim()
    some.settle(number)
    assert some.claim() == (number + 1, slot)


def test_ids_go_round(clock, monkeypatch):
    """One comes back when all others had their turn, never while it is in use."""
    monkeypatch.setattr(module, "ENDPOINT_ID_MAX", 5)
    some = numbers(clock, slots=100, present=[3])
    given = []
    for _ in range(8):
        number, _ = some.claim()
        some.settle(number)
        given.append(number)
    assert given == [4, 5, 1, 2, 4, 5, 1, 2]


def test_all_ids_in_use_is_told(clock, monkeypatch):
    """Rather than one given twice."""
    monkeypatch.setattr(module, "ENDPOINT_ID_MAX", 2)
    with pytest.raises(NumbersExhausted, match="all 2 endpoint ids"):
        numbers(clock, present=[1, 2]).claim()


def test_a_slot_that_was_in_use_rests(clock):
    """For a while."""
    some = numbers(clock, slots=2)
    number, slot = some.claim()
    some.settle(number)
    some.rest(slot)
    assert some.claim()[1] == 1
    with pytest.raises(NumbersExhausted):
        some.claim()
    clock.now += SLOT_QUARANTINE
    assert some.claim()[1] == slot
