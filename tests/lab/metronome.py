# SPDX-License-Identifier: Apache-2.0
"""A prober at 1 kHz from one network namespace to another: see ``lab.child.metronome``."""

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple, Self

from lab.child.metronome import FIRST, Lane, Record
from lab.process import Process


class Side(NamedTuple):
    """Where one side lives."""

    netns: Path
    cgroup: Path | None = None


class Metronome:
    """
    Datagrams from *sender* to *receiver* at *address* on all *lanes*, of which the last is the control.

    With *first* before everybody else on the machine, who may get nothing done meanwhile.  A context manager;
    its *record* can be read while it runs, and as long as the context lasts.
    """

    def __init__(
        self, sender: Side, receiver: Side, address: str, lanes: Sequence[Lane], *, first: bool = False
    ) -> None:
        self.lanes = tuple(lanes)
        self._sides = {"receive": receiver, "send": sender}
        self._address = address
        self._words = [FIRST] if first else []
        self._stack = ExitStack()
        self._processes: list[Process] = []
        self.record: Record

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            path = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "record"
            self.record = Record.create(path, len(self.lanes))
            for role, side in self._sides.items():
                process = stack.enter_context(self._start(role, side, path))
                assert process.popen.stdout is not None
                assert role == "send" or process.popen.stdout.readline() == b"ready\n", f"no {role}r"
                self._processes.append(process)
            self._stack = stack.pop_all()
        return self

    def _start(self, role: str, side: Side, path: Path) -> Process:
        command = [sys.executable, "-S", "-m", "lab.child.metronome", role, path, self._address]
        return Process(
            [*command, *map(str, self.lanes), *self._words],
            netns=side.netns,
            cgroup=side.cgroup,
            output=subprocess.PIPE,
            stdin=subprocess.PIPE,
        )

    @property
    def running(self) -> bool:
        """Whether neither side has ended."""
        return all(process.running for process in self._processes)

    def stop(self) -> None:
        """End the sender and then the receiver, which has all that was sent by then."""
        for process in reversed(self._processes):
            assert process.popen.stdin is not None
            process.popen.stdin.close()
            process.wait(10.0)

    def __exit__(self, *_: object) -> None:
        self._processes.clear()
        self._stack.close()
