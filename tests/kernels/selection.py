# SPDX-License-Identifier: Apache-2.0
"""Which tests a guest runs: those of cases.txt, or all of two layers."""

import subprocess
import sys
from pathlib import Path

from lab.process import REPOSITORY

CASES = Path(__file__).with_name("cases.txt")
ALL = ("tests/datapath", "tests/netns")


def cases(*, is_long: bool) -> list[str]:
    """Their names, as pytest has them."""
    if not is_long:
        return [line for line in CASES.read_text().splitlines() if line and not line.startswith("#")]
    return collected(*ALL)


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
