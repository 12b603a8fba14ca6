# SPDX-License-Identifier: Apache-2.0
"""
Numbered packets between two people of the laboratory, and what became of them.

The sending and counting is done in ``lab.child.flood``; here flows are named and results summed up.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from lab.actor import Actor
from lab.waiting import PATIENCE, eventually

# Packets a second.  An emulated machine passes a few thousand at best: more would leave nothing to the agent.
RATE = 10_000 if PATIENCE == 1 else 250


@dataclass(frozen=True, slots=True)
class Flow:
    """Numbered datagrams to *address*:*port*, expected at *lands_on* there."""

    name: str
    address: str
    port: int
    lands_on: int
    source_port: int = 0
    rate: int = RATE


@dataclass(frozen=True, slots=True)
class Fate:
    """What became of a flow's packets."""

    name: str
    sent: int
    received: int
    lost: int
    duplicates: int
    reordered: int
    longest_gap: int
    longest_silence: float
    errors: dict[str, int]
    seconds: float

    def __str__(self) -> str:
        return (
            f"{self.name}: sent={self.sent} received={self.received} lost={self.lost} "
            f"duplicates={self.duplicates} longest_gap={self.longest_gap} "
            f"silence={self.longest_silence * 1000:.1f}ms rate={self.sent / max(self.seconds, 1e-9):.0f}/s"
        )


class Flood:
    """Flows from one sender to one receiver, all in step.  A context manager that stops them."""

    def __init__(self, sender: Actor, receiver: Actor, flows: Sequence[Flow]) -> None:
        self._sender = sender
        self._receiver = receiver
        self._flows = list(flows)
        self._ports = sorted({flow.lands_on for flow in flows})
        self._six = {flow.lands_on for flow in flows if ":" in flow.address}
        self._name = f"flood-{id(self):x}"
        self._running = False
        self._opened: list[int] = []

    def start(self, *, limit: int = 0) -> Self:
        """Open the receiving ports and begin; *limit* packets of each flow, 0 for until stopped."""
        for port in self._ports:
            six = {"address": "::"} if port in self._six else {}
            self._receiver.call("flood_receive", port=port, **six)
            self._opened.append(port)
        flows: list[dict[str, Any]] = [
            {
                "flow": number,
                "address": flow.address,
                "port": flow.port,
                "rate": flow.rate,
                "source_port": flow.source_port,
            }
            for number, flow in enumerate(self._flows)
        ]
        self._sender.call("flood_send", name=self._name, flows=flows, limit=limit)
        self._running = True
        return self

    def wait(self, seconds: float = 120.0) -> None:
        """Wait until a limited flood is through."""
        self._sender.call("flood_wait", name=self._name, seconds=seconds, wait=seconds + 10)

    def sent(self) -> int:
        """Packets of the slowest flow so far."""
        return min(self._sender.call("flood_progress", name=self._name).values())

    def wait_sent(self, more: int, *, seconds: float = 60.0) -> None:
        """Wait until every flow has sent this many more."""
        target = self.sent() + more
        eventually(lambda: self.sent() >= target, f"{more} more packets sent", seconds=seconds, every=0.02)

    def stop(self) -> dict[str, Fate]:
        """Stop sending, wait until nothing arrives any more, and sum up by flow name."""
        ended = self._sender.call("flood_end", name=self._name)
        self._running = False
        self._settle()
        fates = {}
        for port in self._ports:
            sent = {
                str(number): ended["flows"][str(number)]["sent"]
                for number, flow in enumerate(self._flows)
                if flow.lands_on == port
            }
            report = self._receiver.call("flood_report", port=port, sent=sent)
            assert report["overflow"] == 0, "the receiver's buffer ran over: the laboratory is too slow"
            for number, flow in enumerate(self._flows):
                if flow.lands_on == port:
                    books = report["flows"][str(number)]
                    fates[flow.name] = Fate(
                        name=flow.name,
                        sent=sent[str(number)],
                        errors=ended["flows"][str(number)]["errors"],
                        seconds=ended["seconds"],
                        **books,
                    )
        self.close()
        return fates

    def _settle(self) -> None:
        """Return once no packet has arrived for a while."""
        before = -1
        while before != (before := sum(self._receiver.call("flood_received", port=p) for p in self._ports)):
            time.sleep(0.25 * PATIENCE)

    def close(self) -> None:
        """Stop everything."""
        if self._running:
            self._sender.call("flood_end", name=self._name)
            self._running = False
        for port in self._opened:
            self._receiver.call("flood_close", port=port)
        self._opened.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
