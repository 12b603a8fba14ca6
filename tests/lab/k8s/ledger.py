# SPDX-License-Identifier: Apache-2.0
"""
Processes that outlive whoever started them, and are ended by number without a mistake.

A number is written down together with the time at which its process started: the kernel gives
numbers out again, but not with the same start time.
"""

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from lab.process import CommandFailed, environment, placed
from lab.waiting import NotInTime, eventually

END_SECONDS: Final = 10.0
LOG_TAIL: Final = 15


def start_time(pid: int) -> int | None:
    """Clock ticks between the machine's start and the process's (proc(5), stat); None: it has ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, *fields = stat.rpartition(")")[2].split()
    return None if state == "Z" else int(fields[18])


def disown(popen: "subprocess.Popen[bytes]") -> None:
    """Let a process outlive its object: nobody waits for it, and nobody complains that nobody did."""
    popen.returncode = 0


class Ledger:
    """Processes by name, in *directory*/run; their output goes to *directory*/log."""

    def __init__(self, directory: Path) -> None:
        self._run = directory / "run"
        self._log = directory / "log"

    def log(self, name: str) -> Path:
        """Where the output of a process goes."""
        self._log.mkdir(parents=True, exist_ok=True)
        return self._log / f"{name}.log"

    def log_tail(self, name: str) -> str:
        """The end of its output."""
        path = self.log(name)
        lines = path.read_text(errors="replace").splitlines() if path.exists() else []
        return "\n".join([f"--- end of {path} ---", *lines[-LOG_TAIL:]])

    def spawn(
        self,
        name: str,
        command: Sequence[str | os.PathLike[str]],
        *,
        netns: Path | None = None,
        cgroup: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> "subprocess.Popen[bytes]":
        """Start a process in a session of its own and write nothing down."""
        with self.log(name).open("ab") as log:
            return subprocess.Popen(
                placed(command, netns=netns, cgroup=cgroup, outlive=True),
                env=environment(env),
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def launch(self, name: str, command: Sequence[str | os.PathLike[str]], **options: object) -> int:
        """Start a process unless it runs; its number."""
        if (running := self.pid(name)) is not None:
            return running
        popen = self.spawn(name, command, **options)  # type: ignore[arg-type]
        self.record(name, popen.pid)
        disown(popen)
        return popen.pid

    def record(self, name: str, pid: int) -> None:
        """Write down that *name* is process *pid*.  Raises ``CommandFailed`` when it has ended already."""
        started = start_time(pid)
        if started is None:
            raise CommandFailed(f"{name} ended at once\n{self.log_tail(name)}")
        self._run.mkdir(parents=True, exist_ok=True)
        (self._run / name).write_text(f"{pid} {started}\n")

    def pid(self, name: str) -> int | None:
        """Its number while it runs."""
        with contextlib.suppress(FileNotFoundError):
            pid, started = map(int, (self._run / name).read_text().split())
            if start_time(pid) == started:
                return pid
        return None

    def names(self) -> list[str]:
        """Everybody in the books, running or not."""
        return sorted(path.name for path in self._run.iterdir()) if self._run.is_dir() else []

    def send(self, name: str, number: int) -> None:
        """Send a signal, if it runs."""
        pid = self.pid(name)
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def end(self, names: Sequence[str], number: int = signal.SIGTERM) -> None:
        """End processes, all at a time; who does not want to is made to."""
        for name in names:
            self.send(name, number)
        try:
            eventually(lambda: self._ended(names), "processes end", seconds=END_SECONDS)
        except NotInTime:
            for name in names:
                self.send(name, signal.SIGKILL)
            eventually(lambda: self._ended(names), f"{names} end by force", seconds=END_SECONDS)
        for name in names:
            (self._run / name).unlink(missing_ok=True)

    def _ended(self, names: Sequence[str]) -> bool:
        return all(self.pid(name) is None for name in names)
