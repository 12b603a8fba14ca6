# SPDX-License-Identifier: Apache-2.0
"""
Fuzz what reads others' input: ``build/dev fuzz parsers [--seconds N] [--target T] [--keep]``.

Every target starts from its corpus in tests/fuzz/corpus/parsers and runs for as long as told.  What made it
fail is kept in build/out/fuzz/parsers and named; run it again with ``--reproduce FILE --target T``.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
CORPUS = ROOT / "tests" / "fuzz" / "corpus" / "parsers"
OUT = ROOT / "build" / "out" / "fuzz" / "parsers"
SECONDS = 30
# Bytes of an input, seconds it may take, and inputs and bytes of a target's corpus that are kept.
LONGEST, SLOWEST = 4096, 10
KEPT_FILES, KEPT_BYTES = 120, 30_000


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
    """Make the corpus of *target* the smallest that covers as much; how many inputs that are."""
    merged = OUT / target / "merged"
    shutil.rmtree(merged, ignore_errors=True)
    merged.mkdir(parents=True)
    words = [
        *(sys.executable, "-m", "fuzz.parsers.run", target, "-merge=1", f"-max_len={LONGEST}"),
        *(str(merged), str(CORPUS / target), str(OUT / target / "corpus")),
    ]
    subprocess.run(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    (CORPUS / target).mkdir(parents=True, exist_ok=True)
    room, kept = KEPT_BYTES, []
    for path in sorted(merged.iterdir(), key=lambda one: (one.stat().st_size, one.name)):
        if len(kept) < KEPT_FILES and path.stat().st_size <= room:
            room -= path.stat().st_size
            kept.append(path)
    old = set((CORPUS / target).iterdir())
    wanted = {CORPUS / target / f"{path.name[:12]}.txt" for path in kept}
    for path in old - wanted:
        if not path.name.startswith("seed-"):
            path.unlink()
    for path in kept:
        shutil.copyfile(path, CORPUS / target / f"{path.name[:12]}.txt")
    return len(kept)


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
