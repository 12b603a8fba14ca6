# SPDX-License-Identifier: Apache-2.0
"""
``build/dev bench core|services|policy|cni|cluster [--quick]``: measure, print, and write SUITE.json.

The file is in build/out/bench; what was not quick and is written there is also kept under docs/evidence/,
without samples.

Ends with 1 when something could not be measured, never because a goal was missed.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from bench import cluster, cni, core, machine, policy, services
from bench.result import Section, write_json
from lab.process import REPOSITORY
from lab.sweep import sweep

OUTPUT: Final = REPOSITORY / "build" / "out" / "bench"
PATH: Final = "/usr/sbin:/usr/bin:/sbin:/bin"


class Suite(NamedTuple):
    """Parts by name, how much of everything they do, and the tools they call."""

    parts: Mapping[str, Callable[[Any], Iterator[Section]]]
    full: object
    quick: object
    tools: tuple[str, ...]


def pods_in_turns(pods: int) -> Iterator[Section]:
    """The one part of the CNI suite."""
    yield cni.measure(pods=pods)


SUITES: Final = {
    "core": Suite(core.PARTS, core.FULL, core.QUICK, core.TOOLS),
    "services": Suite(services.PARTS, services.FULL, services.QUICK, services.TOOLS),
    "policy": Suite(policy.PARTS, policy.FULL, policy.QUICK, policy.TOOLS),
    "cni": Suite({"cni": pods_in_turns}, 500, 50, ("ip", "nsenter", "setpriv")),
    "cluster": Suite(cluster.PARTS, cluster.FULL, cluster.QUICK, cluster.TOOLS),
}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="build/dev bench",
        description=__doc__.splitlines()[1],
        epilog="; ".join(f"parts of {name}: {' '.join(suite.parts)}" for name, suite in SUITES.items()),
    )
    parser.add_argument("suite", choices=list(SUITES), help="what to measure")
    parser.add_argument(
        "--quick", action="store_true", help="less of everything: minutes less, intervals wider"
    )
    parser.add_argument("--only", action="append", metavar="PART", help="a part; may be repeated")
    parser.add_argument(
        "--output", type=Path, help="where the JSON goes (default: build/out/bench/SUITE.json)"
    )
    options = parser.parse_args()
    parts = SUITES[options.suite].parts
    if unknown := [part for part in options.only or () if part not in parts]:
        parser.error(f"{options.suite} has no part {', '.join(unknown)}: it has {', '.join(parts)}")
    options.output = options.output or OUTPUT / f"{options.suite}.json"
    return options


def missing(tools: tuple[str, ...]) -> list[str]:
    """What keeps this from running."""
    problems = [f"{tool} is not installed" for tool in tools if shutil.which(tool, path=PATH) is None]
    if os.geteuid():
        problems.append("it makes network namespaces and loads programs: run it as root")
    return problems


def sections(part: str, measuring: Iterator[Section]) -> Iterator[Section]:
    """The sections of a part with their times; a failure is a section too, and ends the part."""
    began = time.monotonic()
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
    suite = SUITES[options.suite]
    if problems := missing(suite.tools):
        print("build/dev bench: " + "; ".join(problems), file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, end_by_signal)
    sweep()
    about = machine.describe() | {"effort": "quick" if options.quick else "full"}
    print(json.dumps(about), flush=True)
    done: list[Section] = []
    for part in options.only or suite.parts:
        for section in sections(part, suite.parts[part](suite.quick if options.quick else suite.full)):
            print(f"\n{section}", flush=True)
            done.append(section)
    write_json(options.output, about, done)
    print(f"\n{options.output}", flush=True)
    if options.output.parent == OUTPUT:
        keep = [sys.executable, str(REPOSITORY / "build" / "evidence.py"), str(options.output)]
        subprocess.run(keep, check=True)
    return any(section.problem for section in done)


if __name__ == "__main__":
    sys.exit(main())
