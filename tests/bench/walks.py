# SPDX-License-Identifier: Apache-2.0
"""
What one packet costs on each path: instructions, map lookups and updates, helper calls, and time.

Counts come from the interpreter and are refused unless the kernel's run of the same packet ends with the
same verdict, packet and mark.  Times are single runs by BPF_PROG_TEST_RUN less those of an empty program:
the best round's median.  Devices, queues and sockets are not in them.
"""

import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Final

from bench.interpreter.walk import Counts, Interpreter
from bench.result import Figure, Goal, Section, Table, Value
from ciliumd.bpf import Program
from ciliumd.bpf._libbpf import lib
from ciliumd.bpf.errors import check
from ciliumd.bpf.program import TestRun
from datapath.harness import HOOKS, REDIRECT, Datapath
from datapath.rows import ALLOW_ALL, DENY_ALL, POD_ONE, POD_THREE, POD_TWO, Pod
from datapath.wire import GATEWAY
from fixtures.packets import (
    from_pod,
    from_stack,
    node_one,
    on_wire,
    pod_one,
    pod_two,
    router,
    svc_one,
    tcp,
    world_one,
)

PAYLOAD: Final = bytes(64)
ROUNDS: Final = 25
RUNS: Final = 100
HTTP, CLIENT_PORT = 80, 40001
ESTABLISHED: Final = "pod to pod, established"
NEW: Final = "pod to pod, new connection"
HELPERS: Final = ("packet read", "packet write", "checksum", "clock", "event")
COLUMNS: Final = (
    "packet", "ns", "insns", "programs", "ct", "policy", "hash/LPM", "array", "updates",
    "reads", "writes", "checksums", "clock", "events",
)  # fmt: skip


class Disagreement(Exception):
    """Interpreter and kernel do not end alike: the counts are worth nothing."""


@dataclass(slots=True)
class Step:
    """A packet that is counted, and how to run it again."""

    name: str
    program: Program
    packet: bytes
    ifindex: int
    mark: int
    counts: Counts
    steady: bool
    medians: list[float] = field(default_factory=list)

    def time(self) -> None:
        """One round of single runs."""
        runs = [self.program.test_run(self.packet, ifindex=self.ifindex, mark=self.mark) for _ in range(RUNS)]
        self.medians.append(statistics.median(run.duration_ns for run in runs))


@dataclass(slots=True)
class Walker:
    """Sends packets through hooks as a scenario asks, and counts the named ones."""

    datapath: Datapath
    interpreter: Interpreter
    steps: list[Step] = field(default_factory=list)

    def send(
        self, hook: str, device: int, packet: bytes, *, mark: int = 0, name: str = "", steady: bool = False
    ) -> TestRun:
        """One packet; a *name* has it counted, *steady* ones can be timed, as they change no state."""
        entry = HOOKS[hook]
        program = self.datapath.generation.entries[entry]
        walked = self.interpreter.walk(entry, packet, ifindex=device, mark=mark) if name else None
        ran = program.test_run(packet, ifindex=device, mark=mark)
        if walked is not None:
            if (walked.action, walked.packet, walked.mark) != (ran.retval, ran.data, ran.mark):
                raise Disagreement(f"{name}: kernel {ran.retval} {ran.data.hex()}, interpreter {walked}")
            self.steps.append(Step(name, program, packet, device, mark, walked.counts, steady))
        return ran

    def pod(self, pod: Pod, packet: bytes, *, name: str = "", steady: bool = False) -> TestRun:
        """A pod sends."""
        return self.send("from_container", pod.ifindex, packet, name=name, steady=steady)


def pod_to_pod(walk: Walker) -> None:
    """A connection between pods of the node, and one that a policy denies."""
    syn = from_pod(pod_one, pod_two.ip, tcp(CLIENT_PORT, HTTP))
    data = from_pod(pod_one, pod_two.ip, tcp(CLIENT_PORT, HTTP, "A", PAYLOAD))
    back = from_pod(pod_two, pod_one.ip, tcp(HTTP, CLIENT_PORT, "A", PAYLOAD))
    walk.pod(POD_ONE, syn, name=NEW)
    walk.pod(POD_TWO, from_pod(pod_two, pod_one.ip, tcp(HTTP, CLIENT_PORT, "SA")))
    for _ in range(2):
        walk.pod(POD_ONE, data)
        walk.pod(POD_TWO, back)
    walk.pod(POD_ONE, data, name=ESTABLISHED, steady=True)
    walk.pod(POD_TWO, back, name="pod to pod, established, answers", steady=True)
    denied = from_pod(POD_THREE.place, pod_two.ip, tcp(CLIENT_PORT, HTTP))
    walk.pod(POD_THREE, denied, name="pod to pod, denied", steady=True)


def pod_to_service(walk: Walker) -> None:
    """A connection through a ClusterIP, translated packet by packet."""
    port = CLIENT_PORT + 1
    walk.pod(POD_ONE, from_pod(pod_one, svc_one.ip, tcp(port, HTTP)), name="pod to service, new connection")
    walk.pod(POD_TWO, from_pod(pod_two, pod_one.ip, tcp(8080, port, "SA")))
    data = from_pod(pod_one, svc_one.ip, tcp(port, HTTP, "A", PAYLOAD))
    back = from_pod(pod_two, pod_one.ip, tcp(8080, port, "A", PAYLOAD))
    for _ in range(2):
        walk.pod(POD_ONE, data)
        walk.pod(POD_TWO, back)
    walk.pod(POD_ONE, data, name="pod to service, established", steady=True)
    walk.pod(POD_TWO, back, name="service to pod, established", steady=True)


def pod_to_world(walk: Walker, native: int) -> None:
    """A masqueraded connection: the pod's device, then the node's; and back."""

    def out(packet: bytes, name: str = "", *, steady: bool = False) -> None:
        on_pod = f"{name} (pod's device)" if name else ""
        on_node = f"{name} (native device)" if name else ""
        sent = walk.pod(POD_ONE, packet, name=on_pod, steady=steady)
        walk.send("to_netdev", native, sent.data, mark=sent.mark, name=on_node, steady=steady)

    def back(flags: str, name: str = "", *, steady: bool = False) -> None:
        packet = on_wire(
            GATEWAY.mac, node_one.mac, world_one.ip, node_one.ip, tcp(443, CLIENT_PORT, flags, PAYLOAD)
        )
        walk.send("from_netdev", native, packet, name=name, steady=steady)

    out(from_pod(pod_one, world_one.ip, tcp(CLIENT_PORT, 443)), "pod to world, new connection")
    back("SA")
    data = from_pod(pod_one, world_one.ip, tcp(CLIENT_PORT, 443, "A", PAYLOAD))
    for _ in range(2):
        out(data)
        back("A")
    out(data, "pod to world, established", steady=True)
    back("A", "world to pod, established", steady=True)


def host_and_pod(walk: Walker, from_host: int) -> None:
    """A connection of the node to a pod."""
    port = CLIENT_PORT + 2
    walk.send("from_host", from_host, from_stack(router.ip, pod_one.ip, tcp(port, HTTP)))
    walk.pod(POD_ONE, from_pod(pod_one, router.ip, tcp(HTTP, port, "SA")))
    there = from_stack(router.ip, pod_one.ip, tcp(port, HTTP, "A", PAYLOAD))
    back = from_pod(pod_one, router.ip, tcp(HTTP, port, "A", PAYLOAD))
    for _ in range(2):
        walk.send("from_host", from_host, there)
        walk.pod(POD_ONE, back)
    walk.send("from_host", from_host, there, name="host to pod, established", steady=True)
    walk.pod(POD_ONE, back, name="pod to host, established", steady=True)


def prepare(datapath: Datapath) -> None:
    """Three pods, one under default deny; a service; a way out."""
    datapath.reset()
    datapath.policies({POD_ONE.version: ALLOW_ALL, POD_TWO.version: ALLOW_ALL, POD_THREE.version: DENY_ALL})
    for pod in (POD_ONE, POD_TWO, POD_THREE):
        datapath.add_endpoint(pod)
    datapath.add_service(1, svc_one.ip, HTTP, 6, {101: (pod_two.ip, 8080)})
    datapath.native_device("net0", node_one.ip)
    datapath.host_address(node_one.ip)
    datapath.host_address(router.ip)


def policy_is_not_asked(datapath: Datapath, steps: list[Step]) -> bool:
    """Whether an established packet still passes when the policies of both pods are gone."""
    for pod in (POD_ONE, POD_TWO):
        datapath.drop_policy(pod.version)
    step = next(one for one in steps if one.name == ESTABLISHED)
    return step.program.test_run(step.packet, ifindex=step.ifindex).retval == REDIRECT


@contextmanager
def empty_program() -> Iterator[Program]:
    """What a test run costs by itself."""
    with Program(check(lib.cil_prog_load_pass(), "load", "empty program"), "empty program") as program:
        yield program


def take_times(steps: list[Step]) -> float:
    """Time the steady steps, round by round; the empty program's time."""
    with empty_program() as program:
        floor = replace(steps[0], name="floor", program=program, ifindex=0, medians=[])
        for _ in range(ROUNDS):
            for step in (floor, *(one for one in steps if one.steady)):
                step.time()
    return min(floor.medians)


def measure(datapath: Datapath, interpreter: Interpreter, *, native: int, from_host: int) -> Section:
    """Every path once counted, and timed where nothing changes by running it again."""
    section = Section("walks", "P7  what one packet costs, by path", case="P7")
    prepare(datapath)
    walk = Walker(datapath, interpreter)
    pod_to_pod(walk)
    pod_to_service(walk)
    pod_to_world(walk, native)
    host_and_pod(walk, from_host)
    floor = take_times(walk.steps)
    section.table = Table(COLUMNS, [_row(step, floor) for step in walk.steps])
    counts = {step.name: step.counts for step in walk.steps}
    unasked = policy_is_not_asked(datapath, walk.steps)
    verdicts = 2
    section.add(
        Figure.of(
            "established, both ends local: conntrack lookups", counts[ESTABLISHED].conntrack_lookups,
            goal=Goal(at_most=2),
        ),
        Figure.of(
            "established: policy lookups", counts[ESTABLISHED].policy_lookups, goal=Goal(at_most=0),
            note=f"with both policies taken away it is {'forwarded' if unasked else 'NOT forwarded'}",
        ),
        Figure.of(
            "established: map updates", sum(counts[ESTABLISHED].updates.values()), goal=Goal(at_most=0)
        ),
        Figure.of(
            "new connection: policy lookups per verdict", counts[NEW].policy_lookups / verdicts,
            goal=Goal(at_most=2),
            note="class and rule, each reached through its outer map",
        ),
        Figure.of("empty program in the same harness", floor, "ns", note="taken off every time above"),
    )  # fmt: skip
    section.data = {
        step.name: {
            "counts": _counts(step.counts),
            "ns": min(step.medians) - floor if step.steady else None,
        }
        for step in walk.steps
    }
    return section


def _row(step: Step, floor: float) -> tuple[Value, ...]:
    counts = step.counts
    other = counts.hashed_lookups - counts.conntrack_lookups - counts.policy_lookups
    return (
        step.name,
        round(min(step.medians) - floor) if step.steady else "-",
        counts.instructions,
        len(counts.programs),
        counts.conntrack_lookups,
        counts.policy_lookups,
        other,
        counts.kinds.get("array", 0),
        sum(counts.updates.values()),
        *(counts.helpers.get(name, 0) for name in HELPERS),
    )


def _counts(counts: Counts) -> dict[str, object]:
    return {
        "programs": list(counts.programs),
        "instructions": counts.instructions,
        "lookups": dict(counts.lookups),
        "updates": dict(counts.updates),
        "lookups_by_kind": dict(counts.kinds),
        "helpers": dict(counts.helpers),
    }
