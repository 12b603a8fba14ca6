# SPDX-License-Identifier: Apache-2.0
"""
Run test layers, one line each, and the totals on the last line.

Which there are, in which order, and what runs beside what; what became of one is counted in results.py.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Self

import evidence
from kernel_packages import SUITES
from lint import lint_layer
from results import LOGS, SHOWN_LINES, Result, count
from toolchain import ROOT, tool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

# Cheapest first, but for the programs of the clusters: they are built before the layers that need them.
DEFAULT = (
    *("unit", "stories", "property", "datapath", "netns", "faults", "lint"),
    *("mutants", "chart", "api", "kernels", "e2e", "demo"),
)
# Emulated machines take minutes of processor time: begun beside the first of these, which mostly wait, with
# what they leave, and awaited before the layers that count packets of a whole cluster.
BESIDE = {"kernels": frozenset({"netns", "faults"})}
NEED_ROOT = frozenset({"datapath", "netns", "faults", "mutants", "e2e", "demo"})
NEED_CLUSTER_TOOLS = frozenset({"chart", "api", "e2e", "demo"})
# Those with a longer form, for what a release is asked and not every change.
HAVE_LONG = frozenset(
    {"unit", "stories", "property", "datapath", "netns", "faults", "mutants", "kernels", "api", "e2e"},
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
    """How layers are run: the longer form, of the kernels this one only, and of the tests this part."""

    is_long: bool
    kernel: str | None = None
    part: str | None = None

    def words(self, layer: str) -> list[str]:
        """Arguments of pytest."""
        words = ["-n", "auto"] if layer in PARALLEL else []
        if layer in BY_FILE:
            words += ["-n", "2", "--dist", "loadfile"]
        if self.is_long and layer in HAVE_LONG:
            words.append("--long")
        if self.kernel and layer == "kernels":
            words += ["--kernel", self.kernel]
        if self.part and layer in HAVE_LONG:
            words += ["--part", self.part]
        return words

    def keeps(self, layer: str, result: Result) -> bool:
        """Whether what tests measured is kept; of a part also where they measured nothing."""
        return self.is_long and layer in HAVE_LONG and bool(result.measured or self.part)

    def evidence(self, layer: str) -> tuple[str, str]:
        """Name of the file that keeps what was measured, and the command that measures it again."""
        part = f"--part {self.part} " if self.part else ""
        if self.kernel and layer == "kernels":
            return f"{layer}-{self.kernel}", f"build/dev test --long --kernel {self.kernel} {part}{layer}"
        return layer, f"build/dev test --long {part}{layer}"


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
    parser.add_argument("--kernel", choices=list(SUITES), help="of the layer kernels, this one only")
    parser.add_argument("--part", metavar="N/M", help="of the longer form, the N-th of M parts only")
    parser.add_argument("layers", nargs="*", choices=[*DEFAULT, []], metavar="layer")
    arguments = parser.parse_args()
    if arguments.part and not (arguments.long and len(arguments.layers) == 1):
        parser.error("--part is of --long and of one layer")
    if arguments.part and arguments.layers == ["kernels"] and not arguments.kernel:
        parser.error("--part of the kernels is of one --kernel")
    form = Form(arguments.long, arguments.kernel, arguments.part)
    LOGS.mkdir(parents=True, exist_ok=True)
    total = Result()
    for layer, work in runs(arguments.layers or DEFAULT, form):
        started, checkout = time.monotonic(), evidence.checkout()
        result = work()
        seconds = time.monotonic() - started
        if form.keeps(layer, result):
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
                part=form.part,
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
