# SPDX-License-Identifier: Apache-2.0
"""P2: TCP request and response of 64 bytes, by sockperf, round trip and requests per second."""

import re
from collections.abc import Mapping

from bench import rounds
from bench.machine import Cores
from bench.paths import BARE, BRIDGED, FILTERED, ROUTED, SOCKPERF, SOCKPERF_PORT, Path
from bench.result import Figure, Goal, Section
from bench.samples import spread

SECONDS = 1
BYTES = 64
GOALS: Mapping[str, Goal | None] = {ROUTED: Goal(at_most=1.05), FILTERED: Goal(at_most=0.90), BARE: None}
REPORTS: Mapping[str, Goal | None] = dict.fromkeys(GOALS)
NUMBER = r"\s*=?\s*([0-9.]+)"
FIELDS = {
    "p50_us": rf"percentile 50\.000{NUMBER}",
    "p99_us": rf"percentile 99\.000{NUMBER}",
    "seconds": rf"\[Valid Duration\] RunTime{NUMBER}",
}
SENT = re.compile(r"\[Valid Duration\].*ReceivedMessages=([0-9]+)")


def sample(path: Path, cores: Cores) -> dict[str, float]:
    """Round trip in us at two percentiles, and requests per second."""
    command = [
        *cores.preferred(cores.client), SOCKPERF, "ping-pong", "--tcp", "--full-rtt", "--ip", path.address,
        "--port", str(SOCKPERF_PORT), "--msg-size", str(BYTES), "--time", str(SECONDS),
    ]  # fmt: skip
    text = path.client.run(command).stdout
    found = {name: re.search(pattern, text) for name, pattern in FIELDS.items()}
    received = SENT.search(text)
    if received is None or None in found.values():
        raise ValueError(f"sockperf over {path.name} said: {text[-400:]}")
    values = {name: float(match[1]) for name, match in found.items() if match}
    values["per_second"] = int(received[1]) / values.pop("seconds")
    return values


def measure(paths: Mapping[str, Path], cores: Cores, *, pairs: int, seconds: float) -> Section:
    """Sample all paths in turn and compare ciliumd to each."""
    title = "P2  TCP request/response of 64 bytes, same node, policy and conntrack on"
    section = Section(f"latency, {cores}", f"{title}, {cores}", case="P2")
    chosen = {name: path for name, path in paths.items() if name != BRIDGED}
    take = {name: (lambda path=path: sample(path, cores)) for name, path in chosen.items()}
    taken = rounds.run(take, control_of=ROUTED, rounds=pairs, seconds=seconds)
    for quantity, goals, higher, what in (
        ("p50_us", GOALS, False, "p50"),
        ("p99_us", REPORTS, False, "p99"),
        ("per_second", REPORTS, True, "requests/s"),
    ):
        rounds.report(
            section,
            taken,
            quantity=quantity,
            control_of=ROUTED,
            goals=goals,
            higher_is_better=higher,
            what=what,
        )
    for name in take:
        figure = spread(taken.columns[name]["p50_us"], 2)
        section.add(Figure.of(f"{name}: p50 min / median / max", figure, "us", note="of this machine today"))
    section.data = {"columns": taken.columns, "discarded_rounds": taken.discarded}
    return section
