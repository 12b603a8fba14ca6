# SPDX-License-Identifier: Apache-2.0
"""
What became of a layer of tests: pytest's report counted, skips compared with those that are expected.

A skipped test is a failure unless tests/expected_skips.toml names it together with a kernel feature that
this machine really lacks.
"""

from __future__ import annotations

import fnmatch
import json
import os
import shlex
import subprocess
import sys
import tomllib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from toolchain import OUT, ROOT

if TYPE_CHECKING:
    import xml.etree.ElementTree as ET

EXPECTED_SKIPS = ROOT / "tests" / "expected_skips.toml"
LOGS = OUT / "test"
SHOWN_LINES = 60


@dataclass(slots=True)
class Result:
    """What became of one layer."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0
    notes: list[str] = field(default_factory=list)
    # What tests measured, by name: see evidence.write.
    measured: dict[str, dict[str, Any]] = field(default_factory=dict)
    # From its start to its end, which is more than was waited for it when it ran beside others.
    seconds: float = 0.0

    def fail(self, note: str) -> None:
        """Count one failure that no test reported."""
        self.failed += 1
        self.notes.append(note)


@dataclass(frozen=True, slots=True)
class ExpectedSkip:
    """A test that may be skipped where *probe* says that the kernel feature is missing."""

    test: str
    feature: str
    probe: str

    def missing(self) -> bool:
        """Whether this machine lacks the feature: the probe ends with 0 where it exists."""
        command = shlex.split(self.probe.replace("{python}", sys.executable))
        environment = os.environ | {"PYTHONPATH": f"{ROOT}/src"}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=False)
        return done.returncode != 0


def expected_skips() -> list[ExpectedSkip]:
    """The rows of tests/expected_skips.toml."""
    if not EXPECTED_SKIPS.exists():
        return []
    rows = tomllib.loads(EXPECTED_SKIPS.read_text()).get("skip", [])
    return [ExpectedSkip(row["test"], row["feature"], row["probe"]) for row in rows]


def skip_problem(test: str, reason: str, expected: list[ExpectedSkip]) -> str | None:
    """Why a skip is not acceptable; None when it is."""
    rows = [row for row in expected if fnmatch.fnmatch(test, row.test)]
    if not rows:
        return f"{test} was skipped ({reason}) and is not in {EXPECTED_SKIPS.name}"
    if not any(row.missing() for row in rows):
        features = ", ".join(row.feature for row in rows)
        return f"{test} was skipped ({reason}) although this machine has {features}"
    return None


def count(report: ET.Element, result: Result) -> None:
    """Take in pytest's report; unexpected skips become failures."""
    expected = expected_skips()
    result.seconds = sum(float(suite.get("time") or 0) for suite in report.iter("testsuite"))
    for case in report.iter("testcase"):
        name = f"{case.get('file')}::{case.get('name')}"
        skipped = case.find("skipped")
        failed = case.find("failure") is not None or case.find("error") is not None
        if measured := measurement(case):
            result.measured[name] = measured | ({"failed": True} if failed else {})
        if failed:
            result.failed += 1
        elif skipped is None:
            result.passed += 1
            result.notes += [f"  {line}" for line in measured.get("figure", ())]
        elif (problem := skip_problem(name, skipped.get("message") or "no reason", expected)) is None:
            result.skipped += 1
        else:
            result.fail(problem)


def measurement(case: ET.Element) -> dict[str, Any]:
    """
    What a test measured and is worth to be kept.

    record_property("figure", text): lines for people; record_property("data", text): JSON, for evidence, an
    object with the id of its case ("case" or "fault"), or several, of several cases.
    """
    measured: dict[str, Any] = {}
    for one in case.iterfind("properties/property"):
        value = one.get("value") or ""
        if one.get("name") == "figure":
            measured.setdefault("figure", []).extend(value.splitlines())
        elif one.get("name") == "data":
            data = json.loads(value)
            measured.setdefault("data", []).extend(data if isinstance(data, list) else [data])
    return measured
