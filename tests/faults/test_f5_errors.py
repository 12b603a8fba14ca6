# SPDX-License-Identifier: Apache-2.0
"""
F5: kernel calls of a scripted workload are refused with errors that kernels have, some or all of them.

The agent lives, says what is wrong, tries again with growing delays, and ends as if nothing had been; packets
that every state allows get through all the while and those that none allows do not.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from lab.figures import Figures
from lab.injection import Injection
from lab.maps import dump
from lab.meaning import meaning
from lab.node import Node
from lab.probers import Probers
from lab.waiting import eventually
from lab.workload import Workload, settled
from lab.world import World

MAPS: Final = ("bpf",)
NETLINK: Final = ("sendto", "sendmsg")
FILES: Final = ("openat", "rename", "fsync", "unlink", "mkdir")
ERRORS: Final = ("E2BIG", "ENOMEM", "ENOSPC", "EBUSY", "EINTR", "EPERM", "ENOENT")
SOME: Final = ("1+1", "2+2", "1+3", "1..4", "3+5")
SESSIONS, SESSIONS_LONG = 8, 70
REFUSED_LONG: Final = 1000
SEED: Final = 5
# One traceback per call may be a bug that harms nobody; one per second is a loop.
TRACEBACKS: Final = 3
CONVERGES_WITHIN: Final = 45.0


@dataclass(frozen=True)
class Session:
    """Which calls fail how, while which step of the workload is done."""

    calls: tuple[str, ...]
    error: str
    when: str
    step: int


@pytest.fixture(scope="module")
def node(world: World) -> Iterator[Node]:
    """A node whose agent compares its maps often: what an error made it believe is corrected by that."""
    with Node(world, options={"drift-interval": "5"}) as node:
        yield node.start()


def sessions(count: int, steps: int) -> list[Session]:
    """Every error at least once, most of them in calls on maps; chosen by a fixed seed."""
    chance = random.Random(SEED)
    return [
        Session(
            calls=MAPS if number < len(ERRORS) else chance.choice((MAPS, MAPS, NETLINK, FILES)),
            error=ERRORS[number % len(ERRORS)],
            when=chance.choice(SOME),
            step=chance.randrange(steps - 1),
        )
        for number in range(count)
    ]


def tracebacks(node: Node, since: int) -> int:
    """Tracebacks in the log behind a position."""
    return node.agent.log_text()[since:].count("Traceback (most recent call last)")


def refused(workload: Workload, session: Session, log: Path) -> tuple[int, bool]:
    """Do the steps up to one, that one with errors; how many calls were refused, and whether status told."""
    node, process = workload.node, workload.node.agent.process
    assert process is not None
    for number in range(session.step):
        workload.begin(workload.steps[number])
    if session.step:
        assert workload.wait(session.step - 1)
    told = False
    with Injection(
        process.pid, session.calls, log, effect=f"error={session.error}", when=session.when
    ) as injection:
        workload.begin(workload.steps[session.step])

        def seen() -> bool:
            nonlocal told
            told = told or not node.agent.healthy()
            there = not workload.after[session.step].differences(meaning(dump(node.bpf_root)))
            return told or there or not process.running

        eventually(seen, f"{session}: done in spite of it, or status tells", seconds=20.0)
    return injection.injected(), told


def test_refused_calls_are_tried_again(
    node: Node,
    probers: Probers,
    workload: Workload,
    is_long: bool,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    """No session ends the agent, loops in tracebacks, loses or lets through a packet."""
    figures = Figures("F5-errors of kernel calls")
    process, told, worst, failed = node.agent.process, 0, 0, []
    done = sessions(SESSIONS_LONG if is_long else SESSIONS, len(workload.steps))
    with probers:
        for number, session in enumerate(done):
            position = len(node.agent.log_text())
            injected, seen = refused(workload, session, tmp_path / f"{number}")
            figures.more["calls refused"] = figures.more.get("calls refused", 0) + injected
            figures.injected += 1
            told += seen
            assert node.agent.process is process
            assert process is not None
            assert process.running, f"{session} ended the agent\n{node.agent.log_tail()}"
            workload.finish(session.step)
            eventually(node.agent.healthy, f"{session}: all is well again", seconds=CONVERGES_WITHIN)
            workload.restore()
            worst = max(worst, tracebacks(node, position))
            if tracebacks(node, position) > TRACEBACKS:
                failed.append(session)
            figures.survived += session not in failed
        probers.stop(figures)
    left = settled(node)
    figures.more |= {"sessions that status told of": told, "most tracebacks in one": worst}
    figures.record(record_property)

    assert failed == []
    assert left.differences(workload.before) == []
    assert figures.more["calls refused"] >= (REFUSED_LONG if is_long else 1)
    assert told > 0, "nothing that failed was ever told"
    figures.assert_harmless()
