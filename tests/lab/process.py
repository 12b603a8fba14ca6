# SPDX-License-Identifier: Apache-2.0
"""
Processes of the laboratory: started in a namespace and a cgroup, ended by their number.

A process dies with the one that started it (``PDEATHSIG``) unless it is meant to outlive it, so a
killed test run leaves none.
"""

import contextlib
import os
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Final, Self

from lab.waiting import PATIENCE

NSENTER: Final = "/usr/bin/nsenter"
SETPRIV: Final = "/usr/bin/setpriv"
SHELL: Final = "/bin/sh"
REPOSITORY: Final = Path(__file__).resolve().parents[2]
END_SECONDS: Final = 10.0


class CommandFailed(AssertionError):
    """A command ended with another code than 0; the text has its output."""


def placed(
    command: Sequence[str | os.PathLike[str]],
    *,
    netns: Path | None = None,
    cgroup: Path | None = None,
    outlive: bool = False,
) -> list[str]:
    """*command* wrapped so that it runs in a network namespace and a cgroup, with the same pid."""
    argv = [] if outlive else [SETPRIV, "--pdeathsig", "KILL", "--"]
    if netns is not None:
        # Never `ip netns exec`: it mounts another /sys, where bpffs and cgroups are missing.
        argv += [NSENTER, f"--net={netns}", "--"]
    argv += [os.fspath(part) for part in command]
    if cgroup is None:
        return argv
    return [SHELL, "-c", f'echo 0 > {shlex.quote(str(cgroup))}/cgroup.procs && exec "$@"', "placed", *argv]


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Environment of our programs: this checkout's packages first."""
    paths = [str(REPOSITORY / "src"), str(REPOSITORY / "tests"), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "PYTHONDONTWRITEBYTECODE": "1",
        **(extra or {}),
    }


def run(
    command: Sequence[str | os.PathLike[str]],
    *,
    netns: Path | None = None,
    cgroup: Path | None = None,
    check: bool = True,
    seconds: float = 30.0,
    env: Mapping[str, str] | None = None,
    stdin: str | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run to the end.  Raises :class:`CommandFailed` unless *check* is off."""
    done = subprocess.run(
        placed(command, netns=netns, cgroup=cgroup),
        env=environment(env),
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        text=True,
        check=False,
        timeout=seconds * PATIENCE,
    )
    if check and done.returncode:
        raise CommandFailed(
            f"{shlex.join(map(str, command))} in {netns or 'this namespace'} ended with {done.returncode}\n"
            f"{done.stdout}{done.stderr}"
        )
    return done


class Process:
    """A running process; output goes to a file or a pipe.  A context manager that ends it."""

    def __init__(
        self,
        command: Sequence[str | os.PathLike[str]],
        *,
        netns: Path | None = None,
        cgroup: Path | None = None,
        env: Mapping[str, str] | None = None,
        output: IO[bytes] | int = subprocess.DEVNULL,
        stdin: int = subprocess.DEVNULL,
        outlive: bool = False,
    ) -> None:
        self.command = [os.fspath(part) for part in command]
        self.popen = subprocess.Popen(
            placed(command, netns=netns, cgroup=cgroup, outlive=outlive),
            start_new_session=outlive,
            env=environment(env),
            stdin=stdin,
            stdout=output,
            stderr=subprocess.STDOUT,
        )

    @property
    def pid(self) -> int:
        """Its number; the wrappers replace themselves, so it is the command's own."""
        return self.popen.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self.popen.poll() is None

    def signal(self, number: int) -> None:
        """Send a signal, if it still runs."""
        with contextlib.suppress(ProcessLookupError):
            self.popen.send_signal(number)

    def wait(self, seconds: float = END_SECONDS) -> int:
        """Its exit code; a negative one is a signal.  Raises ``subprocess.TimeoutExpired``."""
        return self.popen.wait(seconds * PATIENCE)

    def end(self, seconds: float = END_SECONDS) -> int:
        """Ask it to end, then make it; its exit code."""
        if self.running:
            self.popen.terminate()
            try:
                self.popen.wait(seconds * PATIENCE)
            except subprocess.TimeoutExpired:
                self.popen.kill()
        code = self.popen.wait(seconds)
        for pipe in (self.popen.stdin, self.popen.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        return code

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


def alive(pid: int) -> bool:
    """Whether a process with this number runs; one that only waits to be reaped does not."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] != "Z"
