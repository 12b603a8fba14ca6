# SPDX-License-Identifier: Apache-2.0
"""Sequences of steps on programs and a reference side by side, in both families (K12)."""

from __future__ import annotations

import itertools
import random
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from ciliumd.abi import CtEntry, NatDir, NatEntry, NatKey
from ciliumd.reconcile import gc
from datapath.harness import Datapath
from datapath.tally import Tally
from fixtures import packets, packets6
from reference.masquerade import Flow, Masquerade

# Of the header behind the IP header, where its checksum is.
SUM_AT = {"tcp": 16, "udp": 6, "icmp": 2}
WITH_KIND = ("sends", "answered", "strange")
RANDOM, RANDOM_LONG, STEPS = 40, 600, 40
LENGTH, LENGTH_LONG = 2, 3
Step = tuple[str, Flow, str | None]
"""What, whose, and of which kind; the kind is one of TCP's."""


@dataclass(frozen=True, slots=True)
class Family:
    """How one family spells places and frames."""

    name: str
    module: Any
    wire: Callable[..., bytes]
    hops: str
    header: int

    def with_sum_of(self, protocol: str, frame: bytes, other: bytes) -> bytes:
        """A *frame*, but for the sum behind its IP header, which is the *other* one's."""
        at = 14 + self.header + SUM_AT[protocol]
        return frame[:at] + other[at : at + 2] + frame[at + 2 :]


FAMILIES = {
    "IPv4": Family("IPv4", packets, packets.on_wire, "ttl", 20),
    "IPv6": Family("IPv6", packets6, packets6.frame, "hlim", 40),
}


class MapTalk(ABC):
    """
    The programs and the reference, side by side.

    Each step is a method, ``_sends`` for one, that says what is wrong, and "" if nothing is.
    """

    def __init__(self, datapath: Datapath, expected: Masquerade) -> None:
        self._ct, self._snat = datapath.map("ct"), datapath.map("snat")
        self.expected = expected
        # Which port a flow had last: its peer does not know what the node has forgotten.
        self._last: dict[Flow, int] = {}
        self._kinds = False

    @abstractmethod
    def out_key(self, flow: Flow) -> bytes:
        """Of the row its packets go by."""

    @abstractmethod
    def in_key(self, port: int) -> bytes:
        """Of the row answers to a port go by."""

    @abstractmethod
    def ct_key(self, flow: Flow) -> bytes:
        """Of its row in conntrack."""

    @abstractmethod
    def flow_of(self, address: bytes, port: int) -> Flow:
        """Whose address and port these are."""

    def forget(self) -> None:
        """Nothing has happened yet."""
        for rows in (self._ct, self._snat):
            rows.delete_batch(list(rows.keys()))
        self.expected.forget()
        self._last.clear()

    def step(self, step: Step) -> str:
        """What is wrong about one, "" if nothing is."""
        what, flow, kind = step
        return str(getattr(self, f"_{what}")(flow, kind if self._kinds else None))

    def wrong(self) -> str:
        """What is wrong about the rows, after all steps."""
        out, into = {}, {}
        for raw, value in self._snat.items():
            key, row = NatKey.unpack(raw), NatEntry.unpack(value)
            if key.dir == NatDir.NAT_OUT:
                out[self.flow_of(key.src, key.sport)] = row.port
            else:
                into[key.dport] = self.flow_of(row.addr, row.port)
        if (out, into) != (self.expected.out, self.expected.into):
            return f"rows are {out} {into}, not {self.expected.out} {self.expected.into}"
        return ""

    # -- what maps and time do ---------------------------------------------------------------------

    def _loses_out(self, flow: Flow, kind: str | None) -> str:
        del kind
        self._snat.delete(self.out_key(flow))
        self.expected.out.pop(flow, None)
        return ""

    def _loses_in(self, flow: Flow, kind: str | None) -> str:
        del kind
        for port, owner in self.expected.into.items():
            if owner == flow:
                self._snat.delete(self.in_key(port))
        self.expected.forget_in(flow)
        return ""

    def _loses_track(self, flow: Flow, kind: str | None) -> str:
        del kind
        self._ct.delete(self.ct_key(flow))
        self.expected.tracked.pop(flow, None)
        return ""

    def _expires(self, flow: Flow, kind: str | None) -> str:
        del kind
        row = self._ct.lookup(self.ct_key(flow))
        if row is None:
            if self.expected.is_live(flow):
                return "a live flow is not tracked"
        else:
            at = CtEntry.unpack(row)
            fields = {name: getattr(at, name) for name in CtEntry.__match_args__} | {"expires": 1}
            self._ct.update(self.ct_key(flow), CtEntry(**fields).pack())
        self.expected.tracked.pop(flow, None)
        return ""

    def _collected(self, flow: Flow, kind: str | None) -> str:
        """The agent's own, when all rows are old enough."""
        del flow, kind
        now = int(time.monotonic())

        def is_live(key: bytes) -> bool:
            row = self._ct.lookup(key)
            return row is not None and gc.is_live_ct(row, now)

        for keys in gc.expired_nat(list(self._snat.items()), now + gc.NAT_MIN_AGE + 1, is_live_flow=is_live):
            self._snat.delete_batch(keys)
        self.expected.collect()
        return ""


def cached(frames: object) -> Callable[..., bytes]:
    """Frames by the name of a method of *frames* and what it is asked; made once."""

    @cache
    def frame(what: str, *about: object, **more: object) -> bytes:
        return bytes(getattr(frames, what)(*about, **more))

    return frame


def compare(talk: MapTalk, sequences: Iterable[Sequence[Step]]) -> tuple[Counter[str], list[str]]:
    """How many sequences and steps there were, and what was wrong."""
    counted: Counter[str] = Counter()
    wrong: list[str] = []
    for steps in sequences:
        talk.forget()
        counted["sequences"] += 1
        for number, step in enumerate(steps):
            counted["steps"] += 1
            if problem := talk.step(step):
                wrong.append(f"{problem}: step {number} of {steps[: number + 1]}")
                break
        else:
            if problem := talk.wrong():
                wrong.append(f"{problem}: after {steps}")
    return counted, wrong


def kinds(protocol: str, *named: str) -> Sequence[str | None]:
    """Those of TCP's packets, which others have none of."""
    return named if protocol == "tcp" else (None,)


def alphabet(flows: Sequence[Flow], kinds: Sequence[str | None], *without_kind: str) -> list[Step]:
    """Every step of *flows*: packets of all *kinds*, what is *without_kind*, and the garbage collection."""
    return [
        *((what, flow, kind) for what in WITH_KIND for flow in flows for kind in kinds),
        *((what, flow, None) for what in without_kind for flow in flows),
        ("collected", flows[0], None),
    ]


def every_sequence(steps: Sequence[Step], first: Flow, *, is_long: bool) -> Iterator[Sequence[Step]]:
    """Of a few steps behind the *first* flow's first packet."""
    rest = itertools.product(steps, repeat=LENGTH_LONG if is_long else LENGTH)
    return ((("sends", first, "S"), *chosen) for chosen in rest)


def random_sequences(steps: Sequence[Step], seed: str, *, is_long: bool) -> Iterator[Sequence[Step]]:
    """Of many; packets more often than losses."""
    chance = random.Random(seed)
    weights = [8 if what in {"sends", "answered"} else 2 for what, _, _ in steps]
    for _ in range(RANDOM_LONG if is_long else RANDOM):
        yield tuple(chance.choices(steps, weights, k=STEPS))


def assert_right(talk: MapTalk, sequences: Iterable[Sequence[Step]], tally: Tally, what: str) -> None:
    """Nothing is wrong; how much there was is told."""
    counted, wrong = compare(talk, sequences)
    tally(
        what,
        injected=counted["steps"],
        delivered=counted["steps"] - len(wrong),
        wrong=len(wrong),
        sequences=counted["sequences"],
    )
    assert wrong == []
