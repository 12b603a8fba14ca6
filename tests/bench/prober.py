# SPDX-License-Identifier: Apache-2.0
"""
Two datagrams every millisecond from one pod to another, and a record of which arrived: 1 kHz, to the packet.

``python -S -m bench.prober send|receive RECORD ADDRESS`` inside a pod, standard library only, until standard
input closes.  Both sides share a file, :class:`Record`: nobody has to be asked, so asking costs nothing.

Pair *n* is a datagram to PROBED, from a port that no earlier one of the last minute had, so each is a new
connection, and then one to CONTROL, whose verdict never changes.  The receiver writes the control of a pair
down after everything that came before it: once it is there, what is missing of the other was dropped.
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
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Self

PROBED, CONTROL = 7001, 7002
PERIOD_NS = 1_000_000
# Pairs that a record has room for: a quarter of an hour.
CAPACITY = 900_000
NUMBER = struct.Struct("!I")
# One a millisecond: a minute passes until one is used again, as long as a silent flow is remembered.
SOURCE_PORTS = range(2048, 2048 + 61_000)
PRIORITY = 1


class Record:
    """When each pair was sent (ns of the monotonic clock) and which of its two datagrams arrived."""

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), 0)
        view = memoryview(self._memory)
        self._count = view[:8].cast("Q")
        self._sent = view[8 : 8 + 8 * CAPACITY].cast("Q")
        self._arrived = {
            PROBED: view[8 + 8 * CAPACITY : 8 + 9 * CAPACITY],
            CONTROL: view[8 + 9 * CAPACITY : 8 + 10 * CAPACITY],
        }

    @classmethod
    def create(cls, path: Path) -> Self:
        """A new one, empty."""
        with path.open("wb") as file:
            file.truncate(8 + 10 * CAPACITY)
        return cls(path)

    @property
    def count(self) -> int:
        """How many pairs were sent so far."""
        return self._count[0]

    def note_sent(self, at: int) -> int:
        """Write the next pair down before it goes; its number."""
        number = self._count[0]
        self._sent[number] = at
        self._count[0] = number + 1
        return number

    def note_arrived(self, port: int, number: int) -> None:
        """Write an arrival down."""
        self._arrived[port][number] = 1

    def sent_at(self, number: int) -> int:
        """When that was."""
        return self._sent[number]

    def since(self, at: int) -> int:
        """Number of the first pair sent at that time or later, be it one to come."""
        return bisect_left(self._sent, at, 0, self.count)

    def judged(self, first: int) -> Iterator[tuple[int, bool]]:
        """Pairs from *first* on whose fate is known: number, and whether the probe was let through."""
        probed, control = self._arrived[PROBED], self._arrived[CONTROL]
        return ((number, bool(probed[number])) for number in range(first, self.count) if control[number])

    def control_lost(self, first: int, end: int) -> int:
        """How many controls of these pairs never came."""
        return self._arrived[CONTROL][first:end].tobytes().count(0)

    def longest_pause(self, first: int, end: int) -> int:
        """The longest time between two of these pairs, in ns: what the prober cannot see below."""
        sent = self._sent[first:end].tolist()
        return max((after - before for before, after in pairwise(sent)), default=0)


def send(record: Record, address: str) -> None:
    """Send pairs; one that is late does not hurry, and none is sent to make up for it."""
    control = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    control.bind(("", SOURCE_PORTS.start - 1))
    control.connect((address, CONTROL))
    due = time.monotonic_ns()
    while record.count < CAPACITY and not _closed():
        due = max(due + PERIOD_NS, time.monotonic_ns())
        time.sleep(max(0, due - time.monotonic_ns()) / 1e9)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind(("", SOURCE_PORTS[record.count % len(SOURCE_PORTS)]))
            number = NUMBER.pack(record.note_sent(time.monotonic_ns()))
            # What the pod's own policy refuses is lost like what the other's does.
            with contextlib.suppress(OSError):
                probe.sendto(number, (address, PROBED))
        with contextlib.suppress(OSError):
            control.send(number)


def receive(record: Record, address: str) -> None:
    """Note what comes."""
    sockets = {}
    for port in (PROBED, CONTROL):
        sockets[port] = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sockets[port].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        sockets[port].setblocking(False)
        sockets[port].bind((address, port))
    print("ready", flush=True)
    while not _closed():
        select.select([*sockets.values(), sys.stdin], [], [])
        # In this order: whatever preceded a control in the wire is written down before it.
        controls = list(_waiting(sockets[CONTROL]))
        for number in _waiting(sockets[PROBED]):
            record.note_arrived(PROBED, number)
        for number in controls:
            record.note_arrived(CONTROL, number)


def _waiting(one: socket.socket) -> Iterator[int]:
    """Numbers of all datagrams that have come."""
    with contextlib.suppress(BlockingIOError):
        while True:
            yield NUMBER.unpack(one.recv(NUMBER.size))[0]


def _closed() -> bool:
    """Whether the laboratory has closed the other end of standard input."""
    return bool(select.select([sys.stdin], [], [], 0)[0])


def main() -> None:
    """Run one side, before everybody else where the machine allows."""
    role, path, address = sys.argv[1:]
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(PRIORITY))
    {"send": send, "receive": receive}[role](Record(Path(path)), address)


if __name__ == "__main__":
    main()
