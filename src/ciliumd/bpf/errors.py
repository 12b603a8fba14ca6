# SPDX-License-Identifier: Apache-2.0
"""
Every failure of this room, and the one place where a negative errno becomes an exception.

Classes exist where a caller decides differently: absent, present, full, not allowed, refused by
the verifier, laid out otherwise.  Each carries the operation, the object's name and a hint that
says what to do.
"""

from __future__ import annotations

import errno
import os

HINTS = {
    errno.EPERM: "the agent needs CAP_BPF and CAP_NET_ADMIN (CAP_SYS_ADMIN before Linux 5.8), or root",
    errno.EACCES: "the agent needs CAP_BPF and CAP_NET_ADMIN (CAP_SYS_ADMIN before Linux 5.8), or root",
    errno.E2BIG: "the map is full; raise its size or remove entries",
    errno.ENOSPC: "the map is full; raise its size or remove entries",
    errno.ENOMEM: "the kernel is out of memory, or RLIMIT_MEMLOCK is too low (kernels before 5.11)",
}


class BpfError(Exception):
    """A call into the kernel or libbpf failed."""

    def __init__(self, op: str, name: str, number: int, hint: str = "") -> None:
        self.op = op
        self.name = name
        self.errno = number
        self.hint = hint or HINTS.get(number, "")
        code = errno.errorcode.get(number, str(number))
        text = f"{op} {name}: {os.strerror(number)} ({code})"
        super().__init__(f"{text}; {self.hint}" if self.hint else text)


class NotFound(BpfError):
    """No such element, map, pin or device."""


class Exists(BpfError):
    """The element, pin or attachment is already there."""


class NoSpace(BpfError):
    """The map is full."""


class NotPermitted(BpfError):
    """The process lacks a capability."""


class Detached(BpfError):
    """The device or control group of a link is gone."""


class Busy(BpfError):
    """Another process holds what is needed."""


class AlreadyLoaded(BpfError):
    """The object is in the kernel: its read-only data and maps cannot change any more."""

    def __init__(self, op: str, name: str) -> None:
        super().__init__(
            op, name, errno.EBUSY, "set options before load(); open the object again to change them"
        )


class VerifierRejected(BpfError):
    """The kernel refused a program; `log` holds the verifier's words."""

    def __init__(self, op: str, name: str, number: int, log: str) -> None:
        self.log = log
        lines = [line for line in log.splitlines() if line and not line.startswith(("processed ", "-- "))]
        super().__init__(op, name, number, f"the verifier said: {lines[-1]}" if lines else "")


class LayoutMismatch(BpfError):
    """A pinned map is laid out differently from what this version reads and writes."""

    def __init__(self, map_name: str, field: str, expected: str, found: str) -> None:
        self.map = map_name
        self.field = field
        self.expected = expected
        self.found = found
        hint = (
            f"{field}: expected {expected}, found {found}; it was made by another version: run that version, "
            "or stop the agent and remove the pins"
        )
        super().__init__("check the layout of", map_name, errno.EINVAL, hint)


class ObjectRejected(BpfError):
    """An object is not the one that was built with this package."""

    def __init__(self, name: str, reason: str) -> None:
        self.reason = reason
        super().__init__("open object", name, errno.EBADMSG, reason)


class KernelTooOld(BpfError):
    """The running kernel lacks something the datapath cannot do without."""

    def __init__(self, feature: str, found: str, wanted: str) -> None:
        super().__init__("probe", feature, errno.EOPNOTSUPP, f"found {found}, needed {wanted}")


CLASSES: dict[int, type[BpfError]] = {
    errno.ENOENT: NotFound,
    errno.ENODEV: NotFound,
    errno.EEXIST: Exists,
    errno.E2BIG: NoSpace,
    errno.ENOSPC: NoSpace,
    errno.EPERM: NotPermitted,
    errno.EACCES: NotPermitted,
    errno.ENOLINK: Detached,
    errno.EBUSY: Busy,
}


def error(op: str, name: str, number: int, hint: str = "") -> BpfError:
    """The exception for an errno."""
    return CLASSES.get(number, BpfError)(op, name, number, hint)


def check(result: int, op: str, name: str) -> int:
    """Pass a result through, or raise for a negative errno."""
    if result < 0:
        raise error(op, name, -result)
    return result
