# SPDX-License-Identifier: Apache-2.0
"""What killed runs left behind: namespaces, pins and control groups named after dead processes."""

import contextlib
import shutil
import tempfile
from pathlib import Path

from lab.cgroup import cgroup2_mount, remove_cgroup
from lab.naming import owner_of
from lab.netns import IP, NETNS_DIRECTORY
from lab.process import alive, run

BPFFS = Path("/sys/fs/bpf")


def remove_pins(root: Path) -> None:
    """Remove a directory of bpffs and all pins below; what they held is detached and freed."""
    if not root.is_dir():
        return
    for path in sorted(root.rglob("*"), key=lambda path: len(path.parts), reverse=True):
        with contextlib.suppress(FileNotFoundError):
            path.rmdir() if path.is_dir() else path.unlink()
    with contextlib.suppress(FileNotFoundError):
        root.rmdir()


def sweep() -> list[str]:
    """Remove what belongs to processes that are gone; what was removed."""
    removed = []

    def is_left(owner: str | None) -> bool:
        return owner is not None and owner.isdecimal() and not alive(int(owner))

    def left(directory: Path) -> list[Path]:
        if not directory.is_dir():
            return []
        return [path for path in sorted(directory.iterdir()) if is_left(owner_of(path.name))]

    for path in left(NETNS_DIRECTORY):
        run([IP, "netns", "del", path.name], check=False)
        removed.append(str(path))
    for path in left(BPFFS):
        remove_pins(path)
        removed.append(str(path))
    with contextlib.suppress(LookupError):
        for path in left(cgroup2_mount()):
            remove_cgroup(path)
            removed.append(str(path))
    for path in left(Path(tempfile.gettempdir())):
        shutil.rmtree(path, ignore_errors=True)
        removed.append(str(path))
    return removed
