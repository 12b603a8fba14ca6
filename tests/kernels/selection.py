# SPDX-License-Identifier: Apache-2.0
"""Which tests a guest runs: those of cases.txt, or all of two layers, or a part of them."""

import subprocess
import sys
from pathlib import Path
from typing import NamedTuple, Self
from zlib import crc32

from lab.process import REPOSITORY

CASES = Path(__file__).with_name("cases.txt")
ALL = ("tests/datapath", "tests/netns")


class Part(NamedTuple):
    """
    The *number*-th of *parts* of all tests: emulated they take hours, which need not be one after the other.

    A file is in the part that its name says, so that none is in another one when files are added.
    """

    number: int
    parts: int

    @classmethod
    def read(cls, text: str) -> Self:
        """Read ``N/M``.  Raises ValueError."""
        number, parts = map(int, text.split("/"))
        if not 1 <= number <= parts:
            raise ValueError(f"{text} is not a part: the first of two is 1/2")
        return cls(number, parts)

    def has(self, file: str) -> bool:
        """Whether the tests of a *file*, by its path in the repository, are in it."""
        return crc32(file.encode()) % self.parts == self.number - 1

    def files(self) -> list[str]:
        """Its files, by their paths."""
        paths = [path for layer in ALL for path in sorted((REPOSITORY / layer).rglob("test_*.py"))]
        return [file for path in paths if self.has(file := str(path.relative_to(REPOSITORY)))]

    def __str__(self) -> str:
        """As it is read."""
        return f"{self.number}/{self.parts}"


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
