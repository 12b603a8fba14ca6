# SPDX-License-Identifier: Apache-2.0
"""
Operations in no order, agents and executables killed in the middle: nothing leaks, nothing is had twice.

CILIUMD_CNI_OPERATIONS says how many (150 unless told, 1000 for a long run), CILIUMD_CNI_SEED which.
"""

import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest

from lab.cni import CniRefused, Runtime, Sandbox, finished, runtime_of
from lab.confined import Confinement
from lab.netns import Namespace
from lab.node import Node
from lab.world import World
from netns.cni_state import assert_empty, known, leftovers

pytestmark = pytest.mark.netns

OPERATIONS: Final = int(os.environ.get("CILIUMD_CNI_OPERATIONS", "150"))
SEED: Final = int(os.environ.get("CILIUMD_CNI_SEED", "13"))
PODS: Final = 6


@dataclass
class Machine:
    """A runtime's view of a node: who has been added, and what it did."""

    node: Node
    cni: Runtime
    chance: random.Random = field(default_factory=lambda: random.Random(SEED))
    alive: dict[str, tuple[Sandbox, Namespace]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def step(self) -> None:
        """One operation of those that make sense, with or without somebody killed."""
        operations: list[Callable[[str], None]] = [self.add, self.add, self.delete, self.check, self.collect]
        operation = self.chance.choice([*operations, self.replace, self.add_again, self.add_killed])
        self.counts[operation.__name__] = self.counts.get(operation.__name__, 0) + 1
        killed = self.chance.random() < 0.1
        if killed:
            self.counts["agent killed"] = self.counts.get("agent killed", 0) + 1
            assert self.node.agent.process is not None
            self.node.agent.stop(signal.SIGKILL)
            self.node.agent.launch()
        operation(f"pod{self.chance.randrange(PODS)}")
        if killed:
            self.node.agent.wait_ready()

    def add(self, name: str) -> None:
        """ADD in a new sandbox, a DEL before it where there is one; with the agent killed in it at times."""
        if name in self.alive:
            self.delete(name)
        self._add(name, Namespace(name))

    def replace(self, name: str) -> None:
        """A new sandbox while the old one was never deleted; its DEL comes late."""
        before = self.alive.pop(name, None)
        self._add(name, Namespace(name))
        if before is not None:
            self._delete(*before)

    def add_again(self, name: str) -> None:
        """The same ADD once more answers the same."""
        if name in self.alive:
            sandbox, _ = self.alive[name]
            before = self.cni.results[sandbox]
            assert self.cni.add(sandbox) == before

    def add_killed(self, name: str) -> None:
        """The executable is killed; the runtime deletes what it began."""
        if name in self.alive:
            return
        space = Namespace(name)
        sandbox = known(self.node, self.cni, space, name)
        with self.cni.launch("ADD", sandbox) as process:
            time.sleep(self.chance.random() * 0.1)
            process.kill()
            process.communicate()
        self._delete(sandbox, space)

    def delete(self, name: str) -> None:
        """DEL, sometimes three, sometimes when the namespace is gone."""
        if name in self.alive:
            self._delete(*self.alive.pop(name))

    def check(self, name: str) -> None:
        """A pod that was added is as it was made, once the agent is there."""
        if name in self.alive:
            self.node.agent.wait_ready()
            self.cni.check(self.alive[name][0])

    def collect(self, _: str) -> None:
        """GC with all that are alive."""
        self.node.agent.wait_ready()
        self.cni.collect([sandbox for sandbox, _ in self.alive.values()])

    def _add(self, name: str, space: Namespace) -> None:
        sandbox = known(self.node, self.cni, space, name)
        with self.cni.launch("ADD", sandbox) as process:
            if self.chance.random() < 0.06:
                time.sleep(self.chance.random() * 0.1)
                self.node.agent.stop(signal.SIGKILL)
                self.node.agent.start()
            try:
                self.cni.results[sandbox] = finished(process, "ADD")
            except CniRefused as refused:
                # The agent died under it: a failed ADD is followed by a DEL.
                assert refused.code == 11, refused  # noqa: PT017  it may also succeed
                self._delete(sandbox, space)
                return
        self.alive[name] = sandbox, space

    def _delete(self, sandbox: Sandbox, space: Namespace) -> None:
        if self.chance.random() < 0.5:
            space.remove()
        for _ in range(self.chance.choice([1, 1, 3])):
            self.cni.delete(sandbox, netns=self.chance.random() < 0.7)
        space.remove()


@pytest.fixture
def confinement(tmp_path: Path) -> Confinement:
    """Agents are under the chart's profile of system calls, with its capabilities."""
    return Confinement(tmp_path / "blocked")


@pytest.fixture
def machine(world: World, confinement: Confinement) -> Iterator[Machine]:
    """A node of its own."""
    with Node(world, options={"drift-interval": "3600"}) as node:
        node.agent.wrapper = confinement.wrapper
        cni = runtime_of(node)
        made = Machine(node, cni)
        node.start()
        yield made
        for _, space in made.alive.values():
            space.remove()


def test_random_operations_leak_nothing(
    machine: Machine, confinement: Confinement, record_property: Callable[[str, object], None]
) -> None:
    """Pods alive are as they were made, each with an address of its own; all others left nothing."""
    for _ in range(OPERATIONS):
        machine.step()
    machine.node.agent.wait_ready()
    # What was queued while the agent was away is deleted when it starts.
    machine.node.agent.restart()

    sandboxes = [sandbox for sandbox, _ in machine.alive.values()]
    for sandbox in sandboxes:
        machine.cni.check(sandbox)
    addresses = [machine.cni.results[sandbox]["ips"][0]["address"].partition("/")[0] for sandbox in sandboxes]
    duplicates = len(addresses) - len(set(addresses))
    left = leftovers(machine.node, addresses)
    counts = ", ".join(f"{number} {name}" for name, number in sorted(machine.counts.items()))
    record_property(
        "figure",
        f"{OPERATIONS} random CNI operations ({counts}), {len(sandboxes)} pods at the end: "
        f"{len(left)} left behind, {duplicates} addresses had twice",
    )
    data = {
        "case": "F13",
        "operations": OPERATIONS,
        "pods at the end": len(sandboxes),
        "left behind": len(left),
    }
    record_property("data", json.dumps(data | {"addresses had twice": duplicates} | machine.counts))
    blocked = confinement.blocked()
    record_property("data", json.dumps({"case": "S4", "refused calls in F13": blocked.total()}))
    assert (left, duplicates) == ([], 0)
    assert blocked == {}
    for sandbox in sandboxes:
        machine.cni.delete(sandbox)
    assert_empty(machine.node)
