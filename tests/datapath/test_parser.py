# SPDX-License-Identifier: Apache-2.0
"""
Any bytes at all: the programs and reference/parser.py agree on what they are.

Every pod is in default deny, so that each packet ends in one drop event: with the parser's reason,
or, when it was understood, with policy's reason and the flow that the program has read.  A packet
that is dropped or passed on must be left as it was, byte for byte.
"""

from __future__ import annotations

import random
import socket
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import pytest

from ciliumd.abi import DropReason, Event
from ciliumd.model.net import mac_bytes
from datapath.harness import DROP, HOOKS, PASS, REDIRECT, Datapath
from datapath.malformed import cut, frames, lying, mutated, replaced, runnable
from datapath.rows import DENY_ALL, POD_ONE, POD_TWO
from fixtures.packets import diff, node_one, pod_one, pod_two, router, world_one
from reference.parser import Answered, Flow, Outcome, Parser, Passed, Pod, Refused

if TYPE_CHECKING:
    from collections.abc import Iterable

pytestmark = pytest.mark.datapath

BATCH = 1000
MUTATIONS = 20_000  # per hook
SEED = 20240229

PODS = frozenset({pod_one.address.packed, pod_two.address.packed})
OWN = frozenset({node_one.address.packed, router.address.packed})
SENDER = Pod(mac_bytes(pod_one.mac), mac_bytes(pod_one.node_mac), pod_one.address.packed)

Judge = Callable[[Parser, bytes], Outcome]

# Per hook: device, reference, and the frames that belong there.
HOOKS_UNDER_TEST: dict[str, tuple[str, Judge, dict[str, bytes]]] = {
    "from_container": (
        POD_ONE.device,
        lambda parser, frame: parser.from_container(frame, SENDER),
        frames(pod_one.mac, pod_one.node_mac, pod_one.ip, pod_two.ip),
    ),
    "to_container": (
        POD_ONE.device,
        lambda parser, frame: parser.to_container(frame, PODS),
        frames(pod_one.node_mac, pod_one.mac, router.ip, pod_one.ip),
    ),
    "from_host": (
        "cilium_net",
        lambda parser, frame: parser.from_host(frame, PODS),
        frames(router.mac, router.mac, router.ip, pod_one.ip),
    ),
    "from_netdev": (
        "net0",
        lambda parser, frame: parser.from_netdev(frame, PODS, OWN),
        frames(world_one.mac, node_one.mac, world_one.ip, pod_one.ip),
    ),
}


class Contest:
    """One hook against the reference."""

    def __init__(self, datapath: Datapath, hook: str) -> None:
        device, self._judge, self.table = HOOKS_UNDER_TEST[hook]
        self._datapath = datapath
        self._run = partial(
            datapath.generation.entries[HOOKS[hook]].test_run, ifindex=socket.if_nametoindex(device)
        )
        self._parser = Parser(router.address.packed)
        self.outcomes: Counter[str] = Counter()

    def forget_fragments(self) -> None:
        """Both sides start afresh."""
        self._parser.fragments.clear()
        fragments = self._datapath.map("frags")
        fragments.delete_batch(list(fragments.keys()))

    def play(self, packets: Iterable[bytes]) -> None:
        """Run these packets in order and compare what became of each."""
        todo = [packet for packet in packets if runnable(packet)]
        for start in range(0, len(todo), BATCH):
            self._play(todo[start : start + BATCH])

    def _play(self, packets: list[bytes]) -> None:
        self._datapath.events()
        runs = [self._run(packet) for packet in packets]
        events = iter(self._datapath.events())
        for packet, run in zip(packets, runs, strict=True):
            expected = self._judge(self._parser, packet)
            seen = _seen(packet, run.retval, run.data, next(events) if run.retval == DROP else None)
            self.outcomes[_label(expected)] += 1
            assert expected == seen, f"{expected}\n{seen}\n{packet.hex()}\n{diff(packet, run.data)}"
        assert next(events, None) is None, "more events than drops"


def _seen(packet: bytes, action: int, data: bytes, event: Event | None) -> Outcome | str:
    """What the program did, in the reference's words; a text for what must never happen."""
    if event is None and action == REDIRECT:
        return Answered(data)
    if data != packet:
        return "changed a packet that was not its own"
    if event is None:
        return Passed() if action == PASS else f"returned {action}"
    if event.reason != DropReason.DROP_POLICY:
        return Refused(event.reason)
    return Flow(event.src[12:], event.dst[12:], event.protocol, event.sport, event.dport, event.tcp_flags)


def _label(outcome: Outcome) -> str:
    return f"refused {outcome.reason}" if isinstance(outcome, Refused) else type(outcome).__name__.lower()


@pytest.fixture(params=HOOKS_UNDER_TEST)
def contest(datapath: Datapath, request: pytest.FixtureRequest) -> Contest:
    """A hook over two pods that may do nothing."""
    datapath.add_endpoint(POD_ONE, *DENY_ALL)
    datapath.add_endpoint(POD_TWO, *DENY_ALL)
    datapath.host_address(node_one.ip)
    datapath.host_address(router.ip)
    return Contest(datapath, request.param)


def test_packets_of_every_kind_are_understood_alike(contest: Contest) -> None:
    """The table itself: some are flows, and every reason the parser has is met."""
    contest.play(contest.table.values())

    assert contest.outcomes["flow"] >= 15
    assert {"refused 137", "refused 144", "refused 157", "refused 175"} <= set(contest.outcomes)


def test_packets_cut_at_every_byte_are_understood_alike(contest: Contest) -> None:
    """No header is read beyond the end of the frame."""
    for frame in contest.table.values():
        contest.forget_fragments()
        contest.play(cut(frame))

    # Whatever the cut, the total length says more than is there.
    assert contest.outcomes["refused 134"] + contest.outcomes["passed"] > 500


def test_packets_with_any_header_byte_replaced_are_understood_alike(contest: Contest) -> None:
    """One wrong byte anywhere leads to the reason, or the flow, that it stands for."""
    dice = random.Random(SEED)
    for frame in contest.table.values():
        contest.forget_fragments()
        contest.play([frame, *replaced(frame, dice)])

    assert contest.outcomes["flow"] > 1000


def test_packets_that_lie_about_their_lengths_are_understood_alike(contest: Contest) -> None:
    """Versions, header lengths, data offsets 0..15; total lengths from nothing to far too much."""
    for frame in contest.table.values():
        contest.forget_fragments()
        contest.play(lying(frame))

    assert contest.outcomes["refused 135"] > 500


def test_packets_changed_at_random_are_understood_alike(contest: Contest) -> None:
    """Many changes at once, and memory of first fragments that earlier packets left."""
    dice = random.Random(SEED)
    table = list(contest.table.values())
    contest.play(mutated(dice.choice(table), dice) for _ in range(MUTATIONS))

    assert contest.outcomes["flow"] > MUTATIONS // 20
    assert contest.outcomes.total() > MUTATIONS * 8 // 10
