# SPDX-License-Identifier: Apache-2.0
"""
Numbered datagrams at a steady rate, and the books about them.

One thread sends all flows, a few datagrams per tick of the monotonic clock; a late thread catches up
in small bursts, so that no queue on the way overflows by the laboratory's doing.  The receiver's
books: how many came, twice, out of order, and the longest run of numbers that is missing.
"""

import os
import socket
import struct
import threading
import time
from typing import Any

from lab.child.verbs import ANY, ANY6, family_of, verb
from lab.waiting import PATIENCE

Json = dict[str, Any]

RECORD = struct.Struct("!IQ")  # flow, number
PAYLOAD = 64
TICK = 0.001 * PATIENCE
BURST = 64
SO_RCVBUFFORCE = 33
SO_MEMINFO = 55
RECEIVE_BUFFER = 64 << 20


class _Flow:
    def __init__(self, flow: int, address: str, port: int, rate: int, source_port: int) -> None:
        self.flow = flow
        self.rate = rate
        self.sent = 0
        self.errors: dict[str, int] = {}
        self._target = (address, port)
        self._padding = bytes(PAYLOAD - RECORD.size)
        # Never connected: an ICMP error on the way must not end the flow, only be seen as a loss.
        self._socket = socket.socket(family_of(address), socket.SOCK_DGRAM)
        self._socket.bind((ANY if self._socket.family == socket.AF_INET else ANY6, source_port))

    def send(self, count: int) -> None:
        for _ in range(count):
            try:
                self._socket.sendto(RECORD.pack(self.flow, self.sent) + self._padding, self._target)
            except OSError as error:
                name = os.strerror(error.errno or 0)
                self.errors[name] = self.errors.get(name, 0) + 1
            self.sent += 1

    def close(self) -> None:
        self._socket.close()


class _Sender:
    def __init__(self, flows: list[Json], limit: int) -> None:
        self._flows = [_Flow(**flow) for flow in flows]
        self._limit = limit
        self._stop = threading.Event()
        self._started = time.monotonic()
        self.ended = self._started
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            elapsed = time.monotonic() - self._started
            behind = False
            done = bool(self._limit)
            for flow in self._flows:
                due = int(elapsed * flow.rate)
                if self._limit:
                    due = min(due, self._limit)
                flow.send(min(due - flow.sent, BURST))
                behind |= flow.sent < due
                done &= flow.sent >= self._limit
            if done:
                break
            # A pause also when late: whoever empties the queues needs the processor too.
            time.sleep(0.0001 if behind else TICK)
        self.ended = time.monotonic()

    def wait(self, seconds: float) -> None:
        self._thread.join(seconds)

    def end(self) -> Json:
        self._stop.set()
        self._thread.join()
        for flow in self._flows:
            flow.close()
        seconds = self.ended - self._started
        return {
            "seconds": seconds,
            "flows": {flow.flow: {"sent": flow.sent, "errors": flow.errors} for flow in self._flows},
        }

    def progress(self) -> Json:
        return {str(flow.flow): flow.sent for flow in self._flows}


class _Books:
    def __init__(self) -> None:
        self.received = 0
        self.duplicates = 0
        self.reordered = 0
        self.highest = -1
        self.last_at = 0.0
        self.longest_silence = 0.0
        self._seen = bytearray()

    def note(self, number: int, at: float) -> None:
        seen = self._seen
        if number >= len(seen):
            seen.extend(bytes(max(number + 1 - len(seen), 1 << 16)))
        if seen[number]:
            self.duplicates += 1
            return
        seen[number] = 1
        self.received += 1
        if number < self.highest:
            self.reordered += 1
        else:
            self.highest = number
        if self.last_at:
            self.longest_silence = max(self.longest_silence, at - self.last_at)
        self.last_at = at

    def report(self, sent: int | None) -> Json:
        total = self.highest + 1 if sent is None else sent
        missing = gap = longest = 0
        for number in range(total):
            if number < len(self._seen) and self._seen[number]:
                gap = 0
                continue
            missing += 1
            gap += 1
            longest = max(longest, gap)
        return {
            "received": self.received,
            "duplicates": self.duplicates,
            "reordered": self.reordered,
            "lost": missing,
            "longest_gap": longest,
            "longest_silence": round(self.longest_silence, 6),
        }


class _Receiver:
    def __init__(self, port: int, address: str) -> None:
        self._socket = socket.socket(family_of(address), socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER)
        self._socket.settimeout(0.2)
        self._socket.bind((address, port))
        self._stop = threading.Event()
        self._flows: dict[int, _Books] = {}
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        unpack = RECORD.unpack_from
        monotonic = time.monotonic
        while not self._stop.is_set():
            try:
                data = self._socket.recv(2048)
            except TimeoutError:
                continue
            flow, number = unpack(data)
            books = self._flows.get(flow)
            if books is None:
                books = self._flows[flow] = _Books()
            books.note(number, monotonic())

    def total(self) -> int:
        return sum(books.received for books in self._flows.values())

    def report(self, sent: dict[str, int]) -> Json:
        drops = struct.unpack("9I", self._socket.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 36))[8]
        flows = {int(flow): number for flow, number in sent.items()}
        return {
            "overflow": drops,
            "flows": {
                flow: self._flows.get(flow, _Books()).report(flows.get(flow))
                for flow in {*flows, *self._flows}
            },
        }

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self._socket.close()


_senders: dict[str, _Sender] = {}
_receivers: dict[int, _Receiver] = {}


@verb
def flood_receive(port: int, address: str = ANY) -> None:
    """Start to take numbered datagrams on a port."""
    _receivers[port] = _Receiver(port, address)


@verb
def flood_received(port: int) -> int:
    """How many different datagrams a port has had so far."""
    return _receivers[port].total()


@verb
def flood_report(port: int, sent: dict[str, int]) -> Json:
    """The books of a port, given how many of each flow were sent."""
    return _receivers[port].report(sent)


@verb
def flood_close(port: int) -> None:
    """Stop taking datagrams."""
    _receivers.pop(port).close()


@verb
def flood_send(name: str, flows: list[Json], limit: int = 0) -> None:
    """
    Start to send: each flow has flow, address, port, rate, source_port.

    With a *limit* every flow ends after that many.
    """
    _senders[name] = _Sender(flows, limit)


@verb
def flood_wait(name: str, seconds: float) -> None:
    """Wait until a limited sender is through."""
    _senders[name].wait(seconds)


@verb
def flood_progress(name: str) -> Json:
    """How many of each flow were sent so far."""
    return _senders[name].progress()


@verb
def flood_end(name: str) -> Json:
    """Stop sending; what was sent."""
    return _senders.pop(name).end()
