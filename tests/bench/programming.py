# SPDX-License-Identifier: Apache-2.0
"""
P9, P11: from an API server with very many services to a kernel that has them, one more, one endpoint less,
and what who did it holds and does at rest.

Each side in turn has the machine: a fresh node, its program started, and a prober in the node's namespace
that connects until the services answer.  The next round goes the other way round.  The time of a new service
counts from the API server's acknowledgement of its slice.
"""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from subprocess import PIPE
from typing import Final

from bench import many
from bench.apiclient import SERVICES, SLICES
from bench.machine import memory_kib, peak_kib, percent_at_rest
from bench.paths import CILIUMD
from bench.result import Figure, Goal, Section
from bench.samples import percentile, ratio, spread
from bench.sides import MODES, NFTABLES, PORT, CiliumdSide, Cluster, ProxySide, cluster, prepared, vip
from bench.syscalls import Seen, SyscallTrace, tracefs
from ciliumd import abi
from ciliumd.bpf.map import Map
from ciliumd.model.net import addr16
from lab.maps import differences, dump
from lab.process import Process
from lab.waiting import eventually

COLD, COLD_RATIO, NEW = Goal(at_most=15), Goal(at_most=0.1), Goal(at_most=100)
WRITES: Final = Goal(at_most=3)
STEADY, PEAK, CPU = Goal(at_most=180), Goal(at_most=220), Goal(at_most=1.0)
NAMES: Final = (CILIUMD, *MODES)
MANY: Final = 10_000
PROBED: Final = 50
COLD_SECONDS: Final = 900.0
# kube-proxy puts changes that come within a second of each other into one.
PAUSE_SECONDS: Final = 1.2
SETTLE_SECONDS: Final = 3.0
TCP: Final = 6
WRITING: Final = (
    *("BPF_MAP_UPDATE_ELEM", "BPF_MAP_DELETE_ELEM"),
    *("BPF_MAP_UPDATE_BATCH", "BPF_MAP_DELETE_BATCH"),
)
# Connects to one after the other until each has answered; says when the last did.
PROBER: Final = """
import socket, struct, sys, time
port, pause, addresses = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]
reset = struct.pack("ii", 1, 0)
print("ready", flush=True)
for address in addresses:
    while True:
        with socket.socket() as one:
            one.settimeout(1.0)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
            try:
                one.connect((address, port))
                one.send(b"?")
                if one.recv(1):
                    break
            except OSError:
                pass
        time.sleep(pause)
print(time.monotonic_ns(), flush=True)
"""


@dataclass(slots=True)
class Measured:
    """What was seen of one side."""

    cold: list[float] = field(default_factory=list)
    new: list[float] = field(default_factory=list)
    writes: list[int] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    programs: list[int] = field(default_factory=list)
    calls: int = 0
    started: int = 0
    rest: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Amount:
    """How much of everything, for each side and round."""

    services: int
    rounds: int
    news: int
    changes: int


@contextlib.contextmanager
def probing(side: CiliumdSide | ProxySide, pause: float, *addresses: str) -> Iterator[Callable[[], int]]:
    """A prober that runs already; it tells when all have answered, in ns."""
    words = [sys.executable, "-S", "-c", PROBER, f"{PORT}", f"{pause}", *addresses]
    prober = Process(words, netns=side.netns.path, cgroup=side.cgroup, output=PIPE)
    try:
        said = prober.popen.stdout
        assert said is not None
        assert said.readline() == b"ready\n"

        def when() -> int:
            assert prober.wait(COLD_SECONDS) == 0
            return int(said.readline())

        yield when
    finally:
        prober.end()


def cold(side: CiliumdSide | ProxySide, trace: SyscallTrace, services: int) -> tuple[float, Seen]:
    """Seconds from the start of the program until the last service answers, and what it asked for."""
    spots = [vip(number) for number in range(services - 1, -1, -max(1, services // PROBED))]
    times: list[float] = []

    def start() -> None:
        with probing(side, 0.02, *spots) as answered:
            began = time.monotonic_ns()
            side.launch()
            end = answered()
            if isinstance(side, CiliumdSide):
                side.node.agent.wait_ready(COLD_SECONDS)
                end = time.monotonic_ns()
            times.append((end - began) / 1e9)

    seen = trace.during(start, pid=lambda: side.pid)
    return times[0], seen


def new_service(one: Cluster, side: CiliumdSide | ProxySide, number: int) -> float:
    """Milliseconds from the acknowledgement of a service that was not there before to its answer."""
    time.sleep(PAUSE_SECONDS)
    with probing(side, 0.001, vip(number)) as answered:
        one.api.serve(many.service(number), many.slice_of(number))
        acknowledged = time.monotonic_ns()
        return (answered() - acknowledged) / 1e6


def one_endpoint_less(one: Cluster, side: CiliumdSide | ProxySide, number: int) -> None:
    """Service *number* loses its first backend, and whoever follows it has said so."""
    fewer = many.slice_of(number)
    del fewer["endpoints"][0]
    one.api("PUT", f"{SLICES}/{fewer['metadata']['name']}", fewer)
    if isinstance(side, CiliumdSide):
        left = len(fewer["endpoints"])
        eventually(lambda: slots(side, number) == left, "a backend is gone", seconds=COLD_SECONDS, every=0.1)
    time.sleep(SETTLE_SECONDS)


def slots(side: CiliumdSide, number: int) -> int:
    """How many backends service *number* has in the kernel."""
    key = abi.LbServiceKey(addr16(many.FIRST_VIP + number), PORT, TCP, abi.LbScope.LB_SCOPE_EXTERNAL, 0)
    with Map.from_pin(side.node.bpf_root / "maps" / "cilium_lb_services_v1") as opened:
        row = opened.lookup(key.pack())
    return 0 if row is None else abi.LbService.unpack(row).target


def changed(
    one: Cluster, side: CiliumdSide | ProxySide, trace: SyscallTrace, number: int, measured: Measured
) -> None:
    """What the change of one endpoint has a program ask for; afterwards all is as before."""
    time.sleep(PAUSE_SECONDS)
    before = dump(side.node.bpf_root) if isinstance(side, CiliumdSide) else {}
    seen = trace.during(partial(one_endpoint_less, one, side, number), pid=lambda: side.pid)
    measured.programs.append(len(seen.started))
    if isinstance(side, CiliumdSide):
        measured.writes.append(sum(seen.bpf[call] for call in WRITING))
        measured.rows.append(len(differences(before, dump(side.node.bpf_root))))
    whole = many.slice_of(number)
    one.api("PUT", f"{SLICES}/{whole['metadata']['name']}", whole)


def turn(
    one: Cluster, name: str, trace: SyscallTrace, amount: Amount, measured: Measured, *, rests: bool
) -> None:
    """One side's turn."""
    added = range(amount.services, amount.services + amount.news)
    with prepared(ProxySide(one, name) if name in MODES else CiliumdSide(one)) as side:
        seconds, seen = cold(side, trace, amount.services)
        measured.cold.append(seconds)
        measured.calls, measured.started = sum(seen.bpf.values()), len(seen.started)
        if rests:
            share = percent_at_rest(side.pid)
            mib = {key: kib / 1024 for key, kib in memory_kib(side.pid, "Pss", "Pss_Anon").items()}
            measured.rest = {**mib, "peak": peak_kib(side.pid) / 1024, "cpu": share}
        measured.new += [new_service(one, side, number) for number in added]
        for number in range(amount.changes):
            changed(one, side, trace, number, measured)
    for number in added:
        one.api.remove(f"{SLICES}/s{number}-1")
        one.api.remove(f"{SERVICES}/s{number}")


def measure(amount: Amount) -> Iterator[Section]:
    """Every side in turns, and what they hold at rest in the last round."""
    taken = {name: Measured() for name in NAMES}
    with cluster() as one, tracefs(), SyscallTrace() as trace:
        one.api.fill(0, amount.services)
        for number in range(amount.rounds):
            for name in NAMES if number % 2 == 0 else NAMES[::-1]:
                turn(one, name, trace, amount, taken[name], rests=number == amount.rounds - 1)
    yield programmed(taken, amount)
    yield resting(taken, amount)


def programmed(taken: Mapping[str, Measured], amount: Amount) -> Section:
    """P9."""
    backends = amount.services * many.BACKENDS
    title = f"P9  programming {amount.services} services and {backends} backends from an API server"
    section = Section("programming", title, case="P9")
    ours = taken[CILIUMD]
    whole = amount.services >= MANY
    for name, one in taken.items():
        judged = whole and name == CILIUMD
        goal = COLD if judged else None
        note = f"{spread(one.cold, 2)}, {one.calls} BPF system calls, {one.started} programs started"
        section.add(
            Figure.of(f"{name}: start to all answering, slowest", max(one.cold), "s", goal=goal, note=note),
            Figure.of(
                f"{name}: one new service, p99 of {len(one.new)}", percentile(one.new, 0.99), "ms",
                goal=NEW if judged else None, note=f"min / median / max {spread(one.new, 1)}",
            ),
        )  # fmt: skip
    for name in MODES:
        compared = ratio(ours.cold, taken[name].cold, higher_is_better=False)
        goal = COLD_RATIO if whole and name == NFTABLES else None
        section.add(Figure.of_ratio(f"start to all answering: ciliumd / {name}", compared, goal=goal))
        compared = ratio(ours.new, taken[name].new, higher_is_better=False)
        section.add(Figure.of_ratio(f"one new service: ciliumd / {name}", compared))
    section.add(
        Figure.of(
            "one endpoint less: calls that write maps", max(ours.writes), goal=WRITES, note=f"{ours.writes}"
        ),
        Figure.of("one endpoint less: rows that differ", max(ours.rows), goal=WRITES, note=f"{ours.rows}"),
    )
    for name in MODES:
        started = max(taken[name].programs)
        section.add(Figure.of(f"one endpoint less: programs that {name} starts", started))
    section.data = {name: asdict(one) for name, one in taken.items()}
    return section


def resting(taken: Mapping[str, Measured], amount: Amount) -> Section:
    """P11."""
    backends = amount.services * many.BACKENDS
    title = f"P11  {amount.services} services and {backends} backends from an API server, at rest"
    section = Section("services at rest", title, case="P11")
    for name, one in taken.items():
        rest, judged = one.rest, name == CILIUMD
        note = f"anonymous {rest['Pss_Anon']:.1f}"
        section.add(
            Figure.of(f"{name}: PSS", rest["Pss"], "MiB", goal=STEADY if judged else None, note=note),
            Figure.of(f"{name}: peak RSS", rest["peak"], "MiB", goal=PEAK if judged else None),
            Figure.of(f"{name}: CPU", rest["cpu"], "% of a core", goal=CPU if judged else None),
        )
    return section
