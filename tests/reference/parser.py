# SPDX-License-Identifier: Apache-2.0
"""
What the datapath must make of any bytes, said again without looking at its code.

The rules of lib/parse.h and of the hooks in front of it, on plain bytes: which packets are
understood, as which flow, and under which reason the others are refused.  Standard library only;
numbers of drop reasons are written out, because they are a promise to users.  Nothing here knows
of conntrack, policy or routes: a packet that is understood is handed over as a Flow.
"""

from __future__ import annotations

from dataclasses import dataclass, field

INVALID_SMAC, INVALID_SIP = 130, 132
INVALID, BAD_HEADER, UNKNOWN_PROTOCOL, UNKNOWN_L3 = 134, 135, 137, 139
ICMP_TYPE, UNKNOWN_TARGET, NO_LXC = 144, 150, 152
FRAGMENTED_ERROR, NO_L2, NO_FIRST_FRAGMENT, TTL_EXCEEDED = 157, 166, 175, 196

ETHERNET, IPV4, ICMP_HEADER, ARP_SIZE = 14, 20, 8, 28
ETHERTYPE_IPV4, ETHERTYPE_ARP = 0x0800, 0x0806
ICMP, TCP, UDP, SCTP = 1, 6, 17, 132
L4_HEADER = {ICMP: ICMP_HEADER, TCP: 20, UDP: 8, SCTP: 12}
ECHO_REPLY, ECHO = 0, 8
ICMP_ERRORS = frozenset({3, 11, 12})


@dataclass(frozen=True, slots=True)
class Pod:
    """A sender or receiver as far as its packets can show it."""

    mac: bytes
    node_mac: bytes
    ip: bytes


@dataclass(frozen=True, slots=True)
class Flow:
    """What an understood packet says; ICMP shows type << 8 | code as source port, as events do."""

    src: bytes
    dst: bytes
    protocol: int
    sport: int
    dport: int
    tcp_flags: int


@dataclass(frozen=True, slots=True)
class Passed:
    """Not ours to judge: the packet goes on as it is."""


@dataclass(frozen=True, slots=True)
class Answered:
    """Turned into this frame and sent back."""

    frame: bytes


@dataclass(frozen=True, slots=True)
class Refused:
    """Dropped, for this reason."""

    reason: int


Outcome = Flow | Passed | Answered | Refused


def _u16(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 2], "big")


@dataclass(slots=True)
class Parser:
    """The rules; the only memory is that of first fragments."""

    router: bytes
    fragments: dict[tuple[bytes, bytes, int, int], tuple[int, int]] = field(default_factory=dict)

    def from_container(self, frame: bytes, pod: Pod) -> Outcome:
        """What *pod* sends."""
        if len(frame) < ETHERNET:
            return Refused(NO_L2)
        if frame[6:12] != pod.mac:
            return Refused(INVALID_SMAC)
        ethertype = _u16(frame, 12)
        if ethertype == ETHERTYPE_ARP:
            return self._arp(frame, pod)
        if ethertype != ETHERTYPE_IPV4:
            return Refused(UNKNOWN_L3)
        packet = frame[ETHERNET:]
        # Before anything is remembered of it: a liar's first fragment must not name others' ports.
        if self.has_header(packet) and packet[12:16] != pod.ip:
            return Refused(INVALID_SIP)
        return self.ipv4(frame)

    def to_container(self, frame: bytes, pods: frozenset[bytes]) -> Outcome:
        """What the node's stack sends by a pod's own device; *pods* are the local addresses."""
        if len(frame) < ETHERNET:
            return Refused(NO_L2)
        ethertype = _u16(frame, 12)
        if ethertype == ETHERTYPE_ARP:
            return Passed()
        if ethertype != ETHERTYPE_IPV4:
            return Refused(UNKNOWN_L3)
        return self._to_pod(self.ipv4(frame), pods)

    def from_host(self, frame: bytes, pods: frozenset[bytes]) -> Outcome:
        """What the node's stack sends along its route to pods."""
        if len(frame) < ETHERNET or _u16(frame, 12) != ETHERTYPE_IPV4:
            return Passed()
        return self._to_pod(self.ipv4(frame), pods)

    def from_netdev(self, frame: bytes, pods: frozenset[bytes], own: frozenset[bytes]) -> Outcome:
        """What arrives from the network: only packets to pods are judged; *own* cannot be out there."""
        if len(frame) < ETHERNET or _u16(frame, 12) != ETHERTYPE_IPV4:
            return Passed()
        header = frame[ETHERNET:]
        if not self.has_header(header) or header[16:20] not in pods:
            return Passed()
        outcome = self.ipv4(frame)
        if isinstance(outcome, Flow) and outcome.src in pods | own:
            return Refused(INVALID_SIP)
        if isinstance(outcome, Flow) and header[8] <= 1:
            return Refused(TTL_EXCEEDED)
        return outcome

    @staticmethod
    def _to_pod(outcome: Outcome, pods: frozenset[bytes]) -> Outcome:
        if isinstance(outcome, Flow) and outcome.dst not in pods:
            return Refused(NO_LXC)
        return outcome

    def _arp(self, frame: bytes, pod: Pod) -> Outcome:
        """A pod may ask for its router's address, in its own name; nothing else."""
        arp = frame[ETHERNET : ETHERNET + ARP_SIZE]
        if len(arp) < ARP_SIZE or arp[:8] != bytes.fromhex("0001 0800 06 04 0001"):
            return Refused(INVALID)
        if arp[14:18] != pod.ip:
            return Refused(INVALID_SIP)
        if arp[24:28] != self.router:
            return Refused(UNKNOWN_TARGET)
        reply = arp[:6] + b"\0\2" + pod.node_mac + self.router + pod.mac + pod.ip
        return Answered(pod.mac + pod.node_mac + frame[12:14] + reply + frame[ETHERNET + ARP_SIZE :])

    @staticmethod
    def has_header(packet: bytes) -> bool:
        """An IPv4 header that describes itself, its options, and a length that is there."""
        if len(packet) < IPV4:
            return False
        header, total = (packet[0] & 15) * 4, _u16(packet, 2)
        return packet[0] >> 4 == 4 and header >= IPV4 and header <= total <= len(packet)

    def ipv4(self, frame: bytes) -> Flow | Refused:
        """The IPv4 packet behind an Ethernet header; what lies beyond its total length is padding."""
        packet = frame[ETHERNET:]
        if not self.has_header(packet):
            return Refused(INVALID)
        packet = packet[: _u16(packet, 2)]
        protocol, src, dst = packet[9], packet[12:16], packet[16:20]
        if protocol not in L4_HEADER:
            return Refused(UNKNOWN_PROTOCOL)
        offset, more = _u16(packet, 6) & 0x1FFF, bool(_u16(packet, 6) & 0x2000)
        key = (src, dst, _u16(packet, 4), protocol)
        if offset:
            if key not in self.fragments:
                return Refused(NO_FIRST_FRAGMENT)
            return Flow(src, dst, protocol, *self.fragments[key], tcp_flags=0)
        l4 = packet[(packet[0] & 15) * 4 :]
        reason = self._l4(protocol, l4, more=more)
        if reason:
            return Refused(reason)
        icmp = protocol == ICMP
        if more:
            # A later fragment of an ICMP packet has no type to show.
            self.fragments[key] = (0, 0) if icmp else (_u16(l4, 0), _u16(l4, 2))
        flags = l4[13] if protocol == TCP else 0
        return Flow(src, dst, protocol, _u16(l4, 0), 0 if icmp else _u16(l4, 2), flags)

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
        """0, or why the packet that an ICMP error quotes leads nowhere."""
        header = (quoted[0] & 15) * 4 if quoted else 0
        if len(quoted) < IPV4 or quoted[0] >> 4 != 4 or header < IPV4:
            return BAD_HEADER
        if _u16(quoted, 6) & 0x1FFF:
            return NO_FIRST_FRAGMENT
        if len(quoted) < header + 8:
            return BAD_HEADER
        if quoted[9] == ICMP:
            return 0 if quoted[header] in {ECHO, ECHO_REPLY} else ICMP_TYPE
        return 0 if quoted[9] in L4_HEADER else UNKNOWN_PROTOCOL
