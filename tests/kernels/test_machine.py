# SPDX-License-Identifier: Apache-2.0
"""A guest that never ends, one that never begins, and what is read of the lines of a third."""

import json
from pathlib import Path

import pytest

from kernels.machine import Told, boot
from kernels.selection import files
from lab.parts import Part

pytestmark = pytest.mark.kernels


def test_late_guest_is_ended_and_named(manifest: dict[str, dict[str, str]], tmp_path: Path) -> None:
    """Its time is up long before a kernel has booted without a root file system."""
    root = tmp_path / "root.cpio"
    root.write_bytes(b"")

    told = boot(Path(manifest["newest"]["image"]), root, tests=(), output=tmp_path / "late", seconds=0.5)

    assert told.problems == ["late was not done after 0.5 s"]
    assert not told.ended


def test_guest_that_cannot_be_started_says_why(tmp_path: Path) -> None:
    """In the words of qemu."""
    missing = tmp_path / "no-kernel"

    told = boot(missing, missing, tests=(), output=tmp_path / "none", seconds=30.0)

    (problem,) = told.problems
    assert problem.startswith("qemu ended with 1: ")
    assert "no-kernel" in problem


def test_what_a_guest_told_is_counted_and_a_cut_line_is_a_problem(tmp_path: Path) -> None:
    """It may have been ended in the middle of a word."""
    outcomes = {"a": "passed", "b": "failed", "c": "skipped", "d": "passed"}
    lines = [
        json.dumps({"test": name, "outcome": outcome, "text": "", "seconds": 1.0})
        for name, outcome in outcomes.items()
    ]
    facts = tmp_path / "facts"
    facts.write_text("\n".join([*lines, '{"test": "e", "outc']))

    told = Told.read(facts, tmp_path / "console")

    assert told.counts() == {"passed": 2, "failed": 1, "skipped": 1}
    assert told.problems == ['not a line of facts: {"test": "e", "outc']
    assert not told.ended


def test_every_file_is_in_one_part() -> None:
    """Whatever is added to them."""
    parts = [Part(number, 5) for number in range(1, 6)]
    found = [file for part in parts for file in files(part)]

    assert Part.read("5/5") == parts[-1]
    assert all(files(part) for part in parts)
    assert sorted(found) == files(Part(1, 1))
    with pytest.raises(ValueError, match="6/5 is not a part"):
        Part.read("6/5")
