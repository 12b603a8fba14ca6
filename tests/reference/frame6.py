# SPDX-License-Identifier: Apache-2.0
"""
One IPv6 frame, and the changes a node may make to it: reference/frame.py said for the other family.

There is no sum in the header; that of the transport covers the addresses (RFC 8200 8.1), and what an ICMPv6
error quotes is covered by the error's own.  Only frames that reference/parser6.py understood enter.
"""

from __future__ import annotations

from collections.abc import Mapping

from reference.frame import ETHERNET, SCTP, TCP, UDP, Ports, Quoted, internet_sum, moved, u16
from reference.parser6 import (
    ECHO,
    ECHO_REPLY,
    ETHERTYPE,
    HEADER,
    ICMP,
    ICMP_ERRORS,
    ICMP_HEADER,
    Chain,
    is_group,
    walk,
)

SUM_AT = {ICMP: 2, TCP: 16, UDP: 6}
HOPS_AT, SOURCE, DESTINATION = 7, 8, 24
INITIAL_HOPS = 64

Side = int  # SOURCE or DESTINATION
DatagramKey = tuple[bytes, bytes, bytes, int]


class Frame6:
    """A frame that is understood; ports of an echo are its id, on the requester's side."""

    __slots__ = ("bytes", "chain", "dport", "dst", "l4", "later", "protocol", "quoted", "sport", "src", "ttl")

    def __init__(self, frame: bytes, datagrams: Mapping[DatagramKey, Ports]) -> None:
        self.bytes = bytearray(frame)
        self.chain = _chain(frame, ETHERNET)
        self.protocol, self.l4 = self.chain.protocol, ETHERNET + self.chain.l4
        self.ttl = frame[ETHERNET + HOPS_AT]
        self.src, self.dst = frame[22:38], frame[38:54]
        self.later = bool(self.chain.offset)
        self.quoted: Quoted | None = None
        if self.later:
            self.sport, self.dport = datagrams[self.datagram]
        elif self.protocol == ICMP:
            self.sport, self.dport = _echo(frame, self.l4)
            if frame[self.l4] in ICMP_ERRORS:
                self.quoted = _quoted(frame, self.l4 + ICMP_HEADER)
        else:
            self.sport, self.dport = u16(frame, self.l4), u16(frame, self.l4 + 2)

    @property
    def datagram(self) -> DatagramKey:
        """What its fragments have in common."""
        return self.src, self.dst, self.chain.identification, self.protocol

    @property
    def answers(self) -> bool:
        """An answer to an echo, by its type or by the port that its datagram began with."""
        return bool(self.dport) if self.later else self.bytes[self.l4] == ECHO_REPLY

    def _move_sum(self, at: int, old: bytes, new: bytes) -> None:
        self.bytes[at : at + 2] = moved(u16(self.bytes, at), old, new).to_bytes(2, "big")

    def _move_l4_sum(self, old: bytes, new: bytes) -> None:
        """SCTP's covers no addresses.  A sum of UDP that is 0 is none; what would become 0 is 0xffff."""
        if self.protocol == SCTP:
            return
        at = self.l4 + SUM_AT[self.protocol]
        if self.protocol == UDP and not u16(self.bytes, at):
            return
        self._move_sum(at, old, new)
        if self.protocol == UDP and not u16(self.bytes, at):
            self.bytes[at : at + 2] = b"\xff\xff"

    def _place(self, side: Side, new: bytes) -> bytes:
        """Write an address of the header; the one before."""
        at = ETHERNET + side
        old, self.bytes[at : at + 16] = bytes(self.bytes[at : at + 16]), new
        if side == SOURCE:
            self.src = new
        else:
            self.dst = new
        return old

    def address(self, side: Side, new: bytes) -> None:
        """Of the header that an error travels by."""
        self._move_l4_sum(self._place(side, new), new)

    def translate(self, side: Side, new: bytes, port: int) -> bool:
        """Address and port of one side; False when this protocol's port cannot be changed."""
        old_port = self.sport if side == SOURCE else self.dport
        if not self.later and self.protocol == SCTP and port != old_port:
            return False
        old = self._place(side, new)
        if not self.later:
            self._move_l4_sum(old, new)
            if port != old_port:
                self._move_l4_sum(old_port.to_bytes(2, "big"), port.to_bytes(2, "big"))
                where = self.l4 + (4 if self.protocol == ICMP else 0 if side == SOURCE else 2)
                self.bytes[where : where + 2] = port.to_bytes(2, "big")
        if side == SOURCE:
            self.sport = port
        else:
            self.dport = port
        return True

    def translate_quoted(self, side: Side, new: bytes, port: int) -> None:
        """One side of the quoted packet, whose own sums stay; the error's own is right after that."""
        quoted = self.quoted
        assert quoted is not None
        at = quoted.l3 + side
        self._move_l4_sum(bytes(self.bytes[at : at + 16]), new)
        self.bytes[at : at + 16] = new
        old_port = quoted.sport if side == SOURCE else quoted.dport
        if port == old_port:
            return
        where = quoted.l4 + (4 if quoted.protocol == ICMP else 0 if side == SOURCE else 2)
        fresh = port.to_bytes(2, "big")
        self._move_l4_sum(old_port.to_bytes(2, "big"), fresh)
        self.bytes[where : where + 2] = fresh

    def hop(self) -> None:
        """One hop less."""
        self.ttl -= 1
        self.bytes[ETHERNET + HOPS_AT] = self.ttl

    def macs(self, dst: bytes, src: bytes) -> None:
        """To and from."""
        self.bytes[:12] = dst + src

    def error_about(self, src: bytes, kind: int, code: int) -> bytes | None:
        """The ICMPv6 error that goes back to its sender, if any may (RFC 4443 2.4)."""
        if not self._is_plain or self.quoted or self.bytes[0] & 1 or is_group(self.dst):
            return None
        quote = bytes(self.bytes[ETHERNET : ETHERNET + HEADER + (20 if self.protocol == TCP else 8)])
        return self._answer(src, ICMP, bytes([kind, code, 0, 0, 0, 0, 0, 0]) + quote)

    def reset(self) -> bytes | None:
        """The reset that whom it asks answers to a SYN (RFC 9293 3.5.2)."""
        if not self._is_plain:
            return None
        number = int.from_bytes(self.bytes[self.l4 + 4 : self.l4 + 8], "big") + 1 & 0xFFFFFFFF
        ports = self.dport.to_bytes(2, "big") + self.sport.to_bytes(2, "big")
        segment = ports + bytes(4) + number.to_bytes(4, "big") + b"\x50\x14" + bytes(6)
        return self._answer(self.dst, TCP, segment)

    @property
    def asks_to_connect(self) -> bool:
        """A SYN without ACK."""
        return self.protocol == TCP and not self.later and self.bytes[self.l4 + 13] & 0x12 == 2

    @property
    def _is_plain(self) -> bool:
        """Without extension headers."""
        return self.chain.l4 == HEADER and not self.chain.offset

    def _answer(self, src: bytes, protocol: int, told: bytes) -> bytes:
        """Back to its sender."""
        size, at = len(told).to_bytes(2, "big"), SUM_AT[protocol]
        pseudo = src + self.src + b"\0\0" + size + bytes([0, 0, 0, protocol])
        told = told[:at] + internet_sum(pseudo + told).to_bytes(2, "big") + told[at + 2 :]
        header = b"\x60\0\0\0" + size + bytes([protocol, INITIAL_HOPS]) + src + self.src
        return bytes(self.bytes[6:12] + self.bytes[:6] + ETHERTYPE) + header + told


def _chain(frame: bytes, at: int) -> Chain:
    """Of a packet that was understood."""
    chain = walk(frame[at:], HEADER, frame[at + 6])
    assert isinstance(chain, Chain)
    return chain


def _echo(frame: bytes, at: int) -> Ports:
    identifier = u16(frame, at + 4)
    if frame[at] == ECHO:
        return identifier, 0
    return (0, identifier) if frame[at] == ECHO_REPLY else (0, 0)


def _quoted(frame: bytes, at: int) -> Quoted:
    chain = _chain(frame, at)
    l4 = at + chain.l4
    ports = _echo(frame, l4) if chain.protocol == ICMP else (u16(frame, l4), u16(frame, l4 + 2))
    return Quoted(at, l4, chain.protocol, frame[at + 8 : at + 24], frame[at + 24 : at + 40], *ports)
