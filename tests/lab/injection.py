# SPDX-License-Identifier: Apache-2.0
"""
Kernel calls of a running process killed or refused, by strace; nothing in the process knows of it.

strace counts by thread and by name: ``when=7`` for ``bpf`` and ``rename`` is the seventh of either that a
thread makes after it was attached.  The k-th call of a thread is therefore said as a :data:`Step`, which an
undisturbed run tells (:func:`steps`).
"""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Self

from lab.process import Process
from lab.waiting import eventually

STRACE: Final = "/usr/bin/strace"
ATTACH_SECONDS: Final = 20.0
Step = tuple[str, int]
"""A call by its name, and the how manieth of that name its thread makes."""

_CALL: Final = re.compile(rb"^(\d+) +(\w+)\(")


class Injection:
    """strace on all threads of a process while its context lasts; injects nothing without *effect*."""

    def __init__(
        self, pid: int, calls: Sequence[str], log: Path, *, effect: str = "", when: str = "1"
    ) -> None:
        """*effect* is ``signal=KILL`` or ``error=ENOMEM``, *when* as strace writes it: 3, 1+, 1..9+2."""
        self._process = pid
        self._log = log
        self._said = log.with_suffix(".said")
        names = ",".join(calls)
        command = [STRACE, "-f", "-o", str(log), f"--trace={names}"]
        if effect:
            command.append(f"--inject={names}:{effect}:when={when}")
        self._command = [*command, "-p", str(pid)]

    def __enter__(self) -> Self:
        with self._said.open("wb") as said:
            self._strace = Process(self._command, output=said)
        eventually(
            self._attached, f"strace is attached to {self._process}", seconds=ATTACH_SECONDS, every=0.01
        )
        return self

    def _attached(self) -> bool:
        assert self._strace.running, f"strace ended: {self._said.read_text()}"
        return b"attached" in self._said.read_bytes()

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """Let go of the process, which goes on unless it is dead."""
        self._strace.end()

    def lines(self) -> list[bytes]:
        """What was traced so far."""
        return self._log.read_bytes().splitlines() if self._log.exists() else []

    def injected(self) -> int:
        """Calls that were refused so far."""
        return sum(line.endswith(b"(INJECTED)") for line in self.lines())

    def reached(self, nth: int) -> bool:
        """Whether a thread has begun its *nth* call; to be asked after the end, when all of it is written."""
        made = Counter(match[1] for line in self.lines() if (match := _CALL.match(line)))
        return max(made.values(), default=0) >= nth

    def steps(self) -> list[Step]:
        """Every call so far of the thread that made most."""
        return steps(self._log)


def steps(log: Path) -> list[Step]:
    """Every call of the thread that made most, in order, by what strace wrote (with ``-f``)."""
    by_thread: dict[bytes, list[str]] = {}
    for line in log.read_bytes().splitlines() if log.exists() else []:
        if match := _CALL.match(line):
            by_thread.setdefault(match[1], []).append(match[2].decode())
    made: Counter[str] = Counter()
    found = []
    for name in max(by_thread.values(), key=len, default=[]):
        made[name] += 1
        found.append((name, made[name]))
    return found


def under_strace(calls: Sequence[str], *, effect: str = "", when: str = "1", log: Path) -> list[str]:
    """
    A wrapper for a command that traces, and injects if there is an *effect*, from its first call on.

    The command keeps its number: strace is the one that is forked off (``--daemonize``).
    """
    names = ",".join(calls)
    inject = [f"--inject={names}:{effect}:when={when}"] if effect else []
    return [STRACE, "--daemonize", "-f", "-o", str(log), f"--trace={names}", *inject, "--"]
