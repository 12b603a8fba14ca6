# SPDX-License-Identifier: Apache-2.0
"""
Replay the corpus of the tc programs, then look for frames that they and the reference see otherwise.

Needs root and clang.  A difference ends the search of its hook: the script is written below build/out/fuzz
and told in full, and the command ends with 1.
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

from datapath.contest import Contest, all_contests
from datapath.node import private_node
from fuzz.programs import corpus
from fuzz.programs.engine import Fuzzer
from fuzz.programs.seeds import seeds

ROOT = Path(__file__).resolve().parents[3]
FINDINGS = ROOT / "build" / "out" / "fuzz" / "programs"
SECONDS = 10.0


def searched(contest: Contest, hook: str, seed: int, seconds: float) -> Fuzzer:
    """The fuzzer of one hook after its time; what it did is printed."""
    fuzzer = Fuzzer(contest, random.Random(f"{seed} {hook}"))
    for script in (*corpus.found(hook), *corpus.read(hook), *seeds(hook)):
        fuzzer.add(script)
    known, replayed = len(fuzzer.known), fuzzer.scripts
    fuzzer.search(seconds=seconds)
    print(
        f"{hook}: {replayed} scripts replayed, {known} signatures; {fuzzer.scripts - replayed} more, "
        f"{len(fuzzer.known) - known} new ones; {fuzzer.frames} frames, {len(fuzzer.found)} wrong"
    )
    for number, (script, told) in enumerate(fuzzer.found):
        path = corpus.write(f"{hook}-{seed}-{number}", [script], FINDINGS)
        sys.stderr.write(f"{path.relative_to(ROOT)}\n{told}\n")
    return fuzzer


def main() -> int:
    """One hook after the other, each for its share of the time."""
    parser = argparse.ArgumentParser(prog="build/dev fuzz programs", description=__doc__)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="in all (default: %(default)s)")
    parser.add_argument("--seed", type=int, help="of the changes; printed, so that a run can be repeated")
    parser.add_argument("--hook", action="append", help="this one only; may be given again")
    parser.add_argument("--keep", action="store_true", help="write what is new into the corpus, minimised")
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(1 << 32) if options.seed is None else options.seed
    print(f"seed {seed}")
    found = 0
    with private_node(), all_contests() as contests:
        hooks = [hook for hook in contests if not options.hook or hook in options.hook]
        if not hooks:
            parser.error(f"there is no such hook; there are: {'; '.join(contests)}")
        for hook in hooks:
            fuzzer = searched(contests[hook], hook, seed, options.seconds / len(hooks))
            found += len(fuzzer.found)
            if options.keep and not fuzzer.found:
                print(f"  kept in {corpus.write(hook, fuzzer.minimised()).relative_to(ROOT)}")
    return int(found > 0)


if __name__ == "__main__":
    raise SystemExit(main())
