# SPDX-License-Identifier: Apache-2.0
"""
``ciliumd mount``: mount a BPF or cgroup2 file system on the node, from a container.

Run by init containers where the node has none.  A mount made in a container is not the node's, and making
it so by mount propagation needs a privileged one; so the node's mount namespace is entered, which needs
CAP_SYS_ADMIN, CAP_SYS_CHROOT and CAP_SYS_PTRACE and nothing else.  Its cgroup namespace too, since a
cgroup2 shows what is below that of whoever mounts it.  The process ends there and needs no way back.
"""

import argparse
import ctypes
import os
from pathlib import Path
from typing import Final

from ciliumd.cli.arguments import Commands, command
from ciliumd.cli.errors import OK, CommandError

TYPES: Final = ("bpf", "cgroup2")
_NAMESPACES: Final = {"cgroup": 0x02000000, "mnt": 0x00020000}  # CLONE_NEWCGROUP, CLONE_NEWNS
_FLAGS: Final = 0x2 | 0x4 | 0x8  # MS_NOSUID, MS_NODEV, MS_NOEXEC


def register(commands: Commands) -> None:
    """Add ``mount``."""
    parser = command(
        commands, "mount", "Mount a file system on the node, unless it is there", run, output=False
    )
    parser.add_argument("type", choices=TYPES, metavar="TYPE", help=" or ".join(TYPES))
    parser.add_argument("target", type=Path, metavar="DIR")
    parser.add_argument(
        "--node", type=Path, metavar="PROC/1", help="process of the node whose namespaces are meant"
    )


def run(arguments: argparse.Namespace) -> int:
    """Mount, or say that it is mounted."""
    if mounted(_mounts(arguments.node), arguments.type, arguments.target):
        print(f"{arguments.type} is mounted on {arguments.target}")
        return OK
    try:
        if arguments.node is not None:
            _enter(arguments.node / "ns")
        arguments.target.mkdir(parents=True, exist_ok=True)
        _mount(arguments.type, arguments.target)
    except OSError as error:
        raise CommandError(
            f"cannot mount {arguments.type} on {arguments.target}: {error.strerror} ({error.filename})",
            hint=f"run `mount -t {arguments.type} none {arguments.target}` on the node, and set "
            "bpf.autoMount.enabled or cgroup.autoMount.enabled to false in the chart",
        ) from error
    print(f"mounted {arguments.type} on {arguments.target}")
    return OK


def mounted(mounts: str, kind: str, target: Path) -> bool:
    """Whether the last mount on *target* in the text of ``/proc/<pid>/mounts`` is of this kind."""
    on_target = [fields for line in mounts.splitlines() if (fields := line.split())[1:2] == [str(target)]]
    return bool(on_target) and on_target[-1][2] == kind


def _mounts(node: Path | None) -> str:
    path = (node or Path("/proc/self")) / "mounts"
    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise CommandError(
            f"cannot read {path}: {error.strerror}", hint="mount the node's /proc and name its process 1"
        ) from error


def _enter(directory: Path) -> None:
    """Put this process, which has one thread, into the namespaces of another."""
    paths = [(directory / name, kind) for name, kind in _NAMESPACES.items()]
    # All are opened first: behind the mount namespace's door the paths mean something else.
    opened = [(path, os.open(path, os.O_RDONLY | os.O_CLOEXEC), kind) for path, kind in paths]
    for path, descriptor, kind in opened:
        _check(_libc().setns(descriptor, kind), str(path))


def _mount(kind: str, target: Path) -> None:
    source = os.fsencode(kind)
    result = _libc().mount(source, os.fsencode(target), source, ctypes.c_ulong(_FLAGS), None)
    _check(result, str(target))


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int, name: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)
