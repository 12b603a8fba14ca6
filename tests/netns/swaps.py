# SPDX-License-Identifier: Apache-2.0
"""
Random policies about a few clients and servers, and the judge of what passed while they changed.

Which flows a set of policies allows is read off the documents by the oracle of the property tests.  Before
a change begins and once it has settled packets must fare as it says; in between as it says of the policies
before or after: a flow that both allow loses nothing, of one that neither allows nothing passes.
"""

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, NamedTuple

from lab import manifests
from lab.child.metronome import Lane, Record
from property.reference.oracle import EGRESS, INGRESS, Packet, Pod, verdict

PORTS: Final = (7001, 7002)
CONTROL: Final = 7003
# To each port by one connection that lasts, and by a new one every millisecond.
LANES: Final = (*(Lane(port) for port in PORTS), *(Lane(port, fresh=True) for port in PORTS), Lane(CONTROL))
NAMES: Final = tuple(f"random-{number}" for number in range(7))
TEAMS: Final = ("red", "blue")
DENIED_SHARE, OPEN_SHARE, BY_KUBERNETES = 0.25, 0.2, 0.2

Policies = Mapping[str, manifests.Object]
# By pair and port.
Allowed = frozenset[tuple[int, int]]


class Pair(NamedTuple):
    """A client and the server that it sends to, as the oracle knows them."""

    client: Pod
    server: Pod


def pair(number: int) -> Pair:
    """Each has a label of its own, and the one of its team."""

    def pod(role: str) -> Pod:
        name = f"{role}-{number}"
        return Pod("default", name, {"app": name, "role": role, "team": TEAMS[number % 2]})

    return Pair(pod("client"), pod("server"))


def control() -> manifests.Object:
    """Lets everybody send to the control's port, and puts nobody into default deny."""
    ports = manifests.to_ports((CONTROL, "UDP"))
    spec = {
        "endpointSelector": {},
        "enableDefaultDeny": {"ingress": False, "egress": False},
        "ingress": [{"fromEndpoints": [{}], "toPorts": ports}],
        "egress": [{"toEndpoints": [{}], "toPorts": ports}],
    }
    return manifests.cilium_policy("control", spec)


def change(chance: random.Random, policies: Policies, pairs: Sequence[Pair]) -> tuple[str, Policies]:
    """One policy comes, goes or becomes another one: its name, and all that there are then."""
    name = chance.choice(NAMES)
    others = {one: policy for one, policy in policies.items() if one != name}
    if name in policies and chance.random() < 0.5:
        return name, others
    while (drawn := _policy(chance, name, pairs)) == policies.get(name):
        pass
    return name, {**others, name: drawn}


def _policy(chance: random.Random, name: str, pairs: Sequence[Pair]) -> manifests.Object:
    receives = chance.random() < 0.6
    roles = ("server", "client") if receives else ("client", "server")
    subject, peer = (_selector(chance, pairs, role) for role in roles)
    if chance.random() < BY_KUBERNETES:
        side, peers = ("ingress", "from") if receives else ("egress", "to")
        wanted = [{"port": port, "protocol": "UDP"} for port in _ports(chance)]
        rule = {peers: [{"podSelector": peer}], **({"ports": wanted} if wanted else {})}
        spec = {"podSelector": subject, "policyTypes": [side.capitalize()], side: [rule]}
        return manifests.network_policy(name, spec)
    denies = chance.random() < DENIED_SHARE
    peers = "fromEndpoints" if receives else "toEndpoints"
    # A rule that denies every port would deny the control's.
    ports = _ports(chance) or (PORTS if denies else ())
    to_ports = manifests.to_ports(*((port, "UDP") for port in ports))
    rule = {peers: [peer], **({"toPorts": to_ports} if ports else {})}
    section = f"{'ingress' if receives else 'egress'}{'Deny' if denies else ''}"
    spec = {"endpointSelector": subject, section: [rule]}
    if chance.random() < OPEN_SHARE:
        spec["enableDefaultDeny"] = {"ingress": False, "egress": False}
    return manifests.cilium_policy(name, spec)


def _selector(chance: random.Random, pairs: Sequence[Pair], role: str) -> dict[str, Any]:
    labels = chance.choice(
        [
            {},
            {"role": role},
            {"team": chance.choice(TEAMS)},
            {"app": f"{role}-{chance.randrange(len(pairs))}"},
        ]
    )
    return {"matchLabels": labels} if labels else {}


def _ports(chance: random.Random) -> tuple[int, ...]:
    return chance.choice([(), PORTS, *((port,) for port in PORTS)])


def allowed(policies: Iterable[manifests.Object], pairs: Sequence[Pair]) -> Allowed:
    """Which flows the oracle lets through: out of the client, and into the server."""
    documents = [control(), *policies]

    def passes(one: Pair, port: int) -> bool:
        leaves = verdict(documents, one.client, Packet(EGRESS, one.server, "UDP", port))
        return leaves == verdict(documents, one.server, Packet(INGRESS, one.client, "UDP", port)) == "ALLOW"

    return frozenset(
        (number, port) for number, one in enumerate(pairs) for port in PORTS if passes(one, port)
    )


class Step(NamedTuple):
    """A change: when it began and had settled (ns of the monotonic clock), and what is allowed then."""

    began: int
    settled: int
    allowed: Allowed


@dataclass
class Books:
    """What became of packets, by what the policies before and after a change say of their flow."""

    sent: int = 0
    lost: int = 0
    wrongly_allowed: int = 0
    always_allowed: int = 0
    never_allowed: int = 0
    opened: int = 0
    closed: int = 0

    def window(self, record: Record, number: int, first: int, end: int, states: tuple[Allowed, ...]) -> None:
        """Milliseconds during which each packet fares as one of *states* says."""
        for place, lane in enumerate(LANES):
            says = {(number, lane.port) in state or lane.port == CONTROL for state in states}
            came = record.arrived(place, first, end)
            self.sent += end - first
            if says == {True}:
                self.always_allowed += end - first if lane.port != CONTROL else 0
                self.lost += end - first - came
            elif says == {False}:
                self.never_allowed += end - first
                self.wrongly_allowed += came

    def flips(self, before: Allowed, after: Allowed) -> None:
        """Count the flows whose verdict a change is about."""
        self.opened += len(after - before)
        self.closed += len(before - after)


def judge(records: Sequence[Record], steps: Sequence[Step]) -> Iterator[Books]:
    """Books of every change: from its beginning, and as long as it was in force, but for the last one."""
    for before, step, following in zip(steps, steps[1:], steps[2:], strict=False):
        books = Books()
        books.flips(before.allowed, step.allowed)
        for number, record in enumerate(records):
            # A millisecond that had begun by then may have sent some of its packets later.
            first, settled, end = (
                record.since(step.began) - 1,
                record.since(step.settled),
                record.since(following.began) - 1,
            )
            books.window(record, number, first, settled, (before.allowed, step.allowed))
            books.window(record, number, settled, end, (step.allowed,))
        yield books


def steps_of_another(steps: Sequence[Step]) -> list[Step]:
    """The same times, with what the next change allows: a judge who sees must find that wrong."""
    return [step._replace(allowed=following.allowed) for step, following in pairwise(steps)]
