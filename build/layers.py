# SPDX-License-Identifier: Apache-2.0
"""
Run test layers, one line each, and the totals on the last line.

A skipped test is a failure unless tests/expected_skips.toml names it together with a kernel
feature that this machine really lacks.  The lint layer counts each of its checks as one test.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import fnmatch
import json
import os
import shlex
import subprocess
import sys
import time
import tomllib
import xml.etree.ElementTree as ET
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import compile_bpf
import evidence
from toolchain import OUT, ROOT, tool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

# Cheapest first, but for the programs of the clusters: they are built before the layers that need them.
DEFAULT = (
    *("unit", "stories", "property", "datapath", "netns", "faults", "lint"),
    *("chart", "api", "kernels", "e2e", "demo"),
)
# Emulated machines take minutes of processor time: begun beside the first of these, which mostly wait, with
# what they leave, and awaited before the layers that count packets of a whole cluster.
BESIDE = {"kernels": frozenset({"netns", "faults"})}
NEED_ROOT = frozenset({"datapath", "netns", "faults", "e2e", "demo"})
NEED_CLUSTER_TOOLS = frozenset({"chart", "api", "e2e", "demo"})
# Those with a longer form, for what a release is asked and not every change.
HAVE_LONG = frozenset(
    {"unit", "stories", "property", "datapath", "netns", "faults", "kernels", "api", "e2e"},
)
LONG = {
    "CILIUMD_CNI_OPERATIONS": "1000",
    "CILIUMD_PROPERTY_PROFILE": "long",
    "CILIUMD_TEST_UPGRADES": "20",
    "CILIUMD_TEST_RESTARTS": "200",
}
# Pure layers use every processor; the others share the kernel of this machine.
PARALLEL = frozenset({"unit", "stories", "property", "chart"})
# Each file has namespaces, pins and groups of its own, and most of its time is waiting.
BY_FILE = frozenset({"netns", "faults"})
# As tests/kernels/conftest.py has them.
KERNELS = ("5.10", "6.1", "6.12", "newest")
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


class ClusterTools:
    """
    What clusters are made of, built beside the layers that do without: minutes at first, nothing later.

    It takes only the processor time that tests leave, of which those in namespaces leave most.
    """

    def __init__(self) -> None:
        command = [tool("nice"), "-n", "19", sys.executable, ROOT / "build" / "k8s_tools.py"]
        self._log = LOGS / "cluster-tools.log"
        with self._log.open("wb") as output:
            self._process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)

    def result(self) -> Result:
        """Wait until they are built."""
        result = Result()
        code = self._process.wait()
        result.notes = [f"  {line}" for line in self._log.read_text(errors="replace").splitlines()]
        if code:
            result.fail("the programs of test clusters cannot be built")
        return result

    def stop(self) -> None:
        """Nobody needs them any more."""
        self._process.terminate()
        self._process.wait()


@dataclass(frozen=True, slots=True)
class Form:
    """How layers are run: the longer form, and of the kernels this one only."""

    is_long: bool
    kernel: str | None = None

    def words(self, layer: str) -> list[str]:
        """Arguments of pytest."""
        words = ["-n", "auto"] if layer in PARALLEL else []
        if layer in BY_FILE:
            words += ["-n", "2", "--dist", "loadfile"]
        if self.is_long and layer in HAVE_LONG:
            words.append("--long")
        if self.kernel and layer == "kernels":
            words += ["--kernel", self.kernel]
        return words

    def evidence(self, layer: str) -> tuple[str, str]:
        """Name of the file that keeps what was measured, and the command that measures it again."""
        if self.kernel and layer == "kernels":
            return f"{layer}-{self.kernel}", f"build/dev test --long --kernel {self.kernel} {layer}"
        return layer, f"build/dev test --long {layer}"


class LayerRun:
    """One directory of tests in a process of its own, as a context: it ends with it."""

    def __init__(self, layer: str, form: Form, *, beside: bool = False) -> None:
        self._report, self._log = LOGS / f"{layer}.xml", LOGS / f"{layer}.log"
        self._report.unlink(missing_ok=True)
        pytest = [sys.executable, "-m", "pytest", "-q", f"--junitxml={self._report}"]
        words = [*pytest, "-o", "junit_family=xunit1", *form.words(layer), str(ROOT / "tests" / layer)]
        if beside:
            words = [tool("nice"), "-n", "19", *words]
        environment = os.environ | (LONG if form.is_long else {})
        with self._log.open("wb") as output:
            self._process = subprocess.Popen(
                words, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nobody needs it any more."""
        if self._process.poll() is None:
            self._process.terminate()
            self._process.wait()

    def result(self) -> Result:
        """Wait until it is done."""
        result = Result()
        code = self._process.wait()
        if self._report.exists():
            count(ET.parse(self._report).getroot(), result)  # noqa: S314  # written by pytest a moment ago
        if code not in {0, 1} or not self._report.exists():
            result.fail(f"pytest ended with {code}")
        if result.failed:
            lines = self._log.read_text(errors="replace").splitlines()
            result.notes += [*lines[-SHOWN_LINES:], f"(all of it: {self._log.relative_to(ROOT)})"]
        return result


def pytest_layer(layer: str, form: Form) -> Result:
    """Run one directory of tests."""
    result = Result()
    directory = ROOT / "tests" / layer
    if layer in NEED_ROOT and os.geteuid() != 0:
        result.fail(f"{layer} needs root: it loads programs and makes namespaces")
        return result
    if not directory.is_dir():
        result.fail(f"{directory.relative_to(ROOT)} does not exist")
        return result
    with LayerRun(layer, form) as run:
        return run.result()


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


def checks() -> dict[str, list[str | Path]]:
    """The commands of the lint layer, by name."""
    scripts = Path(sys.executable).parent
    c_files = sorted(
        path
        for folder in ("datapath", "src/ciliumd/cni/executable", "tests")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in {".c", ".h"}
    )
    programs = sorted((ROOT / "datapath" / "progs").glob("*.bpf.c"))
    tidy = {
        f"clang-tidy {path.name}": [
            *(tool("clang-tidy-19"), "--quiet", path.relative_to(ROOT), "--"),
            *compile_bpf.flags(ROOT),
        ]
        for path in programs
    }
    return {
        **tidy,
        "mypy": [scripts / "mypy"],
        "import-linter": [scripts / "lint-imports", "--cache-dir", OUT / "import_linter"],
        "objects are reproducible": [sys.executable, ROOT / "build" / "reproducible.py"],
        "CRDs are what the models say": [sys.executable, "-m", "ciliumd.resources.crd", "--check"],
        "reference pages are what the sources say": [
            sys.executable,
            ROOT / "build" / "reference.py",
            "--check",
        ],
        "abi.py is what the objects say": [sys.executable, ROOT / "build" / "gen_abi.py", "--check"],
        "ruff check": [scripts / "ruff", "check", "--no-cache", "."],
        "ruff format": [scripts / "ruff", "format", "--no-cache", "--check", "."],
        "clang-format": [tool("clang-format-19"), "--dry-run", "-Werror", *c_files],
        "licence lines": [sys.executable, ROOT / "build" / "spdx.py"],
    }


def run_check(command: list[str | Path]) -> str | None:
    """What a check complains about; None when it is content."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT}/src:{ROOT}/tests"}
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, check=False)
    return None if done.returncode == 0 else (done.stdout + done.stderr).decode(errors="replace")


def lint_layer() -> Result:
    """Run every check, as many at a time as there are processors."""
    result = Result()
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = {name: pool.submit(run_check, command) for name, command in checks().items()}
        for name, job in jobs.items():
            complaint = job.result()
            if complaint is None:
                result.passed += 1
            else:
                log = LOGS / f"lint-{name.replace(' ', '-')}.log"
                log.write_text(complaint)
                shown = complaint.strip().splitlines()[:SHOWN_LINES]
                result.fail("\n".join([f"--- {name}", *shown, f"(all of it: {log.relative_to(ROOT)})"]))
    return result


def run_layer(layer: str, form: Form) -> Result:
    """Run one layer."""
    return lint_layer() if layer == "lint" else pytest_layer(layer, form)


def runs(layers: Sequence[str], form: Form) -> Iterator[tuple[str, Callable[[], Result]]]:
    """
    *layers* by name.  What is built or runs beside others is begun before, and awaited in its turn.

    The programs of clusters are begun at once, and awaited by the first layer that needs them.
    """
    tools = ClusterTools() if NEED_CLUSTER_TOOLS.intersection(layers) else None
    begun: dict[str, LayerRun] = {}
    with contextlib.ExitStack() as stack:
        if tools is not None:
            stack.callback(tools.stop)
        awaited = tools
        for index, layer in enumerate(layers):
            if awaited is not None and layer in NEED_CLUSTER_TOOLS:
                yield "cluster-tools", awaited.result
                awaited = None
            for later in layers[index + 1 :]:
                if later not in begun and layer in BESIDE.get(later, ()):
                    begun[later] = stack.enter_context(LayerRun(later, form, beside=True))
            yield layer, begun[layer].result if layer in begun else partial(run_layer, layer, form)


def main() -> int:
    """Run the layers in the order given."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").strip().splitlines()[0])
    parser.add_argument("--long", action="store_true", help="the longer form of those layers that have one")
    parser.add_argument("--kernel", choices=KERNELS, help="of the layer kernels, this one only")
    parser.add_argument("layers", nargs="*", choices=[*DEFAULT, []], metavar="layer")
    arguments = parser.parse_args()
    form = Form(arguments.long, arguments.kernel)
    LOGS.mkdir(parents=True, exist_ok=True)
    total = Result()
    for layer, work in runs(arguments.layers or DEFAULT, form):
        started, checkout = time.monotonic(), evidence.checkout()
        result = work()
        seconds = time.monotonic() - started
        if arguments.long and result.measured:
            name, command = form.evidence(layer)
            path = evidence.write(
                name,
                checkout,
                command=command,
                seconds=max(seconds, result.seconds),
                passed=result.passed,
                failed=result.failed,
                skipped=result.skipped,
                tests=result.measured,
            )
            result.notes.append(f"  kept in {path.relative_to(ROOT)}")
        sys.stdout.writelines(f"{note}\n" for note in result.notes)
        counts = f"{result.passed} passed, {result.failed} failed, {result.skipped} skipped"
        beside = result.seconds - seconds
        rest = f" (and {beside:.1f} s beside others)" if beside > 1 else ""
        sys.stdout.write(f"{layer:14} {counts}  {seconds:.1f} s{rest}\n")
        sys.stdout.flush()
        total.passed += result.passed
        total.failed += result.failed
        total.skipped += result.skipped
    sys.stdout.write(f"{total.passed} passed, {total.failed} failed, {total.skipped} skipped\n")
    return 1 if total.failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
