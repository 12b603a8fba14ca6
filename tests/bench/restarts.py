# SPDX-License-Identifier: Apache-2.0
"""
P12, in short: numbered packets, 10,000 per second, while the agent is ended and started again; a cable
beside it.

tests/netns/test_restart.py asserts this over twenty restarts with controls; here only the count is told.
"""

import signal
import time
from collections import Counter
from typing import Final

from bench.paths import FLOOD_PORT, Cluster, Path
from bench.result import Figure, Goal, Section
from lab.actor import Actor
from lab.agent import Agent
from lab.traffic import Flood, Flow

SIGNALS: Final = (signal.SIGTERM, signal.SIGKILL)
SETTLE_PACKETS: Final = 10_000
OPERATIONS: Final = "cilium_bpf_map_ops_total"


def measure(cluster: Cluster, cable: Path) -> Section:
    """One restart by each signal."""
    section = Section("restart", "P12  restart under 10,000 packets per second", case="P12")
    agent, down = cluster.node.agent, []
    written: list[Counter[str]] = []
    flow = Flow("pod to pod", cluster.server.address, FLOOD_PORT, FLOOD_PORT)
    control = Flow("bare veth", cable.address, FLOOD_PORT, FLOOD_PORT)
    with (
        Actor(cable.client.path) as sender,
        Actor(cable.server.path) as receiver,
        Flood(cluster.client.outside, cluster.server.outside, [flow]).start() as ours,
        Flood(sender, receiver, [control]).start() as theirs,
    ):
        ours.wait_sent(SETTLE_PACKETS)
        for number in SIGNALS:
            began = time.monotonic()
            agent.restart(number)
            down.append(time.monotonic() - began)
            ours.wait_sent(SETTLE_PACKETS)
            written.append(_map_operations(agent))
        fates = [*ours.stop().values(), *theirs.stop().values()]
    for fate in fates:
        goal = Goal(at_most=0) if fate.name == flow.name else None
        note = f"of {fate.sent} sent, longest silence {fate.longest_silence * 1000:.1f} ms"
        section.add(Figure.of(f"{fate.name}: packets lost", fate.lost, goal=goal, note=note))
    for number, seconds in zip(SIGNALS, down, strict=True):
        section.add(Figure.of(f"{number.name} to healthy again", seconds, "s", goal=Goal(at_most=5)))
    for number, seen in zip(SIGNALS, written, strict=True):
        section.add(
            Figure.of(
                f"{number.name}: map rows deleted by the next agent", seen["delete"], goal=Goal(at_most=0),
                note=f"nothing had changed; rows written {seen['update']}",
            )
        )  # fmt: skip
    section.data = {"fates": [str(fate) for fate in fates]}
    return section


def _map_operations(agent: Agent) -> Counter[str]:
    """Rows that an agent has written and deleted since its start, by operation, as it counts them."""
    seen: Counter[str] = Counter()
    for sample in agent.get("metrics"):
        if sample["name"] == OPERATIONS:
            seen[sample["labels"]["operation"]] += int(sample["value"])
    return seen
