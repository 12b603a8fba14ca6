# SPDX-License-Identifier: Apache-2.0
"""
What the datapath must make of IPv6, said again without looking at its code: the rules of lib/parse6.h.

The interface is that of reference/parser.py, and so are the words; addresses have 16 bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from reference.frame import internet_sum, u16
from reference.parser import (
    BAD_HEADER,
    ETHERNET,
    FRAGMENTED_ERROR,
    INVALID,
    INVALID_SIP,
    INVALID_SMAC,
    NO_FIRST_FRAGMENT,
    NO_L2,
    NO_LXC,
    SCTP,
    TCP,
    TTL_EXCEEDED,
    UDP,
    UNKNOWN_PROTOCOL,
    UNKNOWN_TARGET,
    Answered,
    Flow,
    Outcome,
    Passed,
    Pod,
    Refused,
)

ICMP_TYPE, BAD_EXTENSION = 146, 156
ETHERTYPE = b"\x86\xdd"
HEADER, ICMP_HEADER = 40, 8
HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, DESTINATION = 0, 43, 44, 51, 60
EXTENSIONS = frozenset({HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, DESTINATION})
MOST_EXTENSIONS = 8
ICMP = 58
L4_HEADER = {ICMP: ICMP_HEADER, TCP: 20, UDP: 8, SCTP: 12}
ECHO, ECHO_REPLY = 128, 129
ICMP_ERRORS = frozenset({1, 2, 3, 4})
SOLICITATION = 135
MAPPED = bytes(10) + b"\xff\xff"
NOBODY = bytes(16)


@dataclass(frozen=True, slots=True)
class Chain:
    """What a walk over extension headers came to: the transport, where it begins, and the fragment."""

    protocol: int
    l4: int
    offset: int = 0
    more: bool = False
    identification: bytes = bytes(4)

    @property
    def first(self) -> bool:
        """Of several fragments."""
        return self.more and not self.offset


def has_header(packet: bytes) -> bool:
    """An IPv6 header, a payload that is there, and addresses that cannot be taken for IPv4's."""
    if len(packet) < HEADER or packet[0] >> 4 != 6 or HEADER + u16(packet, 4) > len(packet):
        return False
    return MAPPED not in {packet[8:20], packet[24:36]}


def _size(protocol: int, packet: bytes, at: int) -> int:
    """Of an extension header; 0 when the packet is not for whom it is addressed to."""
    length, left = packet[at + 1], packet[at + 3]
    if protocol == ROUTING and left:
        return 0
    if protocol == FRAGMENT:
        return 8
    return (length + 2) * 4 if protocol == AUTHENTICATION else (length + 1) * 8


def _part(packet: bytes, at: int) -> Chain | Refused:
    """What a fragment header at *at* is followed by: the transport, at once."""
    following, field_ = packet[at], u16(packet, at + 2)
    if following in EXTENSIONS:
        return Refused(FRAGMENTED_ERROR)
    return Chain(following, at + 8, field_ >> 3, bool(field_ & 1), packet[at + 4 : at + 8])


def walk(packet: bytes, at: int, protocol: int) -> Chain | Refused:
    """From the first header behind the fixed one to the transport; *packet* ends where its payload does."""
    for _ in range(MOST_EXTENSIONS):
        if protocol not in EXTENSIONS:
            return Chain(protocol, at)
        if len(packet) < at + 8:
            return Refused(BAD_EXTENSION)
        following = packet[at]
        if protocol == FRAGMENT and u16(packet, at + 2) & 0xFFF9:
            return _part(packet, at)
        size = _size(protocol, packet, at)
        if not size or at + size > len(packet):
            return Refused(BAD_EXTENSION)
        at += size
        protocol = following
    return Refused(BAD_EXTENSION) if protocol in EXTENSIONS else Chain(protocol, at)


def is_group(address: bytes) -> bool:
    """ff00::/8."""
    return address[0] == 0xFF


def is_of_link(address: bytes) -> bool:
    """fe80::/10."""
    return address[0] == 0xFE and address[1] & 0xC0 == 0x80


def link_local_of(mac: bytes) -> bytes:
    """RFC 4291, appendix A."""
    return b"\xfe\x80" + bytes(6) + bytes([mac[0] ^ 2]) + mac[1:3] + b"\xff\xfe" + mac[3:]


@dataclass(slots=True)
class Parser6:
    """The rules; the only memory is that of first fragments."""

    router: bytes
    fragments: dict[tuple[bytes, bytes, bytes, int], tuple[int, int]] = field(default_factory=dict)

    def from_container(self, frame: bytes, pod: Pod) -> Outcome:
        """What *pod* sends."""
        if len(frame) < ETHERNET:
            return Refused(NO_L2)
        if frame[6:12] != pod.mac:
            return Refused(INVALID_SMAC)
        packet = frame[ETHERNET:]
        if not has_header(packet):
            return Refused(INVALID)
        if packet[6] == ICMP and u16(packet, 4) and packet[HEADER] == SOLICITATION:
            return self._solicited(frame, pod)
        # Before anything is remembered of it, or read behind the header.
        if packet[8:24] != pod.ip or pod.ip == NOBODY:
            return Refused(INVALID_SIP)
        return self.packet(frame)

    def to_container(self, frame: bytes, pods: frozenset[bytes]) -> Outcome:
        """What the node's stack sends by a pod's own device."""
        return self._to_pod(self.packet(frame), pods)

    def from_host(self, frame: bytes, pods: frozenset[bytes]) -> Outcome:
        """What the node's stack sends along its route to pods; what is of the link is none of it."""
        packet = frame[ETHERNET:]
        if has_header(packet) and (is_group(packet[24:40]) or is_of_link(packet[24:40])):
            return Passed()
        return self._to_pod(self.packet(frame), pods)

    def from_netdev(self, frame: bytes, pods: frozenset[bytes], own: frozenset[bytes]) -> Outcome:
        """What arrives from the network: only packets to pods are judged."""
        header = frame[ETHERNET:]
        if not has_header(header) or header[24:40] not in pods:
            return Passed()
        outcome = self.packet(frame)
        if isinstance(outcome, Flow) and (outcome.src in pods | own or is_of_link(outcome.src)):
            return Refused(INVALID_SIP)
        if isinstance(outcome, Flow) and header[7] <= 1:
            return Refused(TTL_EXCEEDED)
        return outcome

    @staticmethod
    def _to_pod(outcome: Outcome, pods: frozenset[bytes]) -> Outcome:
        if isinstance(outcome, Flow) and outcome.dst not in pods:
            return Refused(NO_LXC)
        return outcome

    def _solicited(self, frame: bytes, pod: Pod) -> Outcome:
        """A pod may ask for its router's address, in its own name; nothing else (RFC 4861 7.1.1)."""
        packet = frame[ETHERNET:]
        asker, asked = packet[8:24], packet[HEADER : HEADER + u16(packet, 4)]
        if asker not in {pod.ip, link_local_of(pod.mac)} or asker == NOBODY:
            return Refused(INVALID_SIP)
        if packet[7] != 255 or len(asked) < 24 or asked[1]:
            return Refused(INVALID)
        if len(asked) >= 32 and asked[24] == 1 and (asked[25] != 1 or asked[26:32] != pod.mac):
            return Refused(INVALID_SMAC)
        if asked[8:24] != self.router:
            return Refused(UNKNOWN_TARGET)
        told = b"\x88\0\0\0\xe0\0\0\0" + self.router + b"\2\1" + pod.node_mac
        pseudo = self.router + asker + len(told).to_bytes(4, "big") + bytes([0, 0, 0, ICMP])
        told = told[:2] + internet_sum(pseudo + told).to_bytes(2, "big") + told[4:]
        header = b"\x60\0\0\0" + len(told).to_bytes(2, "big") + bytes([ICMP, 255])
        return Answered(pod.mac + pod.node_mac + ETHERTYPE + header + self.router + asker + told)

    def packet(self, frame: bytes) -> Flow | Refused:
        """The IPv6 packet behind an Ethernet header; what lies beyond its payload is padding."""
        packet = frame[ETHERNET:]
        if not has_header(packet):
            return Refused(INVALID)
        packet = packet[: HEADER + u16(packet, 4)]
        chain = walk(packet, HEADER, packet[6])
        return chain if isinstance(chain, Refused) else self._transport(packet, chain)

    def _transport(self, packet: bytes, chain: Chain) -> Flow | Refused:
        src, dst, protocol = packet[8:24], packet[24:40], chain.protocol
        if protocol not in L4_HEADER:
            return Refused(UNKNOWN_PROTOCOL)
        key = (src, dst, chain.identification, protocol)
        if chain.offset:
            if key not in self.fragments:
                return Refused(NO_FIRST_FRAGMENT)
            return Flow(src, dst, protocol, *self.fragments[key], tcp_flags=0)
        l4 = packet[chain.l4 :]
        reason = self._l4(protocol, l4, more=chain.more)
        if reason:
            return Refused(reason)
        icmp = protocol == ICMP
        if chain.more:
            self.fragments[key] = (0, 0) if icmp else (u16(l4, 0), u16(l4, 2))
        flags = l4[13] if protocol == TCP else 0
        return Flow(src, dst, protocol, u16(l4, 0), 0 if icmp else u16(l4, 2), flags)

    def _l4(self, protocol: int, l4: bytes, *, more: bool) -> int:
        """0, or why the transport header is refused."""
        if len(l4) < L4_HEADER[protocol]:
            return BAD_HEADER
        if protocol == TCP and not L4_HEADER[TCP] <= (l4[12] >> 4) * 4 <= len(l4):
            return BAD_HEADER
        if protocol != ICMP or l4[0] in {ECHO, ECHO_REPLY}:
            return 0
        if l4[0] not in ICMP_ERRORS:
            return ICMP_TYPE
        return FRAGMENTED_ERROR if more else self._quoted(l4[ICMP_HEADER:])

    @staticmethod
    def _quoted(quoted: bytes) -> int:
        """0, or why the packet that an ICMP error quotes leads nowhere; 8 bytes of its L4 do."""
        if len(quoted) < HEADER or quoted[0] >> 4 != 6 or MAPPED in {quoted[8:20], quoted[24:36]}:
            return BAD_HEADER
        chain = walk(quoted, HEADER, quoted[6])
        if isinstance(chain, Refused):
            return chain.reason
        if chain.offset:
            return NO_FIRST_FRAGMENT
        if len(quoted) < chain.l4 + 8:
            return BAD_HEADER
        if chain.protocol == ICMP:
            return 0 if quoted[chain.l4] in {ECHO, ECHO_REPLY} else ICMP_TYPE
        return 0 if chain.protocol in L4_HEADER else UNKNOWN_PROTOCOL
