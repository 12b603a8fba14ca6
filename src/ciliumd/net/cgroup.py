# SPDX-License-Identifier: Apache-2.0
"""
The control group that holds every pod of the node: where socket programs are attached.

It is the parent of ``kubepods``, which kubelet makes below its ``--cgroup-root``: the root of the
hierarchy on most nodes, deeper where several nodes share a machine.  The agent finds it from its own
group, for it is a pod itself.  Sources: cgroups(7), cgroup_namespaces(7), proc(5), and the naming of
kubelet's cgroup managers (cgroupfs: ``kubepods``; systemd: ``kubepods.slice``, nested
``kubelet-kubepods.slice``).
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

KUBEPODS = re.compile(r"(?:.+-)?kubepods(?:\.slice)?")
"""Name of the group kubelet puts all pods in."""

_ROOT = PurePosixPath("/")
_OCTAL = re.compile(r"\\([0-7]{3})")


class CgroupNotFound(Exception):
    """The group cannot be told; the text says what was looked at and what to do."""


@dataclass(frozen=True, slots=True)
class Mount:
    """A mounted cgroup2; *root* is the directory of the hierarchy that is seen at *point*."""

    root: PurePosixPath
    point: Path

    @property
    def above(self) -> int:
        """By how many levels *root* lies above the reader's cgroup namespace."""
        return self.root.parts.count("..")


def own_group(cgroup: str) -> PurePosixPath:
    """The path in the line of the unified hierarchy of ``/proc/self/cgroup``.  Raises CgroupNotFound."""
    for line in cgroup.splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            return PurePosixPath(path)
    raise CgroupNotFound("this process is in no cgroup2 group (no line 0:: in /proc/self/cgroup)")


def cgroup2_mounts(mountinfo: str) -> tuple[Mount, ...]:
    """Every cgroup2 of ``/proc/self/mountinfo``, in its order."""
    found = []
    for line in mountinfo.splitlines():
        left, separator, right = line.partition(" - ")
        fields = left.split()
        if separator and right.split()[:1] == ["cgroup2"]:
            found.append(Mount(PurePosixPath(_text(fields[3])), Path(_text(fields[4]))))
    return tuple(found)


def group_of_all_pods(
    cgroup: str, mountinfo: str, *, search: Callable[[Path, Path], PurePosixPath | None]
) -> Path:
    """
    The parent of ``kubepods``, as a directory of a mounted cgroup2.

    *cgroup* and *mountinfo* are the texts of ``/proc/self``.  In a cgroup namespace of its own the process
    does not see its path; *search* then finds it by the directory's identity: given the node's mount and
    the process's own, it returns the path of the latter below the former.  Raises CgroupNotFound.
    """
    mounts = cgroup2_mounts(mountinfo)
    if not mounts:
        raise CgroupNotFound(
            "no cgroup2 is mounted here; mount the node's /sys/fs/cgroup, set cgroup.autoMount.enabled=true "
            "in the chart where the node has none, or name a directory by cgroup-root"
        )
    own = own_group(cgroup)
    if own == _ROOT:
        path, mount = _searched(mounts, search)
    else:
        path, mount = _relative(own, mounts)
    parent = parent_of_kubepods(path)
    if parent is None:
        raise CgroupNotFound(
            f"this process's group {path} (of {mount.point}) is not below kubepods, so it is no pod; name "
            "the parent of kubepods by cgroup-root"
        )
    return mount.point / parent.relative_to(_ROOT)


def parent_of_kubepods(path: PurePosixPath) -> PurePosixPath | None:
    """
    The directory of *path* whose child on the way down is kubelet's; None if there is none.

    The innermost: a node may itself be a pod of another.
    """
    found = [index for index, name in enumerate(path.parts) if KUBEPODS.fullmatch(name)]
    return PurePosixPath(*path.parts[: found[-1]]) if found else None


def find_group_of_all_pods(proc: Path = Path("/proc/self")) -> Path:
    """:func:`group_of_all_pods` of the calling process.  Raises CgroupNotFound."""
    try:
        texts = (proc / "cgroup").read_text("utf-8"), (proc / "mountinfo").read_text("utf-8")
    except OSError as error:
        raise CgroupNotFound(f"cannot read {error.filename}: {error.strerror}") from error
    return group_of_all_pods(*texts, search=search_by_inode)


def search_by_inode(tree: Path, own: Path) -> PurePosixPath | None:
    """Path below *tree* of the directory that *own* is: the inode of a group's directory is its id."""
    wanted = own.stat().st_ino
    for directory in _kubepods(tree):
        for path in (directory, *directory.rglob("*/")):
            try:
                if path.stat().st_ino == wanted:
                    return _ROOT / path.relative_to(tree)
            except FileNotFoundError:
                continue  # a pod that ended meanwhile
    return None


def _kubepods(tree: Path) -> Iterator[Path]:
    """Directories of kubelet's below *tree*, nearest first; what is in them is not searched for more."""
    level = [tree]
    while level:
        below: list[Path] = []
        for directory in level:
            try:
                children = sorted(child for child in directory.iterdir() if child.is_dir())
            except FileNotFoundError:
                continue
            for child in children:
                if KUBEPODS.fullmatch(child.name):
                    yield child
                else:
                    below.append(child)
        level = below


def _searched(
    mounts: tuple[Mount, ...], search: Callable[[Path, Path], PurePosixPath | None]
) -> tuple[PurePosixPath, Mount]:
    """In a namespace: the mount that reaches farthest above it is the node's."""
    node = max(mounts, key=lambda mount: mount.above)
    own = next((mount for mount in mounts if mount.root == _ROOT), None)
    if not node.above or own is None:
        raise CgroupNotFound(
            "the node's cgroup2 is not mounted here, only this container's own; mount the node's "
            "/sys/fs/cgroup, or name a directory by cgroup-root"
        )
    path = search(node.point, own.point)
    if path is None:
        raise CgroupNotFound(
            f"this container's group is nowhere below kubepods in {node.point}; name the parent of kubepods "
            "by cgroup-root"
        )
    return path, node


def _relative(own: PurePosixPath, mounts: tuple[Mount, ...]) -> tuple[PurePosixPath, Mount]:
    """In the node's namespace: the mount with the outermost root that contains this process."""
    for mount in sorted(mounts, key=lambda mount: len(mount.root.parts)):
        if own.is_relative_to(mount.root) and parent_of_kubepods(_ROOT / own.relative_to(mount.root)):
            return _ROOT / own.relative_to(mount.root), mount
    for mount in mounts:
        if own.is_relative_to(mount.root):
            return _ROOT / own.relative_to(mount.root), mount
    roots = ", ".join(str(mount.point) for mount in mounts)
    raise CgroupNotFound(f"this process's group {own} is in none of the mounted cgroup2 ({roots})")


def _text(field: str) -> str:
    """A field of mountinfo: space, tab, newline and backslash are written in octal."""
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), field)
