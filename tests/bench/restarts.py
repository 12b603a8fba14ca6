# SPDX-License-Identifier: Apache-2.0
"""
P12, in short: numbered packets, 10,000 per second, while the agent is ended and started again; a cable
beside it.

tests/netns/test_restart.py asserts this over twenty restarts with controls; here only the count is told.
"""

import signal
import time
from typing import Final

from bench.paths import FLOOD_PORT, Cluster, Path
from bench.result import Figure, Goal, Section
from lab.actor import Actor
from lab.traffic import Flood, Flow

SIGNALS: Final = (signal.SIGTERM, signal.SIGKILL)
SETTLE_PACKETS: Final = 10_000


def measure(cluster: Cluster, cable: Path) -> Section:
    """One restart by each signal."""
    section = Section("restart", "P12  restart under 10,000 packets per second")
    agent, down = cluster.node.agent, []
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
        fates = [*ours.stop().values(), *theirs.stop().values()]
    for fate in fates:
        goal = Goal(at_most=0) if fate.name == flow.name else None
        note = f"of {fate.sent} sent, longest silence {fate.longest_silence * 1000:.1f} ms"
        section.add(Figure.of(f"{fate.name}: packets lost", fate.lost, goal=goal, note=note))
    for number, seconds in zip(SIGNALS, down, strict=True):
        section.add(Figure.of(f"{number.name} to healthy again", seconds, "s", goal=Goal(at_most=5)))
    section.data = {"fates": [str(fate) for fate in fates]}
    return section
