# SPDX-License-Identifier: Apache-2.0
"""
Network namespaces: held open with a netlink socket inside, by path or by descriptors somebody passed.

A namespace is a path (``/var/run/netns/x``, ``/proc/<pid>/ns/net``).  Entering happens in a thread that
is thrown away afterwards, so that no thread anybody else uses is ever in the wrong namespace.  A socket
stays in the namespace it was opened in, so whoever has one needs to enter nothing.
"""

import ctypes
import errno
import fcntl
import os
import socket
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Self, TypeVar

from pyroute2 import IPRoute

from ciliumd.net import sysctl
from ciliumd.net.errors import NamespaceGone

T = TypeVar("T")

_NS_GET_NSTYPE = 0xB703
_SIOCGSKNS = 0x894C
_CLONE_NEWNET = 0x40000000
_SO_NETNS_COOKIE = 71


@dataclass(frozen=True, slots=True)
class Sandbox:
    """
    A pod's namespace, held open: *netns* is a descriptor of it, *netlink* a route socket inside.

    *path* is where whoever asked knows it; this process may not see it.  A context manager.
    """

    path: str
    netns: int
    netlink: socket.socket

    @classmethod
    def received(cls, path: str, netns: int, netlink: int) -> Self:
        """
        Take over two descriptors of another process; they are closed with the sandbox.

        NamespaceGone when they are not a network namespace and a route socket in it; then they are closed.
        """
        try:
            opened = socket.socket(fileno=netlink)
        except OSError as error:
            os.close(netns)
            os.close(netlink)
            raise NamespaceGone(path, "what was passed is no socket") from error
        sandbox = cls(path, netns, opened)
        try:
            _require_inside(sandbox)
        except BaseException:
            sandbox.close()
            raise
        return sandbox

    @contextmanager
    def routes(self) -> Iterator[IPRoute]:
        """Netlink inside the namespace; for one thread at a time."""
        # It closes the socket it is given.
        own = socket.socket(fileno=fcntl.fcntl(self.netlink, fcntl.F_DUPFD_CLOEXEC, 0))
        with IPRoute(use_socket=own, groups=0) as ipr:
            yield ipr

    @property
    def cookie(self) -> int:
        """See :func:`cookie_of`."""
        return cookie_of(self.netlink)

    def close(self) -> None:
        """Let the namespace go."""
        self.netlink.close()
        os.close(self.netns)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def cookie_of(inside: socket.socket) -> int:
    """
    The kernel's number of the network namespace that a socket is in, never used twice (SO_NETNS_COOKIE).

    0 before Linux 5.14, which tells nobody.
    """
    try:
        return int.from_bytes(inside.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8), sys.byteorder)
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:
            raise
        return 0


def own_cookie() -> int:
    """The number of the namespace that this thread is in."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, socket.NETLINK_ROUTE) as here:
        return cookie_of(here)


def open_sandbox(ipr: IPRoute, path: str, ipv6: bool = False) -> Sandbox:
    """
    The pod's namespace at *path*; NamespaceGone if there is none.

    Devices made in it from now on have no IPv6, or a quiet one, as with the CNI executable.
    """
    del ipr  # called like all that the netlink thread does

    def inside() -> socket.socket:
        if ipv6:
            sysctl.quiet_ipv6("default")
        else:
            sysctl.disable_ipv6("default")
        return socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)

    with open_namespace(path) as fd:
        netlink = run_in_namespace_fd(path, fd, inside)
        return Sandbox(path, fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 0), netlink)


def close_sandbox(ipr: IPRoute, sandbox: Sandbox) -> None:
    """Let a namespace go once the netlink thread has done all it was asked to do with it."""
    del ipr
    sandbox.close()


def is_own_namespace(fd: int) -> bool:
    """Whether the namespace of descriptor *fd* is the one the calling thread is in."""
    return _same(Path("/proc/thread-self/ns/net").stat(), os.fstat(fd))


@contextmanager
def open_namespace(path: str) -> Iterator[int]:
    """A descriptor of the network namespace at *path*; NamespaceGone if there is none."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise NamespaceGone(path, os.strerror(error.errno or 0)) from error
    try:
        if not _is_network_namespace(fd):
            raise NamespaceGone(path, "not a network namespace")
        yield fd
    finally:
        os.close(fd)


def run_in_namespace(path: str, function: Callable[[], T]) -> T:
    """
    Call *function* on a fresh thread inside the namespace at *path* and return what it returns.

    ``/proc/sys/net`` and sockets opened there are those of the namespace.
    """
    with open_namespace(path) as fd:
        return run_in_namespace_fd(path, fd, function)


def run_in_namespace_fd(path: str, fd: int, function: Callable[[], T]) -> T:
    """The same with an open descriptor; *path* is for the error message."""
    answer: Future[T] = Future()

    def inside() -> None:
        try:
            _enter(path, fd)
            answer.set_result(function())
        except BaseException as error:  # noqa: BLE001  the thread's edge: raised again by the caller
            answer.set_exception(error)

    thread = Thread(target=inside, name="netns", daemon=True)
    thread.start()
    thread.join()
    return answer.result()


def _is_network_namespace(fd: int) -> bool:
    """What a dead namespace leaves at its path is an ordinary file."""
    try:
        return fcntl.ioctl(fd, _NS_GET_NSTYPE) == _CLONE_NEWNET
    except OSError:
        return False


def _require_inside(sandbox: Sandbox) -> None:
    """NamespaceGone unless the socket was opened in the namespace: it configures whatever it is in."""
    path, netlink = sandbox.path, sandbox.netlink
    if not _is_network_namespace(sandbox.netns):
        raise NamespaceGone(path, "what was passed is no network namespace")
    if (netlink.family, netlink.proto) != (socket.AF_NETLINK, socket.NETLINK_ROUTE):
        raise NamespaceGone(path, "what was passed is no route socket")
    try:
        there = fcntl.ioctl(netlink, _SIOCGSKNS)
    except OSError as error:
        reason = f"cannot tell where the socket is ({os.strerror(error.errno or 0)})"
        raise NamespaceGone(path, reason) from error
    try:
        if not _same(os.fstat(there), os.fstat(sandbox.netns)):
            raise NamespaceGone(path, "the socket that was passed is in another namespace")
    finally:
        os.close(there)


def _same(one: os.stat_result, other: os.stat_result) -> bool:
    return (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)


def _enter(path: str, fd: int) -> None:
    """Move this thread."""
    try:
        _setns(fd)
    except OSError as error:
        raise NamespaceGone(path, f"cannot be entered ({os.strerror(error.errno or 0)})") from error


if sys.version_info >= (3, 12):

    def _setns(fd: int) -> None:
        os.setns(fd, _CLONE_NEWNET)

else:
    # The C library this process has already; looking for it by name would start ldconfig.
    _libc = ctypes.CDLL(None, use_errno=True)

    def _setns(fd: int) -> None:
        if _libc.setns(fd, _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
