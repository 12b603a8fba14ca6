# SPDX-License-Identifier: Apache-2.0
"""Control groups of the laboratory: children of the cgroup2 mount that are ours alone."""

import contextlib
import shlex
from pathlib import Path
from typing import Final, Self

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


# By controller: the files of cgroup v1 and of v2 that hold a limit.
LIMITS: Final = {"memory": ("memory.limit_in_bytes", "memory.max"), "pids": ("pids.max", "pids.max")}


def _home_of(controller: str) -> tuple[Path, int]:
    """Where groups of a controller are made, below our own in v1, and the version.  Raises LookupError."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        if controller in names.split(","):
            for mount in MOUNTS.read_text().splitlines():
                _, mountpoint, kind, options, *_ = mount.split()
                if kind == "cgroup" and controller in options.split(","):
                    home = Path(mountpoint) / path.lstrip("/")
                    return home if home.is_dir() else Path(mountpoint), 1
    root = cgroup2_mount()
    if controller not in (root / "cgroup.subtree_control").read_text().split():
        raise LookupError(f"no control group counts {controller}")
    return root, 2


class Cgroup:
    """A control group made here; processes enter it before they start (``process.placed``)."""

    def __init__(self, label: str, *, home: Path | None = None) -> None:
        """Below *home*, or the cgroup2 mount."""
        self.path = (home or cgroup2_mount()) / unique_name(label)
        self.path.mkdir()

    def remove(self) -> None:
        """Remove it once the processes that were started in it have ended."""
        remove_cgroup(self.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


class Limited(Cgroup):
    """One that limits *controller*; who is in it: :attr:`wrapper` and :meth:`take`."""

    def __init__(self, controller: str, label: str) -> None:
        home, version = _home_of(controller)
        super().__init__(label, home=home)
        self._limit = self.path / LIMITS[controller][version - 1]

    @property
    def wrapper(self) -> list[str]:
        """Before a command: it runs in the group under the same number."""
        return [
            "/bin/sh",
            "-c",
            f'echo 0 > {shlex.quote(str(self.path))}/cgroup.procs && exec "$@"',
            "limited",
        ]

    def limit(self, number: int | None) -> None:
        """Bytes, or processes and threads; None for any number."""
        anything = "-1" if self._limit.name == "memory.limit_in_bytes" else "max"
        self._limit.write_text(anything if number is None else str(number))

    def take(self, pid: int) -> None:
        """Move a process here with all its threads."""
        (self.path / "cgroup.procs").write_text(str(pid))


def remove_cgroup(path: Path) -> None:
    """Remove a control group; a process that is ending keeps it for a moment."""

    def gone() -> bool:
        with contextlib.suppress(OSError):
            path.rmdir()
        return not path.exists()

    eventually(gone, f"control group {path} is empty and removed")
