# SPDX-License-Identifier: Apache-2.0
"""
What becomes of any frame on a node whose pods have both families, to the byte.

IPv6 has no services, no masquerading and no tunnel here: a packet is delivered, handed to the stack, sent on
by route, or refused.  All other frames are judged by reference/forwarding.py.  Standard library only.
"""

from __future__ import annotations

from reference.forwarding import DROP, PASS, REDIRECT, Forwarding
from reference.frame import ETHERNET, TCP, internet_sum
from reference.node import Node, Verdict
from reference.parser import TTL_EXCEEDED, Answered, Flow, Outcome, Passed, Refused
from reference.parser6 import ETHERTYPE, HEADER, ICMP, ICMP_ERRORS, Chain, Parser6, is_group, walk

HOPS_AT = ETHERNET + 7
EXCEEDED = 3
INITIAL_HOPS = 64


class Forwarding6:
    """One node, hook by hook; *node* has addresses of 16 bytes, *four* judges what is not IPv6."""

    def __init__(self, node: Node, four: Forwarding) -> None:
        self._node = node
        self._four = four
        self._parser = Parser6(node.router)

    def forget(self) -> None:
        """As with empty maps."""
        self._parser.fragments.clear()
        self._four.forget()

    def from_container(self, frame: bytes, shown: bytes) -> Verdict:
        """What the node's pod sends."""
        if frame[12:14] != ETHERTYPE:
            return self._four.from_container(frame, shown)
        outcome = self._parser.from_container(frame, self._node.sender)
        if not isinstance(outcome, Flow):
            return _ended(outcome, frame)
        if outcome.dst in self._node.own:
            return self._to_stack(frame)
        if frame[HOPS_AT] <= 1:
            return self._exceeded(frame, outcome)
        if outcome.dst in self._node.pods:
            return self._deliver(frame, outcome)
        reason = self._node.leads_to(outcome.dst)
        return Verdict(DROP, reason, frame) if reason else Verdict(REDIRECT, 0, _hop(frame))

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
        outcome = self._parser.from_host(frame, frozenset(self._node.pods))
        return self._deliver(frame, outcome, hops=0) if isinstance(outcome, Flow) else _ended(outcome, frame)

    def from_netdev(self, frame: bytes, shown: bytes) -> Verdict:
        """What arrives from the network: to pods; the rest is the node's."""
        if frame[12:14] != ETHERTYPE:
            return self._four.from_netdev(frame, shown)
        outcome = self._parser.from_netdev(frame, frozenset(self._node.pods), self._node.own)
        return self._deliver(frame, outcome) if isinstance(outcome, Flow) else _ended(outcome, frame)

    def to_netdev(self, frame: bytes, shown: bytes) -> Verdict:
        """What leaves for the network goes as it is."""
        if frame[12:14] != ETHERTYPE:
            return self._four.to_netdev(frame, shown)
        return Verdict(PASS, 0, frame)

    # -- steps ---------------------------------------------------------------------------------

    def _to_stack(self, frame: bytes) -> Verdict:
        return Verdict(REDIRECT, 0, self._node.router_mac * 2 + frame[12:])

    def _deliver(self, frame: bytes, flow: Flow, *, hops: int = 1) -> Verdict:
        pod = self._node.pods[flow.dst]
        frame = _hop(frame) if hops else frame
        return Verdict(REDIRECT, 0, pod.mac + pod.node_mac + frame[12:])

    def _exceeded(self, frame: bytes, flow: Flow) -> Verdict:
        """Told to the sender, if anything can be (RFC 4443 2.4): with what fits of the packet's own start."""
        chain = _chain(frame)
        plain = chain.l4 == HEADER and not chain.offset
        error = flow.protocol == ICMP and plain and frame[ETHERNET + HEADER] in ICMP_ERRORS
        if not plain or error or is_group(flow.dst):
            return Verdict(DROP, TTL_EXCEEDED, frame)
        quote = frame[ETHERNET : ETHERNET + HEADER + (20 if flow.protocol == TCP else 8)]
        told = bytes([EXCEEDED, 0, 0, 0, 0, 0, 0, 0]) + quote
        size = len(told).to_bytes(2, "big")
        pseudo = self._node.router + flow.src + b"\0\0" + size + bytes([0, 0, 0, ICMP])
        told = told[:2] + internet_sum(pseudo + told).to_bytes(2, "big") + told[4:]
        header = b"\x60\0\0\0" + size + bytes([ICMP, INITIAL_HOPS]) + self._node.router + flow.src
        return Verdict(REDIRECT, TTL_EXCEEDED, frame[6:12] + frame[:6] + ETHERTYPE + header + told)


def _ended(outcome: Outcome, frame: bytes) -> Verdict:
    """What needs no flow."""
    if isinstance(outcome, Answered):
        return Verdict(REDIRECT, 0, outcome.frame)
    if isinstance(outcome, Passed):
        return Verdict(PASS, 0, frame)
    assert isinstance(outcome, Refused)
    return Verdict(DROP, outcome.reason, frame)


def _hop(frame: bytes) -> bytes:
    return frame[:HOPS_AT] + bytes([frame[HOPS_AT] - 1]) + frame[HOPS_AT + 1 :]


def _chain(frame: bytes) -> Chain:
    """Of a frame that was understood."""
    chain = walk(frame[ETHERNET:], HEADER, frame[ETHERNET + 6])
    assert isinstance(chain, Chain)
    return chain
