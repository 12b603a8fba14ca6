# SPDX-License-Identifier: Apache-2.0
"""
What ``bench core`` measures, in order: counts first, then everything that needs the machine for itself.

Parts are independent: one that fails is told and the next begins.
"""

import contextlib
import socket
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from bench import (
    cni,
    endpoints,
    latency,
    many,
    opening,
    paths,
    programs,
    restarts,
    start,
    steps,
    throughput,
    verdicts,
    walks,
    wire,
)
from bench.interpreter.walk import Interpreter
from bench.machine import Cores
from bench.result import Section
from datapath.harness import Datapath
from datapath.node import node_config, private_node


class Rounds(NamedTuple):
    """Pairs of throughput and of latency."""

    throughput: int
    latency: int


@dataclass(frozen=True, slots=True)
class Effort:
    """How much of everything."""

    one_core: Rounds
    two_cores: Rounds
    verdict_rounds: int
    starts: int
    pods: int
    runtime_pods: int
    steps: int
    counted_packets: int
    wire: Rounds
    openings: int
    services: int


TOOLS: Final = (
    *("ip", "nft", "iptables-legacy-restore", "ss", "iperf3", "sockperf"),
    *("taskset", "nsenter", "setpriv"),
)
FULL: Final = Effort(
    one_core=Rounds(100, 30),
    two_cores=Rounds(10, 4),
    verdict_rounds=25,
    starts=10,
    pods=50,
    runtime_pods=500,
    steps=40,
    counted_packets=50_000,
    wire=Rounds(60, 20),
    openings=20,
    services=10_000,
)
QUICK: Final = Effort(
    one_core=Rounds(10, 10),
    two_cores=Rounds(4, 4),
    verdict_rounds=10,
    starts=3,
    pods=10,
    runtime_pods=30,
    steps=10,
    counted_packets=10_000,
    wire=Rounds(8, 8),
    openings=6,
    services=1_000,
)
# A sample takes one to two seconds; where a round takes longer than this there are fewer.
SECONDS_PER_ROUND: Final = 20.0
Part = Callable[[Effort], Iterator[Section]]


def counts(effort: Effort) -> Iterator[Section]:
    """What does not depend on the machine, and verdicts by number of rules."""
    with private_node(), tempfile.TemporaryDirectory() as directory:
        state_dir = Path(directory)
        native, from_host = socket.if_nametoindex("net0"), socket.if_nametoindex("cilium_net")
        with Datapath.loaded(state_dir) as datapath:
            yield programs.sizes(datapath.generation)
            interpreter = Interpreter(datapath.generation, config=node_config(), route=native)
            yield walks.measure(datapath, interpreter, native=native, from_host=from_host)
        yield verdicts.measure(state_dir, rounds=effort.verdict_rounds)


def traffic(effort: Effort) -> Iterator[Section]:
    """ciliumd beside its peers, and a restart under load."""
    with contextlib.ExitStack() as stack:
        cable = stack.enter_context(paths.bare())
        routed = stack.enter_context(paths.routed())
        filtered = stack.enter_context(paths.routed(paths.FILTERED, paths.FIREWALL))
        cluster = stack.enter_context(paths.cluster())
        bridged = stack.enter_context(paths.bridged())
        compared = {path.name: path for path in (cable, routed, filtered, bridged, cluster.path)}
        for cores, rounds in ((Cores.one(), effort.one_core), (Cores.two(), effort.two_cores)):
            with contextlib.ExitStack() as servers:
                for path in compared.values():
                    servers.enter_context(path.served(cores))
                for measuring, pairs in (
                    (throughput.measure, rounds.throughput),
                    (latency.measure, rounds.latency),
                ):
                    yield measuring(compared, cores, pairs=pairs, seconds=pairs * SECONDS_PER_ROUND)
        yield programs.runs(cluster, packets=effort.counted_packets)
        yield restarts.measure(cluster, cable)


def starting(effort: Effort) -> Iterator[Section]:
    """Starts of the agent."""
    yield start.measure(starts=effort.starts)


def living(effort: Effort) -> Iterator[Section]:
    """Endpoints, and the agent at rest."""
    yield endpoints.measure(pods=effort.pods)


def runtime(effort: Effort) -> Iterator[Section]:
    """A container runtime's calls, and the steps behind them."""
    yield cni.measure(pods=effort.runtime_pods)
    with tempfile.TemporaryDirectory() as directory:
        yield steps.measure(Path(directory), pods=effort.steps)


def between(effort: Effort) -> Iterator[Section]:
    """Two nodes and a wire."""
    with contextlib.ExitStack() as stack:
        two = stack.enter_context(wire.nodes())
        bare = stack.enter_context(wire.peer(wire.VXLAN, vxlan=True))
        filtered = stack.enter_context(wire.peer(wire.FILTERED, vxlan=True, firewall=wire.FIREWALL))
        plain = stack.enter_context(wire.peer(wire.PLAIN, vxlan=False))
        compared = {path.name: path for path in (bare, filtered, plain, two.path)}
        yield wire.counts(two, packets=effort.counted_packets)
        for path in compared.values():
            stack.enter_context(path.served(Cores.one()))
        yield from wire.measure(compared, streams=effort.wire.throughput, trips=effort.wire.latency)


def rules(effort: Effort) -> Iterator[Section]:
    """Connections by the number of rules."""
    yield opening.measure(pairs=effort.openings)


def services(effort: Effort) -> Iterator[Section]:
    """An agent with many services."""
    yield many.measure(services=effort.services)


PARTS: Final[dict[str, Part]] = {
    "counts": counts,
    "start": starting,
    "endpoints": living,
    "cni": runtime,
    "services": services,
    "rules": rules,
    "wire": between,
    "traffic": traffic,
}
