# SPDX-License-Identifier: Apache-2.0
"""Which tests a guest runs: those of cases.txt, or all of two layers, or a part of them."""

import subprocess
import sys
from pathlib import Path

from lab.parts import Part
from lab.process import REPOSITORY

CASES = Path(__file__).with_name("cases.txt")
ALL = ("tests/datapath", "tests/netns")


def files(part: Part) -> list[str]:
    """The files of a *part*, by their paths in the repository: what a file sets up is set up once."""
    paths = [path for layer in ALL for path in sorted((REPOSITORY / layer).rglob("test_*.py"))]
    return [file for path in paths if part.has(file := str(path.relative_to(REPOSITORY)))]


def cases(*, is_long: bool, part: Part | None = None) -> list[str]:
    """Their names, as pytest has them."""
    if not is_long:
        return [line for line in CASES.read_text().splitlines() if line and not line.startswith("#")]
    found = collected(*ALL)
    return found if part is None else [name for name in found if part.has(name.partition("::")[0])]


def collected(*names: str) -> list[str]:
    """The tests that pytest finds there."""
    found: list[str] = []
    # One at a time: directories share names of modules.
    for name in names:
        command = [sys.executable, "-m", "pytest", "--collect-only", "-q", name]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
        if done.returncode:
            raise LookupError(f"{name} cannot be collected: {done.stdout}{done.stderr}")
        found += [line for line in done.stdout.splitlines() if "::" in line]
    return found
