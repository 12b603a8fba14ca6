# SPDX-License-Identifier: Apache-2.0
"""
Programs by number: what the verifier walked, what was translated, and how often they run per packet of real
traffic.

The kernel counts a run of an attached program as one, with all tail calls inside; the programs a packet
passes are in the walks.  Statistics are switched on by a descriptor, so they end with it however this
process ends.
"""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from bench.paths import FLOOD_PORT, VIP, Cluster
from bench.result import Figure, Goal, Section, Table
from ciliumd.bpf import Generation, Link, Program, run_time_stats
from ciliumd.bpf._libbpf import lib
from ciliumd.bpf.errors import check
from lab.traffic import Fate, Flood, Flow

RATE: Final = 5000
INSTRUCTION_BYTES: Final = 8


def sizes(generation: Generation) -> Section:
    """Every program of a loaded generation."""
    section = Section("programs", "P18  programs: verified, translated, compiled", case="P18")
    table = Table(("program", "verified insns", "translated insns", "compiled bytes"))
    for name, program in sorted((generation.entries | generation.programs).items()):
        info = program.info
        table.rows.append((name, info.verified_insns, info.xlated_len // INSTRUCTION_BYTES, info.jited_len))
    section.table = table
    verified = [int(row[1]) for row in table.rows]
    section.add(
        Figure.of("programs", len(table.rows)),
        Figure.of("verified instructions, all programs", sum(verified), note="once per start of the agent"),
        Figure.of(
            "verified instructions, largest program", max(verified), note="the kernel's limit is 1,000,000"
        ),
    )
    return section


@contextmanager
def attached(bpf_root: Path) -> Iterator[list[Program]]:
    """Handles of the programs that hang on the node's devices, each once."""
    with ExitStack() as stack:
        numbers = set()
        for pin in sorted((bpf_root / "links").iterdir()):
            with Link.from_pin(pin) as link:
                numbers.add(link.info.prog_id)
        opened = [check(lib.bpf_prog_get_fd_by_id(one), "open", f"program {one}") for one in sorted(numbers)]
        yield [stack.enter_context(Program(fd, f"fd {fd}")) for fd in opened]


def flood(cluster: Cluster, address: str, port: int, packets: int) -> Fate:
    """Numbered datagrams, each a packet of its own."""
    flow = Flow("counted", address, port, FLOOD_PORT, rate=RATE)
    with Flood(cluster.client.outside, cluster.server.outside, [flow]).start(limit=packets) as running:
        running.wait()
        return running.stop()["counted"]


def runs(cluster: Cluster, *, packets: int) -> Section:
    """Runs of attached programs and their time per packet, pod to pod and through a service."""
    section = Section(
        "runs", "P1  runs of attached programs per packet of real traffic (UDP, one per packet)", case="P1"
    )
    with attached(cluster.node.bpf_root) as programs, run_time_stats():
        for name, address, port in (
            ("pod to pod", cluster.server.address, FLOOD_PORT),
            ("pod to service, per packet", VIP, 90),
        ):
            flood(cluster, address, port, 100)
            time.sleep(0.1)
            before = [program.info for program in programs]
            fate = flood(cluster, address, port, packets)
            after = [program.info for program in programs]
            counted = sum(late.run_cnt - early.run_cnt for early, late in zip(before, after, strict=True))
            spent = sum(
                late.run_time_ns - early.run_time_ns for early, late in zip(before, after, strict=True)
            )
            section.add(
                Figure.of(
                    f"{name}: runs per packet", counted / packets, goal=Goal(at_most=2),
                    note=f"{counted} runs, {packets} packets, {fate.lost} lost",
                ),
                Figure.of(
                    f"{name}: run time per packet", spent / packets, "ns", note="cold caches, statistics on"
                ),
            )  # fmt: skip
    return section
