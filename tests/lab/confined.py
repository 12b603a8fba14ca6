# SPDX-License-Identifier: Apache-2.0
"""
Programs under the chart's profile of system calls and capabilities, as in the agent's container.

``python -m lab.confined REPORT COMMAND...`` becomes COMMAND, with the same pid, after having loaded the
profile.  Each call that the profile refuses by default is refused, and is a line of REPORT: its name, and
the number of the thread.  A process of its own counts, and ends with the last of the confined.
"""

import contextlib
import os
import select
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Final

import yaml

from lab import seccomp
from lab.process import REPOSITORY, SETPRIV, environment

# linux/capability.h, those that the chart's containers have.
CAPABILITIES: Final = {
    "NET_ADMIN": 12,
    "NET_RAW": 13,
    "SYS_CHROOT": 18,
    "SYS_PTRACE": 19,
    "SYS_ADMIN": 21,
    "PERFMON": 38,
    "BPF": 39,
}
CHART: Final = REPOSITORY / "charts" / "ciliumd"
PROFILE: Final = CHART / "files" / "seccomp.json"
COUNT: Final = "--count"
# What C libraries older than the image's call where that one does not: qsort(3) before glibc 2.37.
OTHER_LIBC: Final = ("sysinfo",)

# Calls that a process may make by its rights, each with arguments that succeed where nobody filters.
FORBIDDEN: Final = """
import ctypes, errno, json
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
calls = {
    "keyctl": (250, 0, -3, 0),
    "personality": (135, 0xFFFFFFFF),
    "process_vm_readv": (310, 1, 0, 0, 0, 0, 0),
    "userfaultfd": (323, 0),
    "unshare(NEWUSER|NEWUTS)": (272, 0x14000000),
    "unshare(NEWUSER|NEWNS)": (272, 0x10020000),
    "ptrace(TRACEME)": (101, 0, 0, 0, 0),
    "perf_event_open": (298, 0, 0, -1, -1, 0),
    "mount": (165, 0, 0, 0, 0, 0),
    "init_module": (175, 0, 0, 0),
    "kexec_load": (246, 0, 0, 0, 0),
    "add_key": (248, 0, 0, 0, 0, 0),
    "io_uring_setup": (425, 0, 0),
}
said = {}
for name, (number, *arguments) in calls.items():
    ctypes.set_errno(0)
    result = libc.syscall(number, *(ctypes.c_long(one) for one in arguments))
    said[name] = errno.errorcode.get(ctypes.get_errno(), "") if result < 0 else "done"
print(json.dumps(said))
"""
# Of those, what C libraries try first and go without.
MISSING: Final = "io_uring_setup"


def capabilities(container: str = "ciliumAgent") -> list[str]:
    """Those that the chart gives to a container, by its name in values.yaml."""
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    return list(values["securityContext"]["capabilities"][container])


def mask(names: Iterable[str]) -> int:
    """Capabilities as /proc/PID/status shows a set of them."""
    return sum(1 << CAPABILITIES[name] for name in names)


def status_of(pid: int) -> dict[str, str]:
    """The fields of /proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def limited(*names: str) -> list[str]:
    """Words before a command that keep these capabilities for it and no other, for good."""
    kept = ",".join(["-all", *(f"+{name.lower()}" for name in names)])
    return [SETPRIV, "--bounding-set", kept, "--inh-caps", "-all", "--"]


class Confinement:
    """What confined programs were refused is in one file; any number of them, one after the other."""

    def __init__(self, report: Path) -> None:
        self.report = report
        self.entered = 0
        report.touch()

    @property
    def profile(self) -> list[str]:
        """Words before a command: the profile alone, for agents that enter namespaces by their paths."""
        return [sys.executable, "-m", "lab.confined", str(self.report)]

    @property
    def wrapper(self) -> list[str]:
        """Words before a command: no capability but the chart's, none to be had, and the profile."""
        return [*limited(*capabilities()), *self.profile]

    def blocked(self) -> Counter[str]:
        """Calls that were refused by default, by name."""
        return Counter(line.split()[0] for line in self.report.read_text().splitlines())

    def enter(self) -> None:
        """Put the calling thread, and the threads that it starts, under the profile, for good."""
        enter(self.report)
        self.entered += 1


def enter(report: Path) -> None:
    """Load the profile; somebody else counts."""
    here, there = socket.socketpair()
    with here, there:
        words = [sys.executable, "-m", "lab.confined", COUNT, str(report), str(there.fileno())]
        subprocess.run(words, pass_fds=[there.fileno()], env=environment(), check=True)
        descriptor = seccomp.load(PROFILE, also=OTHER_LIBC)
        socket.send_fds(here, [b"."], [descriptor])
        os.close(descriptor)
        # Before the first call that is not allowed there must be somebody who answers.
        assert here.recv(1) == b"."


def count(report: Path, control: int) -> None:
    """Refuse and note until nobody is left who could ask."""
    if os.fork():
        # Not a child of the confined program, which knows nothing of it.
        os._exit(0)
    os.setsid()
    with report.open("a", buffering=1) as lines:
        try:
            judge(control, lines)
        except BaseException:
            # Calls fail from now on, and nobody knows of it but by this line.
            lines.write("nobody-counts 0\n")
            raise


def judge(control: int, lines: IO[str]) -> None:
    """Take the filter's descriptor, and answer until the last of the confined has ended."""
    with socket.socket(fileno=control) as sock:
        _, descriptors, _, _ = socket.recv_fds(sock, 1, 1)
        if not descriptors:
            # Killed before it was confined.
            return
        (descriptor,) = descriptors
        asked = seccomp.Judge(descriptor)
        # Killed before it began: the descriptor says so, too.
        with contextlib.suppress(BrokenPipeError):
            sock.sendall(b".")
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    while True:
        ((_, events),) = poll.poll()
        if not events & select.POLLIN:
            return
        if (found := asked.next()) is not None:
            question, name = found
            lines.write(f"{name} {question.pid}\n")
            asked.refuse(question)


def main() -> None:
    """Become the command, or count."""
    if sys.argv[1] == COUNT:
        count(Path(sys.argv[2]), int(sys.argv[3]))
        return
    report, *command = sys.argv[1:]
    enter(Path(report))
    os.execvp(command[0], command)  # noqa: S606  # no shell


if __name__ == "__main__":
    main()
