# SPDX-License-Identifier: Apache-2.0
"""Connected sockets are destroyed: those that are named, in this network namespace, and no others."""

from __future__ import annotations

import contextlib
import errno
import socket
import sys
from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest

from ciliumd import abi
from ciliumd.bpf import terminate
from ciliumd.bpf.terminate import SocketIterator
from ciliumd.model.net import addr16
from ciliumd.net import sockdiag

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.datapath

SO_COOKIE = 57
HERE, HERE6 = "127.0.0.1", "::1"
TCP, UDP = socket.IPPROTO_TCP, socket.IPPROTO_UDP
KINDS = {TCP: socket.SOCK_STREAM, UDP: socket.SOCK_DGRAM}


def by_iterator(protocol: int, keys: list[bytes]) -> int:
    """As on kernels that have bpf_sock_destroy."""
    with SocketIterator.load() as iterator:
        iterator.doom(keys)
        return iterator.destroy(protocol)


def by_sock_diag(protocol: int, keys: list[bytes]) -> int:
    """As on the others."""
    rows = map(abi.SockRevnatKey.unpack, keys)
    return sockdiag.destroy(protocol, [sockdiag.Connected(one.cookie, one.addr, one.port) for one in rows])


WAYS: dict[str, Callable[[int, list[bytes]], int]] = {"sock_diag": by_sock_diag}
if terminate.supported():
    WAYS["iterator"] = by_iterator


@pytest.fixture(params=sorted(WAYS))
def destroy(node: None, request: pytest.FixtureRequest) -> Callable[[int, list[bytes]], int]:
    """Each way that this kernel has."""
    return WAYS[request.param]


@pytest.fixture(params=[TCP, UDP], ids=["tcp", "udp"])
def protocol(request: pytest.FixtureRequest) -> int:
    """Either."""
    return int(request.param)


@pytest.fixture
def server(node: None, protocol: int) -> Iterator[int]:
    """The port of somebody who listens."""
    with socket.socket(socket.AF_INET, KINDS[protocol]) as listening:
        listening.bind((HERE, 0))
        if protocol == TCP:
            listening.listen()
        yield listening.getsockname()[1]


@pytest.fixture
def client(server: int, protocol: int) -> Iterator[Callable[..., socket.socket]]:
    """Connects sockets to the server."""
    with contextlib.ExitStack() as stack:

        def connect(*, family: int = socket.AF_INET, connected: bool = True) -> socket.socket:
            sock = stack.enter_context(socket.socket(family, KINDS[protocol]))
            sock.settimeout(0)
            if connected:
                with contextlib.suppress(BlockingIOError):
                    sock.connect((HERE if family == socket.AF_INET else f"::ffff:{HERE}", server))
            return sock

        yield connect


def row(sock: socket.socket, port: int, protocol: int, peer: str = HERE) -> bytes:
    """The key of the row that socket LB would have written."""
    cookie = int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8), sys.byteorder)
    return abi.SockRevnatKey(cookie, addr16(ip_address(peer)), port, protocol).pack()


def state(sock: socket.socket) -> int:
    """The errno of the socket, 0 as long as all is well."""
    try:
        sock.recv(1)
    except BlockingIOError:
        return 0
    except OSError as error:
        return error.errno or 0
    return 0


def test_named_socket_ends_and_its_neighbour_stays(
    destroy: Callable[[int, list[bytes]], int],
    client: Callable[..., socket.socket],
    server: int,
    protocol: int,
) -> None:
    """Both are connected to the same server; its application is told at once."""
    gone, stays = client(), client()
    assert destroy(protocol, [row(gone, server, protocol)]) == 1
    assert (state(gone), state(stays)) == (errno.ECONNABORTED, 0)
    assert destroy(protocol, [row(gone, server, protocol)]) == 0


def test_ipv4_in_a_socket_of_ipv6_ends_likewise(
    destroy: Callable[[int, list[bytes]], int],
    client: Callable[..., socket.socket],
    server: int,
    protocol: int,
) -> None:
    """Its peer is ::ffff:a.b.c.d."""
    gone = client(family=socket.AF_INET6)
    assert destroy(protocol, [row(gone, server, protocol)]) == 1
    assert state(gone) == errno.ECONNABORTED


def test_socket_of_ipv6_ends_and_its_neighbour_stays(
    destroy: Callable[[int, list[bytes]], int], protocol: int
) -> None:
    """All of its peer's address counts."""
    with contextlib.ExitStack() as stack:
        server, gone, stays = (
            stack.enter_context(socket.socket(socket.AF_INET6, KINDS[protocol])) for _ in range(3)
        )
        server.bind((HERE6, 0))
        if protocol == TCP:
            server.listen()
        port = server.getsockname()[1]
        for one in (gone, stays):
            one.connect((HERE6, port))
            one.settimeout(0)
        assert destroy(protocol, [row(stays, port, protocol, "2001:db8::1")]) == 0
        assert destroy(protocol, [row(gone, port, protocol, HERE6)]) == 1
        assert (state(gone), state(stays)) == (errno.ECONNABORTED, 0)


def test_socket_that_is_connected_elsewhere_stays(
    destroy: Callable[[int, list[bytes]], int],
    client: Callable[..., socket.socket],
    server: int,
    protocol: int,
) -> None:
    """Or to nobody: it once sent something to that backend, and may send to others now."""
    elsewhere, nobody = client(), client(connected=False)
    keys = [row(elsewhere, server + 1, protocol), row(nobody, server, protocol)]
    assert destroy(protocol, keys) == 0
    assert state(elsewhere) == 0
    nobody.connect_ex((HERE, server))
    assert state(nobody) == 0


def test_sockets_of_another_protocol_are_not_looked_at(
    destroy: Callable[[int, list[bytes]], int],
    client: Callable[..., socket.socket],
    server: int,
    protocol: int,
) -> None:
    """Each is asked for by itself."""
    stays = client()
    assert destroy(UDP if protocol == TCP else TCP, [row(stays, server, protocol)]) == 0
    assert state(stays) == 0
