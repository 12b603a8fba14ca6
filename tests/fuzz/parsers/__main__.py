# SPDX-License-Identifier: Apache-2.0
"""
Fuzz what reads others' input: ``build/dev fuzz parsers [--seconds N] [--target T] [--keep]``.

Every target starts from its corpus in tests/fuzz/corpus/parsers and runs for as long as told.  What made it
fail is kept in build/out/fuzz/parsers and named; run it again with ``--reproduce FILE --target T``.
"""

import argparse
import hashlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
CORPUS = ROOT / "tests" / "fuzz" / "corpus" / "parsers"
OUT = ROOT / "build" / "out" / "fuzz" / "parsers"
SECONDS = 30
# Bytes of an input, seconds it may take, and bytes of a target's corpus that are kept.
LONGEST, SLOWEST = 4096, 10
KEPT_BYTES = 30_000
# What runs in C is not seen: everything that was found counts as new.
UNSEEN = frozenset({"cni-executable"})

TraceFunction = Callable[[FrameType, str, object], Any]


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a target: inputs that were tried, and files with those that failed."""

    target: str
    executions: int
    seconds: float
    crashes: tuple[Path, ...]
    log: Path


def names() -> list[str]:
    """Every target."""
    from fuzz.parsers.targets import TARGETS

    return list(TARGETS)


def seeds(target: str) -> Iterator[bytes]:
    """The committed corpus of *target*."""
    for path in sorted((CORPUS / target).glob("*.txt")):
        yield path.read_bytes()


def fuzz(target: str, seconds: float) -> Result:
    """Run one target; what it finds worth keeping is in its working directory."""
    work, crashes = OUT / target / "corpus", OUT / target / "crashes"
    for folder in (work, crashes):
        folder.mkdir(parents=True, exist_ok=True)
    log = OUT / target / "log"
    words = [
        *(sys.executable, "-m", "fuzz.parsers.run", target, f"-max_total_time={max(1, round(seconds))}"),
        *(f"-max_len={LONGEST}", f"-timeout={SLOWEST}", "-rss_limit_mb=2048", "-print_final_stats=1"),
        *(f"-artifact_prefix={crashes}/", str(work), str(CORPUS / target)),
    ]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}/src:{ROOT}/tests"}
    before = set(crashes.iterdir())
    began = time.monotonic()
    with log.open("wb") as output:
        done = subprocess.run(
            words, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, check=False
        )
    text = log.read_text(errors="replace")
    counted = re.search(r"stat::number_of_executed_units:\s*(\d+)", text)
    executions = int(counted[1]) if counted else 0
    found = sorted(set(crashes.iterdir()) - before)
    if done.returncode and not found:
        raise SystemExit(f"{target} ended with {done.returncode}: see {log.relative_to(ROOT)}")
    return Result(target, executions, time.monotonic() - began, tuple(found), log)


def keep(target: str) -> int:
    """Keep the smallest inputs of *target* that together run every line any of them runs; how many."""
    from fuzz.parsers.targets import TARGETS

    found = {path.read_bytes() for path in (OUT / target / "corpus").iterdir()} | set(seeds(target))
    covered: set[tuple[str, int]] = set()
    kept: list[bytes] = []
    for data in sorted(found, key=lambda one: (len(one), one)):
        lines = _lines(TARGETS[target], data)
        if (not lines <= covered or target in UNSEEN) and sum(map(len, kept)) + len(data) <= KEPT_BYTES:
            covered |= lines
            kept.append(data)
    for path in (CORPUS / target).glob("*.txt"):
        path.unlink()
    for data in kept:
        (CORPUS / target / f"{hashlib.sha256(data).hexdigest()[:12]}.txt").write_bytes(data)
    return len(kept)


def _lines(target: Callable[[bytes], None], data: bytes) -> set[tuple[str, int]]:
    """The lines of ciliumd, or of what compares it, that *target* runs for *data*."""
    found: set[tuple[str, int]] = set()

    def trace(frame: FrameType, event: str, _argument: object) -> TraceFunction | None:
        name = frame.f_code.co_filename
        if "/ciliumd/" not in name and not name.endswith("/cjson.py"):
            return None
        if event == "line":
            found.add((name, frame.f_lineno))
        return trace

    sys.settrace(trace)
    try:
        target(data)
    finally:
        sys.settrace(None)
    return found


def main() -> int:
    """Fuzz the targets asked for."""
    parser = argparse.ArgumentParser(
        prog="build/dev fuzz parsers", description=(__doc__ or "").split("\n")[1]
    )
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for each target")
    parser.add_argument("--target", action="append", choices=names(), help="may be given several times")
    parser.add_argument("--keep", action="store_true", help="minimise what was found into the corpus")
    parser.add_argument("--reproduce", type=Path, metavar="FILE", help="give this input to the target, once")
    options = parser.parse_args()
    targets = options.target or names()
    if options.reproduce is not None:
        from fuzz.parsers.targets import TARGETS

        for target in targets:
            TARGETS[target](options.reproduce.read_bytes())
        return 0
    os.environ["PYTHONPATH"] = f"{ROOT}/src:{ROOT}/tests"
    failed = 0
    for target in targets:
        result = fuzz(target, options.seconds)
        print(f"{target:16} {result.executions:>10} executions in {result.seconds:.0f} s", flush=True)
        for path in result.crashes:
            print(f"  {path.relative_to(ROOT)}; see {result.log.relative_to(ROOT)}")
        failed += len(result.crashes)
        if options.keep:
            print(f"  {keep(target)} inputs kept")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
