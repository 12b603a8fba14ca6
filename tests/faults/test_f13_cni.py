# SPDX-License-Identifier: Apache-2.0
"""
F13: an ADD is killed at each of its steps, in the executable or in the agent, and followed by a DEL.

After each of them nothing of the pod is left, and the next pod is made as if nothing had been.  Random
operations, repeated and missing DELs and tampering are in ``netns/test_cni_random.py`` and its neighbours.
"""

import json
import random
import shlex
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import pytest

from ciliumd.cni import EXECUTABLE
from lab.cni import SECONDS, CniRefused, Runtime, Sandbox, finished, runtime_of
from lab.confined import Confinement, capabilities, mask, status_of
from lab.figures import Figures
from lab.injection import STRACE, Injection, Step, steps
from lab.netns import Namespace
from lab.node import Node
from lab.waiting import eventually
from lab.world import World
from netns.cni_state import known, leftovers

AGENT_CALLS: Final = (("sendto",), ("bpf",))
EXECUTABLE_STEPS, AGENT_STEPS = 14, 2
SEED = 13


@pytest.fixture(scope="module")
def confinement(tmp_path_factory: pytest.TempPathFactory) -> Confinement:
    """What the agents of this module may do: what they may in their container."""
    return Confinement(tmp_path_factory.mktemp("confined") / "blocked")


@pytest.fixture(scope="module")
def runtime(world: World, confinement: Confinement) -> Iterator[tuple[Node, Runtime]]:
    """A node and its container runtime."""
    with Node(world, options={"drift-interval": "3600"}) as node:
        node.agent.wrapper = confinement.wrapper
        cni = runtime_of(node)
        yield node.start(), cni


def traced(cni: Runtime, directory: Path, *options: str) -> Runtime:
    """The same runtime with the executable under strace."""
    script = directory / EXECUTABLE.name
    script.write_text(f'#!/bin/sh\nexec {STRACE} {shlex.join(options)} {shlex.quote(str(EXECUTABLE))} "$@"\n')
    script.chmod(0o755)
    return Runtime(cni.netns, cni.config, executable=script)


def deleted(node: Node, cni: Runtime, sandbox: Sandbox, space: Namespace) -> list[str]:
    """Delete what an ADD began, as a runtime does; what is left of it."""
    cni.delete(sandbox)
    space.remove()
    with suppress(AssertionError):
        eventually(lambda: not leftovers(node), "nothing is left")
    return leftovers(node)


def works(node: Node, cni: Runtime) -> list[str]:
    """A pod is made, found in order and deleted; what is left of it."""
    with Namespace("after") as space:
        sandbox = known(node, cni, space, "after")
        cni.add(sandbox)
        cni.check(sandbox)
        return deleted(node, cni, sandbox, space)


def test_executable_killed_at_each_call(
    runtime: tuple[Node, Runtime],
    is_long: bool,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    """Whichever call it is that it never returns from."""
    node, cni = runtime
    with Namespace("whole") as space:
        sandbox = known(node, cni, space, "killed")
        traced(cni, tmp_path, "-f", "-o", str(tmp_path / "all")).add(sandbox)
        assert deleted(node, cni, sandbox, space) == []
    every = steps(tmp_path / "all")
    figures = Figures("F13-executable killed")
    left: dict[Step, list[str]] = {}
    chance = random.Random(SEED)
    some = every if is_long else chance.sample(every, EXECUTABLE_STEPS)
    for call, nth in some:
        killed = traced(cni, tmp_path, "-o", "/dev/null", f"--inject={call}:signal=KILL:when={nth}")
        with Namespace("killed") as space:
            sandbox = known(node, cni, space, "killed")
            with killed.launch("ADD", sandbox) as process:
                process.communicate(timeout=SECONDS)
                figures.injected += process.returncode != 0
            if found := deleted(node, cni, sandbox, space):
                left[call, nth] = found
            figures.survived += process.returncode != 0 and not found
    figures.more |= {"calls in all": len(every), "left behind": sum(map(len, left.values()))}
    figures.record(record_property)

    # How often it waits for the agent is the agent's: the last calls may not be reached.
    assert figures.injected > len(some) // 2
    assert left == {}
    assert works(node, cni) == []
    figures.assert_harmless()


def add_killed(node: Node, cni: Runtime, sandbox: Sandbox, call: Step, log: Path) -> bool:
    """An ADD during which the agent dies at a call; one runs when it is over.  Whether it died."""
    process = node.agent.process
    assert process is not None
    with (
        Injection(process.pid, [call[0]], log, effect="signal=KILL", when=str(call[1])),
        cni.launch("ADD", sandbox) as adding,
    ):
        eventually(
            lambda: not process.running or adding.poll() is not None, "the agent or the executable has ended"
        )
        if not process.running:
            node.agent.start()
        with suppress(CniRefused):
            finished(adding, "ADD")
    if node.agent.process is process and not process.running:
        node.agent.start()
    return node.agent.process is not process


@pytest.mark.parametrize("calls", AGENT_CALLS, ids=["netlink", "maps"])
def test_agent_killed_at_each_call(
    runtime: tuple[Node, Runtime],
    calls: tuple[str, ...],
    is_long: bool,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    """The executable waits for another agent, or fails and is followed by a DEL; nothing is left then."""
    node, cni = runtime
    assert node.agent.process is not None
    with Namespace("whole") as space, Injection(node.agent.process.pid, calls, tmp_path / "all") as counting:
        sandbox = known(node, cni, space, "killed")
        cni.add(sandbox)
        every = counting.steps()
        assert deleted(node, cni, sandbox, space) == []
    figures = Figures(f"F13-agent killed at calls of {calls[0]}")
    left: dict[Step, list[str]] = {}
    chance = random.Random(SEED)
    for call in every if is_long else chance.sample(every, AGENT_STEPS):
        with Namespace("killed") as space:
            sandbox = known(node, cni, space, "killed")
            died = add_killed(node, cni, sandbox, call, tmp_path / f"{call[0]}-{call[1]}")
            found = deleted(node, cni, sandbox, space)
        if found:
            left[call] = found
        figures.injected += died
        figures.survived += died and not found
    figures.more |= {"calls in all": len(every), "left behind": sum(map(len, left.values()))}
    figures.record(record_property)

    assert left == {}
    assert works(node, cni) == []
    figures.assert_harmless()


def test_no_call_was_refused(
    runtime: tuple[Node, Runtime], confinement: Confinement, record_property: Callable[[str, object], None]
) -> None:
    """All of the above was done under the chart's profile of system calls and with its capabilities."""
    node, _ = runtime
    assert node.agent.process is not None
    held = status_of(node.agent.process.pid)
    blocked = confinement.blocked()
    data = {"case": "S4", "refused calls in F13": blocked.total()}
    record_property("data", json.dumps(data))

    assert blocked == {}
    assert (held["NoNewPrivs"], held["Seccomp"]) == ("1", "2")
    assert {int(held[name], 16) for name in ("CapEff", "CapPrm", "CapBnd")} == {mask(capabilities())}
