# SPDX-License-Identifier: Apache-2.0
"""
Destroys connected sockets by sock_diag, in the network namespace of the calling thread.

For kernels whose iterators cannot.  Sources: sock_diag(7), linux/inet_diag.h; SOCK_DESTROY is there with
CONFIG_INET_DIAG_DESTROY.
"""

import errno
import os
import socket
import struct
from collections.abc import Collection, Iterator
from typing import Final, NamedTuple

from ciliumd.net.errors import NetError

_SOCK_DIAG_BY_FAMILY: Final = 20
_SOCK_DESTROY: Final = 21
_NETLINK_SOCK_DIAG: Final = 4
_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_DUMP = 1, 4, 0x300
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_HEADER = struct.Struct("=IHHII")
_REQUEST = struct.Struct("=BBBxI48s")
_FOUND = struct.Struct("=4B48s20x")
# sport, dport, source, destination, device, cookie.
_PLACE = struct.Struct("=2s2s16s16sIQ")
_ERROR = struct.Struct("=i")
_V4_MAPPED: Final = b"\0" * 10 + b"\xff\xff"
_ANYWHERE: Final = _PLACE.pack(b"\0" * 2, b"\0" * 2, b"\0" * 16, b"\0" * 16, 0, 2**64 - 1)
# Bits of enum tcp_state: a connected UDP socket is ESTABLISHED; the others are those TCP has a peer in.
_STATES: Final = {
    socket.IPPROTO_UDP: 1 << 1,
    socket.IPPROTO_TCP: sum(1 << state for state in (1, 2, 4, 5, 8, 9, 11)),
}
_ROOM: Final = 1 << 16


class Connected(NamedTuple):
    """A socket by its cookie, and whom it is connected to: 16 bytes of address (``model.net``), the port."""

    cookie: int
    peer: bytes
    port: int


def destroy(protocol: int, doomed: Collection[Connected]) -> int:
    """
    Destroy those of *doomed* that are here and still connected so; how many there were.

    Raises NetError.
    """
    wanted = frozenset(doomed)
    destroyed = 0
    with _socket() as asking, _socket() as telling:
        for family in (socket.AF_INET, socket.AF_INET6):
            for place, one in _dump(asking, family, protocol):
                if one in wanted:
                    destroyed += _destroy(telling, family, protocol, place)
    return destroyed


def _socket() -> socket.socket:
    try:
        return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG)
    except OSError as error:
        raise _failed("open sock_diag", error.errno or 0) from error


def _dump(asking: socket.socket, family: int, protocol: int) -> Iterator[tuple[bytes, Connected]]:
    """Every connected socket: its place for :func:`_destroy`, and who it is."""
    body = _REQUEST.pack(family, protocol, 0, _STATES[protocol], _ANYWHERE)
    for kind, payload in _asked(asking, _SOCK_DIAG_BY_FAMILY, _NLM_F_DUMP, body):
        if kind != _SOCK_DIAG_BY_FAMILY:
            continue
        place = _FOUND.unpack_from(payload)[4]
        _, dport, _, peer, _, cookie = _PLACE.unpack(place)
        if family == socket.AF_INET:
            peer = _V4_MAPPED + peer[:4]
        yield place, Connected(cookie, peer, int.from_bytes(dport, "big"))


def _destroy(telling: socket.socket, family: int, protocol: int, place: bytes) -> bool:
    """False when it has gone by itself."""
    body = _REQUEST.pack(family, protocol, 0, 0, place)
    try:
        for _ in _asked(telling, _SOCK_DESTROY, _NLM_F_ACK, body):
            pass
    except NetError as error:
        if error.errno == errno.ENOENT:
            return False
        raise
    return True


def _asked(opened: socket.socket, kind: int, flags: int, body: bytes) -> Iterator[tuple[int, bytes]]:
    """The messages of an answer, by type, until it ends.  Raises NetError for one that is an error."""
    what = "destroy a socket" if kind == _SOCK_DESTROY else "list sockets"
    try:
        opened.send(_HEADER.pack(_HEADER.size + len(body), kind, _NLM_F_REQUEST | flags, 0, 0) + body)
        while True:
            data = opened.recv(_ROOM)
            at = 0
            while at < len(data):
                length, answer, *_ = _HEADER.unpack_from(data, at)
                payload = data[at + _HEADER.size : at + length]
                at += (length + 3) & ~3
                if answer in {_NLMSG_DONE, _NLMSG_ERROR}:
                    (number,) = _ERROR.unpack_from(payload)
                    if number < 0:
                        raise _failed(what, -number)
                    return
                yield answer, payload
    except OSError as error:
        raise _failed(what, error.errno or 0) from error


def _failed(operation: str, number: int) -> NetError:
    if number == errno.EOPNOTSUPP:
        return NetError(operation, "the kernel has no CONFIG_INET_DIAG_DESTROY", errno=number)
    if number == errno.ENOENT:
        return NetError(operation, "the kernel has no module udp_diag or tcp_diag", errno=number)
    return NetError(operation, os.strerror(number), errno=number)
