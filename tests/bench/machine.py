# SPDX-License-Identifier: Apache-2.0
"""What the figures were taken on, which core does what, and how busy cores and processes were."""

import os
import platform
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Self

from lab.process import REPOSITORY

TASKSET: Final = "/usr/bin/taskset"
NICE: Final = "/usr/bin/nice"
GIT: Final = "/usr/bin/git"
CPUINFO: Final = Path("/proc/cpuinfo")
STAT: Final = Path("/proc/stat")
TICKS: Final = os.sysconf("SC_CLK_TCK")
# user, nice, system, irq, softirq in the lines of /proc/stat
BUSY_COLUMNS: Final = (1, 2, 3, 6, 7)
# Links behind a new pod's filters and devices taken away behind an answer are done in it.
SETTLE_SECONDS: Final = 15.0
# Two of the agent's full comparisons of maps.
REST_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class Cores:
    """A core for who asks and one for who answers, maybe the same."""

    client: int
    server: int

    @classmethod
    def one(cls) -> Self:
        """Both on one core: no wake-up across cores, so the time is the path's."""
        first = min(os.sched_getaffinity(0))
        return cls(first, first)

    @classmethod
    def two(cls) -> Self:
        """Each on a core of its own, where the machine has two; wake-ups are part of the time."""
        allowed = sorted(os.sched_getaffinity(0))
        return cls(allowed[0], allowed[-1])

    def __str__(self) -> str:
        return "one core" if self.client == self.server else "two cores"

    @staticmethod
    def pinned(core: int) -> list[str]:
        """Words before a command that keep it on one core."""
        return [TASKSET, "--cpu-list", str(core)]

    @classmethod
    def preferred(cls, core: int) -> list[str]:
        """The same, and let other people's processes wait: they are not what is measured."""
        return [*cls.pinned(core), NICE, "--adjustment=-20"]


def describe() -> dict[str, Any]:
    """Kernel, commit, date, cores, and what else the machine was doing."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in CPUINFO.read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "kernel": platform.release(),
        "commit": _git("rev-parse", "--short", "HEAD"),
        "uncommitted": len(_git("status", "--porcelain", "--", "src", "datapath").splitlines()),
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "load_at_start": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
    }


def _git(*arguments: str) -> str:
    # The checkout may belong to somebody else; reading it does no harm.
    command = [GIT, "-c", f"safe.directory={REPOSITORY}", *arguments]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def busy_seconds() -> float:
    """CPU time all cores have spent on anything but waiting."""
    columns = STAT.read_text().splitlines()[0].split()
    return sum(int(columns[at]) for at in BUSY_COLUMNS) / TICKS


def process_seconds(pid: int) -> float:
    """CPU time of a process, all its threads, to the nanosecond."""
    tasks = Path(f"/proc/{pid}/task")
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks.iterdir()) / 1e9


def percent_at_rest(pid: int) -> float:
    """Percent of a core that an agent takes once all it was asked for is done, also behind its answers."""
    time.sleep(SETTLE_SECONDS)
    before = process_seconds(pid)
    time.sleep(REST_SECONDS)
    return 100 * (process_seconds(pid) - before) / REST_SECONDS


def memory_kib(pid: int, *fields: str) -> dict[str, int]:
    """Fields of a process's smaps_rollup: Rss and Pss, unless others are named."""
    wanted = {f"{field}:" for field in fields or ("Rss", "Pss")}
    lines = (line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    return {words[0].rstrip(":"): int(words[1]) for words in lines if words[0] in wanted}


def peak_kib(pid: int) -> int:
    """The most memory that a process ever had resident."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def timed(action: Callable[[], object]) -> float:
    """Seconds that it takes."""
    began = time.monotonic()
    action()
    return time.monotonic() - began
