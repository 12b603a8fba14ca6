# SPDX-License-Identifier: Apache-2.0
"""
Every object under every combination of the options that change its code: it loads, and cheaply.

The verifier prunes what an option turns off, so each combination is a program of its own to it.
What it walked is written to build/out/verifier.json, a table to compare between versions.
"""

from __future__ import annotations

import json
import platform

import pytest

from ciliumd import abi
from ciliumd.bpf import Object
from ciliumd.bpf.object import embedded
from datapath.combinations import NUMBERS, OUT, SWITCHES, Load, loads, maps_of, options_read, verify

pytestmark = pytest.mark.datapath

# Half of what the verifier allows, on every kernel: 1,000,000 walked instructions.
LIMIT = 500_000
TABLE = OUT / "verifier.json"


@pytest.fixture(scope="module")
def table() -> dict[str, dict[str, int]]:
    """Instructions per program: with the defaults, in the cheapest and in the dearest combination."""
    return {}


def test_every_option_is_known_as_a_switch_or_as_a_number() -> None:
    """A new option must say which it is, or its other value is never verified."""
    assert set(abi.CONFIG) == NUMBERS | set(SWITCHES)


@pytest.mark.parametrize("name", sorted(embedded()))
def test_object_loads_with_every_combination_of_switches_and_costs_little(
    name: str, table: dict[str, dict[str, int]]
) -> None:
    """No program is near the verifier's limit, whatever is switched on."""
    with maps_of(name) as maps:
        usual, *others = [verify(name, load, maps) for load in loads(name)]
    for program, walked in usual.items():
        counts = [walk[program] for walk in others if program in walk]
        table[f"{name}/{program}"] = {
            "usual": walked,
            "least": min(counts),
            "most": max(counts),
            "combinations": len(counts),
        }

    OUT.mkdir(parents=True, exist_ok=True)
    TABLE.write_text(json.dumps({"kernel": platform.release(), "verified_insns": table}, indent=2) + "\n")

    assert {program: row["most"] for program, row in table.items() if row["most"] > LIMIT} == {}


@pytest.mark.parametrize("name", sorted(embedded()))
def test_options_that_a_program_does_not_read_change_nothing(name: str) -> None:
    """One load stands for all combinations that differ only in them: the verifier walks the same."""
    read = options_read(embedded()[name].data)
    with Object.open(name) as source:
        programs, options = source.program_names, set(source.config_names) & set(SWITCHES)
    with maps_of(name) as maps:
        for program in programs:
            unread = options - read[program]
            low, high = (
                verify(name, Load({one: SWITCHES[one][at] for one in unread}, (program,)), maps)
                for at in (0, 1)
            )

            assert low == high
