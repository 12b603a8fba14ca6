# SPDX-License-Identifier: Apache-2.0
"""
An object of ten thousand things costs ten times what one of a thousand costs, not a hundred times.

What it costs is counted in lines of Python that run, so that the machine has no say; how long the largest
takes is printed.
"""

import asyncio
import json
import random
import sys
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest

from ciliumd.kubernetes import kinds
from ciliumd.kubernetes.kinds import TABLES_OF
from fuzz.large import LARGE, MANY
from property.churn.agent import Agent, begin, quiet_loop
from property.churn.cluster import Cluster, Told, Wired

pytestmark = pytest.mark.property

FEW = 150
# Twice as much of something may cost this many times as much; four times would be a square.
MOST = 2.7
_KINDS = {kind.kind: kind for kind in TABLES_OF}


class Lab:
    """An agent with one pod, under no policy of its own, and one remote one."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.cluster = Cluster(random.Random(1), [])
        self.agent = Agent(loop)
        pod = {"metadata": {"name": "pod-0", "namespace": "blue", "labels": {"app": "app-1"}}}
        pod["spec"] = {"containers": [], "serviceAccountName": "default"}
        web = {"clusterIP": "10.96.0.1", "ports": [{"name": "http", "port": 80}]}
        self._tell(kinds.NAMESPACE, {"metadata": {"name": "blue", "labels": {}}})
        self._tell(kinds.POD, pod)
        self._tell(kinds.SERVICE, {"metadata": {"name": "web", "namespace": "default"}, "spec": web})
        self.agent.wire(Wired(1, ("blue", "pod-0"), "10.0.0.1"))
        begin(self.agent, self.cluster)
        self.agent.settle()
        assert self.agent.plan.policy.versions

    def _tell(self, kind: Any, document: dict[str, Any]) -> Told:
        told = self.cluster.put(kind, document)
        self.agent.tell(told)
        return told

    def take(self, document: dict[str, Any]) -> Told:
        """The object arrives, and the maps follow."""
        told = self._tell(_KINDS[document["kind"]], document)
        self.agent.settle()
        return told

    def lose(self, told: Told) -> None:
        """It goes, and the maps follow."""
        self.agent.tell(self.cluster.remove(told.key))
        self.agent.settle()


@pytest.fixture
def lab() -> Iterator[Lab]:
    """Quiet, and with a loop of its own."""
    with quiet_loop() as loop:
        yield Lab(loop)


def lines(work: Callable[[], Any]) -> int:
    """How many lines of Python run in *work*."""
    count = 0

    def trace(_frame: FrameType, event: str, _argument: Any) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize("what", sorted(LARGE))
def test_twice_as_much_costs_twice_as_much(what: str, lab: Lab) -> None:
    """To take it in and to see it go."""
    small, large = (LARGE[what](many) for many in (FEW, 2 * FEW))
    lab.lose(lab.take(large))  # what is learned once is not counted
    costs = [lines(lambda one=one: lab.lose(lab.take(one))) for one in (small, large)]
    once = lines(lambda: lab.lose(lab.take(LARGE[what](1))))

    assert costs[1] - once <= MOST * max(costs[0] - once, 1), (costs, once)


def test_ten_thousand_of_each_thing(
    is_long: bool, lab: Lab, record_property: Callable[[str, object], None]
) -> None:
    """A5: everything is taken or refused, and how much of a processor's time the slowest takes."""
    if not is_long:
        lab.lose(lab.take(LARGE["rules with a selector and a port each"](MANY // 10)))
        return
    seconds: dict[str, float] = {}
    for what, make in LARGE.items():
        document = make(MANY)
        began = time.process_time()
        told = lab.take(document)
        seconds[what] = round(time.process_time() - began, 2)
        lab.lose(told)
        assert all(not stage.failing for stage in lab.agent.reconciler.status().stages)
    slowest = max(seconds, key=seconds.__getitem__)
    record_property("figure", f"A5: 10,000 {slowest}: {seconds[slowest]} s of a processor, the slowest")
    record_property("data", json.dumps({"case": "A5 large", "seconds": seconds}))
