# SPDX-License-Identifier: Apache-2.0
"""
The process behind ``lxc_health``: a network namespace, and HTTP at :4240/hello inside it.

Run as a file by ``health.endpoint``, with the standard library alone (``python -I -S``), so that a node
spends 10 MiB on it.  It makes the namespace itself, as owner of a user namespace of its own: that
takes no capability, and the agent, whose user owns it, may put a veth into it with CAP_NET_ADMIN alone.
Where user namespaces are forbidden it takes CAP_SYS_ADMIN.  Descriptors of the namespace and of a
netlink socket in it go back over the control socket; when that closes, the process ends, and the
namespace with it.

Arguments: descriptor of the control socket, port, procfs whose sys/net may be written, and 4 or 6: the family
of the address that it is going to have.
"""

import array
import contextlib
import ctypes
import errno
import os
import selectors
import socket
import sys
import time
from pathlib import Path
from typing import Final

CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWNET: Final = 0x40000000
CONNECTIONS: Final = 64
CONNECTION_SECONDS: Final = 5.0
REQUEST_BYTES: Final = 4096
OK: Final = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
NOT_FOUND: Final = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
# As ciliumd.net.sysctl has it, which cannot be imported here.
QUIET: Final = {"accept_ra": "0", "accept_dad": "0", "addr_gen_mode": "1", "disable_ipv6": "0"}
_REFUSED: Final = {errno.EPERM, errno.ENOSPC, errno.EINVAL, errno.EUSERS}


def isolate() -> None:
    """Leave for a new network namespace.  Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    for flags in (CLONE_NEWUSER | CLONE_NEWNET, CLONE_NEWNET):
        if not libc.unshare(flags):
            return
        if ctypes.get_errno() not in _REFUSED:
            break
    number = ctypes.get_errno()
    raise OSError(
        number,
        f"cannot make a network namespace: {os.strerror(number)}; allow user namespaces "
        "(sysctl user.max_user_namespaces, seccomp profile) or give the agent CAP_SYS_ADMIN",
    )


def settle_ipv6(procfs: Path, *, spoken: bool) -> None:
    """Devices made from now on have a quiet IPv6 if it is *spoken*, else none; where /proc may be written."""
    for knob, value in (QUIET if spoken else {"disable_ipv6": "1"}).items():
        with contextlib.suppress(OSError):
            (procfs / "sys/net/ipv6/conf/default" / knob).write_text(value)


def hand_over(control: socket.socket) -> None:
    """Send descriptors of this namespace: itself, and a route socket inside."""
    route = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
    namespace = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    descriptors = array.array("i", [namespace, route.fileno()])
    control.sendmsg([b"\0"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)])
    os.close(namespace)
    route.close()


class Server:
    """Answers requests until the control socket closes; what a client does costs nobody else anything."""

    def __init__(self, control: socket.socket, listener: socket.socket) -> None:
        self._control = control
        self._listener = listener
        self._selector = selectors.DefaultSelector()
        self._open: dict[socket.socket, tuple[float, bytes]] = {}
        for one in (control, listener):
            self._selector.register(one, selectors.EVENT_READ)

    def run(self) -> None:
        """Serve."""
        while True:
            for key, _ in self._selector.select(CONNECTION_SECONDS if self._open else None):
                if key.fileobj is self._control:
                    return
                if key.fileobj is self._listener:
                    self._accept()
                elif isinstance(key.fileobj, socket.socket):
                    self._read(key.fileobj)
            now = time.monotonic()
            for connection in [one for one, (deadline, _) in self._open.items() if deadline < now]:
                self._close(connection)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            connection, _ = self._listener.accept()
            connection.setblocking(False)
            if len(self._open) >= CONNECTIONS:
                connection.close()
                return
            self._open[connection] = (time.monotonic() + CONNECTION_SECONDS, b"")
            self._selector.register(connection, selectors.EVENT_READ)

    def _read(self, connection: socket.socket) -> None:
        deadline, request = self._open[connection]
        try:
            data = connection.recv(REQUEST_BYTES)
            request += data
            if data and b"\r\n\r\n" not in request and len(request) < REQUEST_BYTES:
                self._open[connection] = (deadline, request)
                return
            if data:
                connection.send(OK if request.startswith(b"GET /hello ") else NOT_FOUND)
        except OSError:
            pass  # it has gone
        self._close(connection)

    def _close(self, connection: socket.socket) -> None:
        del self._open[connection]
        self._selector.unregister(connection)
        connection.close()


def main(arguments: list[str]) -> int:
    """Serve until the agent goes; the exit code."""
    descriptor, port, procfs = int(arguments[0]), int(arguments[1]), Path(arguments[2])
    six = arguments[3] == "6"
    control = socket.socket(fileno=descriptor)
    try:
        isolate()
        settle_ipv6(procfs, spoken=six)
        listener = socket.create_server(("", port), family=socket.AF_INET6 if six else socket.AF_INET)
        listener.setblocking(False)
        hand_over(control)
    except OSError as error:
        sys.stderr.write(f"{error.strerror or error}\n")
        return 1
    Server(control, listener).run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
