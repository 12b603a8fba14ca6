# SPDX-License-Identifier: Apache-2.0
"""P1: one TCP stream between two namespaces, by iperf3, one second at a time."""

import json
from collections.abc import Mapping

from bench import rounds
from bench.machine import Cores, busy_seconds
from bench.paths import BARE, BRIDGED, CILIUMD, FILTERED, IPERF, IPERF_PORT, ROUTED, Path
from bench.result import Figure, Goal, Section
from bench.samples import spread

SECONDS = 1
GOALS: Mapping[str, Goal | None] = {
    ROUTED: Goal(at_least=1.0),
    BARE: Goal(at_least=0.97),
    BRIDGED: None,
}
CPU_GOALS: Mapping[str, Goal | None] = {ROUTED: Goal(at_most=1.05), BARE: None, BRIDGED: None}


def sample(path: Path, cores: Cores) -> dict[str, float]:
    """Gbit/s, and what all cores spent per byte."""
    command = [
        *cores.preferred(cores.client), IPERF, "--json", "--time", str(SECONDS),
        "--client", path.address, "--port", str(IPERF_PORT),
    ]  # fmt: skip
    before = busy_seconds()
    reply = json.loads(path.client.run(command).stdout)
    spent = busy_seconds() - before
    received = reply["end"]["sum_received"]
    return {"gbits": received["bits_per_second"] / 1e9, "cpu_ns_per_byte": spent * 1e9 / received["bytes"]}


def measure(paths: Mapping[str, Path], cores: Cores, *, pairs: int, seconds: float) -> Section:
    """Sample all paths in turn and compare ciliumd to each."""
    name = f"throughput, {cores}"
    section = Section(name, f"P1  one TCP stream, same node, policy and conntrack on, {cores}", case="P1")
    chosen = {name: paths[name] for name in (BARE, ROUTED, BRIDGED, CILIUMD)}
    take = {name: (lambda path=path: sample(path, cores)) for name, path in chosen.items()}
    taken = rounds.run(take, control_of=ROUTED, rounds=pairs, seconds=seconds)
    rounds.report(
        section, taken, quantity="gbits", control_of=ROUTED, goals=GOALS, higher_is_better=True, what="Gbit/s"
    )
    rounds.report(
        section, taken, quantity="cpu_ns_per_byte", control_of=ROUTED, goals=CPU_GOALS,
        higher_is_better=False, what="CPU-ns per byte",
    )  # fmt: skip
    for name in take:
        figure = spread(taken.columns[name]["gbits"], 1)
        section.add(Figure.of(f"{name}: min / median / max", figure, "Gbit/s", note="of this machine today"))
    section.data = {"columns": taken.columns, "discarded_rounds": taken.discarded, "not_compared": [FILTERED]}
    return section
