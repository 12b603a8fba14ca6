# SPDX-License-Identifier: Apache-2.0
"""
What becomes of frames for a frontend, of errors about its answers, and of what leaves under a shared address.

The same in both families but for what the classes of forwarding.py and forwarding6.py say of theirs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from reference.frame import SCTP, u16
from reference.node import Backend, FlowKey, Nat, Node, Verdict

PASS, DROP, REDIRECT = -1, 2, 7
INVALID_SIP, POLICY, NO_MAPPING, UNSUPPORTED = 132, 133, 167, 168
NO_FIB, CLUSTER_IP, TTL_EXCEEDED = 169, 174, 196

Packet = Any  # Frame or Frame6, whose names are the same


class Translating(ABC):
    """One node; what earlier frames left behind is remembered as the node must."""

    # Where the two sides' addresses are in the header, and two numbers of ICMP.
    source: ClassVar[int]
    destination: ClassVar[int]
    exceeded: ClassVar[int]
    icmp: ClassVar[int]

    def __init__(self, node: Node) -> None:
        self._node = node
        self._asked: set[FlowKey] = set()
        self._nat = Nat(node.nat_ports)

    def forget(self) -> None:
        """As with empty maps."""
        self._asked.clear()
        self._nat = Nat(self._node.nat_ports)

    # -- what a family says ----------------------------------------------------------------------

    @abstractmethod
    def _cannot_be_outside(self, address: bytes) -> bool:
        """Whether who comes from outside cannot have it."""

    @abstractmethod
    def _is_never_forwarded(self, source: bytes) -> bool:
        """Whether no router sends on what is from there."""

    # -- steps -----------------------------------------------------------------------------------

    def _deliver(self, packet: Packet, *, hops: int = 1) -> Verdict:
        pod = self._node.pods[packet.dst]
        if packet.dst in self._node.closed:
            return Verdict(DROP, POLICY, bytes(packet.bytes))
        if hops:
            packet.hop()
        packet.macs(pod.mac, pod.node_mac)
        return Verdict(REDIRECT, 0, bytes(packet.bytes))

    @staticmethod
    def _refuse(packet: Packet, reason: int, speaker: bytes, kind: int, code: int) -> Verdict:
        answer = packet.error_about(speaker, kind, code)
        if answer is None:
            return Verdict(DROP, reason, bytes(packet.bytes))
        return Verdict(REDIRECT, reason, answer)

    def _to_frontend(self, packet: Packet, frame: bytes, shown: bytes) -> Verdict:
        """To a frontend, an error about a frontend's answer, or none of ours."""
        quoted = packet.quoted
        frontend = (packet.dst, packet.dport, packet.protocol)
        if quoted:
            frontend = (quoted.src, quoted.sport, quoted.protocol)
            if quoted.src != packet.dst:
                return Verdict(PASS, 0, frame)
        backend = self._node.node_ports.get(frontend)
        if backend is None:
            inside = frontend in self._node.services or packet.dst in self._node.cluster_ips
            return Verdict(DROP, CLUSTER_IP, frame) if inside else Verdict(PASS, 0, frame)
        if self._cannot_be_outside(packet.src):
            return Verdict(DROP, INVALID_SIP, frame)
        if quoted:
            asked = (quoted.dst, quoted.dport, quoted.src, quoted.sport, quoted.protocol)
            return self._error_from_outside(packet, asked, backend)
        return self._to_backend(packet, shown, backend)

    def _to_backend(self, packet: Packet, shown: bytes, backend: Backend) -> Verdict:
        self._asked.add((packet.src, packet.sport, packet.dst, packet.dport, packet.protocol))
        if packet.ttl <= 1:
            return self._refuse(packet, TTL_EXCEEDED, packet.dst, self.exceeded, 0)
        packet.translate(self.destination, *backend)
        if backend[0] in self._node.pods:
            return self._deliver(packet)
        if self._is_never_forwarded(packet.src):
            return Verdict(DROP, NO_FIB, bytes(packet.bytes))
        reason = self._masquerade(packet, shown, self._node.address)
        assert not reason
        packet.hop()
        return Verdict(REDIRECT, 0, bytes(packet.bytes))

    def _error_from_outside(self, packet: Packet, asked: FlowKey, backend: Backend) -> Verdict:
        """About what a frontend answered to *asked*: it reaches the backend in the backend's own words."""
        if asked not in self._asked:
            return Verdict(PASS, 0, bytes(packet.bytes))
        if packet.ttl <= 1:
            return Verdict(DROP, TTL_EXCEEDED, bytes(packet.bytes))
        packet.translate_quoted(self.source, *backend)
        packet.address(self.destination, backend[0])
        if backend[0] in self._node.pods:
            return self._deliver(packet)
        if self._is_never_forwarded(packet.src):
            return Verdict(DROP, NO_FIB, bytes(packet.bytes))
        flow = (asked[0], asked[1], *backend, asked[4])
        if flow not in self._nat.out:
            return Verdict(DROP, NO_MAPPING, bytes(packet.bytes))
        packet.translate_quoted(self.destination, self._node.address, self._nat.out[flow] or 0)
        packet.address(self.source, self._node.address)
        packet.hop()
        return Verdict(REDIRECT, 0, bytes(packet.bytes))

    def _own_port(self, packet: Packet, shown: bytes, address: bytes) -> None:
        """The node's own packet under a shared address: its port is nobody else's."""
        if not packet.quoted and packet.protocol != SCTP and packet.sport >= self._node.nat_ports.start:
            self._masquerade(packet, shown, address)

    def _masquerade(self, packet: Packet, shown: bytes, address: bytes) -> int:
        """Under this address of the node; 0, or the reason why not."""
        quoted = packet.quoted
        if quoted:
            flow = (quoted.dst, quoted.dport, quoted.src, quoted.sport, quoted.protocol)
            if flow not in self._nat.out:
                return NO_MAPPING
            packet.translate_quoted(self.destination, address, self._nat.out[flow] or 0)
            packet.address(self.source, address)
            return 0
        if packet.protocol == self.icmp and packet.answers:
            return NO_MAPPING
        if packet.protocol == SCTP:
            return UNSUPPORTED
        at = packet.l4 + (4 if packet.protocol == self.icmp else 0)
        visible = None if packet.later else u16(shown, at)
        flow = (packet.src, packet.sport, packet.dst, packet.dport, packet.protocol)
        port = self._nat.port_of(flow, visible)
        if packet.src == address and port == packet.sport:
            return 0
        # A port that no node may choose: 0 is in no range, so the frames differ.
        packet.translate(self.source, address, packet.sport if packet.later else port or 0)
        return 0
