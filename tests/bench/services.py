# SPDX-License-Identifier: Apache-2.0
"""What ``bench services`` measures: ciliumd beside the real kube-proxy, same API server and objects."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from bench import connecting, crowded, planning, sockets
from bench.programming import Amount
from bench.programming import measure as programmed
from bench.result import Section


@dataclass(frozen=True, slots=True)
class Effort:
    """How much of everything."""

    services: int
    pairs: int
    crowded_pairs: int
    connections: int
    programmed: Amount


TOOLS: Final = ("ip", "nft", "iptables-legacy-save", "ss", "taskset", "nsenter", "setpriv", "openssl")
FULL: Final = Effort(
    services=10_000,
    pairs=40,
    crowded_pairs=20,
    connections=10_000,
    programmed=Amount(services=10_000, rounds=4, news=25, changes=3),
)
QUICK: Final = Effort(
    services=1_000,
    pairs=8,
    crowded_pairs=4,
    connections=2_000,
    programmed=Amount(services=1_000, rounds=2, news=10, changes=1),
)
Part = Callable[[Effort], Iterator[Section]]


def counts(effort: Effort) -> Iterator[Section]:
    """What does not depend on the machine."""
    yield sockets.measure(services=effort.services)


def plan(effort: Effort) -> Iterator[Section]:
    """The part of P9 that is the agent's own processor time."""
    yield planning.measure(services=effort.services)


def connections(effort: Effort) -> Iterator[Section]:
    """P3 and P4."""
    yield from connecting.measure(pairs=effort.pairs, services=effort.services)


def conntrack(effort: Effort) -> Iterator[Section]:
    """P16."""
    yield crowded.measure(pairs=effort.crowded_pairs, connections=effort.connections)


def programming(effort: Effort) -> Iterator[Section]:
    """P9 and P11."""
    yield from programmed(effort.programmed)


PARTS: Final[dict[str, Part]] = {
    "counts": counts,
    "plan": plan,
    "conntrack": conntrack,
    "connections": connections,
    "programming": programming,
}
