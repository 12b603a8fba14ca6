# SPDX-License-Identifier: Apache-2.0
"""
BPF system calls and started programs of one process, counted by the kernel's trace events.

An instance of our own, removed in the end.  What is not of the process and its children is thrown away.
"""

import contextlib
import re
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from lab.naming import owner_of, unique_name
from lab.process import alive

MOUNT: Final = "/usr/bin/mount"
UMOUNT: Final = "/usr/bin/umount"
TRACEFS: Final = Path("/sys/kernel/tracing")
EVENTS: Final = ("syscalls/sys_enter_bpf", "sched/sched_process_fork", "sched/sched_process_exec")
BUFFER_KIB: Final = 8192
BPF_LINE: Final = re.compile(r"-(\d+)\s+\[\d+\].*sys_bpf\(cmd: (?:0x)?([0-9a-f]+)")
FORK_LINE: Final = re.compile(r"sched_process_fork: .* pid=(\d+) child_comm=.* child_pid=(\d+)")
EXEC_LINE: Final = re.compile(r"sched_process_exec: filename=(\S+) pid=(\d+)")
LOAD_PROGRAM: Final = "BPF_PROG_LOAD"
# enum bpf_cmd; the others are not used by the agent.
COMMANDS: Final = {
    0: "BPF_MAP_CREATE",
    1: "BPF_MAP_LOOKUP_ELEM",
    2: "BPF_MAP_UPDATE_ELEM",
    3: "BPF_MAP_DELETE_ELEM",
    4: "BPF_MAP_GET_NEXT_KEY",
    5: LOAD_PROGRAM,
    6: "BPF_OBJ_PIN",
    7: "BPF_OBJ_GET",
    15: "BPF_OBJ_GET_INFO_BY_FD",
    18: "BPF_BTF_LOAD",
    24: "BPF_MAP_LOOKUP_BATCH",
    26: "BPF_MAP_UPDATE_BATCH",
    27: "BPF_MAP_DELETE_BATCH",
    28: "BPF_LINK_CREATE",
    29: "BPF_LINK_UPDATE",
    34: "BPF_LINK_DETACH",
}


@dataclass(frozen=True, slots=True)
class Seen:
    """What one process asked the kernel for, and the programs that it or a child of its started."""

    bpf: Counter[str]
    started: list[str]


@contextlib.contextmanager
def tracefs() -> Iterator[None]:
    """The trace file system in its usual place; taken away again if it was not there."""
    mounted = (TRACEFS / "trace").exists()
    if not mounted:
        subprocess.run([MOUNT, "-t", "tracefs", "tracefs", TRACEFS], check=True)
    try:
        yield
    finally:
        if not mounted:
            subprocess.run([UMOUNT, "--lazy", TRACEFS], check=True)


class SyscallTrace:
    """Records while `during` runs.  A context manager that removes its instance."""

    def __init__(self) -> None:
        self._directory = TRACEFS / "instances" / unique_name("bench")

    def __enter__(self) -> Self:
        _sweep()
        self._directory.mkdir()
        try:
            self._write("buffer_size_kb", str(BUFFER_KIB))
            self._write("tracing_on", "0")
            for event in EVENTS:
                self._write(f"events/{event}/enable", "1")
        except BaseException:
            self._directory.rmdir()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._write("events/enable", "0")
        self._directory.rmdir()

    def during(self, action: Callable[[], object], *, pid: Callable[[], int]) -> Seen:
        """What the process asked for while *action* ran; *pid* is asked when it is over."""
        self._write("trace", "")
        self._write("tracing_on", "1")
        try:
            action()
        finally:
            self._write("tracing_on", "0")
        text = (self._directory / "trace").read_text()
        # Any thread may start a program, those that were there before all this too.
        family = {int(task.name) for task in Path(f"/proc/{pid()}/task").iterdir()}
        for parent, child in FORK_LINE.findall(text):
            if int(parent) in family:
                family.add(int(child))
        bpf = Counter(
            COMMANDS.get(int(command, 16), f"command {int(command, 16)}")
            for thread, command in BPF_LINE.findall(text)
            if int(thread) in family
        )
        # The process becomes what it is by exec itself: only others count.
        family.discard(pid())
        return Seen(bpf, [name for name, process in EXEC_LINE.findall(text) if int(process) in family])

    def _write(self, name: str, text: str) -> None:
        (self._directory / name).write_text(f"{text}\n")


def _sweep() -> None:
    """Remove instances of benchmarks that were killed."""
    for directory in (TRACEFS / "instances").iterdir():
        owner = owner_of(directory.name)
        if owner is not None and owner.isdecimal() and not alive(int(owner)):
            (directory / "events" / "enable").write_text("0\n")
            with contextlib.suppress(OSError):
                directory.rmdir()
