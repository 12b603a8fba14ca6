# SPDX-License-Identifier: Apache-2.0
"""
The guest's only program: tells what the kernel has, then runs tests, and tells each outcome at once.

A line of JSON per fact goes to the second serial port; the console is for people.  What to run is in the
kernel's command line: ``ciliumd.tests`` names the file of a selection, or a path below tests/;
``ciliumd.part`` which part of all tests.
"""

import json
import multiprocessing
import platform
import sys
import traceback
from pathlib import Path
from typing import Any

import pytest

# Behind: build/kernels.py is not this package.
sys.path.append("build")
import results
from ciliumd.bpf.object import embedded
from kernels.guest.facts import FEATURES
from kernels.selection import files
from lab.parts import Part

ROOT = Path(__file__).resolve().parents[3]
CHANNEL = Path("/dev/ttyS1")
TABLE = ROOT / "build" / "out" / "verifier.json"
TESTS, PART = "ciliumd.tests=", "ciliumd.part="
LAYERS = ("datapath", "netns")


def tell(**fact: Any) -> None:
    """One line to the host."""
    with CHANNEL.open("a") as channel:
        channel.write(json.dumps(fact) + "\n")


class Teller:
    """Tells what became of each test, its fixtures included."""

    def __init__(self) -> None:
        self._expected = results.expected_skips()
        self._texts: dict[str, list[str]] = {}
        self._worst: dict[str, str] = {}
        self._seconds: dict[str, float] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Called after setup, the test and its teardown."""
        name = report.nodeid
        self._seconds[name] = self._seconds.get(name, 0) + report.duration
        if report.failed or (report.skipped and self._worst.get(name) != "failed"):
            self._worst[name] = report.outcome
            if report.skipped and isinstance(report.longrepr, tuple):
                self._texts.setdefault(name, []).append(str(report.longrepr[2]))
            else:
                self._texts.setdefault(name, []).append(report.longreprtext)
                self._texts[name] += [f"--- {title}\n{text}" for title, text in report.sections]
        if report.when != "teardown":
            return
        outcome = self._worst.get(name, "passed")
        text = "\n".join(self._texts.get(name, []))
        if outcome == "skipped":
            file, _, case = name.partition("::")
            problem = results.skip_problem(f"{file}::{case}", text, self._expected)
            if problem is not None:
                outcome, text = "failed", problem
        tell(test=name, outcome=outcome, text=text, seconds=round(self._seconds[name], 1))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A file that cannot be imported."""
        if report.failed:
            tell(problem=f"{report.nodeid} cannot be collected\n{report.longreprtext}")


def run_layer(words: list[str]) -> None:
    """Run tests in this process, which ends with it: a layer may move to other namespaces."""
    code = pytest.main(["-q", *words], plugins=[Teller()])
    if code not in {pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED}:
        tell(problem=f"pytest {' '.join(words)} ended with {int(code)}")


def selected() -> list[str]:
    """What the command line asks for."""
    words = Path("/proc/cmdline").read_text().split()
    for part in [word.removeprefix(PART) for word in words if word.startswith(PART)]:
        return files(Part.read(part))
    (named,) = [word.removeprefix(TESTS).split(",") for word in words if word.startswith(TESTS)]
    return [
        line
        for name in named
        for line in ((ROOT / name).read_text().splitlines() if name.endswith(".txt") else [name])
        if line and not line.startswith("#")
    ]


def main() -> None:
    """Facts, then layers; the last line says that this is all."""
    names = selected()
    features = {feature.name: feature.probe() for feature in FEATURES}
    tell(
        kernel=platform.release(),
        features=features,
        without={feature.name: feature.without for feature in FEATURES},
        objects=sorted(embedded()),
    )
    fork = multiprocessing.get_context("fork")
    for layer in LAYERS:
        words = [name for name in names if name.startswith(f"tests/{layer}")]
        if words:
            process = fork.Process(target=run_layer, args=(words,))
            process.start()
            process.join()
            if process.exitcode:
                tell(problem=f"the layer {layer} ended with {process.exitcode}")
        if layer == "datapath" and TABLE.exists():
            tell(verified_insns=json.loads(TABLE.read_text())["verified_insns"])
    tell(end=True)


if __name__ == "__main__":
    try:
        main()
    except BaseException:
        tell(problem=traceback.format_exc())
        raise
