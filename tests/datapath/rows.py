# SPDX-License-Identifier: Apache-2.0
"""Rows as tests speak of them: rules of a policy version, pods of the node."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_network

from ciliumd import abi
from ciliumd.abi import Direction, PolicyVerdict
from ciliumd.desired.policy.maprows import sealed
from ciliumd.model.net import addr16
from fixtures.packets import Place, pod_one, pod_three, pod_two


def u32(number: int) -> bytes:
    """A key or value that is a plain integer."""
    return number.to_bytes(4, "little")


def a16(text: str) -> bytes:
    """An address as maps spell it."""
    return addr16(ip_network(text).network_address)


@dataclass(frozen=True, slots=True)
class Rule:
    """One row of a policy version; without protocol and port it is its class's wildcard."""

    direction: Direction
    verdict: PolicyVerdict
    protocol: int = 0
    port: int = 0
    cookie: int = 0
    class_id: int = 0

    @property
    def key(self) -> abi.PolicyKey:
        """As far as its fields are given."""
        prefix = abi.PolicyPrefix.POLICY_PREFIX_CLASS
        if self.protocol:
            prefix = abi.PolicyPrefix.POLICY_PREFIX_PROTOCOL
        if self.port:
            prefix = abi.PolicyPrefix.POLICY_PREFIX_PORT
        return abi.PolicyKey(prefix, self.class_id, self.direction, self.protocol, self.port)

    @property
    def entry(self) -> abi.PolicyEntry:
        """What a packet finds under it."""
        return sealed(self.key, abi.PolicyEntry(self.verdict, 0, 0, self.cookie, 0))


INGRESS, EGRESS = Direction.DIR_INGRESS, Direction.DIR_EGRESS
ALLOW, DENY = PolicyVerdict.POLICY_VERDICT_ALLOW, PolicyVerdict.POLICY_VERDICT_DENY
DEFAULT_DENY = PolicyVerdict.POLICY_VERDICT_DEFAULT_DENY
ALLOW_ALL = (Rule(INGRESS, ALLOW, cookie=0xA11), Rule(EGRESS, ALLOW, cookie=0xA12))
# One-way policies: what is opened from the other side must be judged, and so refused.
ONLY_OUT = (Rule(EGRESS, ALLOW), Rule(INGRESS, DEFAULT_DENY, cookie=0xDE1))
ONLY_IN = (Rule(INGRESS, ALLOW), Rule(EGRESS, DEFAULT_DENY, cookie=0xDE2))
DENY_ALL = (Rule(INGRESS, DEFAULT_DENY, cookie=0xDE1), Rule(EGRESS, DEFAULT_DENY, cookie=0xDE2))


@dataclass(frozen=True, slots=True)
class Pod:
    """An endpoint as the maps hold it."""

    place: Place
    slot: int
    id: int
    identity: int
    device: str
    version: int
    generation: int = 7
    flags: int = 0
    ip6: str = "::"
    judged_ipv4: int = 0
    judged_ipv6: int = 0

    @property
    def ipv6(self) -> bytes:
        """Its other address; all zero when it has none."""
        return IPv6Address(self.ip6).packed

    @property
    def ifindex(self) -> int:
        """Of the host side of its veth."""
        return socket.if_nametoindex(self.device)


POD_ONE = Pod(pod_one, slot=1, id=101, identity=1001, device="lxc1", version=11)
POD_TWO = Pod(pod_two, slot=2, id=102, identity=1002, device="lxc2", version=12)
POD_THREE = Pod(pod_three, slot=3, id=103, identity=1003, device="lxc3", version=13)
