# SPDX-License-Identifier: Apache-2.0
"""
P18: from starting the agent to programs on every hook, to a served socket, to the first packet between two
pods.

Cold: no pins, no state, map sizes as by default, two pods that are added as soon as the agent answers.
Warm: the same agent killed and started again beside its pods.  PATH is empty, so no compiler could be
found; programs started by the agent are counted besides.
"""

import re
import signal
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from bench.paths import DEFAULT_SIZES
from bench.result import Figure, Goal, Section, Table
from bench.samples import spread
from bench.syscalls import LOAD_PROGRAM, Seen, SyscallTrace, tracefs
from lab import manifests
from lab.node import Node
from lab.pod import Pod
from lab.waiting import eventually
from lab.world import World

ATTACHED: Final = re.compile(r"time=(\S+) .*msg=agent\.datapath_attached .*seconds=([0-9.]+)")
COMPILER: Final = re.compile(r"(clang|gcc|cc1|llc|ld|opt|llvm[^/]*)(-\d+)?$")
NO_PATH: Final = ("/usr/bin/env", "PATH=/nonexistent")
PORT: Final = 80
POLL_SECONDS: Final = 0.005
GOAL: Final = Goal(at_most=3.0)


@dataclass(frozen=True, slots=True)
class Start:
    """Seconds since the agent's process was started; `own` is what its log says of itself."""

    attached: float
    own: float
    answering: float
    forwarding: float


def _pods(node: Node) -> list[Pod]:
    """Two namespaces with manifests that are no endpoints yet, the second one serving."""
    pods = []
    for name in ("client", "server"):
        node.apply(name, manifests.pod(name, {"app": name}))
        pod = Pod(name, "default", cgroup=node.cgroup.path)
        node.pods[pod.key] = pod
        pods.append(pod)
    pods[0].outside.call("ping", address="127.0.0.1")
    pods[1].serve(tcp=(PORT,))
    return pods


def _start(node: Node, pods: Sequence[Pod], *, add: bool) -> Start:
    client, server = pods
    told = len(ATTACHED.findall(node.agent.log_text()))
    wall, began = time.time(), time.monotonic()
    node.agent.launch()
    eventually(node.agent.healthy, "the agent answers and is healthy", seconds=30, every=POLL_SECONDS)
    answering = time.monotonic() - began
    if add:
        for pod in (server, client):
            node.add_endpoint(pod)
    eventually(
        lambda: client.reaches(server.address, PORT, timeout=0.1), "the first connection", every=POLL_SECONDS
    )
    forwarding = time.monotonic() - began
    when, own = ATTACHED.findall(node.agent.log_text())[told]
    return Start(datetime.fromisoformat(when).timestamp() - wall, float(own), answering, forwarding)


def measure(*, starts: int) -> Section:
    """Cold and warm starts, each beside the same agent's other kind."""
    section = Section("start", "P18  start of the agent", case="P18")
    cold, warm, seen = [], [], Seen(Counter(), [])
    with tracefs(), SyscallTrace() as trace, World() as world:
        for number in range(starts):
            with Node(world, options=DEFAULT_SIZES) as node:
                node.agent.wrapper = list(NO_PATH)
                pods = _pods(node)

                def first(node: Node = node, pods: Sequence[Pod] = pods) -> None:
                    cold.append(_start(node, pods, add=True))

                if number == 0:
                    seen = trace.during(first, pid=lambda node=node: _pid(node))
                else:
                    first()
                node.agent.stop(signal.SIGKILL)
                warm.append(_start(node, pods, add=False))
    section.table = Table(("seconds since exec, min / median / max", "cold", "warm"))
    for label, name in (
        ("all hooks attached", "attached"),
        ("  of that in the agent itself, without Python's imports", "own"),
        ("socket answers, all rows written", "answering"),
        ("first connection between two pods", "forwarding"),
    ):
        columns = [spread([getattr(one, name) for one in column]) for column in (cold, warm)]
        section.table.rows.append((label, *columns))
    slowest = max(one.attached for one in (*cold, *warm))
    section.add(
        Figure.of("cold starts", starts),
        Figure.of("slowest start to all hooks attached", slowest, "s", goal=GOAL),
        Figure.of("programs loaded in a cold start", seen.bpf[LOAD_PROGRAM], note="probes included"),
        Figure.of("BPF system calls in a cold start with two pods", sum(seen.bpf.values())),
        Figure.of(
            "compilers started", sum(COMPILER.search(name) is not None for name in seen.started),
            goal=Goal(at_most=0), note="PATH was empty",
        ),
        Figure.of("other programs started", len(seen.started), note=", ".join(seen.started)),
    )  # fmt: skip
    section.data = {
        "cold": [_plain(one) for one in cold],
        "warm": [_plain(one) for one in warm],
        "bpf_calls": dict(seen.bpf),
    }
    return section


def _pid(node: Node) -> int:
    assert node.agent.process is not None
    return node.agent.process.pid


def _plain(one: Start) -> dict[str, float]:
    return {name: round(getattr(one, name), 4) for name in Start.__slots__}
