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

from reference.frame import (
    DESTINATION,
    ECHO_REPLY,
    ETHERNET,
    ICMP,
    SCTP,
    SOURCE,
    UDP,
    DatagramKey,
    Frame,
    Ports,
    u16,
)
from reference.node import Backend, FlowKey, Nat, Node, Verdict
from reference.parser import Answered, Flow, Outcome, Parser, Refused

PASS, DROP, REDIRECT = -1, 2, 7
INVALID_SIP, POLICY, INVALID, UNKNOWN_L3, UNROUTABLE, NO_LXC, NO_SERVICE = 132, 133, 134, 139, 151, 152, 158
NO_L2, NO_MAPPING, UNSUPPORTED, NO_FIB, CLUSTER_IP, TTL_EXCEEDED = 166, 167, 168, 169, 174, 196
ENCAP_PROHIBITED = 170
UNREACHABLE, PORT, EXCEEDED = 3, 3, 11
IPV4 = b"\x08\0"


class Forwarding:
    """One node, hook by hook; what earlier frames left behind is remembered as the node must."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._parser = Parser(node.router)
        self._datagrams: dict[DatagramKey, Ports] = {}
        self._asked: set[FlowKey] = set()
        self._nat = Nat(node.nat_ports)

    def forget(self) -> None:
        """As with empty maps."""
        self._parser.fragments.clear()
        self._datagrams.clear()
        self._asked.clear()
        self._nat = Nat(self._node.nat_ports)

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

    def _deliver(self, packet: Frame, *, hops: int = 1) -> Verdict:
        pod = self._node.pods[packet.dst]
        if packet.dst in self._node.closed:
            return Verdict(DROP, POLICY, bytes(packet.bytes))
        if hops:
            packet.hop()
        packet.macs(pod.mac, pod.node_mac)
        return Verdict(REDIRECT, 0, bytes(packet.bytes))

    @staticmethod
    def _refuse(packet: Frame, reason: int, speaker: bytes, kind: int, code: int) -> Verdict:
        answer = packet.error_about(speaker, kind, code)
        if answer is None:
            return Verdict(DROP, reason, bytes(packet.bytes))
        return Verdict(REDIRECT, reason, answer)

    def _from_outside(self, packet: Frame | Verdict, frame: bytes, shown: bytes) -> Verdict:
        """To a frontend, an error about a frontend's answer, or none of ours."""
        if isinstance(packet, Verdict) or self._is_tunnels(packet):
            return Verdict(PASS, 0, frame)
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

    def _to_backend(self, packet: Frame, shown: bytes, backend: Backend) -> Verdict:
        self._asked.add((packet.src, packet.sport, packet.dst, packet.dport, packet.protocol))
        if packet.ttl <= 1:
            return self._refuse(packet, TTL_EXCEEDED, packet.dst, EXCEEDED, 0)
        packet.translate(DESTINATION, *backend)
        if backend[0] in self._node.pods:
            return self._deliver(packet)
        reason = self._masquerade(packet, shown, self._node.address)
        assert not reason
        packet.hop()
        return Verdict(REDIRECT, 0, bytes(packet.bytes))

    def _error_from_outside(self, packet: Frame, asked: FlowKey, backend: Backend) -> Verdict:
        """About what a frontend answered to *asked*: it reaches the backend in the backend's own words."""
        if asked not in self._asked:
            return Verdict(PASS, 0, bytes(packet.bytes))
        if packet.ttl <= 1:
            return Verdict(DROP, TTL_EXCEEDED, bytes(packet.bytes))
        packet.translate_quoted(SOURCE, *backend)
        packet.address(DESTINATION, backend[0])
        if backend[0] in self._node.pods:
            return self._deliver(packet)
        flow = (asked[0], asked[1], *backend, asked[4])
        if flow not in self._nat.out:
            return Verdict(DROP, NO_MAPPING, bytes(packet.bytes))
        packet.translate_quoted(DESTINATION, self._node.address, self._nat.out[flow] or 0)
        packet.address(SOURCE, self._node.address)
        packet.hop()
        return Verdict(REDIRECT, 0, bytes(packet.bytes))

    def _own_port(self, packet: Frame, shown: bytes, address: bytes) -> None:
        """The node's own packet under a shared address: its port is nobody else's."""
        if not packet.quoted and packet.protocol != SCTP and packet.sport >= self._node.nat_ports.start:
            self._masquerade(packet, shown, address)

    def _masquerade(self, packet: Frame, shown: bytes, address: bytes) -> int:
        """Under this address of the node; 0, or the reason why not."""
        quoted = packet.quoted
        if quoted:
            flow = (quoted.dst, quoted.dport, quoted.src, quoted.sport, quoted.protocol)
            if flow not in self._nat.out:
                return NO_MAPPING
            packet.translate_quoted(DESTINATION, address, self._nat.out[flow] or 0)
            packet.address(SOURCE, address)
            return 0
        if packet.protocol == ICMP and (packet.dport if packet.later else packet.type == ECHO_REPLY):
            return NO_MAPPING
        if packet.protocol == SCTP:
            return UNSUPPORTED
        at = packet.l4 + (4 if packet.protocol == ICMP else 0)
        visible = None if packet.later else u16(shown, at)
        flow = (packet.src, packet.sport, packet.dst, packet.dport, packet.protocol)
        port = self._nat.port_of(flow, visible)
        if packet.src == address and port == packet.sport:
            return 0
        # A port that no node may choose: 0 is in no range, so the frames differ.
        packet.translate(SOURCE, address, packet.sport if packet.later else port or 0)
        return 0
