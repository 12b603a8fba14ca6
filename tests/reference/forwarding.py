# SPDX-License-Identifier: Apache-2.0
"""
What becomes of any frame on a node, to the byte.

The promises of datapath/README.md said again without looking at the programs: who is delivered where, which
addresses, ports and sums change, which drop has which reason, and what is answered.  reference/parser.py says
which frames are understood; policies here know addresses only.  The one thing that a node may choose, the
port of a masqueraded flow, is read from what came out and judged: in range, the sender's own if that is free,
and one flow's alone.  Standard library only; numbers of drop reasons are written out, because they are a
promise to users.
"""

from __future__ import annotations

from reference.frame import DESTINATION, ETHERNET, ICMP, SOURCE, UDP, DatagramKey, Frame, Ports
from reference.node import Backend, Node, Verdict
from reference.parser import Answered, Flow, Outcome, Parser, Refused
from reference.translating import (
    CLUSTER_IP,
    DROP,
    INVALID_SIP,
    PASS,
    POLICY,
    REDIRECT,
    TTL_EXCEEDED,
    Translating,
)

INVALID, UNKNOWN_L3, UNROUTABLE, NO_LXC, NO_SERVICE, NO_L2 = 134, 139, 151, 152, 158, 166
ENCAP_PROHIBITED = 170
UNREACHABLE, PORT, EXCEEDED = 3, 3, 11
IPV4 = b"\x08\0"


class Forwarding(Translating):
    """One node, hook by hook."""

    source, destination, exceeded, icmp = SOURCE, DESTINATION, EXCEEDED, ICMP

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self._parser = Parser(node.router)
        self._datagrams: dict[DatagramKey, Ports] = {}

    def forget(self) -> None:
        """As with empty maps."""
        super().forget()
        self._parser.fragments.clear()
        self._datagrams.clear()

    def from_container(self, frame: bytes, _shown: bytes) -> Verdict:
        """What the node's pod sends."""
        packet = self._read(frame, self._parser.from_container(frame, self._node.sender))
        if isinstance(packet, Verdict):
            return packet
        asked = None if packet.quoted else self._ask_service(packet)
        return asked if isinstance(asked, Verdict) else self._from_pod(packet, asked)

    def _ask_service(self, packet: Frame) -> Verdict | Backend | None:
        """What the pod asked, when that was a service and the packet goes to its backend now."""
        frontend = (packet.dst, packet.dport, packet.protocol)
        if frontend not in self._node.services:
            if packet.dst in self._node.cluster_ips:
                return self._refuse(packet, CLUSTER_IP, self._node.router, UNREACHABLE, PORT)
            return None
        backend = self._node.services[frontend]
        if backend is None:
            return self._refuse(packet, NO_SERVICE, self._node.router, UNREACHABLE, PORT)
        packet.translate(DESTINATION, *backend)
        return frontend[:2]

    def _from_pod(self, packet: Frame, asked: Backend | None) -> Verdict:
        reason = 0
        if self._is_tunnels(packet) and self._leaves_pods(packet.dst):
            reason = ENCAP_PROHIBITED
        elif not self._node.may_reach(packet.dst):
            reason = POLICY
        elif packet.dst == self._node.loopback:
            reason = UNROUTABLE
        if reason:
            return Verdict(DROP, reason, bytes(packet.bytes))
        if packet.dst in self._node.own:
            return self._to_stack(packet)
        if packet.ttl <= 1:
            if asked:
                packet.translate(DESTINATION, *asked)
            return self._refuse(packet, TTL_EXCEEDED, self._node.router, EXCEEDED, 0)
        return self._deliver(packet) if packet.dst in self._node.pods else self._leave(packet)

    def _leave(self, packet: Frame) -> Verdict:
        """By the tunnel, or by the routing table."""
        if self._node.behind_tunnel(packet.dst):
            packet.hop()
            return self._to_stack(packet)
        reason = self._node.leads_to(packet.dst)
        if reason:
            return Verdict(DROP, reason, bytes(packet.bytes))
        packet.hop()
        return Verdict(REDIRECT, 0, bytes(packet.bytes))

    def to_container(self, frame: bytes, _shown: bytes) -> Verdict:
        """What the stack sends by a pod's own device: it goes on as it is."""
        outcome = self._parser.to_container(frame, frozenset(self._node.pods))
        if isinstance(outcome, Refused):
            return Verdict(DROP, outcome.reason, frame)
        # Before an address can be read there must be an IPv4 packet: ARP goes on.
        if frame[12:14] == IPV4 and frame[30:34] in self._node.closed:
            return Verdict(DROP, POLICY, frame)
        return Verdict(PASS, 0, frame)

    def from_host(self, frame: bytes, shown: bytes) -> Verdict:
        """What the stack sends along its route to pods: the stack was the hop."""
        if frame[12:14] != IPV4:
            return Verdict(PASS, 0, frame)
        packet = self._read(frame, self._parser.ipv4(frame))
        if isinstance(packet, Verdict):
            return packet
        if packet.dst in self._node.pods:
            return self._deliver(packet, hops=0)
        if not self._node.behind_tunnel(packet.dst):
            return Verdict(DROP, NO_LXC, frame)
        if packet.src not in self._node.own:
            return Verdict(DROP, INVALID_SIP, frame)
        if packet.src == self._node.router:
            self._own_port(packet, shown, self._node.router)
        return self._to_stack(packet)

    def from_netdev(self, frame: bytes, shown: bytes) -> Verdict:
        """What arrives from the network: to pods, or to a frontend for outside; the rest is the node's."""
        header = frame[ETHERNET:]
        if frame[12:14] != IPV4 or not self._parser.has_header(header):
            return Verdict(PASS, 0, frame)
        packet = self._read(frame, self._parser.ipv4(frame))
        if header[16:20] not in self._node.pods:
            return self._from_outside(packet, frame, shown)
        if isinstance(packet, Verdict):
            return packet
        reason = INVALID_SIP if self._cannot_be_outside(packet.src) else 0
        if packet.ttl <= 1:
            reason = reason or TTL_EXCEEDED
        return Verdict(DROP, reason, frame) if reason else self._deliver(packet)

    def to_netdev(self, frame: bytes, shown: bytes) -> Verdict:
        """What leaves for the network: pods' packets, and the node's own in the range of shared ports."""
        header = frame[ETHERNET:]
        if frame[12:14] != IPV4 or not self._parser.has_header(header):
            return Verdict(PASS, 0, frame)
        packet = self._read(frame, self._parser.ipv4(frame))
        if isinstance(packet, Verdict):
            # The node's own traffic is refused for nothing.
            return packet if self._node.is_pod_address(header[12:16]) else Verdict(PASS, 0, frame)
        reason = 0
        if self._node.is_pod_address(packet.src):
            if packet.dst not in self._node.unmasked:
                reason = self._masquerade(packet, shown, self._node.address)
        elif packet.src == self._node.address and not self._is_tunnels(packet):
            self._own_port(packet, shown, self._node.address)
        return Verdict(DROP if reason else PASS, reason, bytes(packet.bytes))

    def from_overlay(self, frame: bytes, _shown: bytes) -> Verdict:
        """What a node brings through the tunnel."""
        header = frame[ETHERNET:]
        reason = 0 if frame[12:14] == IPV4 else UNKNOWN_L3
        if not reason:
            reason = self._node.may_send(header[12:16]) if self._parser.has_header(header) else INVALID
        if reason:
            return Verdict(DROP, reason, frame)
        packet = self._read(frame, self._parser.ipv4(frame))
        if isinstance(packet, Verdict):
            return packet
        if packet.dst in self._node.own:
            return self._to_stack(packet)
        if packet.dst not in self._node.pods:
            reason = NO_LXC if self._node.is_pod_address(packet.dst) else UNROUTABLE
        elif packet.ttl <= 1:
            reason = TTL_EXCEEDED
        return Verdict(DROP, reason, frame) if reason else self._deliver(packet)

    @staticmethod
    def to_overlay(frame: bytes, _shown: bytes) -> Verdict:
        """What the stack sends into the tunnel by itself: nothing does; only of IPv4 it is told."""
        return Verdict(DROP, ENCAP_PROHIBITED if frame[12:14] == IPV4 else 0, frame)

    # -- steps ---------------------------------------------------------------------------------

    def _read(self, frame: bytes, outcome: Outcome) -> Frame | Verdict:
        """The frame taken apart, or its end; a first fragment is remembered with its ports."""
        if isinstance(outcome, Answered):
            return Verdict(REDIRECT, 0, outcome.frame)
        if isinstance(outcome, Refused):
            if outcome.reason == NO_LXC:
                self._remember(frame)
            return Verdict(DROP, outcome.reason, frame)
        assert isinstance(outcome, Flow)
        return self._remember(frame)

    def _remember(self, frame: bytes) -> Frame:
        packet = Frame(frame, self._datagrams)
        if packet.is_first:
            self._datagrams[packet.datagram] = packet.sport, packet.dport
        return packet

    def _cannot_be_outside(self, address: bytes) -> bool:
        """A pod's, this node's, or behind the tunnel."""
        node = self._node
        return address in node.pods or address in node.own or node.behind_tunnel(address)

    def _is_tunnels(self, packet: Frame) -> bool:
        port = self._node.tunnel_port
        return bool(port) and packet.protocol == UDP and packet.dport == port

    def _leaves_pods(self, address: bytes) -> bool:
        """Whether what a pod sends there could be taken for a node's."""
        if address in self._node.pods:
            return False
        return not self._node.behind_tunnel(address) or self._node.is_other_node(address)

    def _to_stack(self, packet: Frame) -> Verdict:
        packet.macs(self._node.router_mac, self._node.router_mac)
        return Verdict(REDIRECT, 0, bytes(packet.bytes))

    def _from_outside(self, packet: Frame | Verdict, frame: bytes, shown: bytes) -> Verdict:
        if isinstance(packet, Verdict) or self._is_tunnels(packet):
            return Verdict(PASS, 0, frame)
        return self._to_frontend(packet, frame, shown)

    def _is_never_forwarded(self, source: bytes) -> bool:
        """The routing table of the tests' node has a way for all that gets here."""
        del source
        return False
