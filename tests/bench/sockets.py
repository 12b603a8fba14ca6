# SPDX-License-Identifier: Apache-2.0
"""
P4: what the program at ``connect()`` does, counted: instructions, lookups and updates of maps.

The kernel has no test run of such programs, so the interpreter's word is taken if the connection goes where
the service's backend is.
"""

import tempfile
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final

from bench import many
from bench.interpreter.walk import Connected, Interpreter
from bench.result import Figure, Goal, Section, Table
from bench.sides import PORT, TARGET_PORT
from datapath.harness import Datapath
from datapath.node import node_config, private_node
from fixtures.packets import pod_two

TCP: Final = 6
MAPS: Final = ("cilium_lb_services_v1", "cilium_lb_backends_v1", "cilium_lb_revnat_v1")
# Of a service: its address, the frontend, a slot; and as many to spare.
ROWS: Final = 6
LOOKUPS, UPDATES = Goal(at_most=3), Goal(at_most=1)
ELSEWHERE: Final = "192.0.2.1"


class WentAstray(Exception):
    """The interpreter connects to somebody else: its counts are worth nothing."""


def connected(interpreter: Interpreter, address: str, wanted: tuple[str, int]) -> Connected:
    """A connection that must end there."""
    one = interpreter.connect(address, PORT)
    if (one.verdict, one.address, one.port) != (1, *wanted):
        raise WentAstray(f"{address}:{PORT} becomes {one}")
    return one


def measure(*, services: int) -> Section:
    """To a service, among few and among many, and to who is none."""
    section = Section("socket counts", "P4  what the program at connect() does", case="P4")
    section.table = Table(("connect() to", "instructions", "lookups", "updates", "other helpers"))
    with (
        private_node(),
        tempfile.TemporaryDirectory() as directory,
        Datapath.loaded(Path(directory), sizes=dict.fromkeys(MAPS, ROWS * services)) as datapath,
    ):
        datapath.reset()
        interpreter = Interpreter(datapath.generation, config=node_config(), route=0)
        there = 0
        for amount in (10, services):
            for number in range(there, amount):
                address = str(IPv4Address(many.FIRST_VIP) + number)
                datapath.add_service(1 + number, address, PORT, TCP, {1 + number: (pod_two.ip, TARGET_PORT)})
            there = amount
            last = connected(interpreter, address, (pod_two.ip, TARGET_PORT))
            section.table.rows.append(_row(f"one of {amount} services", last))
            lookups, updates = last.counts.map_lookups, sum(last.counts.updates.values())
            section.add(
                Figure.of(f"one of {amount} services: lookups", lookups, goal=LOOKUPS),
                Figure.of(f"one of {amount} services: updates", updates, goal=UPDATES),
            )
        section.table.rows.append(
            _row("an address that is none", connected(interpreter, ELSEWHERE, (ELSEWHERE, PORT)))
        )
    return section


def _row(name: str, one: Connected) -> tuple[str | int, ...]:
    counts = one.counts
    others = sum(counts.helpers.values()) - counts.map_lookups - sum(counts.updates.values())
    return name, counts.instructions, counts.map_lookups, sum(counts.updates.values()), others
