# SPDX-License-Identifier: Apache-2.0
"""
Changed layouts with the real next version (``lab.nextversion``), without packets.

This version makes the state, the next one is asked in a process with its own packages (next_rows.py),
and this one looks at what is left.  tests/netns/test_upgrade.py does it under load.
"""

from __future__ import annotations

import struct
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from ciliumd import abi
from ciliumd.bpf import Generation, Map, Pins, VersionSkipped, carry, layout, retire
from ciliumd.bpf import generation as generations
from ciliumd.model.net import fold32
from datapath.pinned import own_directory
from lab import nextversion
from lab.process import REPOSITORY, environment

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SMALL = {name: 1024 for name, spec in abi.MAPS.items() if spec.max_entries > 4096} | {
    "cilium_events_v1": 1 << 16
}
ROWS = {"cilium_ct_v1": 200, "cilium_snat_v1": 50, "cilium_lb_backends_v1": 3}
QUESTIONS = REPOSITORY / "tests" / "datapath" / "next_rows.py"
U32 = struct.Struct("=I")


@pytest.fixture(scope="module")
def checkout() -> Path:
    """The next version, built."""
    return nextversion.build()


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """Pins of this version with rows in every map that will change; no agent holds them."""
    with own_directory() as directory:
        place = directory / "ciliumd"
        with (
            Pins(place, state_dir=tmp_path) as pins,
            Generation.load(pins, config={}, max_entries=SMALL) as made,
        ):
            made.activate()
            pins.commit()
            for name, count in ROWS.items():
                for number in range(1, count + 1):
                    key = number.to_bytes(abi.MAPS[name].key_size, "little")
                    word = number if name == "cilium_lb_backends_v1" else fold32(key)
                    value = U32.pack(word) + bytes(abi.MAPS[name].value_size - 4)
                    made.maps[name].update(key, value)
        yield place


def ask(checkout: Path, question: str, root: Path | None = None) -> None:
    """Run questions of next_rows.py with the next version's packages; they must pass."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "pythonpath="]
    command += [str(QUESTIONS), "-k", question]
    paths = {"PYTHONPATH": nextversion.python_path(), "CILIUMD_TEST_PINS": str(root)}
    done = subprocess.run(
        command, cwd=checkout, env=environment() | paths, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


def dump(root: Path) -> dict[str, object]:
    """All that a failed upgrade must leave as it was."""
    found: dict[str, object] = {"pins": sorted(str(path) for path in root.rglob("*"))}
    for name in (*ROWS, "cilium_node_state_v1"):
        with Map.from_pin(root / "maps" / name) as opened:
            found[name] = dict(opened.items())
    with Map.from_pin(root / "maps" / "cilium_hooks_v1") as hooks:
        found["hooks"] = [hooks.lookup(U32.pack(row)) for row in range(2 * abi.Hook.HOOK_MAX)]
    return found


def test_converters_row_by_row(checkout: Path) -> None:
    """There and back, and in the programs as in Python."""
    ask(checkout, "there or row_that_cannot or programs or claimed")


def test_rows_are_carried_and_the_way_back_finds_its_own(checkout: Path, root: Path, tmp_path: Path) -> None:
    """The old maps stay as they were; this version takes them over, and lets the others go."""
    before = dump(root)
    ask(checkout, "everything_is_carried", root)
    after = dump(root)
    assert {name: after[name] for name in ROWS} == {name: before[name] for name in ROWS}
    with Pins(root, state_dir=tmp_path) as pins:
        assert "cilium_ct_v2" in carry.held(pins, generations.active(pins))
        with Generation.load(pins, config={}) as back:
            back.activate()
            assert (root / "maps" / "cilium_ct_v2").exists()
            retire(pins)
            assert {path.name for path in pins.maps.iterdir()} <= set(abi.MAPS)
            assert set(layout.recorded(pins.maps)) <= set(abi.MAPS)
            assert {name: dict(back.maps[name].items()) for name in ROWS} == {
                name: before[name] for name in ROWS
            }


def test_maps_are_kept_in_step(checkout: Path, root: Path) -> None:
    """What the next version's agent writes, the old map has."""
    ask(checkout, "in_both", root)


@pytest.mark.parametrize("question", ["before_the_flip", "after_the_flip", "no_memory"])
def test_a_failed_upgrade_leaves_everything_as_it_was(checkout: Path, root: Path, question: str) -> None:
    """Pins, hooks, the active generation and every row."""
    before = dump(root)
    ask(checkout, question, root)
    assert dump(root) == before


def test_rows_of_an_earlier_stay_are_not_taken_for_new(checkout: Path, root: Path, tmp_path: Path) -> None:
    """The version before was back in between and died before it let the other layout go."""
    ask(checkout, "everything_is_carried", root)
    with Pins(root, state_dir=tmp_path) as pins, Generation.load(pins, config={}) as back:
        back.activate()
        for name in ROWS:
            for key in list(back.maps[name].keys()):
                value = bytearray(back.maps[name].lookup(key) or b"")
                value[8] ^= 1
                back.maps[name].update(key, bytes(value))
        assert (root / "maps" / "cilium_ct_v2").exists()
        pins.drop_generation(1)
        # Numbers go on; the question counts from one.
        back._store(1)
        pins.generation(back.number).rename(pins.generation(1))
    ask(checkout, "everything_is_carried", root)


def test_a_version_is_not_skipped(root: Path, tmp_path: Path) -> None:
    """What runs writes a layout that nobody here knows: refused before anything changes."""
    with Pins(root, state_dir=tmp_path) as pins:
        directory = pins.generation(1)
        (directory / "cilium_ct_v1").rename(directory / "cilium_ct_v3")
        before = dump(root)
        with pytest.raises(VersionSkipped, match=r"cilium_ct_v3.*knows cilium_ct_v1"):
            Generation.load(pins, config={})
        assert dump(root) == before
