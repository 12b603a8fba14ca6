# SPDX-License-Identifier: Apache-2.0
"""
Frames between the executable and the agent, with descriptors beside the first byte of a request.

A frame is two numbers of four bytes in network order - how many bytes follow, and the code of an answer
(0 in a request) - and then those bytes.  ``executable/client.c`` is the other end.
"""

import array
import asyncio
import os
import socket
import struct
from typing import NoReturn

HEADER = struct.Struct("!II")
REQUEST_MAX = (1 << 20) + (1 << 16)
"""The configuration the executable takes, and the variables."""

_DESCRIPTORS_MAX = 8
_READ = 1 << 16


class BadFrame(Exception):
    """The peer does not speak this protocol; the text says where it left it."""


async def receive(peer: socket.socket) -> tuple[bytes, list[int]]:
    """
    One request and the descriptors that came with it, close-on-exec and now the caller's.

    Raises BadFrame or OSError; then none is left open.
    """
    descriptors: list[int] = []
    try:
        return await _request(peer, await _first(peer, descriptors)), descriptors
    except BaseException:
        close_all(descriptors)
        raise


async def send(peer: socket.socket, code: int, data: bytes) -> None:
    """One answer."""
    await asyncio.get_running_loop().sock_sendall(peer, HEADER.pack(len(data), code) + data)


def close_all(descriptors: list[int]) -> None:
    """Close descriptors that nobody will use."""
    for descriptor in descriptors:
        os.close(descriptor)
    descriptors.clear()


async def readable(peer: socket.socket) -> None:
    """Wait until there is something to read, or the peer has gone."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_reader(peer.fileno(), _resolve, ready)
    try:
        await ready
    finally:
        loop.remove_reader(peer.fileno())


async def _first(peer: socket.socket, descriptors: list[int]) -> bytearray:
    """The first bytes; descriptors come with them or not at all."""
    await readable(peer)
    width = array.array("i").itemsize
    data, control, flags, _ = peer.recvmsg(
        _READ, socket.CMSG_SPACE(_DESCRIPTORS_MAX * width), socket.MSG_CMSG_CLOEXEC
    )
    for level, kind, content in control:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            descriptors += array.array("i", content[: len(content) - len(content) % width])
    if flags & socket.MSG_CTRUNC:
        raise BadFrame(f"more than {_DESCRIPTORS_MAX} descriptors")
    return bytearray(data or _hung_up())


async def _request(peer: socket.socket, data: bytearray) -> bytes:
    """The whole request that begins with *data*."""
    while len(data) < HEADER.size:
        data += await _more(peer)
    size, code = HEADER.unpack_from(data)
    if code or size > REQUEST_MAX:
        raise BadFrame(f"a header of {size} bytes with code {code}")
    while len(data) < HEADER.size + size:
        data += await _more(peer)
    if len(data) > HEADER.size + size:
        raise BadFrame("more bytes than the header says")
    return bytes(data[HEADER.size :])


async def _more(peer: socket.socket) -> bytes:
    return await asyncio.get_running_loop().sock_recv(peer, _READ) or _hung_up()


def _hung_up() -> NoReturn:
    raise BadFrame("the peer hung up in the middle of a request")


def _resolve(ready: "asyncio.Future[None]") -> None:
    if not ready.done():
        ready.set_result(None)
