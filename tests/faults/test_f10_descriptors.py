# SPDX-License-Identifier: Apache-2.0
"""
F10: the agent runs out of file descriptors in the midst of its work.

It lives, packets notice nothing, and what was asked of it meanwhile is done once there are some again.  A
limit of memory ends it by SIGKILL, which F2 and F4 do at every moment.
"""

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ciliumd.cli.errors import CommandError
from lab.figures import Figures
from lab.maps import dump
from lab.meaning import meaning
from lab.node import Node
from lab.probers import Probers
from lab.waiting import eventually
from lab.workload import Workload, settled

TIMES, TIMES_LONG = 2, 50
SPARE = 1


@contextmanager
def few_descriptors(node: Node) -> Iterator[None]:
    """No more descriptors than the agent has open now, and very few besides."""
    assert node.agent.process is not None
    pid = node.agent.process.pid
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    highest = max(int(entry.name) for entry in Path(f"/proc/{pid}/fd").iterdir())
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (highest + 1 + SPARE, hard))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))


def test_agent_without_descriptors_goes_on_later(
    node: Node, is_long: bool, record_property: Callable[[str, object], None]
) -> None:
    """Policies and services change while none is left: the maps are as written once there are some."""
    figures = Figures("F10-descriptor limit")
    probers = Probers(node)
    workload = Workload(node)
    workload.rehearse()
    process = node.agent.process
    assert process is not None
    unreachable = 0
    with probers:
        for _ in range(TIMES_LONG if is_long else TIMES):
            with few_descriptors(node):
                for step in workload.steps[:5]:
                    workload.begin(step)
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
    missed = node.agent.log_text().count("Too many open files")
    figures.more |= {"times the socket did not answer": unreachable, "times it was missing one": missed}
    figures.record(record_property)

    assert missed > 0, "the limit was never met"
    assert left.differences(workload.before) == []
    figures.assert_harmless()
