# SPDX-License-Identifier: Apache-2.0
"""
What long runs and benchmarks measured, kept with the commit it was measured on, under docs/evidence/.

`build/dev test --long LAYER` writes LAYER.json, in which each part says when it was measured where there are
parts (`--kernel 5.10 --part 1/4`); `build/dev bench SUITE`, unless it was quick, writes
bench-SUITE.json, in which each section says when it was measured.  Both say whether the checkout had
changes that are in no commit; a release is asked for evidence that had none.

    python build/evidence.py REPORT...      keep what benchmarks wrote under build/out/bench
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from toolchain import ROOT, tool

DIRECTORY = ROOT / "docs" / "evidence"
# Of a file's name, while not all of its parts are there.
SOME = "-parts"
# Samples are for who measures; figures are evidence.
SAMPLES = "data"


class Checkout(NamedTuple):
    """What is measured."""

    commit: str
    uncommitted_changes: bool


def _git(*words: str) -> str:
    done = subprocess.run([tool("git"), *words], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def checkout() -> Checkout:
    """What is checked out now: to be asked before something is measured, not after."""
    # The evidence itself is written beside it, and is no change of what was measured.
    changed = _git("status", "--porcelain", "--", ".", ":!docs/evidence")
    return Checkout(_git("rev-parse", "HEAD"), bool(changed))


def _machine() -> dict[str, object]:
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {"kernel": platform.release(), "processors": os.cpu_count(), "memory_gib": round(gib)}


def _keep(name: str, document: dict[str, Any]) -> Path:
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    path = DIRECTORY / f"{name}.json"
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    return path


def write(
    name: str,
    of: Checkout,
    *,
    command: str,
    seconds: float,
    passed: int,
    failed: int,
    skipped: int,
    tests: dict[str, dict[str, Any]],
    part: str | None = None,
) -> Path:
    """
    Write the file called *name* of what *command* measured on the checkout *of*; its path.

    *tests* has what a test recorded by its name: ``figure``, lines of text, ``data``, decoded JSON, and
    ``failed`` where it did not pass.  Of a *part* the others stay as they are, if there are as many of them;
    until all are there they are beside what was measured before, then in its place.
    """
    document = {
        "command": command,
        **of._asdict(),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": _machine(),
        "seconds": round(seconds, 1),
        "passed": passed,
        "failed": failed,
        "skipped": skipped,
        "tests": tests,
    }
    some = DIRECTORY / f"{name}{SOME}.json"
    if part is not None:
        kept: dict[str, Any] = {}
        for path in (DIRECTORY / f"{name}.json", some):
            kept |= json.loads(path.read_text()).get("parts", {}) if path.exists() else {}
        same = {one: measured for one, measured in kept.items() if parts_of(one) == parts_of(part)}
        document = {"parts": dict(sorted({**same, part: document}.items()))}
        if len(document["parts"]) < parts_of(part):
            return _keep(some.stem, document)
    some.unlink(missing_ok=True)
    return _keep(name, document)


def parts_of(part: str) -> int:
    """How many there are of this *part*."""
    return int(part.partition("/")[2])


def write_bench(report: Path) -> Path | None:
    """
    Keep what a benchmark wrote; the path, None for a quick run.

    Sections that were not measured this time stay as they are, with their own commit and date.
    """
    told = json.loads(report.read_text())
    machine = told["machine"]
    if machine["effort"] != "full":
        return None
    of = {
        "commit": _git("rev-parse", machine["commit"]),
        "uncommitted_changes": bool(machine["uncommitted"]),
        "date": machine["date"],
        "machine": machine,
    }
    name = f"bench-{report.stem}"
    path = DIRECTORY / f"{name}.json"
    kept: dict[str, Any] = json.loads(path.read_text())["sections"] if path.exists() else {}
    for section, measured in told["sections"].items():
        kept[section] = of | {key: value for key, value in measured.items() if key != SAMPLES}
    return _keep(name, {"command": f"build/dev bench {report.stem}", "sections": kept})


def main() -> int:
    """Keep the reports named."""
    for word in sys.argv[1:]:
        path = write_bench(Path(word))
        print(f"kept in {path.relative_to(ROOT)}" if path else f"{word}: a quick run is no evidence")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
