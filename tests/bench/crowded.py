# SPDX-License-Identifier: Apache-2.0
"""
P16: more flows than the connection table has rows, and what new connections cost and whether they work then.

Two clusters of ten services: in one the tables stay as good as empty, in the other a raw sender in the
client's pod opens more flows than fit, again before every sample, because flows time out.  netfilter's table
has its size from the machine; both have 262,144 rows where memory suffices.
"""

import contextlib
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final

from bench import many, rounds
from bench.connecting import ASKED, SECONDS_PER_ROUND, Serving, Way, named, serving
from bench.machine import Cores, process_seconds, timed
from bench.paths import CILIUMD
from bench.result import Figure, Goal, Section
from bench.samples import spread
from bench.sides import IPTABLES, MODES, cluster, elsewhere
from ciliumd.bpf.map import Map
from lab.netns import Namespace

MOST: Final = Path("/proc/sys/net/netfilter/nf_conntrack_max")
# More than there is room for, by so much.
OVERFLOW: Final = 1.15
# Where flows go: addresses of the world's, and a port at which it listens without ever reading.
FIRST_TARGET: Final = "10.200.0.1"
SINK_PORT: Final = 9
FULL: Final = "full"
ROWS, NONE, LOOKUP, CREATION = Goal(at_least=131_072), Goal(at_most=0), Goal(at_most=1.5), Goal(at_least=0.8)
SINK: Final = """
import socket, sys, time
one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
one.bind(("0.0.0.0", int(sys.argv[1])))
time.sleep(1 << 20)
"""
# Datagrams of raw headers: the kernel fills in the header's sum and the source; UDP may go without a sum.
CROWD: Final = """
import socket, struct, sys, time
source, first, port, count, step = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
ports = range(1024, 65536)
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
first = struct.unpack("!I", socket.inet_aton(first))[0] + step * 64
began = time.perf_counter_ns()
for number in range(count):
    where = struct.pack("!I", first + number // len(ports))
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 29, 0, 0, 64, 17, 0, socket.inet_aton(source), where)
    flow = struct.pack("!HHHHc", ports[number % len(ports)], port, 9, 0, b"?")
    raw.sendto(head + flow, (socket.inet_ntoa(where), 0))
print(count * 1e9 / (time.perf_counter_ns() - began))
"""
FAILURES: Final = """
import socket, struct, sys
port, count, addresses = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
reset, failed = struct.pack("ii", 1, 0), 0
for number in range(count):
    with socket.socket() as one:
        one.settimeout(2.0)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
        try:
            one.connect((addresses[number % len(addresses)], port))
            one.send(b"?")
            failed += one.recv(1) != b"?"
        except OSError:
            failed += 1
print(failed)
"""


def crowd(way: Way, cores: Cores, step: int) -> float:
    """Open more flows than fit, others than in other *step*s; how many a second."""
    source = way.ends.client.ip_json("address", "show", "dev", "eth0")[0]["addr_info"][0]["local"]
    count = round(max(most_rows(), ours_at_most()) * OVERFLOW)
    command = [
        *cores.preferred(cores.client), sys.executable, "-S", "-c", CROWD, source, FIRST_TARGET,
        f"{SINK_PORT}", f"{count}", f"{step}",
    ]  # fmt: skip
    return float(way.ends.client.run(command, seconds=120.0).stdout)


def most_rows() -> int:
    """How many flows netfilter's table holds."""
    return int(MOST.read_text())


def ours_at_most() -> int:
    """How many flows ours holds."""
    return int(many.SIZES["bpf-ct-max"])


def rows(bpf_root: Path) -> int:
    """How many are in our table."""
    with Map.from_pin(bpf_root / "maps" / "cilium_ct_v1") as opened:
        return sum(1 for _ in opened.keys())  # noqa: SIM118  a map of the kernel's, no dictionary


def tracked(netns: Namespace) -> int:
    """How many flows netfilter has there."""
    return int(netns.run(["/usr/sbin/conntrack", "-C"]).stdout)


@contextlib.contextmanager
def sink(netns: Namespace, port: int = SINK_PORT) -> Iterator[None]:
    """Somebody who takes the flows and says nothing."""
    listening = netns.start([sys.executable, "-S", "-c", SINK, f"{port}"])
    try:
        yield
    finally:
        listening.end()


def measure(*, pairs: int, connections: int) -> Section:
    """The full tables first, then both in turns."""
    cores = Cores.one()
    section = Section("conntrack full", "P16  new connections with full tables of connections", case="P16")
    with contextlib.ExitStack() as stack:
        found: dict[str, Serving] = {}
        for kind in ("empty", FULL):
            one = stack.enter_context(cluster(wrapper=elsewhere()))
            stack.enter_context(sink(one.world.netns))
            found[kind] = stack.enter_context(serving(one, ASKED, cores))
        section.add(Figure.of("rows, by default", ours_at_most(), goal=ROWS))
        failures(section, found[FULL], cores, connections)
        compare(section, found, cores, pairs)
    return section


def failures(section: Section, full: Serving, cores: Cores, connections: int) -> None:
    """How many of so many connections fail while the tables are full."""
    agent = full.ciliumd.pid
    for name in (CILIUMD, *MODES):
        way = full.ways[named(name, ASKED)]
        before = process_seconds(agent)
        seconds = timed(partial(crowd, way, cores, 0))
        if name == CILIUMD:
            share = 100 * (process_seconds(agent) - before) / seconds
            held, most = rows(full.ciliumd.node.bpf_root), ours_at_most()
            section.add(Figure.of("the agent while flows are opened: CPU", share, "% of a core"))
        else:
            netns = next(proxy.netns for proxy in full.proxies if proxy.name == name)
            held, most = tracked(netns), most_rows()
        section.add(Figure.of(f"{name}: rows in use", held, note=f"of {most}"))
        kinds = {"by socket": True, "by packet": False} if way.ends.cgroup else {"": False}
        for kind, inside in kinds.items():
            tried = Way(way.ends, way.addresses, way.port, inside=inside)
            failed = tried.run(FAILURES, cores, count=connections)
            section.add(
                Figure.of(
                    f"{name}: new connections that failed{', ' if kind else ''}{kind}", int(failed),
                    goal=NONE if name == CILIUMD else None, note=f"of {connections}",
                )
            )  # fmt: skip


def compare(section: Section, found: dict[str, Serving], cores: Cores, pairs: int) -> None:
    """Connections with full tables and with empty ones, and flows opened a second, in turns."""
    steps = iter(range(1, 1 << 16))

    def filled(way: Way) -> dict[str, float]:
        opened = crowd(way, cores, next(steps))
        return {"flows_per_second": opened, **way.sample(cores)}

    take = {}
    for name in (CILIUMD, *MODES):
        label = named(name, ASKED)
        take[name] = partial(found["empty"].ways[label].sample, cores)
        take[f"{name}, {FULL}"] = partial(filled, found[FULL].ways[label])
    taken = rounds.run(take, control_of=IPTABLES, rounds=pairs, seconds=pairs * 2 * SECONDS_PER_ROUND)
    control = taken.ratio(rounds.CONTROL, IPTABLES, "connect_us", higher_is_better=False)
    sound = rounds.sound(control)
    for name in (CILIUMD, *MODES):
        grown = taken.ratio(f"{name}, {FULL}", name, "connect_us", higher_is_better=False)
        goal = LOOKUP if name == CILIUMD else None
        section.add(Figure.of_ratio(f"{name}: connect() p50, full / empty", grown, goal=goal, void=not sound))
    for name in MODES:
        for quantity, what, goal in (
            ("flows_per_second", "flows opened/s", CREATION),
            ("per_second", "connections/s", None),
        ):
            compared = taken.ratio(f"{CILIUMD}, {FULL}", f"{name}, {FULL}", quantity, higher_is_better=True)
            section.add(
                Figure.of_ratio(f"{what}, full: ciliumd / {name}", compared, goal=goal, void=not sound)
            )
    section.add(rounds.control_figure("connect() p50", IPTABLES, control))
    for name, columns in taken.columns.items():
        told = spread(columns["connect_us"], 1)
        section.add(Figure.of(f"{name}: connect() min / median / max", told, "us", note="today"))
    section.data = {"columns": taken.columns, "discarded_rounds": taken.discarded}
