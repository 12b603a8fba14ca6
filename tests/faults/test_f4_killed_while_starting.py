# SPDX-License-Identifier: Apache-2.0
"""
F4: the agent dies at the k-th kernel call of its start, on a node that never had one and over live pods.

A start makes some 700 calls on maps and files and 60 on netlink: with ``--long`` every twelfth and every
second of them is met, without a few of each.  What it left is taken over by the next one.
"""

import random
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import pytest

from lab import manifests
from lab.figures import Figures
from lab.injection import Step, steps, under_strace
from lab.maps import dump
from lab.meaning import Meaning, meaning
from lab.node import Node
from lab.probers import Probers
from lab.sweep import remove_pins
from lab.waiting import eventually
from lab.workload import settled
from lab.world import World

MAPS_AND_FILES: Final = ("bpf", "fsync", "rename", "unlink")
NETLINK: Final = ("sendto",)
EVERY: Final = {MAPS_AND_FILES: 12, NETLINK: 2}
SAMPLE: Final = {MAPS_AND_FILES: 2, NETLINK: 1}
SEED: Final = 41
CALLS = pytest.mark.parametrize("calls", [MAPS_AND_FILES, NETLINK], ids=["maps", "netlink"])


@pytest.fixture
def new_node(world: World) -> Iterator[Node]:
    """A node that never had an agent: each test its own."""
    with Node(world) as node:
        node.apply("service", manifests.service("nobody", "10.96.0.60", {"app": "nobody"}))
        node.apply(
            "policy", manifests.network_policy("deny", {"podSelector": {}, "policyTypes": ["Ingress"]})
        )
        yield node


def launched(node: Node, calls: Sequence[str], log: Path, *, effect: str = "", when: str = "1") -> bool:
    """Start the agent under strace; whether it came to be ready, and did not die before."""
    node.agent.wrapper = under_strace(calls, effect=effect, when=when, log=log)
    node.agent.launch()
    node.agent.wrapper = []
    process = node.agent.process
    assert process is not None
    eventually(lambda: not process.running or node.agent.healthy(), "ready or dead", seconds=60.0, every=0.02)
    return process.running


def points(calls: tuple[str, ...], log: Path, *, is_long: bool) -> Sequence[Step]:
    """At which calls it dies, of those that an undisturbed start logged."""
    every = steps(log)
    return every[:: EVERY[calls]] if is_long else random.Random(SEED).sample(every, SAMPLE[calls])


def problems_of(found: Meaning, wanted: Meaning) -> list[str]:
    """What is not as it should be."""
    return [*found.broken, *found.differences(wanted)]


@CALLS
def test_a_first_start_that_dies_is_begun_again(
    new_node: Node,
    calls: tuple[str, ...],
    is_long: bool,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    """Whatever it left, the next one makes what an undisturbed one makes."""
    node = new_node

    def forget() -> None:
        node.agent.end()
        remove_pins(node.bpf_root)
        shutil.rmtree(node.directory / "state", ignore_errors=True)
        for name in ("cilium_host", "cilium_vxlan"):
            if name in node.netns.links():
                node.netns.ip("link", "del", name)

    assert launched(node, calls, tmp_path / "all")
    wanted = settled(node)
    forget()
    some = points(calls, tmp_path / "all", is_long=is_long)
    name = "map and file" if calls is MAPS_AND_FILES else "netlink"
    figures = Figures(f"F4-first start killed at {name} calls", more={"not reached": 0})
    wrong: dict[Step, list[str]] = {}
    for call, nth in some:
        log = tmp_path / f"{call}-{nth}"
        died = not launched(node, [call], log, effect="signal=KILL", when=str(nth))
        node.agent.end()
        node.agent.start()
        if found := problems_of(settled(node), wanted):
            wrong[call, nth] = found
        figures.injected += died
        figures.survived += died and not found
        figures.more["not reached"] += not died
        forget()
    node.agent.start()
    pods = [node.pod(name, {"app": name}).serve(tcp=(80,)) for name in ("one", "two")]
    figures.record(record_property)

    assert wrong == {}
    assert not pods[0].reaches(pods[1].address, 80), "the policy is in force"
    figures.assert_harmless()


@CALLS
def test_a_restart_that_dies_is_noticed_by_nobody(
    node: Node,
    probers: Probers,
    calls: tuple[str, ...],
    is_long: bool,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    """Packets go by what was there, whichever step of taking over it was."""
    wanted = settled(node)
    node.agent.stop(signal.SIGKILL)
    assert launched(node, calls, tmp_path / "all")
    some = points(calls, tmp_path / "all", is_long=is_long)
    name = "map and file" if calls is MAPS_AND_FILES else "netlink"
    figures = Figures(f"F4-restart killed at {name} calls", more={"not reached": 0})
    wrong: dict[Step, list[str]] = {}
    with probers:
        for call, nth in some:
            node.agent.stop(signal.SIGKILL)
            log = tmp_path / f"{call}-{nth}"
            died = not launched(node, [call], log, effect="signal=KILL", when=str(nth))
            found = problems_of(meaning(dump(node.bpf_root)), wanted)
            node.agent.end()
            node.agent.start()
            found += problems_of(settled(node), wanted)
            if found:
                wrong[call, nth] = found
            figures.injected += died
            figures.survived += died and not found
            figures.more["not reached"] += not died
        probers.stop(figures)
    figures.record(record_property)

    assert wrong == {}
    figures.assert_harmless()
