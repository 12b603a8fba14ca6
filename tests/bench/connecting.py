# SPDX-License-Identifier: Apache-2.0
"""
P3, P4: connections through a service beside kube-proxy's, with few services and with many.

The client connects to ten services in turn, so that no place in a chain of rules is favoured; each has one
backend, the server on the same node.  P4 is the time of ``connect()`` alone.  P3 is connections per second:
opened, a byte there, a byte back, reset.  Client and server are on one core, everything else on the other.
"""

import contextlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from bench import rounds
from bench.machine import Cores
from bench.paths import CILIUMD
from bench.programs import attached
from bench.result import Figure, Goal, Section, Table
from bench.rounds import Rounds
from bench.samples import spread
from bench.sides import (
    IPTABLES,
    MODES,
    NFTABLES,
    PORT,
    TARGET_PORT,
    CiliumdSide,
    Cluster,
    Ends,
    ProxySide,
    answering,
    cluster,
    elsewhere,
    serve_near,
    started,
    vip,
)
from ciliumd.bpf import run_time_stats
from lab.apiserver import programs
from lab.netns import Namespace
from lab.process import run
from lab.waiting import eventually

ASKED: Final = 10
MANY: Final = 10_000
CONNECTS: Final = 2000
DIRECT, DIRECT_INSIDE = "direct", "direct, hook runs"
SECONDS_PER_ROUND: Final = 20.0
READY_SECONDS: Final = 600.0
LATENCY: Final = """
import socket, statistics, struct, sys, time
port, count, addresses = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
reset, spent = struct.pack("ii", 1, 0), []
for number in range(count):
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
        where = addresses[number % len(addresses)], port
        began = time.perf_counter_ns()
        one.connect(where)
        spent.append(time.perf_counter_ns() - began)
print(statistics.median(spent) / 1000)
"""
RATE: Final = """
import socket, struct, sys, time
port, count, addresses = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
reset = struct.pack("ii", 1, 0)
began = time.perf_counter_ns()
for number in range(count):
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
        one.connect((addresses[number % len(addresses)], port))
        one.send(b"?")
        assert one.recv(1)
print(count * 1e9 / (time.perf_counter_ns() - began))
"""


@dataclass(frozen=True, slots=True)
class Way:
    """A client, and the addresses it connects to in turn."""

    ends: Ends
    addresses: Sequence[str]
    port: int
    inside: bool = True

    def run(self, program: str, cores: Cores, *, count: int = CONNECTS) -> float:
        """What one of the programs above prints."""
        command = [
            *cores.preferred(cores.client), sys.executable, "-S", "-c", program, f"{self.port}", f"{count}",
            *self.addresses,
        ]  # fmt: skip
        cgroup = self.ends.cgroup if self.inside else None
        return float(self.ends.client.run(command, cgroup=cgroup).stdout)

    def sample(self, cores: Cores) -> dict[str, float]:
        """Median of connect() in us, and connections per second."""
        return {"connect_us": self.run(LATENCY, cores), "per_second": self.run(RATE, cores)}

    def answers(self) -> bool:
        """Whether all of them are served."""
        try:
            self.run(RATE, Cores.one(), count=len(self.addresses))
        except rounds.FAILURES:
            return False
        return True


def named(name: str, services: int) -> str:
    """A side and how many services it serves."""
    return f"{name}, {services} services"


@dataclass(frozen=True, slots=True)
class Serving:
    """The sides of a cluster, and the ways through each."""

    ways: dict[str, Way]
    ciliumd: CiliumdSide
    proxies: tuple[ProxySide, ...]


@contextlib.contextmanager
def serving(one: Cluster, services: int, cores: Cores) -> Iterator[Serving]:
    """Every side of a cluster with so many services, all of them served."""
    with contextlib.ExitStack() as stack:
        vips = [vip(number) for number in range(ASKED)]
        one.api.fill(ASKED, services)
        ciliumd = stack.enter_context(started(CiliumdSide(one)))
        ends = ciliumd.ends()
        serve_near(one.api, ASKED, ends.address)
        proxies = tuple(stack.enter_context(started(ProxySide(one, name))) for name in MODES)
        ways = {
            named(CILIUMD, services): Way(ends, vips, PORT),
            DIRECT: Way(ends, [ends.address], TARGET_PORT, inside=False),
            DIRECT_INSIDE: Way(ends, [ends.address], TARGET_PORT),
        }
        ways |= {named(proxy.name, services): Way(proxy.ends(ends.address), vips, PORT) for proxy in proxies}
        for server in {way.ends.server.name: way.ends.server for way in ways.values()}.values():
            words = cores.preferred(cores.server)
            stack.enter_context(answering(server, ends.address, *words))
        for name, way in ways.items():
            eventually(way.answers, f"{name}: all are served", seconds=READY_SECONDS, every=1.0)
        yield Serving(ways, ciliumd, proxies)


def runs(serving: CiliumdSide, way: Way, cores: Cores) -> Table:
    """How often each attached program runs for one connection, and for how long."""
    table = Table(("program", "runs per connection", "ns per connection"))
    with attached(serving.node.bpf_root) as hooked, run_time_stats():
        way.run(RATE, cores)
        before = [program.info for program in hooked]
        way.run(RATE, cores)
        for program, early in zip(hooked, before, strict=True):
            late = program.info
            if ran := late.run_cnt - early.run_cnt:
                spent = (late.run_time_ns - early.run_time_ns) / CONNECTS
                table.rows.append((late.name, round(ran / CONNECTS, 2), round(spent)))
    return table


def rules(netns: Namespace) -> str:
    """How long the chains are that every first packet goes through there; sets and maps have none."""
    saved = netns.run(["/usr/sbin/iptables-legacy-save", "-t", "nat"]).stdout.splitlines()
    first = sum(line.startswith("-A KUBE-SERVICES ") for line in saved)
    return f"{first} rules in KUBE-SERVICES, {len(saved)} lines in all"


def latency_goals(services: int, *, crowded: bool) -> dict[str, Goal | None]:
    """Of P4, by peer; what is said of ten thousand services is asked of no smaller number."""
    judged = not crowded or services >= MANY
    return {
        DIRECT: Goal(at_most=1.12) if judged else None,
        DIRECT_INSIDE: None,
        named(NFTABLES, services): Goal(at_most=0.80) if judged else None,
        named(IPTABLES, services): Goal(at_most=0.10) if crowded and judged else None,
    }


def rate_goals(services: int, *, crowded: bool) -> dict[str, Goal | None]:
    """The same of P3."""
    judged = not crowded or services >= MANY
    return {
        DIRECT: None,
        named(NFTABLES, services): Goal(at_least=1.2) if judged else None,
        named(IPTABLES, services): Goal(at_least=4.0 if crowded else 1.0) if judged else None,
    }


def sections(taken: Rounds, few: int, crowd: int) -> Iterator[Section]:
    """P4 and P3 of the same rounds."""
    control_of = named(NFTABLES, few)
    for case, quantity, higher, goals, flat, what, unit in (
        ("P4", "connect_us", False, latency_goals, Goal(at_most=1.05), "connect() p50", "us"),
        ("P3", "per_second", True, rate_goals, Goal(at_least=0.95), "connections/s", "per second"),
    ):
        title = f"{case}  {what} through a service, {few} and {crowd} services, one core"
        section = Section(what, title, case=case)
        for services in (few, crowd):
            ours = Rounds({**taken.columns, CILIUMD: taken.columns[named(CILIUMD, services)]})
            rounds.report(
                section, ours, quantity=quantity, control_of=control_of, higher_is_better=higher,
                goals=goals(services, crowded=services == crowd), what=f"{what}, {services}",
            )  # fmt: skip
        for name in (CILIUMD, NFTABLES, IPTABLES):
            grown = taken.ratio(named(name, crowd), named(name, few), quantity, higher_is_better=higher)
            goal = flat if name == CILIUMD and crowd >= MANY else None
            section.add(Figure.of_ratio(f"{name}: {crowd} services / {few}", grown, goal=goal))
        for name, columns in taken.columns.items():
            if name != rounds.CONTROL:
                told = spread(columns[quantity], 1)
                section.add(Figure.of(f"{name}: min / median / max", told, unit, note="today"))
        section.data = {"columns": taken.columns, "discarded_rounds": taken.discarded}
        yield section


def measure(*, pairs: int, services: int) -> Iterator[Section]:
    """All ways in turn, those with few services and those with many in the same rounds."""
    cores = Cores.one()
    with contextlib.ExitStack() as stack:
        found: dict[str, Way] = {}
        counts = Section(
            "services, counts", "P3  what runs for a connection, and what is looked through", case="P3"
        )
        for number in (ASKED, services):
            one = stack.enter_context(cluster(wrapper=elsewhere()))
            sides = stack.enter_context(serving(one, number, cores))
            found = {**sides.ways, **found}
            for proxy in sides.proxies:
                if proxy.name == IPTABLES:
                    counts.add(Figure.of(named(proxy.name, number), rules(proxy.netns)))
            if number == services:
                counts.table = runs(sides.ciliumd, sides.ways[named(CILIUMD, number)], cores)
        counts.add(
            Figure.of("kube-proxy", run([programs() / "kube-proxy", "--version"]).stdout.strip()),
            Figure.of("its iptables", run(["/usr/sbin/iptables-legacy", "--version"]).stdout.strip()),
        )
        yield counts
        take = {name: (lambda way=way: way.sample(cores)) for name, way in found.items()}
        control_of = named(NFTABLES, ASKED)
        taken = rounds.run(take, control_of=control_of, rounds=pairs, seconds=pairs * SECONDS_PER_ROUND)
        yield from sections(taken, ASKED, services)
