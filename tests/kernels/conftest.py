# SPDX-License-Identifier: Apache-2.0
"""Guests: every kernel is booted once, all at a time; the tests look up what was told."""

import contextlib
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kernels.machine import Told, boot
from kernels.selection import ALL, CASES, cases
from lab import nextversion
from lab.process import REPOSITORY

DIRECTORY = REPOSITORY / "build" / "out" / "kernels"
# As build/kernel_packages.py has them, oldest first.
KERNELS = ("5.10", "6.1", "6.12", "newest")
SECONDS, LONG_SECONDS = 2400.0, 8 * 3600.0
MEASURED = DIRECTORY / "measured.json"


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--long``: all of tests/datapath and tests/netns, or ``--part`` of them.  ``--kernel``: one only."""
    # tests/e2e has the same option.
    with contextlib.suppress(ValueError):
        parser.addoption("--long", action="store_true", help="all tests of the datapath and the network")
    parser.addoption("--kernel", choices=KERNELS, help="this kernel only")


def chosen(config: pytest.Config) -> tuple[str, ...]:
    """The kernels to boot."""
    only = config.getoption("--kernel")
    return (only,) if only else KERNELS


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test for each check of each kernel, so that a failure names both."""
    kernels = chosen(metafunc.config)
    if "check" in metafunc.fixturenames:
        checks = cases(is_long=metafunc.config.getoption("--long"), part=metafunc.config.getoption("--part"))
        pairs = [(kernel, check) for kernel in kernels for check in checks]
        metafunc.parametrize(("kernel", "check"), pairs, ids=["-".join(pair) for pair in pairs])
    elif "kernel" in metafunc.fixturenames:
        metafunc.parametrize("kernel", kernels)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With one kernel only, nothing is compared; a part loads some of the programs."""
    unfit = {"all_guests"} if config.getoption("--kernel") else set()
    if config.getoption("--part"):
        unfit.add("whole_guests")
    left_out = [item for item in items if unfit.intersection(getattr(item, "fixturenames", ()))]
    if left_out:
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)


@pytest.fixture(scope="session")
def manifest(request: pytest.FixtureRequest) -> dict[str, dict[str, str]]:
    """The kernels by name; whatever build/kernels.py makes is up to date."""
    words = [sys.executable, REPOSITORY / "build" / "kernels.py"]
    if request.config.getoption("--long"):
        # Upgrades are among all tests, and a guest has no compiler.
        words += ["--more", nextversion.build()]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(json.loads((DIRECTORY / "kernels.json").read_text())["kernels"])


@pytest.fixture(scope="session")
def guests(manifest: dict[str, dict[str, str]], request: pytest.FixtureRequest) -> dict[str, Told]:
    """What every kernel told; kept for the page in docs/ and for expected_skips.toml."""
    is_long, part = request.config.getoption("--long"), request.config.getoption("--part")
    names = chosen(request.config)

    def run(name: str) -> Told:
        return boot(
            Path(manifest[name]["image"]),
            DIRECTORY / "root.cpio",
            tests=ALL if is_long else (str(CASES.relative_to(REPOSITORY)),),
            part=part,
            output=DIRECTORY / name,
            seconds=LONG_SECONDS if is_long else SECONDS,
        )

    # While one waits, another has the processor.
    with ThreadPoolExecutor(len(names)) as pool:
        told = dict(zip(names, pool.map(run, names), strict=True))
    if part is not None:
        return told
    before = json.loads(MEASURED.read_text()) if MEASURED.exists() and names != KERNELS else {}
    now = {name: measured(manifest[name], told[name]) for name in names}
    MEASURED.write_text(json.dumps(before | now, indent=2))
    return told


@pytest.fixture(scope="session")
def all_guests(guests: dict[str, Told]) -> dict[str, Told]:
    """For tests that compare kernels: they are left out where one was chosen."""
    return guests


@pytest.fixture(scope="session")
def whole_guests(guests: dict[str, Told]) -> dict[str, Told]:
    """For what only all tests tell: they are left out where a part was chosen."""
    return guests


def measured(kernel: dict[str, str], told: Told) -> dict[str, object]:
    """What the page says of a kernel."""
    return {
        "suite": kernel["suite"],
        "version": kernel["version"],
        "release": told.kernel,
        "features": told.features,
        "without": told.without,
        "verified_insns": told.verified_insns,
    }
