# SPDX-License-Identifier: Apache-2.0
"""What can go wrong with devices and namespaces, named for what the caller does about it."""

from collections.abc import Iterator
from contextlib import contextmanager

from pyroute2.netlink.exceptions import NetlinkError


class NetError(Exception):
    """A netlink operation failed: *operation* is what was tried, the reason what the kernel answered."""

    def __init__(self, operation: str, reason: str, *, errno: int = 0) -> None:
        super().__init__(f"{operation}: {reason}")
        self.operation = operation
        self.errno = errno


class NamespaceGone(NetError):
    """There is no network namespace at *path* (any more): the pod it belonged to is dead."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"network namespace {path}", reason)
        self.path = path


class LinkConflict(NetError):
    """A device of the name we need exists and is not ours; it is left alone."""


class LinkGone(NetError):
    """The device does not exist (any more)."""


@contextmanager
def netlink_errors(operation: str) -> Iterator[None]:
    """Turn the kernel's answer into :class:`NetError` with the *operation* that was tried."""
    try:
        yield
    except NetlinkError as error:
        reason = error.args[1] if len(error.args) > 1 else str(error)
        if error.code == 19:  # ENODEV
            raise LinkGone(operation, reason, errno=error.code) from error
        raise NetError(operation, reason, errno=error.code) from error
    except OSError as error:
        # The socket itself refuses: no memory, no buffers, a signal.
        raise NetError(operation, error.strerror or str(error), errno=error.errno or 0) from error
