# SPDX-License-Identifier: Apache-2.0
"""
What becomes of any frame on a node whose pods have both families, to the byte.

IPv6 has no tunnel here, and pods are not masqueraded: a packet is delivered, translated for a service,
handed to the stack, sent on by route, or refused.  All other frames are judged by reference/forwarding.py.
Standard library only.
"""

from __future__ import annotations

from reference.forwarding import NO_LXC, NO_SERVICE, UNROUTABLE, Forwarding
from reference.frame import Ports
from reference.frame6 import DESTINATION, SOURCE, DatagramKey, Frame6
from reference.node import Backend, Node, Verdict
from reference.parser import TTL_EXCEEDED, Answered, Flow, Outcome, Passed, Refused
from reference.parser6 import ETHERTYPE, ICMP, Parser6, has_header, is_group, is_of_link
from reference.translating import CLUSTER_IP, DROP, INVALID_SIP, PASS, REDIRECT, Translating

UNREACHABLE, PORT, EXCEEDED = 1, 4, 3


class Forwarding6(Translating):
    """One node, hook by hook; *node* has addresses of 16 bytes, *four* judges what is not IPv6."""

    source, destination, exceeded, icmp = SOURCE, DESTINATION, EXCEEDED, ICMP

    def __init__(self, node: Node, four: Forwarding) -> None:
        super().__init__(node)
        self._four = four
        self._parser = Parser6(node.router)
        self._datagrams: dict[DatagramKey, Ports] = {}
        # Pods are served wherever the world is, too.
        self._frontends = {**node.node_ports, **node.services}

    def forget(self) -> None:
        """As with empty maps."""
        super().forget()
        self._parser.fragments.clear()
        self._datagrams.clear()
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
        if packet.src == self._node.address:
            self._own_port(packet, shown, self._node.address)
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

    def _from_outside(self, frame: bytes, shown: bytes) -> Verdict:
        packet = self._read(frame, self._parser.packet(frame))
        if isinstance(packet, Verdict):
            return Verdict(PASS, 0, frame)
        return self._to_frontend(packet, frame, shown)

    def _cannot_be_outside(self, address: bytes) -> bool:
        return address in self._node.pods or address in self._node.own or is_of_link(address)

    def _is_never_forwarded(self, source: bytes) -> bool:
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
