# SPDX-License-Identifier: Apache-2.0
"""
``build/dev bench core [--quick]``: measure, print, and write build/out/bench/core.json.

Ends with 1 when something could not be measured, never because a goal was missed.
"""

import argparse
import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from bench import core, machine
from bench.result import Section, write_json
from lab.process import REPOSITORY
from lab.sweep import sweep

OUTPUT: Final = REPOSITORY / "build" / "out" / "bench" / "core.json"
TOOLS: Final = ("ip", "nft", "ss", "iperf3", "sockperf", "taskset", "nsenter", "setpriv")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="build/dev bench", description=__doc__.splitlines()[1])
    parser.add_argument("suite", choices=["core"], help="what to measure")
    parser.add_argument(
        "--quick", action="store_true", help="10 pairs and few starts: minutes less, intervals wider"
    )
    parser.add_argument("--only", action="append", choices=list(core.PARTS), help="a part; may be repeated")
    parser.add_argument(
        "--output", type=Path, default=OUTPUT, help="where the JSON goes (default: %(default)s)"
    )
    return parser.parse_args()


def missing() -> list[str]:
    """What keeps this from running."""
    problems = [
        f"{tool} is not installed"
        for tool in TOOLS
        if shutil.which(tool, path="/usr/sbin:/usr/bin:/sbin:/bin") is None
    ]
    if os.geteuid():
        problems.append("it makes network namespaces and loads programs: run it as root")
    return problems


def sections(part: str, effort: core.Effort) -> Iterator[Section]:
    """The sections of a part with their times; a failure is a section too, and ends the part."""
    began = time.monotonic()
    measuring = core.PARTS[part](effort)
    while True:
        try:
            section = next(measuring)
        except StopIteration:
            return
        except Exception as error:  # noqa: BLE001 - one part's failure must not cost the others' figures
            traceback.print_exc()
            section = Section(part, part, problem=f"{type(error).__name__}: {error}".splitlines()[0])
        section.seconds = time.monotonic() - began
        began = time.monotonic()
        yield section


def end_by_signal(number: int, _frame: object) -> None:
    """Leave through every context, so that everything is taken down."""
    sys.exit(128 + number)


def main() -> int:
    """Run the chosen parts; the exit code."""
    options = arguments()
    if problems := missing():
        print("build/dev bench: " + "; ".join(problems), file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, end_by_signal)
    sweep()
    about = machine.describe() | {"effort": "quick" if options.quick else "full"}
    print(json.dumps(about), flush=True)
    done: list[Section] = []
    for part in options.only or core.PARTS:
        for section in sections(part, core.QUICK if options.quick else core.FULL):
            print(f"\n{section}", flush=True)
            done.append(section)
    write_json(options.output, about, done)
    print(f"\n{options.output}")
    return any(section.problem for section in done)


if __name__ == "__main__":
    sys.exit(main())
