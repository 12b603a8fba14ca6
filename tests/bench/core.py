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

from bench import endpoints, latency, paths, programs, restarts, start, throughput, verdicts, walks
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
    counted_packets: int


TOOLS: Final = ("ip", "nft", "ss", "iperf3", "sockperf", "taskset", "nsenter", "setpriv")
FULL: Final = Effort(Rounds(100, 30), Rounds(20, 6), 25, 10, 50, 50_000)
QUICK: Final = Effort(Rounds(10, 10), Rounds(4, 4), 10, 3, 10, 10_000)
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
        compared = {path.name: path for path in (cable, routed, filtered, cluster.path)}
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


PARTS: Final[dict[str, Part]] = {
    "counts": counts,
    "start": starting,
    "endpoints": living,
    "traffic": traffic,
}
