# SPDX-License-Identifier: Apache-2.0
"""
The tunnel device, and the node's own routes to the pods of other nodes.

cilium_vxlan carries no configuration of peers: the datapath says for each packet where it goes and reads
where it came from (``external``, also called collect_md).  The node's own packets to other nodes' pods are
routed to cilium_host like those to its own, and come out where the datapath takes them.
"""

from collections.abc import Collection, Iterable, Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from socket import AF_INET6

from pyroute2 import IPRoute

from ciliumd.model.net import Prefix
from ciliumd.net import links, sysctl
from ciliumd.net.errors import LinkConflict, LinkGone, NetError, netlink_errors
from ciliumd.net.links import OVERLAY_ALIAS, OVERLAY_LINK, Link
from ciliumd.net.routes import Route, our_destinations, remove_route, replace_route

VXLAN_OVERHEAD = {4: 50, 6: 70}
"""Bytes VXLAN adds by outer family: IPv4 20 or IPv6 40, UDP 8, VXLAN 8, inner Ethernet 14 (RFC 7348)."""


def ensure_overlay(ipr: IPRoute, *, port: int, mtu: int) -> Link:
    """
    Create or correct cilium_vxlan, up, on UDP *port*; *mtu* is what its packets may measure inside.

    LinkConflict if the name is taken by somebody else's device.
    """
    link = links.link_by_name(ipr, OVERLAY_LINK)
    if link is not None and (link.kind != "vxlan" or link.alias not in {"", OVERLAY_ALIAS}):
        raise LinkConflict(
            f"create {OVERLAY_LINK}", f"a device {OVERLAY_LINK} exists that is not ours; delete or rename it"
        )
    if link is not None and _port(ipr, link.ifindex) != port:
        links.delete_link(ipr, link.ifindex)
        link = None
    if link is None:
        with netlink_errors(f"create {OVERLAY_LINK} on UDP port {port}"):
            ipr.link(
                "add",
                ifname=OVERLAY_LINK,
                kind="vxlan",
                mtu=mtu,
                address=links.random_mac(),
                vxlan_collect_metadata=1,
                vxlan_learning=0,
                vxlan_port=port,
            )
        link = _present(ipr)
    if link.alias != OVERLAY_ALIAS:
        links.mark(ipr, link.ifindex, OVERLAY_ALIAS)
    if link.mtu != mtu:
        links.set_mtu(ipr, link.ifindex, mtu)
    sysctl.forward_through(OVERLAY_LINK)
    links.set_up(ipr, link.ifindex)
    return _present(ipr)


def remove_overlay(ipr: IPRoute) -> bool:
    """Delete cilium_vxlan; False if it is not there or not ours."""
    link = links.link_by_name(ipr, OVERLAY_LINK)
    return link is not None and link.alias == OVERLAY_ALIAS and links.delete_link(ipr, link.ifindex)


class RemoteRoutes:
    """
    Routes to other nodes' pods over cilium_host, as rows: key is the destination as text, value the MTU.

    A reconciler's target: used by its writer thread only.  The node's own pod network, *own*, and the
    *router* are routed by ``net.host``.
    """

    name = "remote-routes"

    def __init__(
        self,
        ifindex: int,
        *,
        router: IPv4Address | None = None,
        own: IPv4Network | None = None,
        router6: IPv6Address | None = None,
        own6: IPv6Network | None = None,
    ) -> None:
        self._ifindex = ifindex
        self._router = router
        self._router6 = router6
        self._others: set[Prefix | None] = {own, own6}
        if router is not None:
            self._others.add(IPv4Network(router))

    def load(self) -> dict[bytes, bytes]:
        """The routes of ours over cilium_host."""
        with IPRoute() as ipr:
            found = our_destinations(ipr, self._ifindex)
            if self._router6 is not None:
                found |= our_destinations(ipr, self._ifindex, AF_INET6)
        return {
            str(destination).encode(): str(mtu).encode()
            for destination, mtu in found.items()
            if destination not in self._others
        }

    def update(self, items: Mapping[bytes, bytes]) -> Mapping[bytes, Exception]:
        """Install or correct routes."""
        failed: dict[bytes, Exception] = {}
        with IPRoute() as ipr:
            for key, value in items.items():
                route = self._route(ip_network(key.decode()), int(value))
                try:
                    replace_route(ipr, self._ifindex, route)
                except NetError as error:
                    failed[key] = error
        return failed

    def delete(self, keys: Collection[bytes]) -> Mapping[bytes, Exception]:
        """Remove routes; one that is gone is success."""
        failed: dict[bytes, Exception] = {}
        with IPRoute() as ipr:
            for key in keys:
                try:
                    remove_route(ipr, self._ifindex, ip_network(key.decode()))
                except NetError as error:
                    failed[key] = error
        return failed

    def _route(self, destination: Prefix, mtu: int) -> Route:
        """As ``net.host`` routes to the node's own pods."""
        if destination.version == 6:
            return Route(destination=destination, source=self._router6, mtu=mtu)
        return Route(destination=destination, via=self._router, source=self._router, mtu=mtu)


def route_rows(destinations: Iterable[Prefix], mtu: int) -> dict[bytes, bytes]:
    """Rows of :class:`RemoteRoutes`."""
    return {str(destination).encode(): str(mtu).encode() for destination in destinations}


def _port(ipr: IPRoute, ifindex: int) -> int:
    with netlink_errors(f"look up link {ifindex}"):
        (message,) = ipr.get_links(ifindex)
    info = message.get_attr("IFLA_LINKINFO")
    data = info.get_attr("IFLA_INFO_DATA") if info else None
    return int(data.get_attr("IFLA_VXLAN_PORT") or 0) if data else 0


def _present(ipr: IPRoute) -> Link:
    link = links.link_by_name(ipr, OVERLAY_LINK)
    if link is None:
        raise LinkGone(f"configure {OVERLAY_LINK}", "somebody deleted it")
    return link
