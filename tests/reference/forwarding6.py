# SPDX-License-Identifier: Apache-2.0
"""
What becomes of any frame on a node whose pods have both families, to the byte.

IPv6 has no tunnel here, and pods are not masqueraded: a packet is delivered, translated for a service,
handed to the stack, sent on by route, or refused.  All other frames are judged by reference/forwarding.py.
Standard library only.
"""

from __future__ import annotations

from reference.forwarding import (
    CLUSTER_IP,
    DROP,
    INVALID_SIP,
    NO_FIB,
    NO_LXC,
    NO_MAPPING,
    NO_SERVICE,
    PASS,
    REDIRECT,
    UNROUTABLE,
    UNSUPPORTED,
    Forwarding,
)
from reference.frame import SCTP, Ports, u16
from reference.frame6 import DESTINATION, SOURCE, DatagramKey, Frame6
from reference.node import Backend, FlowKey, Nat, Node, Verdict
from reference.parser import TTL_EXCEEDED, Answered, Flow, Outcome, Passed, Refused
from reference.parser6 import ECHO_REPLY, ETHERTYPE, ICMP, Parser6, has_header, is_group, is_of_link

UNREACHABLE, PORT, EXCEEDED = 1, 4, 3


class Forwarding6:
    """One node, hook by hook; *node* has addresses of 16 bytes, *four* judges what is not IPv6."""

    def __init__(self, node: Node, four: Forwarding) -> None:
        self._node = node
        self._four = four
        self._parser = Parser6(node.router)
        self._datagrams: dict[DatagramKey, Ports] = {}
        self._asked: set[FlowKey] = set()
        self._nat = Nat(node.nat_ports)
        # Pods are served wherever the world is, too.
        self._frontends = {**node.node_ports, **node.services}

    def forget(self) -> None:
        """As with empty maps."""
        self._parser.fragments.clear()
        self._datagrams.clear()
        self._asked.clear()
        self._nat = Nat(self._node.nat_ports)
        self._four.forget()

    def from_container(self, frame: bytes, shown: bytes) -> Verdict:
        """What the node's pod sends."""
        if frame[12:14] != ETHERTYPE:
            return self._four.from_container(frame, shown)
        packet = self._read(frame, self._parser.from_container(frame, self._node.sender))
        if isinstance(packet, Verdict):
            return packet
        asked = None if packet.quoted else self._ask_service(packet)
        return asked if isinstance(asked, Verdict) else self._from_pod(packet, asked)

    def _ask_service(self, packet: Frame6) -> Verdict | Backend | None:
        """What the pod asked, when that was a service and the packet goes to its backend now."""
        frontend = (packet.dst, packet.dport, packet.protocol)
        if frontend not in self._frontends:
            return self._nobody(packet, CLUSTER_IP) if packet.dst in self._node.cluster_ips else None
        backend = self._frontends[frontend]
        if backend is None:
            return self._nobody(packet, NO_SERVICE)
        packet.translate(DESTINATION, *backend)
        return frontend[:2]

    def _nobody(self, packet: Frame6, reason: int) -> Verdict:
        """A pod is told that nobody is there: a connection by a reset, all else by the router."""
        if packet.asks_to_connect:
            answer = packet.reset()
            return Verdict(REDIRECT if answer else DROP, reason, answer or bytes(packet.bytes))
        return self._refuse(packet, reason, self._node.router, UNREACHABLE, PORT)

    def _from_pod(self, packet: Frame6, asked: Backend | None) -> Verdict:
        if packet.dst == self._node.loopback:
            return Verdict(DROP, UNROUTABLE, bytes(packet.bytes))
        if packet.dst in self._node.own:
            packet.macs(self._node.router_mac, self._node.router_mac)
            return Verdict(REDIRECT, 0, bytes(packet.bytes))
        if packet.ttl <= 1:
            if asked:
                packet.translate(DESTINATION, *asked)
            return self._refuse(packet, TTL_EXCEEDED, self._node.router, EXCEEDED, 0)
        if asked and packet.dst == packet.src:
            packet.translate(SOURCE, self._node.loopback, packet.sport)
        if packet.dst in self._node.pods:
            return self._deliver(packet)
        reason = self._node.leads_to(packet.dst)
        if not reason:
            packet.hop()
        return Verdict(DROP if reason else REDIRECT, reason, bytes(packet.bytes))

    def to_container(self, frame: bytes, shown: bytes) -> Verdict:
        """What the stack sends by a pod's own device: it goes on as it is."""
        if frame[12:14] != ETHERTYPE:
            return self._four.to_container(frame, shown)
        outcome = self._parser.to_container(frame, frozenset(self._node.pods))
        return Verdict(PASS, 0, frame) if isinstance(outcome, Flow) else _ended(outcome, frame)

    def from_host(self, frame: bytes, shown: bytes) -> Verdict:
        """What the stack sends along its route to pods: the stack was the hop."""
        if frame[12:14] != ETHERTYPE:
            return self._four.from_host(frame, shown)
        packet = self._read(frame, self._parser.from_host(frame, frozenset(self._node.pods)), read=True)
        return packet if isinstance(packet, Verdict) else self._deliver(packet, hops=0)

    def from_netdev(self, frame: bytes, shown: bytes) -> Verdict:
        """What arrives from the network: to pods, or to a frontend for outside; the rest is the node's."""
        if frame[12:14] != ETHERTYPE:
            return self._four.from_netdev(frame, shown)
        header = frame[14:]
        if has_header(header) and header[24:40] not in self._node.pods:
            return self._from_outside(frame, shown)
        outcome = self._parser.from_netdev(frame, frozenset(self._node.pods), self._node.own)
        packet = self._read(frame, outcome, read=True)
        return packet if isinstance(packet, Verdict) else self._deliver(packet)

    def to_netdev(self, frame: bytes, shown: bytes) -> Verdict:
        """What leaves for the network goes as it is, but for the node's own in the range of shared ports."""
        if frame[12:14] != ETHERTYPE:
            return self._four.to_netdev(frame, shown)
        packet = self._read(frame, self._parser.packet(frame))
        if isinstance(packet, Verdict):
            return Verdict(PASS, 0, frame)
        own = packet.src == self._node.address and packet.sport >= self._node.nat_ports.start
        if own and not packet.quoted and packet.protocol != SCTP:
            self._masquerade(packet, shown)
        return Verdict(PASS, 0, bytes(packet.bytes))

    # -- steps ---------------------------------------------------------------------------------

    def _read(self, frame: bytes, outcome: Outcome, *, read: bool = False) -> Frame6 | Verdict:
        """
        The frame taken apart, or its end; a first fragment is remembered with its ports.

        With *read* it is known even if the packet is refused for whom it is from or to.
        """
        if isinstance(outcome, Flow):
            return self._remember(frame)
        if read and isinstance(outcome, Refused) and outcome.reason in {NO_LXC, INVALID_SIP, TTL_EXCEEDED}:
            self._remember(frame)
        return _ended(outcome, frame)

    def _remember(self, frame: bytes) -> Frame6:
        packet = Frame6(frame, self._datagrams)
        if packet.chain.first:
            self._datagrams[packet.datagram] = packet.sport, packet.dport
        return packet

    def _deliver(self, packet: Frame6, *, hops: int = 1) -> Verdict:
        pod = self._node.pods[packet.dst]
        if hops:
            packet.hop()
        packet.macs(pod.mac, pod.node_mac)
        return Verdict(REDIRECT, 0, bytes(packet.bytes))

    @staticmethod
    def _refuse(packet: Frame6, reason: int, speaker: bytes, kind: int, code: int) -> Verdict:
        answer = packet.error_about(speaker, kind, code)
        if answer is None:
            return Verdict(DROP, reason, bytes(packet.bytes))
        return Verdict(REDIRECT, reason, answer)

    def _from_outside(self, frame: bytes, shown: bytes) -> Verdict:
        """To a frontend, an error about a frontend's answer, or none of ours."""
        packet = self._read(frame, self._parser.packet(frame))
        if isinstance(packet, Verdict):
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
        if packet.src in self._node.pods or packet.src in self._node.own or is_of_link(packet.src):
            return Verdict(DROP, INVALID_SIP, frame)
        if quoted:
            asked = (quoted.dst, quoted.dport, quoted.src, quoted.sport, quoted.protocol)
            return self._error_from_outside(packet, asked, backend)
        return self._to_backend(packet, shown, backend)

    def _to_backend(self, packet: Frame6, shown: bytes, backend: Backend) -> Verdict:
        self._asked.add((packet.src, packet.sport, packet.dst, packet.dport, packet.protocol))
        if packet.ttl <= 1:
            return self._refuse(packet, TTL_EXCEEDED, packet.dst, EXCEEDED, 0)
        packet.translate(DESTINATION, *backend)
        if backend[0] in self._node.pods:
            return self._deliver(packet)
        if _never_forwarded(packet.src):
            return Verdict(DROP, NO_FIB, bytes(packet.bytes))
        reason = self._masquerade(packet, shown)
        assert not reason
        packet.hop()
        return Verdict(REDIRECT, 0, bytes(packet.bytes))

    def _error_from_outside(self, packet: Frame6, asked: FlowKey, backend: Backend) -> Verdict:
        """About what a frontend answered to *asked*: it reaches the backend in the backend's own words."""
        if asked not in self._asked:
            return Verdict(PASS, 0, bytes(packet.bytes))
        if packet.ttl <= 1:
            return Verdict(DROP, TTL_EXCEEDED, bytes(packet.bytes))
        packet.translate_quoted(SOURCE, *backend)
        packet.address(DESTINATION, backend[0])
        if backend[0] in self._node.pods:
            return self._deliver(packet)
        if _never_forwarded(packet.src):
            return Verdict(DROP, NO_FIB, bytes(packet.bytes))
        flow = (asked[0], asked[1], *backend, asked[4])
        if flow not in self._nat.out:
            return Verdict(DROP, NO_MAPPING, bytes(packet.bytes))
        packet.translate_quoted(DESTINATION, self._node.address, self._nat.out[flow] or 0)
        packet.address(SOURCE, self._node.address)
        packet.hop()
        return Verdict(REDIRECT, 0, bytes(packet.bytes))

    def _masquerade(self, packet: Frame6, shown: bytes) -> int:
        """Under the node's address; 0, or the reason why not."""
        address = self._node.address
        answers = packet.dport if packet.later else packet.bytes[packet.l4] == ECHO_REPLY
        if packet.protocol == ICMP and answers:
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


def _never_forwarded(source: bytes) -> bool:
    """From a group, or from this very node (RFC 4291 2.5.3, 2.7)."""
    return is_group(source) or source == bytes(15) + b"\1"


def _ended(outcome: Outcome, frame: bytes) -> Verdict:
    """What needs no flow."""
    if isinstance(outcome, Answered):
        return Verdict(REDIRECT, 0, outcome.frame)
    if isinstance(outcome, Passed):
        return Verdict(PASS, 0, frame)
    assert isinstance(outcome, Refused)
    return Verdict(DROP, outcome.reason, frame)
