# SPDX-License-Identifier: Apache-2.0
"""
One IPv4 frame, and the changes a node may make to it, on plain bytes.

Sums are changed by difference (RFC 1624, equation 3), so that a wrong one stays wrong by as much; that is
what makes the bytes that must come out exact.  Only frames that reference/parser.py understood enter.
Standard library only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

ETHERNET, IPV4, ICMP_HEADER = 14, 20, 8
ICMP, TCP, UDP, SCTP = 1, 6, 17, 132
ECHO_REPLY, ECHO = 0, 8
ICMP_ERRORS = frozenset({3, 11, 12})
# Where the sum of the transport header lies in it.
SUM_AT = {ICMP: 2, TCP: 16, UDP: 6}
# Fields of the IPv4 header.
TTL_AT, IP_SUM_AT, SOURCE, DESTINATION = 8, 10, 12, 16

Side = int  # SOURCE or DESTINATION
Ports = tuple[int, int]
DatagramKey = tuple[bytes, bytes, int, int]


def u16(data: bytes | bytearray, at: int) -> int:
    """A number in network order."""
    return int.from_bytes(data[at : at + 2], "big")


def internet_sum(data: bytes) -> int:
    """RFC 1071, over whole 16-bit words."""
    total = sum(u16(data, at) for at in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def moved(checksum: int, old: bytes, new: bytes) -> int:
    """A sum after *old*, whole 16-bit words that it covers, has become *new*."""
    total = checksum ^ 0xFFFF
    for at in range(0, len(old), 2):
        total += (u16(old, at) ^ 0xFFFF) + u16(new, at)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


@dataclass(frozen=True, slots=True)
class Quoted:
    """The packet that an ICMP error is about."""

    l3: int
    l4: int
    protocol: int
    src: bytes
    dst: bytes
    sport: int
    dport: int


class Frame:
    """A frame that is understood; ports of an echo are its id, on the requester's side."""

    __slots__ = ("bytes", "dport", "dst", "l4", "later", "protocol", "quoted", "sport", "src", "ttl", "type")

    def __init__(self, frame: bytes, datagrams: Mapping[DatagramKey, Ports]) -> None:
        self.bytes = bytearray(frame)
        self.l4 = ETHERNET + (frame[ETHERNET] & 15) * 4
        self.protocol = frame[23]
        self.ttl = frame[ETHERNET + TTL_AT]
        self.src, self.dst = frame[26:30], frame[30:34]
        self.later = bool(u16(frame, 20) & 0x1FFF)
        self.quoted: Quoted | None = None
        self.type = 0
        if self.later:
            self.sport, self.dport = datagrams[self.datagram]
        elif self.protocol == ICMP:
            self.type = frame[self.l4]
            self.sport, self.dport = _echo(frame, self.l4)
            if self.type in ICMP_ERRORS:
                self.quoted = _quoted(frame, self.l4 + ICMP_HEADER)
        else:
            self.sport, self.dport = u16(frame, self.l4), u16(frame, self.l4 + 2)

    @property
    def datagram(self) -> DatagramKey:
        """What its fragments have in common; the addresses are those it has now."""
        return self.src, self.dst, u16(self.bytes, 18), self.protocol

    @property
    def is_first(self) -> bool:
        """Of several fragments."""
        return not self.later and bool(u16(self.bytes, 20) & 0x2000)

    @property
    def answers(self) -> bool:
        """An answer to an echo, by its type or by the port that its datagram began with."""
        return bool(self.dport) if self.later else self.type == ECHO_REPLY

    @property
    def is_plain(self) -> bool:
        """Without IP options."""
        return self.l4 == ETHERNET + IPV4

    def _move_sum(self, at: int, old: bytes, new: bytes) -> None:
        self.bytes[at : at + 2] = moved(u16(self.bytes, at), old, new).to_bytes(2, "big")

    def _move_l4_sum(self, old: bytes, new: bytes) -> None:
        at = self.l4 + SUM_AT[self.protocol]
        # UDP over IPv4: 0 says that there is none, and what would become 0 is written as 0xffff.
        if self.protocol == UDP and not u16(self.bytes, at):
            return
        self._move_sum(at, old, new)
        if self.protocol == UDP and not u16(self.bytes, at):
            self.bytes[at : at + 2] = b"\xff\xff"

    def address(self, side: Side, new: bytes) -> None:
        """Of the outer header alone."""
        at = ETHERNET + side
        self._move_sum(ETHERNET + IP_SUM_AT, bytes(self.bytes[at : at + 4]), new)
        self.bytes[at : at + 4] = new
        if side == SOURCE:
            self.src = new
        else:
            self.dst = new

    def translate(self, side: Side, new: bytes, port: int) -> bool:
        """Address and port of one side; False when this protocol's port cannot be changed."""
        old_port = self.sport if side == SOURCE else self.dport
        at = ETHERNET + side
        if not self.later:
            if self.protocol in {TCP, UDP}:
                self._move_l4_sum(bytes(self.bytes[at : at + 4]), new)
            elif self.protocol == SCTP and port != old_port:
                return False
            if port != old_port:
                self._move_l4_sum(old_port.to_bytes(2, "big"), port.to_bytes(2, "big"))
                where = self.l4 + (4 if self.protocol == ICMP else 0 if side == SOURCE else 2)
                self.bytes[where : where + 2] = port.to_bytes(2, "big")
        self.address(side, new)
        if side == SOURCE:
            self.sport = port
        else:
            self.dport = port
        return True

    def translate_quoted(self, side: Side, new: bytes, port: int) -> None:
        """One side of the quoted packet: its IP sum, and the error's own, are right after that."""
        quoted = self.quoted
        assert quoted is not None
        at = quoted.l3 + side
        self._move_sum(quoted.l3 + IP_SUM_AT, bytes(self.bytes[at : at + 4]), new)
        self.bytes[at : at + 4] = new
        old_port = quoted.sport if side == SOURCE else quoted.dport
        if port == old_port:
            return
        old, fresh = old_port.to_bytes(2, "big"), port.to_bytes(2, "big")
        if quoted.protocol == ICMP:
            where = quoted.l4 + 4
            self._move_sum(quoted.l4 + SUM_AT[ICMP], old, fresh)
        else:
            where = quoted.l4 + (0 if side == SOURCE else 2)
            self._move_sum(self.l4 + SUM_AT[ICMP], old, fresh)
        self.bytes[where : where + 2] = fresh

    def hop(self) -> None:
        """One hop less."""
        at = ETHERNET + TTL_AT
        new = self.ttl - 1
        self._move_sum(ETHERNET + IP_SUM_AT, bytes([self.ttl, 0]), bytes([new, 0]))
        self.bytes[at] = self.ttl = new

    def macs(self, dst: bytes, src: bytes) -> None:
        """To and from."""
        self.bytes[:12] = dst + src

    def error_about(self, src: bytes, kind: int, code: int) -> bytes | None:
        """The ICMP error that goes back to its sender, if any may (RFC 1122 3.2.2)."""
        if self.quoted or self.later or not self.is_plain or self.bytes[0] & 1 or self.dst[0] >= 224:
            return None
        quote = bytes(self.bytes[ETHERNET : ETHERNET + (40 if self.protocol == TCP else 28)])
        icmp = bytes([kind, code, 0, 0, 0, 0, 0, 0])
        icmp = icmp[:2] + internet_sum(icmp + quote).to_bytes(2, "big") + icmp[4:]
        size = (IPV4 + len(icmp) + len(quote)).to_bytes(2, "big")
        ip = b"\x45\0" + size + b"\0\0\0\0\x40\x01\0\0" + src + self.src
        ip = ip[:10] + internet_sum(ip).to_bytes(2, "big") + ip[12:]
        return bytes(self.bytes[6:12] + self.bytes[:6] + b"\x08\0") + ip + icmp + quote


def _echo(frame: bytes, at: int) -> Ports:
    identifier = u16(frame, at + 4)
    if frame[at] == ECHO:
        return identifier, 0
    return (0, identifier) if frame[at] == ECHO_REPLY else (0, 0)


def _quoted(frame: bytes, at: int) -> Quoted:
    l4 = at + (frame[at] & 15) * 4
    protocol = frame[at + 9]
    ports = _echo(frame, l4) if protocol == ICMP else (u16(frame, l4), u16(frame, l4 + 2))
    return Quoted(at, l4, protocol, frame[at + 12 : at + 16], frame[at + 16 : at + 20], *ports)
