# SPDX-License-Identifier: Apache-2.0
"""Control groups of the laboratory: children of the cgroup2 mount that are ours alone."""

import contextlib
from pathlib import Path
from typing import Self

from lab.naming import unique_name
from lab.waiting import eventually

MOUNTS = Path("/proc/mounts")


def cgroup2_mount() -> Path:
    """Where cgroup v2 is mounted.  Raises LookupError."""
    for line in MOUNTS.read_text().splitlines():
        _, mountpoint, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(mountpoint)
    raise LookupError("no cgroup2 mount: mount -t cgroup2 none /sys/fs/cgroup/unified")


class Cgroup:
    """A control group made here; processes enter it before they start (``process.placed``)."""

    def __init__(self, label: str) -> None:
        self.path = cgroup2_mount() / unique_name(label)
        self.path.mkdir()

    def remove(self) -> None:
        """Remove it once the processes that were started in it have ended."""
        remove_cgroup(self.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def remove_cgroup(path: Path) -> None:
    """Remove a control group; a process that is ending keeps it for a moment."""

    def gone() -> bool:
        with contextlib.suppress(OSError):
            path.rmdir()
        return not path.exists()

    eventually(gone, f"control group {path} is empty and removed")
