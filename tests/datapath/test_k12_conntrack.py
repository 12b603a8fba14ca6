# SPDX-License-Identifier: Apache-2.0
"""
K12: every sequence of a few TCP packets between two pods is what reference/conntrack.py says, step by step.

Resets, closings and their races, ports used again while the old flow is remembered, simultaneous opens, one
way of an asymmetric path, sequence numbers out of any window.  Beside them live neighbours, flows that share
ports or addresses with the one that is tried: not a byte of their rows may change.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

import pytest

from ciliumd.abi import CtEntry, CtFlags, CtKey, CtKind
from datapath.harness import REDIRECT, Datapath
from datapath.rows import ALLOW_ALL, ONLY_IN, ONLY_OUT, POD_ONE, POD_THREE, POD_TWO, a16
from datapath.tally import Tally
from fixtures.packets import from_pod, pod_one, pod_three, pod_two, tcp
from reference.conntrack import CLOSED, FLAGS, HANDSHAKE, LIFETIME, OPEN, OPENER_DONE, OTHER_DONE, Tcp

pytestmark = pytest.mark.datapath

LENGTH, LENGTH_LONG = 3, 4
SEED = 12
SEQUENCE_AT, FLAGS_AT = 38, 47
CLIENT, SERVER = 30000, 80
STEPS = tuple(itertools.product((0, 1), FLAGS))
Step = tuple[int, str]


def _key(local: str, remote: str, local_port: int, remote_port: int) -> bytes:
    return CtKey(a16(local), a16(remote), local_port, remote_port, 6, CtKind.CT_KIND_FLOW, 0).pack()


ROWS = (_key(pod_one.ip, pod_two.ip, CLIENT, SERVER), _key(pod_two.ip, pod_one.ip, SERVER, CLIENT))


class Talk:
    """Pod one (side 0) and pod two (side 1), and neighbours of their flow that have been open for long."""

    def __init__(self, datapath: Datapath) -> None:
        self.datapath = datapath
        self._dice = random.Random(SEED)
        self._run = datapath.generation.entries["entry_from_container"].test_run
        self._frames = (
            (from_pod(pod_one, pod_two.ip, tcp(CLIENT, SERVER)), POD_ONE.ifindex),
            (from_pod(pod_two, pod_one.ip, tcp(SERVER, CLIENT)), POD_TWO.ifindex),
        )
        self._ct = datapath.map("ct")
        for sender, frame in (
            (POD_ONE, from_pod(pod_one, pod_two.ip, tcp(CLIENT + 1, SERVER, "A"))),
            (POD_ONE, from_pod(pod_one, pod_two.ip, tcp(CLIENT, SERVER + 1, "A"))),
            (POD_ONE, from_pod(pod_one, pod_three.ip, tcp(CLIENT, SERVER, "A"))),
            (POD_THREE, from_pod(pod_three, pod_two.ip, tcp(CLIENT, SERVER, "A"))),
        ):
            assert datapath.send(sender, frame).action == REDIRECT
        self.neighbours = dict(self._ct.items())
        assert len(self.neighbours) == 8

    def says(self, step: Step) -> bool:
        """Whether this packet goes through; its numbers are anything."""
        side, kind = step
        frame, ifindex = self._frames[side]
        numbers = self._dice.randbytes(8)
        flags = bytes([FLAGS[kind]]) + self._dice.randbytes(2)
        frame = frame[:SEQUENCE_AT] + numbers + frame[46:FLAGS_AT] + flags + frame[FLAGS_AT + 3 :]
        return self._run(frame, ifindex=ifindex).retval == REDIRECT

    def wrong(self, expected: Tcp) -> str | None:
        """What is wrong about the rows, if anything is."""
        rows = dict(self._ct.items())
        own = [rows.pop(key, None) for key in ROWS]
        if rows != self.neighbours:
            return "a neighbour's row has changed"
        if expected.opener is None:
            return None if own == [None, None] else "a row of a flow that nobody may open"
        for side, data in enumerate(own):
            if data is None:
                return f"side {side} has no row"
            told = _wrong(data, expected, side)
            if told:
                return f"side {side}: {told}"
        return None

    def forget(self) -> None:
        """Only the neighbours are left."""
        self._ct.delete_batch([key for key in ROWS if self._ct.lookup(key) is not None])


def _wrong(data: bytes, expected: Tcp, side: int) -> str | None:
    row = CtEntry.unpack(data)
    if row.expires - row.last_report != LIFETIME[expected.state]:
        return f"remembered for {row.expires - row.last_report} s, not as {expected.state}"
    if bool(row.flags & CtFlags.CT_F_ORIGIN_REMOTE) != (side != expected.opener):
        return "opened by the wrong side"
    closed = {OPENER_DONE: {expected.opener}, OTHER_DONE: {1 - (expected.opener or 0)}, CLOSED: {0, 1}}
    sides = {
        who
        for who, flag in (
            (side, CtFlags.CT_F_LOCAL_CLOSED),
            (1 - side, CtFlags.CT_F_REMOTE_CLOSED),
        )
        if row.flags & flag
    }
    return None if sides == closed.get(expected.state, set()) else f"{sides} have closed"


@pytest.fixture(params=["one side may open", "both may open"])
def talk(datapath: Datapath, request: pytest.FixtureRequest) -> tuple[Talk, frozenset[int]]:
    """The pods, and which of them may open a connection to the other."""
    one_way = request.param == "one side may open"
    datapath.add_endpoint(POD_ONE, *(ONLY_OUT if one_way else ALLOW_ALL))
    datapath.add_endpoint(POD_TWO, *(ONLY_IN if one_way else ALLOW_ALL))
    datapath.add_endpoint(POD_THREE, *ALLOW_ALL)
    return Talk(datapath), frozenset({0}) if one_way else frozenset({0, 1})


def _sequences(longest: int) -> Iterator[tuple[Step, ...]]:
    for length in range(1, longest + 1):
        yield from itertools.product(STEPS, repeat=length)


def test_every_sequence_of_packets(talk: tuple[Talk, frozenset[int]], tally: Tally, is_long: bool) -> None:
    """All of them up to a length; each is checked packet by packet, rows and neighbours at its end."""
    pods, may_open = talk
    sequences = packets = through = 0
    wrong = []
    for steps in _sequences(LENGTH_LONG if is_long else LENGTH):
        pods.forget()
        flow = Tcp()
        sequences += 1
        for step in steps:
            packets += 1
            allowed, flow = flow.after(*step, may_open=may_open)
            went = pods.says(step)
            through += went
            if went != allowed:
                wrong.append(f"{steps}: {step} {'went' if went else 'did not go'} through")
        told = pods.wrong(flow)
        if told:
            wrong.append(f"{steps}: {flow}: {told}")

    who = "one opens" if len(may_open) == 1 else "both open"
    tally(
        f"K12 TCP, {who}",
        injected=packets,
        delivered=through,
        wrong=len(wrong),
        sequences=sequences,
        seed=SEED,
    )
    assert sequences >= 300
    assert wrong == [], f"{len(wrong)} of {sequences}: {wrong[:5]}"


# A way into each state, by the sides' packets.
WAYS_INTO = {
    HANDSHAKE: ((0, "S"),),
    OPEN: ((0, "S"), (1, "SA"), (0, "A")),
    OPENER_DONE: ((0, "A"), (0, "FA")),
    OTHER_DONE: ((0, "A"), (1, "FA")),
    CLOSED: ((0, "A"), (1, "R")),
}


@pytest.mark.parametrize("state", WAYS_INTO)
@pytest.mark.parametrize("kind", FLAGS)
def test_silent_flow_is_none_after_its_time_and_not_before(datapath: Datapath, state: str, kind: str) -> None:
    """Shown by the side that may not open: it is heard as long as the flow is remembered."""
    datapath.add_endpoint(POD_ONE, *ONLY_OUT)
    datapath.add_endpoint(POD_TWO, *ONLY_IN)
    datapath.add_endpoint(POD_THREE, *ALLOW_ALL)
    pods = Talk(datapath)
    for seconds, remembered in ((LIFETIME[state] - 5, True), (LIFETIME[state] + 1, False)):
        pods.forget()
        flow = Tcp()
        for step in WAYS_INTO[state]:
            _, flow = flow.after(*step, may_open=frozenset({0}))
            assert pods.says(step)
        assert flow.state == state
        datapath.age(seconds)
        allowed, _ = (flow if remembered else Tcp()).after(1, kind, may_open=frozenset({0}))
        assert pods.says((1, kind)) == allowed, seconds


def test_neighbours_are_told_apart_when_only_one_may_talk(datapath: Datapath) -> None:
    """An open flow is no help to another that differs in one address or port, whichever."""
    datapath.add_endpoint(POD_ONE, *ONLY_OUT)
    datapath.add_endpoint(POD_TWO, *ONLY_IN)
    datapath.add_endpoint(POD_THREE, *ONLY_IN)
    assert datapath.send(POD_ONE, from_pod(pod_one, pod_two.ip, tcp(CLIENT, SERVER))).action == REDIRECT
    answers = {
        (pod, sport, dport): datapath.send(
            pod, from_pod(pod.place, pod_one.ip, tcp(sport, dport, "SA"))
        ).action
        for pod in (POD_TWO, POD_THREE)
        for sport in (SERVER - 1, SERVER, SERVER + 1, CLIENT)
        for dport in (CLIENT - 1, CLIENT, CLIENT + 1, SERVER)
    }

    assert {flow for flow, action in answers.items() if action == REDIRECT} == {(POD_TWO, SERVER, CLIENT)}
