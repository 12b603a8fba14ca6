# SPDX-License-Identifier: Apache-2.0
"""
Datagrams every millisecond from one pod to another, and a record of which arrived: 1 kHz, to the packet.

``python -S -m lab.child.metronome send|receive RECORD ADDRESS LANE... [--first]`` inside a pod, standard
library only, until standard input closes.  Both sides share a file, :class:`Record`: nobody has to be asked,
so asking costs nothing.

Every millisecond one datagram is sent on each lane, in their order.  A lane is a port of the receiver, with a
``+`` behind it if each datagram is to be a new connection: from a port that no earlier one of the last minute
had.  On the last lane, the control, nothing ever changes: once a control is there, what is missing of the
others of its millisecond was dropped.
"""

import contextlib
import mmap
import os
import select
import socket
import struct
import sys
import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, Self

PERIOD_NS = 1_000_000
# Milliseconds that a record has room for: a quarter of an hour.
CAPACITY = 900_000
NUMBER = struct.Struct("!IB")
# One a millisecond: a minute passes until one is used again, as long as a silent flow is remembered.
SOURCE_PORTS = range(2048, 2048 + 61_000)
PRIORITY, FIRST = 1, "--first"


class Lane(NamedTuple):
    """Where its datagrams go, and whether each of them is a connection of its own."""

    port: int
    fresh: bool = False

    @classmethod
    def read(cls, text: str) -> Self:
        """As it is written: ``7001`` or ``7001+``."""
        return cls(int(text.rstrip("+")), text.endswith("+"))

    def __str__(self) -> str:
        return f"{self.port}{'+' if self.fresh else ''}"


class Record:
    """When the datagrams of each millisecond were sent (ns of the monotonic clock), and which arrived."""

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), 0)
        view = memoryview(self._memory)
        self._count = view[:8].cast("Q")
        self._sent = view[8 : 8 + 8 * CAPACITY].cast("Q")
        lanes = len(view) // CAPACITY - 8
        self._arrived = [view[8 + at * CAPACITY : 8 + (at + 1) * CAPACITY] for at in range(8, 8 + lanes)]

    @classmethod
    def create(cls, path: Path, lanes: int) -> Self:
        """A new one, empty."""
        with path.open("wb") as file:
            file.truncate(8 + (8 + lanes) * CAPACITY)
        return cls(path)

    @property
    def count(self) -> int:
        """How many milliseconds there were so far."""
        return self._count[0]

    def note_sent(self, at: int) -> int:
        """Write the next millisecond down before it begins; its number."""
        number = self._count[0]
        self._sent[number] = at
        self._count[0] = number + 1
        return number

    def note_arrived(self, lane: int, number: int) -> None:
        """Write an arrival down."""
        self._arrived[lane][number] = 1

    def sent_at(self, number: int) -> int:
        """When that was."""
        return self._sent[number]

    def since(self, at: int) -> int:
        """Number of the first millisecond that began at that time or later, be it one to come."""
        return bisect_left(self._sent, at, 0, self.count)

    def judged(self, first: int, lane: int = 0) -> Iterator[tuple[int, bool]]:
        """Milliseconds from *first* on of which all is known: number, and whether *lane* was let through."""
        arrived, control = self._arrived[lane], self._arrived[-1]
        return ((number, bool(arrived[number])) for number in range(first, self.count) if control[number])

    def arrived(self, lane: int, first: int, end: int) -> int:
        """How many datagrams of these milliseconds came on a lane."""
        return self._arrived[lane][first:end].tobytes().count(1)

    def control_lost(self, first: int, end: int) -> int:
        """How many controls of these milliseconds never came."""
        return end - first - self.arrived(-1, first, end)

    def longest_pause(self, first: int, end: int) -> int:
        """The longest time between two of these milliseconds, in ns: what the prober cannot see below."""
        sent = self._sent[first:end].tolist()
        return max((after - before for before, after in pairwise(sent)), default=0)


def send(record: Record, address: str, lanes: Sequence[Lane]) -> None:
    """Send on all lanes; a millisecond that is late does not hurry, and none is made up for."""
    lasting: dict[Lane, socket.socket] = {}
    for lane in lanes:
        if not lane.fresh:
            lasting[lane] = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            lasting[lane].bind(("", SOURCE_PORTS.start - 1 - len(lasting)))
    due = time.monotonic_ns()
    while record.count < CAPACITY and not _closed():
        due = max(due + PERIOD_NS, time.monotonic_ns())
        time.sleep(max(0, due - time.monotonic_ns()) / 1e9)
        number = record.note_sent(time.monotonic_ns())
        for place, lane in enumerate(lanes):
            data = NUMBER.pack(number, place)
            # What the pod's own policy refuses is lost like what the other's does.
            with contextlib.suppress(OSError):
                if lane in lasting:
                    lasting[lane].sendto(data, (address, lane.port))
                    continue
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as fresh:
                    fresh.bind(("", SOURCE_PORTS[number % len(SOURCE_PORTS)]))
                    fresh.sendto(data, (address, lane.port))


def receive(record: Record, address: str, lanes: Sequence[Lane]) -> None:
    """Note what comes."""
    sockets = []
    # The control's first: whatever preceded it in the wire is written down before it.
    for port in reversed(list(dict.fromkeys(lane.port for lane in lanes))):
        one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        one.setblocking(False)
        one.bind((address, port))
        sockets.append(one)
    print("ready", flush=True)
    goes_on = True
    while goes_on:
        select.select([*sockets, sys.stdin], [], [])
        # What has come until the end is taken in as well.
        goes_on = not _closed()
        read = [list(_waiting(one)) for one in sockets]
        for arrivals in reversed(read):
            for number, place in arrivals:
                record.note_arrived(place, number)


def _waiting(one: socket.socket) -> Iterator[tuple[int, int]]:
    """Number and lane of all datagrams that have come."""
    # Until there is no more.
    with contextlib.suppress(BlockingIOError):
        while True:
            yield NUMBER.unpack(one.recv(NUMBER.size))


def _closed() -> bool:
    """Whether the laboratory has closed the other end of standard input."""
    return bool(select.select([sys.stdin], [], [], 0)[0])


def main() -> None:
    """Run one side; told so, before everybody else where the machine allows."""
    role, path, address, *lanes = (word for word in sys.argv[1:] if word != FIRST)
    if FIRST in sys.argv:
        # Without the right to it, it is one among others.
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(PRIORITY))
    {"send": send, "receive": receive}[role](Record(Path(path)), address, [Lane.read(one) for one in lanes])


if __name__ == "__main__":
    main()
