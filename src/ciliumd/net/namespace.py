# SPDX-License-Identifier: Apache-2.0
"""
Network namespaces by path, and running a function inside one.

A namespace is a path (``/var/run/netns/x``, ``/proc/<pid>/ns/net``).  Entering happens in a thread that
is thrown away afterwards, so that no thread anybody else uses is ever in the wrong namespace.
"""

import fcntl
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import TypeVar

from pyroute2 import netns

from ciliumd.net.errors import NamespaceGone

T = TypeVar("T")

_NS_GET_NSTYPE = 0xB703
_CLONE_NEWNET = 0x40000000


def namespace_path(pid: int) -> str:
    """Path of the network namespace process *pid* is in."""
    return f"/proc/{pid}/ns/net"


def is_own_namespace(fd: int) -> bool:
    """Whether the namespace of descriptor *fd* is the one the calling thread is in."""
    own, other = Path("/proc/thread-self/ns/net").stat(), os.fstat(fd)
    return (own.st_dev, own.st_ino) == (other.st_dev, other.st_ino)


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


def _enter(path: str, fd: int) -> None:
    """Move this thread."""
    try:
        netns.setns(fd, fork=False)
    except OSError as error:
        raise NamespaceGone(path, f"cannot be entered ({os.strerror(error.errno or 0)})") from error
