# SPDX-License-Identifier: Apache-2.0
"""Debian's kernels, from the oldest that is supported on: objects load, packets and sockets are served."""

import itertools
import json
import subprocess
import sys
from collections.abc import Callable

import pytest

from ciliumd.bpf.features import OLDEST_KERNEL, kernel_version
from kernels.machine import Told
from kernels.selection import CASES, collected
from lab.process import REPOSITORY

pytestmark = pytest.mark.kernels

# Half of what the verifier allows.
LIMIT = 500_000


def evidence(told: Told) -> dict[str, object]:
    """What is kept of a guest: the kernel, what it lacks, what its verifier walked, counts of tests."""
    return {
        "kernel": told.kernel,
        "lacks": [name for name, has in told.features.items() if not has],
        "verified_insns": told.verified_insns,
        **told.counts(),
        "processor_seconds": round(told.processor_seconds),
    }


def test_every_kernel_is_the_one_that_was_asked_for(
    guests: dict[str, Told], manifest: dict[str, dict[str, str]], record_property: Callable[[str, str], None]
) -> None:
    """The suite decides on the version; the newest is newer than those of releases."""
    for name, told in guests.items():
        kernel = manifest[name]
        assert told.kernel == kernel["release"], told.ending()
        record_property("figure", f"{name}: Linux {told.kernel} ({kernel['version']} of {kernel['suite']})")
        assert kernel_version(told.kernel) >= OLDEST_KERNEL
        if name == "newest":
            assert kernel_version(told.kernel) > (6, 12)
        else:
            assert told.kernel.startswith(f"{name}.")


def test_guest_ran_to_its_end(
    guests: dict[str, Told], kernel: str, record_property: Callable[[str, str], None]
) -> None:
    """Nothing went wrong outside of tests."""
    told = guests[kernel]

    assert told.problems == [], told.ending()
    assert told.ended, told.ending()
    counts = told.counts()
    text = ", ".join(f"{number} {outcome}" for outcome, number in counts.items())
    record_property("figure", f"{kernel}: {text}, {told.processor_seconds:.0f} s of a processor")
    record_property("data", json.dumps(evidence(told)))


def test_case(guests: dict[str, Told], kernel: str, check: str) -> None:
    """A test of another layer, on this kernel."""
    told = guests[kernel]
    assert check in told.outcomes, f"{check} was not run\n{told.ending()}"
    found = told.outcomes[check]
    if found.outcome == "skipped":
        # The guest has compared it with expected_skips.toml and its kernel already.
        pytest.skip(found.text)

    assert found.outcome == "passed", found.text


def test_every_program_was_verified_and_is_far_from_the_limit(
    whole_guests: dict[str, Told], kernel: str
) -> None:
    """In its dearest combination of options, on this kernel."""
    told = whole_guests[kernel]

    assert {name.partition("/")[0] for name in told.verified_insns} == set(told.objects), told.ending()
    assert {name: row["most"] for name, row in told.verified_insns.items() if row["most"] > LIMIT} == {}


def test_what_a_kernel_has_the_newer_ones_have(all_guests: dict[str, Told]) -> None:
    """A probe that answers differently on a newer kernel is broken, or the kernel is."""
    kernels = list(all_guests.values())
    for older, newer in itertools.pairwise(kernels):
        lost = [name for name, has in older.features.items() if has and not newer.features.get(name)]

        assert lost == [], f"{newer.kernel} lacks what {older.kernel} has"


def test_cases_are_tests_of_other_layers() -> None:
    """cases.txt names none that is gone."""
    listed = [line for line in CASES.read_text().splitlines() if line and not line.startswith("#")]
    files = sorted({line.partition("::")[0] for line in listed})

    assert sorted(set(listed) - set(collected(*files))) == []
    assert len(listed) == len(set(listed))


def test_page_is_what_was_measured(all_guests: dict[str, Told]) -> None:
    """docs/reference/kernels.md says what these kernels have, and what programs cost on them."""
    assert all(told.verified_insns for told in all_guests.values())
    script = REPOSITORY / "build" / "kernels_page.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
