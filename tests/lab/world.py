# SPDX-License-Identifier: Apache-2.0
"""
The world outside: a namespace at the other end of each node's uplink.

It is every node's default gateway and has an address of its own further away.  It knows no route to
pods, so that an answer proves masquerading, until :meth:`World.add_route` gives it one.
"""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Self

from lab.actor import Actor
from lab.netns import Namespace, veth

FAR = IPv4Address("203.0.113.10")
UPLINKS = IPv4Network("192.168.0.0/16")
FAR6 = IPv6Address("2001:db8:77::1")


class World:
    """A router with servers.  A context manager."""

    def __init__(self, *, mtu: int = 1500) -> None:
        self.netns = Namespace("world")
        self.mtu = mtu
        self.far = str(FAR)
        self.far6 = str(FAR6)
        self._nodes = 0
        self._actor: Actor | None = None
        self.netns.ip("address", "add", f"{FAR}/32", "dev", "lo")
        self.netns.sysctl("net/ipv4/ip_forward", "1")

    @property
    def actor(self) -> Actor:
        """Somebody out there."""
        if self._actor is None:
            self._actor = Actor(self.netns.path, who="world")
        return self._actor

    def plug(self, node: Namespace, *, six: bool = False) -> tuple[str, str]:
        """
        Give a node its eth0 and default route; the node's address and the gateway's.

        With *six* they are of IPv6, and the node has no IPv4 but the loopback device's.
        """
        self._nodes += 1
        if six:
            return self._plug_six(node)
        network = IPv4Network(f"192.168.{100 + self._nodes}.0/24")
        gateway, address = str(network[1]), str(network[2])
        veth(node, "eth0", self.netns, f"node{self._nodes}", mtu=self.mtu)
        node.ip("address", "add", f"{address}/24", "dev", "eth0")
        self.netns.ip("address", "add", f"{gateway}/24", "dev", f"node{self._nodes}")
        node.ip("route", "add", "default", "via", gateway, "src", address)
        return address, gateway

    def _plug_six(self, node: Namespace) -> tuple[str, str]:
        network = IPv6Network(f"2001:db8:{100 + self._nodes}::/64")
        gateway, address = str(network[1]), str(network[2])
        veth(node, "eth0", self.netns, f"node{self._nodes}", mtu=self.mtu)
        self.netns.sysctl("net/ipv6/conf/all/forwarding", "1")
        self.netns.ip("address", "replace", f"{FAR6}/128", "dev", "lo", "nodad")
        self.netns.ip("address", "add", f"{gateway}/64", "dev", f"node{self._nodes}", "nodad")
        node.ip("address", "add", f"{address}/64", "dev", "eth0", "nodad")
        node.ip("route", "add", "default", "via", gateway, "dev", "eth0")
        return address, gateway

    def add_route(self, network: str, via: str) -> None:
        """Let the world reach a network of pods."""
        self.netns.ip("route", "replace", network, "via", via)

    def del_route(self, network: str) -> None:
        """Forget it again."""
        self.netns.ip("route", "del", network)

    def remove(self) -> None:
        """Take it down."""
        if self._actor is not None:
            self._actor.end()
        self.netns.remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()
