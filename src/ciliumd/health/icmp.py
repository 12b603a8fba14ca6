# SPDX-License-Identifier: Apache-2.0
"""
ICMP echo over one raw socket (CAP_NET_RAW), for many addresses at a time.

Ping sockets need no right, but hosts hand them out by group (``net.ipv4.ping_group_range``), by default to
nobody.  An answer is known by a nonce it carries back.
"""

import asyncio
import secrets
import socket
import struct
import time
from ipaddress import IPv4Address
from typing import Final

_ECHO_REPLY: Final = 0
_ECHO: Final = 8
_HEADER: Final = struct.Struct("!BBHHH")
_NONCE: Final = 16
# linux/socket.h, linux/icmp.h: an option of raw sockets; bits set in the mask are types not to be delivered.
_SOL_RAW: Final = 255
_ICMP_FILTER: Final = 1
_ONLY_REPLIES: Final = struct.pack("=I", 0xFFFFFFFF & ~(1 << _ECHO_REPLY))
_RECEIVE_BYTES: Final = 2048


class Pinger:
    """Asks addresses for an echo; a context manager around the socket, in a running loop."""

    def __init__(self) -> None:
        self._socket = socket.socket(
            socket.AF_INET, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, socket.IPPROTO_ICMP
        )
        self._socket.setsockopt(_SOL_RAW, _ICMP_FILTER, _ONLY_REPLIES)
        self._identifier = secrets.randbits(16)
        self._sequence = 0
        self._waiting: dict[bytes, asyncio.Future[float]] = {}
        asyncio.get_running_loop().add_reader(self._socket.fileno(), self._receive)

    def close(self) -> None:
        """Stop listening."""
        asyncio.get_running_loop().remove_reader(self._socket.fileno())
        self._socket.close()

    async def ping(self, address: IPv4Address) -> float:
        """
        Seconds until *address* echoed, however long that takes.

        OSError when it cannot be sent there.
        """
        nonce = secrets.token_bytes(_NONCE)
        self._sequence = (self._sequence + 1) & 0xFFFF
        answer: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._waiting[nonce] = answer
        try:
            started = time.monotonic()
            self._socket.sendto(echo_request(self._identifier, self._sequence, nonce), (str(address), 0))
            return await answer - started
        finally:
            del self._waiting[nonce]

    def _receive(self) -> None:
        try:
            while True:
                packet = self._socket.recv(_RECEIVE_BYTES)
                answer = self._waiting.get(packet[-_NONCE:])
                if answer is not None and not answer.done() and is_reply(packet, self._identifier):
                    answer.set_result(time.monotonic())
        except BlockingIOError:
            return


def echo_request(identifier: int, sequence: int, payload: bytes) -> bytes:
    """An ICMP echo request (RFC 792)."""
    head = _HEADER.pack(_ECHO, 0, 0, identifier, sequence)
    return _HEADER.pack(_ECHO, 0, checksum(head + payload), identifier, sequence) + payload


def is_reply(packet: bytes, identifier: int) -> bool:
    """Whether an IPv4 *packet* is an echo reply to *identifier*."""
    start = (packet[0] & 0xF) * 4 if packet else 0
    if len(packet) < start + _HEADER.size:
        return False
    kind, _, _, answered, _ = _HEADER.unpack_from(packet, start)
    return bool(kind == _ECHO_REPLY and answered == identifier)


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    padded = data + b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
