# SPDX-License-Identifier: Apache-2.0
"""
An agent under test: started in a node's namespace, killed, restarted, asked over its socket.

It knows the agent only from outside: command line, signals, socket, exit code, log.
"""

import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any, Final, Self

from ciliumd.cli.client import Client
from ciliumd.cli.errors import CommandError
from lab.process import Process, run
from lab.waiting import PATIENCE, NotInTime, eventually

START_SECONDS: Final = 60.0
END_SECONDS: Final = 20.0
LOG_TAIL: Final = 40
CILIUMD: Final = "ciliumd.cli.ciliumd"
CILIUM: Final = "ciliumd.cli.main"


class AgentEnded(AssertionError):
    """The agent ended when it should run; the text has its exit code and the end of its log."""


class _Asked(Client):
    """A client that tells what an agent that does not answer in time was about."""

    def __init__(self, path: str, *, timeout: float, threads: Callable[[], str]) -> None:
        super().__init__(path, timeout=timeout)
        self._threads = threads

    def _unreachable(self, error: Exception) -> CommandError:
        told = super()._unreachable(error)
        if isinstance(error, TimeoutError):
            told.add_note(self._threads())
        return told


class Agent:
    """``ciliumd agent`` with fixed options (an empty value is a flag); may be started many times."""

    def __init__(
        self,
        *,
        netns: Path,
        options: Mapping[str, str],
        log: Path,
        socket: Path,
        wrapper: Sequence[str] = (),
        outlive: bool = False,
    ) -> None:
        self.netns = netns
        self.options = dict(options)
        self.log = log
        self.socket = socket
        self.wrapper = list(wrapper)
        self.process: Process | None = None
        self.client = _Asked(str(socket), timeout=10.0 * PATIENCE, threads=self.threads)
        self._outlive = outlive

    @property
    def command(self) -> list[str]:
        """Its command line."""
        argv = [*self.wrapper, sys.executable, "-m", CILIUMD, "agent"]
        for name, value in self.options.items():
            argv.append(f"--{name}={value}" if value else f"--{name}")
        return argv

    def launch(self) -> None:
        """Start the process and wait for nothing."""
        assert self.process is None or not self.process.running, "the agent runs already"
        with self.log.open("ab") as log:
            self.process = Process(self.command, netns=self.netns, output=log, outlive=self._outlive)

    def start(self) -> Self:
        """Start it and wait until all is written to the kernel."""
        self.launch()
        self.wait_ready()
        return self

    def wait_ready(self, seconds: float = START_SECONDS) -> None:
        """Wait until its status is good.  Raises :class:`AgentEnded` or ``NotInTime`` with its log."""
        assert self.process is not None

        def ready() -> bool:
            assert self.process is not None
            if not self.process.running:
                raise AgentEnded(f"agent ended with {self.process.wait()}\n{self.log_tail()}")
            return self.healthy()

        try:
            eventually(ready, "agent answers and is healthy", seconds=seconds, every=0.02)
        except NotInTime as late:
            raise NotInTime(f"{late}\nstatus: {self.status_or_error()}\n{self.log_tail()}") from None

    def healthy(self) -> bool:
        """Whether it answers and says that all is well."""
        try:
            status = self.client.get("healthz")
        except CommandError:
            return False
        return str(status["cilium"]["state"]).lower() == "ok"

    def has_regenerated(self) -> bool:
        """Whether every endpoint is under the rules that its policies are now."""
        try:
            return all(one["status"]["state"] == "ready" for one in self.get("endpoint"))
        except CommandError:
            return False

    def status_or_error(self) -> str:
        """What it says of itself, or why it says nothing."""
        try:
            return json.dumps(self.client.get("healthz")["cilium"])
        except CommandError as error:
            return str(error)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it by a signal; its exit code."""
        assert self.process is not None
        self.process.signal(number)
        try:
            return self.process.wait(END_SECONDS)
        finally:
            self.process.end()

    def restart(self, number: int = signal.SIGTERM) -> int:
        """End it by a signal and start it again; the exit code of the one that ended."""
        code = self.stop(number)
        self.start()
        return code

    def end(self) -> None:
        """End it if it runs."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.process.end(END_SECONDS)

    def log_text(self) -> str:
        """All it has logged."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def log_tail(self, lines: int = LOG_TAIL) -> str:
        """The end of its log."""
        return "\n".join(["--- end of the agent's log ---", *self.log_text().splitlines()[-lines:]])

    def threads(self) -> str:
        """Where the kernel has each of its threads, for root."""
        lines = ["--- the agent's threads in the kernel ---"]
        for task in sorted(Path(f"/proc/{self.process.pid}/task").glob("*")) if self.process else ():
            # A thread may end meanwhile.
            with contextlib.suppress(OSError):
                lines.append(f"{task.name} {(task / 'comm').read_text().strip()}")
                lines += [f"  {line}" for line in (task / "stack").read_text().splitlines()]
        return "\n".join(lines)

    # -- asking it -----------------------------------------------------------------------------

    def get(self, path: str, **query: str | int) -> Any:
        """JSON of ``GET /v1/<path>``."""
        return self.client.get(path, **query)

    def cli(self, *arguments: str, check: bool = True, program: str = CILIUM) -> CompletedProcess[str]:
        """Run ``cilium ARGUMENTS`` against it."""
        return run(
            [sys.executable, "-m", program, *arguments],
            netns=self.netns,
            check=check,
            env={"CILIUM_SOCK": os.fspath(self.socket)},
        )

    def cilium(self, *arguments: str) -> str:
        """Output of ``cilium ARGUMENTS``; it must succeed."""
        return self.cli(*arguments).stdout

    def cilium_json(self, *arguments: str) -> Any:
        """Decoded output of ``cilium ARGUMENTS -o json``."""
        return json.loads(self.cilium(*arguments, "-o", "json"))

    def monitor(self, output: Path, *arguments: str) -> Process:
        """``cilium monitor ARGUMENTS`` writing to a file; the caller ends it."""
        with output.open("wb") as file:
            return Process(
                [sys.executable, "-m", CILIUM, "monitor", *arguments],
                netns=self.netns,
                output=file,
                env={"CILIUM_SOCK": os.fspath(self.socket), "PYTHONUNBUFFERED": "1"},
            )
