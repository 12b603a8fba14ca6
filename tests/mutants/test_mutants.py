# SPDX-License-Identifier: Apache-2.0
"""
Each mistake of mutants.toml is found by a test.

Which takes half an hour, and root: that is for ``--long``.  That each can still be made is asked always.
"""

import json
from collections.abc import Callable, Iterator

import pytest

from lab.process import REPOSITORY
from mutants.mutant import Copy, Mutant, mutants

ALL = mutants()
LEAST = 30


@pytest.mark.parametrize("mutant", ALL, ids=lambda one: one.name)
def test_a_mutant_has_one_place(mutant: Mutant) -> None:
    """Whoever changes that line changes the mutant, too."""
    assert mutant.places(REPOSITORY) == 1, f"{mutant.file}: {mutant.before}"
    assert mutant.after != mutant.before


def test_there_are_enough_of_them() -> None:
    """Of the resolver and of the programs."""
    assert len(ALL) >= LEAST
    assert {mutant.is_compiled for mutant in ALL} == {True, False}


@pytest.fixture(scope="module")
def copy(request: pytest.FixtureRequest) -> Iterator[Copy]:
    """A copy whose tests pass: only then does one that fails find something."""
    # Below build/out, so that it is nobody's source by accident.
    with Copy(REPOSITORY / "build" / "out" / "mutants") as copy:
        for killers in {mutant.killers for mutant in ALL}:
            assert copy.first_failure(killers) == ""
        yield copy


@pytest.mark.parametrize("mutant", ALL, ids=lambda one: one.name)
def test_a_mutant_is_killed(
    mutant: Mutant, copy: Copy, record_property: Callable[[str, object], None]
) -> None:
    """By a test that fails, not by one that cannot be run."""
    with mutant.made(copy):
        killer = copy.first_failure(mutant.killers)
    told = {"case": "M1", "mutants": 1, "killed": int(bool(killer))}
    record_property("data", json.dumps(told))
    record_property("figure", f"{mutant.name}: {killer or 'ALIVE'}")

    assert killer, f"no test finds that {mutant.why}"
