# SPDX-License-Identifier: Apache-2.0
"""
The chart's profile of system calls, as the laboratory loads it: what it refuses is refused and counted.

F8 and F13 run under it with nothing refused, which says something only if something can be.
"""

import io
import json
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lab.confined import FORBIDDEN, MISSING, Confinement, capabilities, judge, mask, status_of
from lab.process import Process, run
from lab.waiting import eventually


@pytest.fixture
def confinement(tmp_path: Path) -> Confinement:
    """A file of its own."""
    return Confinement(tmp_path / "blocked")


def test_calls_that_an_agent_never_makes_are_refused_and_counted(
    confinement: Confinement, record_property: Callable[[str, object], None]
) -> None:
    """Each of them once; what C libraries try first is "not there", and is no attempt at anything."""
    said = json.loads(run([*confinement.wrapper, sys.executable, "-c", FORBIDDEN]).stdout)
    blocked = confinement.blocked()
    refused = sum(answer == "EPERM" for answer in said.values())
    data = {"case": "S4", "forbidden calls": len(said) - 1, "refused": refused, "counted": blocked.total()}
    record_property("data", json.dumps(data))

    assert said.pop(MISSING) == "ENOSYS"
    assert said == dict.fromkeys(said, "EPERM")
    # Two kinds of namespaces are refused to one call.
    assert blocked == {"unshare": 2} | dict.fromkeys(known(said), 1)


def known(said: dict[str, str]) -> set[str]:
    """Names of system calls, without the arguments."""
    return {name.partition("(")[0] for name in said} - {"unshare"}


def test_what_is_started_from_there_is_confined_too(confinement: Confinement) -> None:
    """Also a program that runs on when the first has ended; and it has the chart's capabilities, no more."""
    script = "import os, time; os.fork() or (time.sleep(0.3), os.sync())"
    run([*confinement.wrapper, sys.executable, "-c", script])
    eventually(lambda: confinement.blocked() == {"sync": 1}, "it was counted")

    with Process([*confinement.wrapper, "/bin/sleep", "60"]) as process:
        eventually(lambda: status_of(process.pid)["Name"] == "sleep", "it is the command")
        held = status_of(process.pid)
    assert {int(held[name], 16) for name in ("CapEff", "CapPrm", "CapBnd")} == {mask(capabilities())}
    assert (held["NoNewPrivs"], held["Seccomp"]) == ("1", "2")


def test_who_is_killed_before_it_is_confined_asks_nothing() -> None:
    """Its socket is closed without a filter in it: who counts ends, and has nothing to report."""
    here, there = socket.socketpair()
    here.close()
    report = io.StringIO()

    judge(there.detach(), report)

    assert report.getvalue() == ""
