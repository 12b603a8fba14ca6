# SPDX-License-Identifier: Apache-2.0
"""
The directory of pins: <root>/maps, <root>/links and <root>/gen_N.

bpffs holds no regular files and refuses dots in names, so the lock lives in the state directory.
A first start builds in a sibling directory and renames it when complete: a crash before that
leaves nothing that looks like state.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
from typing import TYPE_CHECKING, Self

from ciliumd.bpf._libbpf import lib
from ciliumd.bpf.errors import BpfError, Busy, NotPermitted, error

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

GENERATION = "gen_"


class Pins:
    """The pins of one agent; whoever holds this holds the lock."""

    def __init__(self, root: Path, *, state_dir: Path) -> None:
        if "." in root.name:
            raise BpfError(
                "use", str(root), errno.EINVAL, "bpffs refuses names with a dot; choose another --bpf-root"
            )
        self.root = root
        self._lock = _lock(root, state_dir)
        try:
            ensure_bpffs(root)
            self.first_start = not (root / "maps").is_dir()
            self.base = root.with_name(f"{root.name}_new") if self.first_start else root
            if self.first_start:
                remove_tree(self.base)
            for directory in (self.base, self.maps, self.links):
                _make(directory)
        except BaseException:
            os.close(self._lock)
            raise

    @property
    def maps(self) -> Path:
        """Where state maps are pinned."""
        return self.base / "maps"

    @property
    def links(self) -> Path:
        """Where links are pinned."""
        return self.base / "links"

    def link(self, *words: str | int) -> Path:
        """The pin of a link, named by these words (tcx, ifindex, hook)."""
        return self.links / "_".join(str(word).replace(".", "_") for word in words)

    def generation(self, number: int) -> Path:
        """The pins of one generation of programs."""
        return self.base / f"{GENERATION}{number}"

    def generations(self) -> list[int]:
        """Numbers of the generations that have pins."""
        names = [path.name.removeprefix(GENERATION) for path in self.base.glob(f"{GENERATION}*")]
        return sorted(int(name) for name in names if name.isdigit())

    def make_generation(self, number: int) -> Path:
        """An empty directory for a generation; what a crash left there is removed."""
        self.drop_generation(number)
        _make(self.generation(number))
        return self.generation(number)

    def drop_generation(self, number: int) -> bool:
        """Remove a generation's pins; False when it had none."""
        return remove_tree(self.generation(number))

    def commit(self) -> None:
        """After a first start: everything is built, give it its name."""
        if self.base == self.root:
            return
        try:
            remove_tree(self.root)
            self.base.rename(self.root)
        except OSError as failure:
            raise error("rename pins to", str(self.root), failure.errno or 0) from failure
        self.base = self.root

    def close(self) -> None:
        """Give the lock back; an uncommitted first start is taken away."""
        descriptor, self._lock = self._lock, -1
        if descriptor < 0:
            return
        try:
            if self.base != self.root:
                remove_tree(self.base)
        finally:
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def ensure_bpffs(root: Path) -> Path:
    """
    The directory *root* lies in, on a mounted bpffs.

    An existing bpffs is used; otherwise one is mounted on /sys/fs/bpf for roots below it, and on
    the root's parent directory for all others.
    """
    existing = next(path for path in (root, *root.parents) if path.is_dir())
    if _is_bpffs(existing):
        _make_parents(root.parent)
        return root.parent
    mount_point = next((path for path in root.parents if str(path) == "/sys/fs/bpf"), root.parent)
    try:
        mount_point.mkdir(parents=True, exist_ok=True)
    except OSError as failure:
        hint = "mount bpffs there, or choose another --bpf-root"
        raise error("create", str(mount_point), failure.errno or 0, hint) from failure
    result = lib.cil_mount_bpffs(os.fsencode(mount_point))
    if result in {-errno.EPERM, -errno.EACCES}:
        hint = f"run `mount -t bpf bpffs {mount_point}` as root before the agent, or give it CAP_SYS_ADMIN"
        raise NotPermitted("mount bpffs on", str(mount_point), -result, hint)
    if result < 0:
        raise error("mount bpffs on", str(mount_point), -result, "the kernel needs CONFIG_BPF_SYSCALL")
    _make_parents(root.parent)
    return root.parent


def remove_tree(path: Path) -> bool:
    """Unlink everything under *path*; False when it does not exist."""
    if not path.is_dir():
        return False
    try:
        for child in list(path.iterdir()):
            if child.is_dir() and not child.is_symlink():
                remove_tree(child)
            else:
                child.unlink()
        path.rmdir()
    except OSError as failure:
        raise error("remove pins", str(path), failure.errno or 0) from failure
    return True


def _is_bpffs(path: Path) -> bool:
    result = lib.cil_is_bpffs(os.fsencode(path))
    if result < 0:
        raise error("examine", str(path), -result)
    return result == 1


def _make(path: Path) -> None:
    try:
        path.mkdir(mode=0o700, exist_ok=True)
    except OSError as failure:
        raise error("create", str(path), failure.errno or 0) from failure


def _make_parents(path: Path) -> None:
    if not path.is_dir():
        _make_parents(path.parent)
        _make(path)


def _open_lock(path: Path) -> int:
    """The lock's file, made if there is none; on a file system that has become read-only as it is."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as failure:
        if failure.errno != errno.EROFS:
            raise
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def _lock(root: Path, state_dir: Path) -> int:
    """Take the advisory lock of this root; Busy when another agent has it."""
    name = hashlib.sha256(os.fsencode(root)).hexdigest()[:16]
    path = state_dir / f"bpf-{name}.lock"
    try:
        state_dir.mkdir(parents=True, exist_ok=True)
        descriptor = _open_lock(path)
    except OSError as failure:
        raise error("open lock", str(path), failure.errno or 0, "choose another --state-dir") from failure
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as failure:
        os.close(descriptor)
        hint = f"another agent holds {path}; stop it, or choose another --bpf-root"
        raise Busy("lock", str(root), errno.EBUSY, hint) from failure
    return descriptor
