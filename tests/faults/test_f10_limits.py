# SPDX-License-Identifier: Apache-2.0
"""
F10: the agent runs out of file descriptors, threads or memory in the midst of its work.

Without descriptors or threads it lives, packets notice nothing, and what was asked of it meanwhile is done
once there are some again.  Without memory the kernel ends it, and the next one goes on where it was.
"""

import random
import resource
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import count, islice
from pathlib import Path

import pytest

from ciliumd.cli.errors import CommandError
from lab.cgroup import Limited
from lab.figures import Figures
from lab.maps import dump
from lab.meaning import meaning
from lab.node import Node
from lab.probers import Probers
from lab.waiting import eventually
from lab.workload import Workload, settled

TIMES, TIMES_LONG = 2, 25
SPARE = 1
LOOKS, LOOK_SECONDS = 10, 0.05
MEMORY_TIMES, MEMORY_TIMES_LONG = 2, 50
LEAST_MIB, MOST_MIB = 15, 60
SEED = 10


def open_for_good(pid: int) -> set[int]:
    """Descriptors of a process but for those that it closes while one looks: of requests, of files."""
    listings = []
    for _ in range(LOOKS):
        listings.append({int(entry.name) for entry in Path(f"/proc/{pid}/fd").iterdir()})
        time.sleep(LOOK_SECONDS)
    return set.intersection(*listings)


@contextmanager
def few_descriptors(node: Node) -> Iterator[None]:
    """No more descriptors than the agent has open now, and very few besides: skipped numbers are free."""
    assert node.agent.process is not None
    pid = node.agent.process.pid
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    taken = open_for_good(pid)
    free = (number for number in count() if number not in taken)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (next(islice(free, SPARE, None)), hard))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))


@contextmanager
def no_threads(node: Node) -> Iterator[None]:
    """No more threads than the agent has now."""
    assert node.agent.process is not None
    pid = node.agent.process.pid
    with Limited("pids", "threads") as group:
        group.take(pid)
        group.limit(len(list(Path(f"/proc/{pid}/task").iterdir())))
        try:
            yield
        finally:
            group.limit(None)
            (group.path.parent / "cgroup.procs").write_text(str(pid))


@pytest.mark.parametrize(
    ("limit", "said"),
    [(few_descriptors, "Too many open files"), (no_threads, "can't start new thread")],
    ids=["descriptors", "threads"],
)
def test_agent_goes_on_when_there_is_some_again(
    node: Node,
    probers: Probers,
    workload: Workload,
    limit: Callable[[Node], AbstractContextManager[None]],
    said: str,
    is_long: bool,
    record_property: Callable[[str, object], None],
) -> None:
    """Policies, services and pods change while none is left: the maps are as written once there are some."""
    figures = Figures(f"F10-{limit.__name__.replace('_', ' ')}")
    process = node.agent.process
    assert process is not None
    answers: list[str] = []
    unreachable = 0
    with probers:
        for _ in range(TIMES_LONG if is_long else TIMES):
            with limit(node):
                answers += [workload.begin(step) for step in workload.steps[:5]]
                try:
                    node.agent.get("healthz")
                except CommandError:
                    unreachable += 1
                figures.injected += 1
            assert process.running, node.agent.log_tail()
            workload.steps[1].ask(node)
            eventually(
                lambda: not workload.after[4].differences(meaning(dump(node.bpf_root))),
                "all is as written",
                seconds=45.0,
            )
            eventually(node.agent.healthy, "all is well again", seconds=45.0)
            workload.restore()
            figures.survived += process.running
        probers.stop(figures)
    left = settled(node)
    # Who asked for a pod is told, everything else is in the log.
    missed = node.agent.log_text().count(said) + sum(said in answer for answer in answers)
    figures.more |= {"times the socket did not answer": unreachable, "times it was missing one": missed}
    figures.record(record_property)

    assert missed > 0, "the limit was never met"
    assert left.differences(workload.before) == []
    figures.assert_harmless()


def killed(node: Node) -> bool:
    """Wait until the agent is ready or has ended; whether the kernel killed it."""
    process = node.agent.process
    assert process is not None
    eventually(lambda: not process.running or node.agent.healthy(), "ready or dead", seconds=60.0)
    return not process.running and process.wait() == -signal.SIGKILL


def test_agent_without_memory_is_followed_by_another(
    node: Node,
    probers: Probers,
    workload: Workload,
    is_long: bool,
    record_property: Callable[[str, object], None],
) -> None:
    """
    The kernel ends it at a limit it meets while it starts: no packet notices, and no row is lost.

    The limits are chosen at random below what a start takes, so that it ends at another point each time.
    """
    figures = Figures("F10-memory limit")
    chance = random.Random(SEED)
    killed_at: list[int] = []
    with probers, Limited("memory", "memory") as group:
        for _ in range(MEMORY_TIMES_LONG if is_long else MEMORY_TIMES):
            node.agent.stop(signal.SIGKILL)
            mebibytes = chance.randint(LEAST_MIB, MOST_MIB)
            group.limit(mebibytes << 20)
            node.agent.wrapper = group.wrapper
            node.agent.launch()
            node.agent.wrapper = []
            ended = killed(node)
            killed_at += [mebibytes] if ended else []
            node.agent.end()
            node.agent.start()
            figures.injected += ended
            figures.survived += ended and not settled(node).differences(workload.before)
        probers.stop(figures)
    figures.more |= {"least MiB": min(killed_at, default=0), "most MiB": max(killed_at, default=0)}
    figures.record(record_property)

    figures.assert_harmless()
