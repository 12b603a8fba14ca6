# SPDX-License-Identifier: Apache-2.0
"""
Mutants: one mistake each, made in a copy of this checkout, and the tests that must find it there.

See mutants.toml.
"""

import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from lab.process import REPOSITORY

TABLE = Path(__file__).with_name("mutants.toml")
COPIED = ("src", "tests", "datapath", "build", "charts", "docs", "examples", "pyproject.toml", "uv.lock")
# What makes of changed programs what the agent loads.
COMPILE = (("build/compile_bpf.py", "--quiet"), ("build/cffi_build.py", "--in-place", "--quiet"))
# What makes tests longer than they are on every run.
LONGER = frozenset({"CILIUMD_PROPERTY_PROFILE", "CILIUMD_TEST_RESTARTS", "CILIUMD_TEST_UPGRADES"})
FAILED, PASSED = 1, 0
SECONDS = 900.0


@dataclass(frozen=True, slots=True)
class Mutant:
    """A mistake: of *file*, by its path in the repository, *before* becomes *after*."""

    name: str
    file: str
    before: str
    after: str
    why: str
    killers: tuple[str, ...]

    @property
    def is_compiled(self) -> bool:
        """Whether it is one of the programs."""
        return self.file.startswith("datapath/")

    def places(self, root: Path) -> int:
        """How many there are for it in the checkout at *root*; one is right."""
        return (root / self.file).read_text().count(self.before)

    @contextmanager
    def made(self, copy: "Copy") -> Iterator[None]:
        """As long as this lasts *copy* has the mistake."""
        path = copy.root / self.file
        right = path.read_text()
        path.write_text(right.replace(self.before, self.after, 1))
        copy.is_compiled &= not self.is_compiled
        try:
            yield
        finally:
            path.write_text(right)
            copy.is_compiled &= not self.is_compiled


def mutants() -> list[Mutant]:
    """All of the table, in its order."""
    table = tomllib.loads(TABLE.read_text())
    killers = {name: tuple(steps) for name, steps in table["killers"].items()}
    return [
        Mutant(
            name,
            one["file"],
            one["from"],
            one["to"],
            one["why"],
            killers["programs" if one["file"].startswith("datapath/") else "resolver"],
        )
        for name, one in table["mutant"].items()
    ]


class Copy:
    """A copy of this checkout, as a context; *is_compiled*: its objects are what its sources say."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.is_compiled = False

    def __enter__(self) -> Self:
        self._remove()
        for name in COPIED:
            source, target = REPOSITORY / name, self.root / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("out", "__pycache__"))
            elif source.exists():
                shutil.copy2(source, target)
        return self

    def __exit__(self, *_: object) -> None:
        self._remove()

    def first_failure(self, killers: tuple[str, ...]) -> str:
        """
        The first test of *killers* that fails; empty if none does.

        Raises RuntimeError when tests cannot be run: that finds no mistake.
        """
        if not self.is_compiled:
            self._compile()
        for step in killers:
            done = self._run("-m", "pytest", "-x", "-q", "-rf", "-p", "no:randomly", *step.split())
            if done.returncode == FAILED:
                failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED ")]
                return failed[0].split()[1] if failed else step
            if done.returncode != PASSED:
                raise RuntimeError(f"pytest {step} ended with {done.returncode}\n{done.stdout}{done.stderr}")
        return ""

    def _compile(self) -> None:
        for words in COMPILE:
            done = self._run(*words)
            if done.returncode:
                raise RuntimeError(f"{words[0]} ended with {done.returncode}\n{done.stdout}{done.stderr}")
        self.is_compiled = True

    def _run(self, *words: str) -> subprocess.CompletedProcess[str]:
        # The tests of every run have to find it: the longer ones of a release would take days.
        everyday = {name: value for name, value in os.environ.items() if name not in LONGER}
        environment = everyday | {
            "PYTHONPATH": f"{self.root}/src:{self.root}/tests",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        return subprocess.run(
            [sys.executable, *words],
            cwd=self.root,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=SECONDS,
        )

    def _remove(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)
