# SPDX-License-Identifier: Apache-2.0
"""
Questions and answers without end: over ever new sockets, over one socket, over open connections.

A datagram is not sent twice, so an answer that does not come is a packet lost, either way; and one
that names another client than the first means that the flow was given another address on its way.
"""

import dataclasses
import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from lab.child.verbs import tcp_say, verb

ANSWER_SECONDS = 3.0
TOLD = 20


@dataclasses.dataclass
class _Talk:
    """What a thread does until told to end, and its books."""

    work: Callable[["_Talk"], None]
    every: float
    ending: threading.Event = dataclasses.field(default_factory=threading.Event)
    flows: int = 0
    asked: int = 0
    answered: int = 0
    failures: list[str] = dataclasses.field(default_factory=list)
    thread: threading.Thread = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=self.work, args=(self,), daemon=True)
        self.thread.start()

    def turns(self) -> Iterator[int]:
        """Numbers, one each time something is due."""
        for number in itertools.count():
            if self.ending.wait(self.every):
                return
            yield number

    def note(self, problem: str) -> None:
        """Count a question, with what is wrong about its answer."""
        self.asked += 1
        if problem:
            self.failures.append(f"{time.monotonic():.3f} {problem}")
        else:
            self.answered += 1


_running: dict[str, _Talk] = {}


def _ask(sock: socket.socket, first: bytes) -> tuple[bytes, str]:
    """Ask once; the answer, and what is wrong about it."""
    where = f"port {sock.getsockname()[1]}"
    try:
        sock.send(b"?")
        answer = sock.recv(65536)
    except OSError as error:
        return first, f"{where}: {error}"
    return answer, f"{where}: {first!r} became {answer!r}" if first and answer != first else ""


def _socket(address: str, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(ANSWER_SECONDS)
    sock.connect((address, port))
    return sock


@verb
def churn_start(name: str, address: str, port: int, exchanges: int, every: float) -> None:
    """Ask *exchanges* times over each of ever new sockets, with *every* seconds between them."""

    def work(talk: _Talk) -> None:
        for _ in talk.turns():
            talk.flows += 1
            with _socket(address, port) as sock:
                first, problem = b"", ""
                for _ in range(exchanges):
                    first, problem = _ask(sock, first)
                    talk.note(problem)
                    if problem:
                        break

    _running[name] = _Talk(work, every)


@verb
def dialogue_start(name: str, address: str, port: int, every: float) -> None:
    """Ask over one socket, every so many seconds."""

    def work(talk: _Talk) -> None:
        talk.flows = 1
        first = b""
        with _socket(address, port) as sock:
            for _ in talk.turns():
                first, problem = _ask(sock, first)
                talk.note(problem)

    _running[name] = _Talk(work, every)


@verb
def talk_start(name: str, handles: list[int], every: float) -> None:
    """Say something on open connections (``tcp_open``) in turn, every so many seconds."""

    def work(talk: _Talk) -> None:
        talk.flows = len(handles)
        for number in talk.turns():
            handle = handles[number % len(handles)]
            outcome = tcp_say(handle, timeout=5.0)["outcome"]
            talk.note("" if outcome == "answered" else f"connection {handle}: {outcome}")

    _running[name] = _Talk(work, every)


@verb
def talk_end(name: str) -> dict[str, Any]:
    """Stop any of these; flows, questions, answers, and what was wrong."""
    talk = _running.pop(name)
    talk.ending.set()
    talk.thread.join()
    return {
        "flows": talk.flows,
        "asked": talk.asked,
        "answered": talk.answered,
        "failures": talk.failures[:TOLD],
    }
