# SPDX-License-Identifier: Apache-2.0
"""
A node's control groups: one of its own in every hierarchy that is mounted, all with the same name.

kubelet keeps below it (``cgroupRoot``), and so does every other process of the node, so that a
program attached to the node's group of cgroup v2 sees that node and nothing else of the machine.
"""

import contextlib
import os
from functools import partial
from pathlib import Path
from typing import Final

from lab.cgroup import MOUNTS, cgroup2_mount
from lab.waiting import eventually

# Processes of the node that are not containers.
SYSTEM: Final = "system"


def make(name: str) -> None:
    """Make the group everywhere; nothing happens where it is there."""
    for root in _hierarchies():
        group = root / name
        group.mkdir(exist_ok=True)
        # A v1 group without processors and memory takes no process.
        for setting in ("cpuset.cpus", "cpuset.mems"):
            if (group / setting).exists():
                (group / setting).write_text((root / setting).read_text())
    system(name).mkdir(exist_ok=True)


def system(name: str) -> Path:
    """The cgroup v2 group of the node's own processes."""
    return cgroup2_mount() / name / SYSTEM


def remove(name: str) -> None:
    """Remove the group and all below, everywhere; the processes in it must be ending."""
    for root in _hierarchies():
        eventually(partial(_removed, root / name), f"{root / name} is empty and removed")


def _removed(group: Path) -> bool:
    for path, _, _ in os.walk(group, topdown=False):
        with contextlib.suppress(OSError):
            Path(path).rmdir()
    return not group.exists()


def _hierarchies() -> list[Path]:
    lines = [line.split() for line in MOUNTS.read_text().splitlines()]
    return sorted({Path(words[1]) for words in lines if words[2] in {"cgroup", "cgroup2"}})
