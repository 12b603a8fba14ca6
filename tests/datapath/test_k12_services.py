# SPDX-License-Identifier: Apache-2.0
"""
K12: a client, a service of each family with four backends, and every sequence of a few packets between.

A flow stays with its backend, retries of its SYN too, until the client has closed it and begins anew; what a
backend answers is seen as the service's by the client's socket that asked, and by no other.
"""

from __future__ import annotations

import itertools
import socket
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import pytest

from ciliumd.bpf import TestRun
from datapath.harness import REDIRECT, Datapath
from datapath.openworld6 import SIX_ONE, SIX_THREE, SIX_TWO
from datapath.rows import ALLOW_ALL, POD_ONE, POD_THREE, POD_TWO, Pod
from datapath.tally import Tally
from fixtures import packets6
from fixtures.packets import Place, from_pod, pod_one, pod_three, pod_two, svc_one, tcp, to_pod
from fixtures.packets6 import Place6
from reference.conntrack import FLAGS

pytestmark = pytest.mark.datapath

LENGTH, LENGTH_LONG = 2, 4  # packets behind the client's first SYN
CLIENT, NEIGHBOUR, FRONTEND = 30000, 30001, 80
CLOSING = frozenset({"FA", "R", "RA"})
KINDS = tuple(kind for kind in FLAGS if kind)
# A backend that begins a connection to the client's port means another flow.
STEPS = (*(("client", kind) for kind in KINDS), *(("backend", kind) for kind in KINDS if kind != "S"))
Backend = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Family:
    """The same pods and the same service by their addresses of one family, and how frames of it look."""

    service: str
    client: tuple[Pod, Place | Place6]
    servers: tuple[tuple[Pod, Place | Place6], ...]
    sent: Callable[..., bytes]
    arrives: Callable[..., bytes]
    destination: Callable[[bytes], Backend]

    @property
    def backends(self) -> dict[int, Backend]:
        """Two ports of each server, by backend id."""
        places = [(place.ip, port) for _, place in self.servers for port in (8080, 8081)]
        return dict(enumerate(places, 101))

    def server_at(self, ip: str) -> tuple[Pod, Place | Place6]:
        """The one with that address."""
        return next(server for server in self.servers if server[1].ip == ip)


FAMILIES = {
    "IPv4": Family(
        svc_one.ip,
        (POD_ONE, pod_one),
        ((POD_TWO, pod_two), (POD_THREE, pod_three)),
        from_pod,
        to_pod,
        lambda frame: (socket.inet_ntoa(frame[30:34]), int.from_bytes(frame[36:38], "big")),
    ),
    "IPv6": Family(
        packets6.svc_one.ip,
        (SIX_ONE, packets6.pod_one),
        ((SIX_TWO, packets6.pod_two), (SIX_THREE, packets6.pod_three)),
        packets6.from_pod,
        packets6.to_pod,
        lambda frame: (
            socket.inet_ntop(socket.AF_INET6, frame[38:54]),
            int.from_bytes(frame[56:58], "big"),
        ),
    ),
}


@cache
def _sent(name: str, ip: str, dst: str, sport: int, dport: int, kind: str) -> bytes:
    family = FAMILIES[name]
    place = family.client[1] if ip == family.client[1].ip else family.server_at(ip)[1]
    return family.sent(place, dst, tcp(sport, dport, kind))


@cache
def _arrives(name: str, ip: str, src: str, sport: int, dport: int, kind: str) -> bytes:
    family = FAMILIES[name]
    place = family.client[1] if ip == family.client[1].ip else family.server_at(ip)[1]
    return family.arrives(place, src, tcp(sport, dport, kind))


@dataclass(slots=True)
class Talk:
    """A socket of the client, and what the service must do with it."""

    name: str
    run: Callable[..., TestRun]
    port: int
    wrong: list[str]
    backend: Backend | None = None
    closed: bool = False

    def client(self, kind: str) -> None:
        """It goes to the flow's backend; once the client has closed it, a SYN may go to any."""
        family = FAMILIES[self.name]
        pod, place = family.client
        asked = _sent(self.name, place.ip, family.service, self.port, FRONTEND, kind)
        run = self.run(asked, ifindex=pod.ifindex)
        went = family.destination(run.data)
        if run.retval != REDIRECT or went not in family.backends.values():
            self.wrong.append(f"the client's {kind} went to {went}")
            return
        anew = self.backend is None or (kind == "S" and self.closed)
        if not anew and went != self.backend:
            self.wrong.append(f"the client's {kind} went to {went}, not to {self.backend}")
        if run.data != _arrives(self.name, went[0], place.ip, self.port, went[1], kind):
            self.wrong.append(f"the client's {kind} has other bytes than it must")
        self.backend = went
        self.closed = kind in CLOSING or (self.closed and not anew)

    def answer(self, kind: str) -> None:
        """The client sees the service, at the port that it asked from."""
        assert self.backend is not None
        family = FAMILIES[self.name]
        client = family.client[1].ip
        pod, place = family.server_at(self.backend[0])
        answer = _sent(self.name, place.ip, client, self.backend[1], self.port, kind)
        run = self.run(answer, ifindex=pod.ifindex)
        shown = _arrives(self.name, client, family.service, FRONTEND, self.port, kind)
        if (run.retval, run.data) != (REDIRECT, shown):
            self.wrong.append(f"the answer {kind} of {self.backend} is not seen as the service's")


@pytest.fixture(params=sorted(FAMILIES))
def name(request: pytest.FixtureRequest) -> str:
    """Of a family."""
    return str(request.param)


@pytest.fixture
def balanced(request: pytest.FixtureRequest, name: str) -> Datapath:
    """A service, port 80/TCP: two ports of pod two, two of pod three."""
    datapath: Datapath = request.getfixturevalue("datapath" if name == "IPv4" else "six")
    family = FAMILIES[name]
    for pod, _ in (family.client, *family.servers):
        datapath.add_endpoint(pod, *ALLOW_ALL)
    datapath.add_service(1, family.service, FRONTEND, 6, family.backends)
    return datapath


def test_every_sequence_of_packets(balanced: Datapath, name: str, tally: Tally, is_long: bool) -> None:
    """With a neighbour, another socket of the client, whose flow goes on as before behind each of them."""
    run = balanced.generation.entries["entry_from_container"].test_run
    rows = balanced.map("ct")
    sequences = packets = 0
    wrong: list[str] = []
    chosen = set()
    for length in range(1, (LENGTH_LONG if is_long else LENGTH) + 1):
        for steps in itertools.product(STEPS, repeat=length):
            rows.delete_batch(list(rows.keys()))
            told: list[str] = []
            talk, neighbour = Talk(name, run, CLIENT, told), Talk(name, run, NEIGHBOUR, told)
            neighbour.client("S")
            talk.client("S")
            for who, kind in steps:
                (talk.client if who == "client" else talk.answer)(kind)
            neighbour.answer("SA")
            neighbour.client("A")
            sequences += 1
            packets += length + 4
            chosen.add(talk.backend)
            wrong += [f"{steps}: {text}" for text in told]

    tally(
        "K12 services" if name == "IPv4" else f"K12 services, {name}",
        injected=packets,
        delivered=packets - len(wrong),
        wrong=len(wrong),
        sequences=sequences,
    )
    assert wrong == [], f"{len(wrong)}: {wrong[:5]}"
    assert chosen == set(FAMILIES[name].backends.values())


def test_retries_of_a_syn_keep_the_backend(balanced: Datapath, name: str) -> None:
    """Each of a hundred sockets asks ten times."""
    run = balanced.generation.entries["entry_from_container"].test_run
    wrong: list[str] = []
    talks = [Talk(name, run, CLIENT + number, wrong) for number in range(100)]
    for _ in range(10):
        for talk in talks:
            talk.client("S")

    assert wrong == []
    assert {talk.backend for talk in talks} == set(FAMILIES[name].backends.values())
