# SPDX-License-Identifier: Apache-2.0
"""
F2: the agent is ended and killed again and again, and every state map is byte by byte as it was.

Compared as soon as the agent is ready, and once more when it has run for a while; how many packets that
costs is counted in ``netns/test_restart.py``.
"""

import signal
import time
from collections.abc import Callable

from lab import maps
from lab.figures import Figures
from lab.node import Node
from lab.probers import Probers
from lab.workload import Workload

RESTARTS, RESTARTS_LONG = 4, 200
LATER_SECONDS, LATER_SECONDS_LONG = 5.0, 60.0


def test_restarts_change_no_row(
    node: Node, is_long: bool, record_property: Callable[[str, object], None]
) -> None:
    """In turn by SIGTERM and SIGKILL: no row is added, lost or changed, at once and later."""
    figures = Figures("F2-restarts")
    probers = Probers(node)
    workload = Workload(node)
    last = workload.before
    for step in workload.steps[:5]:
        last = workload.do(step, after=last)
    before = maps.dump(node.bpf_root)
    changed: dict[int, list[str]] = {}
    with probers:
        for number in range(RESTARTS_LONG if is_long else RESTARTS):
            node.agent.restart((signal.SIGTERM, signal.SIGKILL)[number % 2])
            figures.injected += 1
            if differences := maps.differences(before, maps.dump(node.bpf_root)):
                changed[number] = differences
            figures.survived += not differences
        time.sleep(LATER_SECONDS_LONG if is_long else LATER_SECONDS)
        later = maps.differences(before, maps.dump(node.bpf_root))
        probers.stop(figures)
    figures.more["rows compared"] = sum(map(len, before.values()))
    figures.record(record_property)

    assert changed == {}
    assert later == []
    figures.assert_harmless()
