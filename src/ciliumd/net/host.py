# SPDX-License-Identifier: Apache-2.0
"""
The node's own end of the pod network: cilium_host, cilium_net and the route to the pods.

What the node sends to its pods is routed to cilium_host and comes out of cilium_net, where a program
takes it; what pods send to the router address ends at cilium_host.  No address is ever resolved over
the pair.  Programs are attached by others.
"""

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from socket import AF_INET

from pyroute2 import IPRoute

from ciliumd.net import links, sysctl
from ciliumd.net.errors import LinkConflict, LinkGone
from ciliumd.net.links import HOST_ALIAS, HOST_LINK, NET_LINK, Link
from ciliumd.net.routes import Route, add_routes, ensure_address, remove_addresses


@dataclass(frozen=True, slots=True, kw_only=True)
class HostWiring:
    """
    What the pair is configured for; *router* is the node's address inside *pod_cidr*.

    *router6* and *pod_cidr6* are the same of IPv6.  A family that the node's pods do not have has neither.
    """

    router: IPv4Address | None
    pod_cidr: IPv4Network | None
    mtu: int
    router6: IPv6Address | None = None
    pod_cidr6: IPv6Network | None = None


@dataclass(frozen=True, slots=True)
class HostLinks:
    """The pair, and what on this machine is in the way of it working."""

    host: Link
    net: Link
    warnings: tuple[str, ...]


def ensure_host(ipr: IPRoute, wiring: HostWiring) -> HostLinks:
    """Create or correct the pair, the router addresses and the routes to the pods, of no other family."""
    host, net = _ensure_pair(ipr, wiring.mtu)
    for link in (host, net):
        if link.alias != HOST_ALIAS:
            links.mark(ipr, link.ifindex, HOST_ALIAS)
        if link.mtu != wiring.mtu:
            links.set_mtu(ipr, link.ifindex, wiring.mtu)
        # Programs look up routes for IPv6 that native devices and the tunnel bring as if it came in here.
        six = link is host and wiring.router6 is not None
        sysctl.forward_through(link.name, ipv6=six, stack_ipv6=six)
        links.set_up(ipr, link.ifindex, noarp=True)
    if wiring.router is not None:
        ensure_address(ipr, host.ifindex, wiring.router)
    else:
        # Of an agent before, whose pods had IPv4; its routes go with it.
        remove_addresses(ipr, host.ifindex, AF_INET)
    if wiring.router6 is not None:
        ensure_address(ipr, host.ifindex, wiring.router6)
    # Those to other nodes' pods are somebody else's, who knows better than this which of them stay.
    add_routes(ipr, host.ifindex, _routes(wiring))
    # Of IPv4 alone: IPv6 has no such check.
    conflict = sysctl.reverse_path_conflict() if wiring.router is not None else None
    return HostLinks(
        host=_present(ipr, host.ifindex),
        net=_present(ipr, net.ifindex),
        warnings=(conflict,) if conflict else (),
    )


def _routes(wiring: HostWiring) -> tuple[Route, ...]:
    """The router on the link first: it is the next hop of the second."""
    routes: list[Route] = []
    if wiring.router is not None and wiring.pod_cidr is not None:
        routes += (
            Route(destination=IPv4Network(wiring.router)),
            Route(
                destination=wiring.pod_cidr,
                via=wiring.router,
                source=wiring.router,
                mtu=wiring.mtu,
            ),
        )
    if wiring.router6 is not None and wiring.pod_cidr6 is not None:
        # IPv6 takes no address of the node's own for a next hop; over this pair none is resolved anyway.
        routes.append(Route(destination=wiring.pod_cidr6, source=wiring.router6, mtu=wiring.mtu))
    return tuple(routes)


def _ensure_pair(ipr: IPRoute, mtu: int) -> tuple[Link, Link]:
    host, net = links.link_by_name(ipr, HOST_LINK), links.link_by_name(ipr, NET_LINK)
    for link in (host, net):
        # A pair without any mark is one whose creator died before marking it.
        if link is not None and (link.kind != "veth" or link.alias not in {"", HOST_ALIAS}):
            raise LinkConflict(
                f"create {HOST_LINK} and {NET_LINK}",
                f"a device {link.name} exists that is not ours; delete or rename it",
            )
    if host is not None and net is not None and host.peer == net.ifindex:
        return host, net
    for link in (host, net):
        if link is not None:
            links.delete_link(ipr, link.ifindex)
    host = links.create_veth(ipr, HOST_LINK, peer=NET_LINK, mtu=mtu)
    return host, _present(ipr, host.peer)


def _present(ipr: IPRoute, ifindex: int) -> Link:
    """The device as it is now."""
    link = links.link_by_index(ipr, ifindex)
    if link is None:
        raise LinkGone(f"configure {HOST_LINK} and {NET_LINK}", "somebody deleted them")
    return link
