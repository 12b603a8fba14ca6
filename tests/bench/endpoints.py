# SPDX-License-Identifier: Apache-2.0
"""
P10, P11, P18: pods added and deleted one after the other, what each costs the kernel, and the agent at
rest.

Namespaces and manifests are there before the clock starts; asked over the agent's socket, so no process is
in the time.
"""

import statistics
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from bench.machine import memory_kib, percent_at_rest, timed
from bench.paths import DEFAULT_SIZES
from bench.result import Figure, Goal, Section, Table
from bench.samples import percentile, ratio
from bench.syscalls import LOAD_PROGRAM, SyscallTrace, tracefs
from ciliumd.bpf import Map
from lab import manifests
from lab.netns import IP, Namespace
from lab.node import Node
from lab.pod import Pod
from lab.process import run
from lab.waiting import eventually
from lab.world import World

IDLE_GOAL_MIB: Final = Goal(at_most=120)
IDLE_GOAL_CPU: Final = Goal(at_most=1.0)
ADD_P50, ADD_P99 = Goal(at_most=60), Goal(at_most=200)
DEL_P99: Final = Goal(at_most=100)


def measure(*, pods: int) -> Section:
    """Add, rest, delete."""
    section = Section("endpoints", "P10, P11, P18  endpoints, and the agent at rest", case="P10")
    with World() as world, Node(world, options=DEFAULT_SIZES) as node:
        made = [_pod(node, f"p{number}") for number in range(pods + 1)]
        node.start()
        node.add_endpoint(made.pop())
        _rest(section, node, "1 pod")
        added, plain = [], []
        with ExitStack() as stack:
            home, *others = [stack.enter_context(Namespace("plain")) for _ in range(pods + 1)]
            for number, (pod, other) in enumerate(zip(made, others, strict=True)):
                added.append(timed(lambda pod=pod: node.agent.client.put("endpoint", _request(pod))))
                plain.append(timed(lambda other=other, number=number: _plug(home, other, f"v{number}")))
        for pod in made:
            node.wait_endpoint(_with_endpoint(node, pod))
        _rest(section, node, f"{pods + 1} pods")
        section.add(
            Figure.of("memory of the maps", _map_mib(node.bpf_root), "MiB", note="default sizes, by fdinfo"),
            case="P11",
        )
        deleted = [timed(lambda pod=pod: node.agent.client.delete(f"endpoint/{pod.id}")) for pod in made]
        seen = _calls(node, made[0])
    # fmt: off
    section.add(
        Figure.of(f"endpoint add, p50 of {pods}", 1000 * percentile(added, 0.5), "ms", goal=ADD_P50),
        Figure.of("endpoint add, p99", 1000 * percentile(added, 0.99), "ms", goal=ADD_P99),
        Figure.of("bare veth by ip, p50", 1000 * percentile(plain, 0.5), "ms", note="alternated"),
        Figure.of_ratio("endpoint add / bare veth by ip", ratio(added, plain, higher_is_better=False)),
        Figure.of(
            "endpoint add, last fifth / first fifth of the pods",
            fifth(added, last=True) / fifth(added, last=False),
            note="medians; 1 where pods that exist cost nothing",
        ),
        Figure.of("endpoint delete, p50", 1000 * percentile(deleted, 0.5), "ms"),
        Figure.of("endpoint delete, p99", 1000 * percentile(deleted, 0.99), "ms", goal=DEL_P99),
        Figure.of("BPF system calls per endpoint add", sum(seen.values())),
    )
    section.add(
        Figure.of("programs loaded per endpoint", seen.get(LOAD_PROGRAM, 0), goal=Goal(at_most=0)), case="P18"
    )
    # fmt: on
    section.table = Table(("BPF system calls of one endpoint add", "calls"), sorted(seen.items()))
    section.data = {"added": added, "plain": plain, "deleted": deleted, "bpf_calls": seen}
    return section


def fifth(values: list[float], *, last: bool) -> float:
    """Median of the first or the last fifth."""
    size = max(1, len(values) // 5)
    return statistics.median(values[-size:] if last else values[:size])


def _pod(node: Node, name: str) -> Pod:
    node.apply(name, manifests.pod(name, {"app": "many"}))
    pod = node.pods[f"default/{name}"] = Pod(name, "default", cgroup=node.cgroup.path)
    return pod


def _request(pod: Pod) -> dict[str, str]:
    return {"netns": str(pod.netns.path), "pod": pod.key}


def _plug(home: Namespace, pod: Namespace, device: str) -> None:
    """The least that a pod needs, by two runs of ip: a cable, an address, a route."""
    for namespace, lines in (
        (home, (f"link add {device} type veth peer name eth0 netns {pod.name}", f"link set {device} up")),
        (pod, ("address add 10.99.0.2/32 dev eth0", "link set eth0 up", "route add default dev eth0")),
    ):
        run([IP, "-n", namespace.name, "-batch", "-"], stdin="\n".join((*lines, "")))


def _with_endpoint(node: Node, pod: Pod) -> Pod:
    """The pod, knowing its endpoint."""
    number = next(
        one["id"]
        for one in node.agent.get("endpoint")
        if one["status"]["external-identifiers"]["pod-name"] == pod.key
    )
    pod.endpoint = {"id": number}
    return pod


def _calls(node: Node, pod: Pod) -> dict[str, int]:
    """BPF system calls of the agent while a pod is added, less those of as much time at rest."""
    assert node.agent.process is not None
    pid = node.agent.process.pid
    with tracefs(), SyscallTrace() as trace:
        eventually(
            lambda: not trace.during(lambda: time.sleep(0.3), pid=lambda: pid).bpf, "the agent is at rest"
        )
        return dict(trace.during(lambda: node.add_endpoint(pod), pid=lambda: pid).bpf)


def _rest(section: Section, node: Node, label: str) -> None:
    """Memory and CPU while nothing is asked."""
    assert node.agent.process is not None
    pid = node.agent.process.pid
    percent = percent_at_rest(pid)
    memory = memory_kib(pid)
    section.add(
        Figure.of(f"at rest, {label}: RSS", memory["Rss"] / 1024, "MiB"),
        Figure.of(f"at rest, {label}: PSS", memory["Pss"] / 1024, "MiB", goal=IDLE_GOAL_MIB),
        Figure.of(f"at rest, {label}: CPU", percent, "% of a core", goal=IDLE_GOAL_CPU),
        case="P11",
    )


def _map_mib(bpf_root: Path) -> float:
    """Kernel memory of the pinned maps."""
    total = 0
    for pin in (bpf_root / "maps").iterdir():
        with Map.from_pin(pin) as one:
            lines = Path(f"/proc/self/fdinfo/{one.fd}").read_text().splitlines()
            total += sum(int(line.split()[1]) for line in lines if line.startswith("memlock:"))
    return total / (1 << 20)
