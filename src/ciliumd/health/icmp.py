# SPDX-License-Identifier: Apache-2.0
"""
ICMP echo over one raw socket of each family (CAP_NET_RAW), for many addresses at a time.

Ping sockets need no right, but hosts hand them out by group (``net.ipv4.ping_group_range``), by default to
nobody.  An answer is known by a nonce it carries back.
"""

import asyncio
import secrets
import socket
import struct
import time
from typing import Final, NamedTuple

from ciliumd.model.net import Addr

_HEADER: Final = struct.Struct("!BBHHH")
_NONCE: Final = 16
_RECEIVE_BYTES: Final = 2048
# linux/socket.h, linux/icmp.h, linux/icmpv6.h: options of raw sockets
_SOL_RAW: Final = 255
_ICMP_FILTER: Final = 1
_ICMPV6_FILTER: Final = 1


def _all_but(kind: int, *, words: int) -> bytes:
    """A filter of so many words; its bits are the types that are not delivered."""
    bits = (1 << 32 * words) - 1 & ~(1 << kind)
    return struct.pack(f"={words}I", *(bits >> 32 * word & 0xFFFFFFFF for word in range(words)))


class _Icmp(NamedTuple):
    """ICMP of one IP version: its sockets, the option that lets only replies in, the types of its echoes."""

    family: socket.AddressFamily
    protocol: int
    only_replies: tuple[int, int, bytes]
    request: int
    reply: int


_ICMP: Final = {
    4: _Icmp(
        family=socket.AF_INET,
        protocol=socket.IPPROTO_ICMP,
        only_replies=(_SOL_RAW, _ICMP_FILTER, _all_but(0, words=1)),
        request=8,
        reply=0,
    ),
    6: _Icmp(
        family=socket.AF_INET6,
        protocol=socket.IPPROTO_ICMPV6,
        only_replies=(socket.IPPROTO_ICMPV6, _ICMPV6_FILTER, _all_but(129, words=8)),
        request=128,
        reply=129,
    ),
}


class Pinger:
    """Asks addresses for an echo; a context manager around the sockets, in a running loop."""

    def __init__(self, family: int = 4) -> None:
        """*family* is that of most addresses.  OSError when it may not have a raw socket."""
        self._identifier = secrets.randbits(16)
        self._sequence = 0
        self._waiting: dict[bytes, asyncio.Future[float]] = {}
        self._sockets: dict[int, socket.socket] = {}
        self._socket_of(family)

    def close(self) -> None:
        """Stop listening."""
        for one in self._sockets.values():
            asyncio.get_running_loop().remove_reader(one.fileno())
            one.close()
        self._sockets.clear()

    async def ping(self, address: Addr) -> float:
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
            request = echo_request(self._identifier, self._sequence, nonce, version=address.version)
            self._socket_of(address.version).sendto(request, (str(address), 0))
            return await answer - started
        finally:
            del self._waiting[nonce]

    def _socket_of(self, version: int) -> socket.socket:
        """The socket of a family, made when it is needed: a kernel may be without IPv6."""
        if version not in self._sockets:
            icmp = _ICMP[version]
            flags = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
            made = socket.socket(icmp.family, flags, icmp.protocol)
            made.setsockopt(*icmp.only_replies)
            asyncio.get_running_loop().add_reader(made.fileno(), self._receive, made, version)
            self._sockets[version] = made
        return self._sockets[version]

    def _receive(self, where: socket.socket, version: int) -> None:
        try:
            while True:
                packet = where.recv(_RECEIVE_BYTES)
                answer = self._waiting.get(packet[-_NONCE:])
                if (
                    answer is not None
                    and not answer.done()
                    and is_reply(packet, self._identifier, version=version)
                ):
                    answer.set_result(time.monotonic())
        except BlockingIOError:
            return


def echo_request(identifier: int, sequence: int, payload: bytes, *, version: int = 4) -> bytes:
    """An ICMP echo request (RFC 792); of IPv6 (RFC 4443) the kernel fills in the checksum."""
    kind = _ICMP[version].request
    packet = _HEADER.pack(kind, 0, 0, identifier, sequence) + payload
    if version == 6:
        return packet
    return _HEADER.pack(kind, 0, checksum(packet), identifier, sequence) + payload


def is_reply(packet: bytes, identifier: int, *, version: int = 4) -> bool:
    """Whether *packet*, of IPv4 with its IP header and of IPv6 without, is an echo reply to *identifier*."""
    start = (packet[0] & 0xF) * 4 if packet and version == 4 else 0
    if len(packet) < start + _HEADER.size:
        return False
    kind, _, _, answered, _ = _HEADER.unpack_from(packet, start)
    return bool(kind == _ICMP[version].reply and answered == identifier)


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    padded = data + b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
