# SPDX-License-Identifier: Apache-2.0
"""
Links: what keeps a program attached, with or without this process.

Devices are attached by tcx, control groups by their attach type.  A link whose device is gone
stays pinned but says ifindex 0; `attach_tcx` and `attach_cgroup` take such pins away and otherwise
replace the program in place, so that no packet ever passes without one.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Self

from ciliumd.bpf._libbpf import ffi, lib
from ciliumd.bpf.errors import Detached, NotFound, check
from ciliumd.bpf.handle import Handle, open_pin, unpin

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ciliumd.bpf.program import Program


class TcxHook(IntEnum):
    """Where on a device."""

    INGRESS = lib.CIL_TCX_INGRESS
    EGRESS = lib.CIL_TCX_EGRESS


@dataclass(frozen=True, slots=True)
class LinkInfo:
    """What the kernel says of a link; ifindex and cgroup_id are 0 when what it hung on is gone."""

    type: int
    id: int
    prog_id: int
    ifindex: int
    attach_type: int
    cgroup_id: int

    @property
    def detached(self) -> bool:
        """Whether nothing runs through this link any more."""
        return self.ifindex == 0 and self.cgroup_id == 0


class Link(Handle):
    """An open link; closing it detaches unless it is pinned."""

    @classmethod
    def from_pin(cls, path: Path) -> Self:
        """Open a pinned link."""
        return cls(open_pin(path), path.name)

    @property
    def info(self) -> LinkInfo:
        """Read now."""
        raw = ffi.new("struct cil_link_info *")
        check(lib.cil_link_info(self.fd, raw), "read info of link", self.name)
        return LinkInfo(raw.type, raw.id, raw.prog_id, raw.ifindex, raw.attach_type, raw.cgroup_id)

    def update(self, program: Program) -> None:
        """Run another program from now on; Detached when the device or group is gone."""
        check(lib.cil_link_update(self.fd, program.fd), "update link", self.name)

    def detach(self) -> None:
        """Stop running the program, whoever still holds the link."""
        check(lib.bpf_link_detach(self.fd), "detach link", self.name)


class TcxLink(Link):
    """A program on a device."""

    @classmethod
    def attach(cls, program: Program, *, ifindex: int, hook: TcxHook) -> Self:
        """Attach behind the programs that are there already."""
        name = f"{program.name} on ifindex {ifindex} {hook.name.lower()}"
        return cls(check(lib.cil_link_create(program.fd, ifindex, hook), "attach", name), name)


class CgroupLink(Link):
    """A program on a control group; the kind of call is the program's own."""

    @classmethod
    def attach(cls, program: Program, *, cgroup: Path) -> Self:
        """Attach beside the programs that are there already."""
        name = f"{program.name} on {cgroup}"
        try:
            directory = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as failure:
            raise NotFound(
                "open", str(cgroup), failure.errno or 0, "--cgroup-root must be a cgroup2 directory"
            ) from failure
        try:
            fd = check(lib.cil_link_create(program.fd, directory, program.attach_type), "attach", name)
        finally:
            os.close(directory)
        return cls(fd, name)


def attach_tcx(program: Program, *, ifindex: int, hook: TcxHook, pin: Path) -> bool:
    """
    Have *program* run on a device by the link pinned at *pin*.

    True when it was attached anew, False when an earlier program was replaced in place.
    """
    if _replaced(program, pin, lambda info: info.ifindex == ifindex and info.attach_type == hook):
        return False
    with TcxLink.attach(program, ifindex=ifindex, hook=hook) as link:
        link.pin(pin)
    return True


def attach_cgroup(program: Program, *, cgroup: Path, pin: Path) -> bool:
    """The same for a control group."""
    # The kernel's id of a control group is the inode number of its directory.
    cgroup_id = cgroup.stat().st_ino if cgroup.is_dir() else 0
    if _replaced(program, pin, lambda info: info.cgroup_id == cgroup_id):
        return False
    with CgroupLink.attach(program, cgroup=cgroup) as link:
        link.pin(pin)
    return True


def _replaced(program: Program, pin: Path, same: Callable[[LinkInfo], bool]) -> bool:
    """Update the pinned link if it still hangs where it should; otherwise clear the pin."""
    try:
        link = Link.from_pin(pin)
    except NotFound:
        return False
    with link:
        if same(link.info):
            try:
                link.update(program)
            except Detached:
                pass  # the device vanished between the two calls
            else:
                return True
    unpin(pin)
    return False


def detach(pin: Path) -> bool:
    """Remove a pinned link and what it attached; False when there was none."""
    try:
        link = Link.from_pin(pin)
    except NotFound:
        return False
    with link:
        if not link.info.detached:
            link.detach()
    return unpin(pin)
