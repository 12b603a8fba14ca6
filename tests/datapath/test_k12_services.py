# SPDX-License-Identifier: Apache-2.0
"""
K12: a client, a service with four backends, and every sequence of a few packets between them.

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
from datapath.rows import ALLOW_ALL, POD_ONE, POD_THREE, POD_TWO
from datapath.tally import Tally
from fixtures.packets import Place, from_pod, pod_one, pod_three, pod_two, svc_one, tcp, to_pod
from reference.conntrack import FLAGS

pytestmark = pytest.mark.datapath

LENGTH, LENGTH_LONG = 2, 4  # packets behind the client's first SYN
CLIENT, NEIGHBOUR, FRONTEND = 30000, 30001, 80
BACKENDS = {
    101: (pod_two.ip, 8080),
    102: (pod_two.ip, 8081),
    103: (pod_three.ip, 8080),
    104: (pod_three.ip, 8081),
}
PODS = {pod_two.ip: (POD_TWO, pod_two), pod_three.ip: (POD_THREE, pod_three)}
CLOSING = frozenset({"FA", "R", "RA"})
KINDS = tuple(kind for kind in FLAGS if kind)
# A backend that begins a connection to the client's port means another flow.
STEPS = (*(("client", kind) for kind in KINDS), *(("backend", kind) for kind in KINDS if kind != "S"))
Backend = tuple[str, int]


@cache
def _sent(sender: Place, dst: str, sport: int, dport: int, kind: str) -> bytes:
    return from_pod(sender, dst, tcp(sport, dport, kind))


@cache
def _arrives(pod: Place, src: str, sport: int, dport: int, kind: str) -> bytes:
    return to_pod(pod, src, tcp(sport, dport, kind))


def _destination(frame: bytes) -> Backend:
    return socket.inet_ntoa(frame[30:34]), int.from_bytes(frame[36:38], "big")


@dataclass(slots=True)
class Talk:
    """A socket of the client, and what the service must do with it."""

    run: Callable[..., TestRun]
    port: int
    wrong: list[str]
    backend: Backend | None = None
    closed: bool = False

    def client(self, kind: str) -> None:
        """It goes to the flow's backend; once the client has closed it, a SYN may go to any."""
        run = self.run(_sent(pod_one, svc_one.ip, self.port, FRONTEND, kind), ifindex=POD_ONE.ifindex)
        went = _destination(run.data)
        if run.retval != REDIRECT or went not in BACKENDS.values():
            self.wrong.append(f"the client's {kind} went to {went}")
            return
        anew = self.backend is None or (kind == "S" and self.closed)
        if not anew and went != self.backend:
            self.wrong.append(f"the client's {kind} went to {went}, not to {self.backend}")
        if run.data != _arrives(PODS[went[0]][1], pod_one.ip, self.port, went[1], kind):
            self.wrong.append(f"the client's {kind} has other bytes than it must")
        self.backend = went
        self.closed = kind in CLOSING or (self.closed and not anew)

    def answer(self, kind: str) -> None:
        """The client sees the service, at the port that it asked from."""
        assert self.backend is not None
        pod, place = PODS[self.backend[0]]
        run = self.run(_sent(place, pod_one.ip, self.backend[1], self.port, kind), ifindex=pod.ifindex)
        if (run.retval, run.data) != (REDIRECT, _arrives(pod_one, svc_one.ip, FRONTEND, self.port, kind)):
            self.wrong.append(f"the answer {kind} of {self.backend} is not seen as the service's")


@pytest.fixture
def balanced(datapath: Datapath) -> Datapath:
    """svc_one, port 80/TCP: two ports of pod two, two of pod three."""
    for pod in (POD_ONE, POD_TWO, POD_THREE):
        datapath.add_endpoint(pod, *ALLOW_ALL)
    datapath.add_service(1, svc_one.ip, FRONTEND, 6, BACKENDS)
    return datapath


def test_every_sequence_of_packets(balanced: Datapath, tally: Tally, is_long: bool) -> None:
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
            talk, neighbour = Talk(run, CLIENT, told), Talk(run, NEIGHBOUR, told)
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
        "K12 services",
        injected=packets,
        delivered=packets - len(wrong),
        wrong=len(wrong),
        sequences=sequences,
    )
    assert wrong == [], f"{len(wrong)}: {wrong[:5]}"
    assert chosen == set(BACKENDS.values())


def test_retries_of_a_syn_keep_the_backend(balanced: Datapath) -> None:
    """Each of a hundred sockets asks ten times."""
    run = balanced.generation.entries["entry_from_container"].test_run
    wrong: list[str] = []
    talks = [Talk(run, CLIENT + number, wrong) for number in range(100)]
    for _ in range(10):
        for talk in talks:
            talk.client("S")

    assert wrong == []
    assert {talk.backend for talk in talks} == set(BACKENDS.values())
