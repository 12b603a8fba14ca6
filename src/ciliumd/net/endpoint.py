# SPDX-License-Identifier: Apache-2.0
"""
Wires a pod: a veth pair, its end inside the pod's namespace configured, all of it or nothing.

The pod gets a /32 address, and a /128 where pods have IPv6, and reaches everything through the router
addresses, which the datapath answers for.  Who gets which address, and the maps that make packets flow,
are not decided here: a wired pod is unreachable until its rows are written and its program is attached.
"""

from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any

from pyroute2 import IPRoute

from ciliumd.model.net import Addr
from ciliumd.net import links, sysctl
from ciliumd.net.errors import LinkConflict, LinkGone, NetError, netlink_errors
from ciliumd.net.links import Link
from ciliumd.net.namespace import Sandbox, is_own_namespace, open_sandbox
from ciliumd.net.routes import (
    Route,
    add_address,
    add_routes,
    addresses,
    destination_of,
    ensure_address,
    ensure_routes,
    family_of,
    single,
)

_EEXIST = 17
_LOOPBACK = 1  # the first device of every namespace
_ANYWHERE = IPv4Network("0.0.0.0/0")
_ANYWHERE6 = IPv6Network("::/0")


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointWiring:
    """
    What a pod's network is made of.

    *pod* is ``namespace/name``, *name* the host side's device name, *ifname* the pod's.  *route_mtu* is
    what packets may measure on the way out (0: as the device).  Without *address* it has no IPv4, without
    *address6* no IPv6; each address has a router of its family.
    """

    endpoint_id: int
    pod: str
    name: str
    address: IPv4Address | None
    router: IPv4Address | None
    mtu: int
    route_mtu: int = 0
    ifname: str = "eth0"
    mac: str | None = None
    node_mac: str | None = None
    address6: IPv6Address | None = None
    router6: IPv6Address | None = None

    @property
    def addresses(self) -> tuple[Addr, ...]:
        """The pod's addresses, IPv4 first."""
        return tuple(address for address in (self.address, self.address6) if address is not None)

    @property
    def routes(self) -> tuple[Route, ...]:
        """The pod's routes; each router on the link first: it is the next hop of the one behind it."""
        mtu = self.route_mtu or self.mtu
        routes: list[Route] = []
        if self.address is not None and self.router is not None:
            routes += (
                Route(destination=IPv4Network(self.router)),
                Route(destination=_ANYWHERE, via=self.router, mtu=mtu),
            )
        if self.address6 is not None and self.router6 is not None:
            routes += (
                Route(destination=IPv6Network(self.router6)),
                Route(destination=_ANYWHERE6, via=self.router6, mtu=mtu),
            )
        return tuple(routes)


@dataclass(frozen=True, slots=True)
class EndpointLinks:
    """A wired pod: *ifindex*, *name*, *node_mac* are the host side, *mac*, *pod_ifindex* the pod's."""

    ifindex: int
    name: str
    node_mac: str
    mac: str
    pod_ifindex: int


@dataclass(frozen=True, slots=True)
class PreparedLink:
    """The host side of a veth that carries no packet yet; *made* tells whether it is new."""

    link: Link
    made: bool


def prepare_endpoint(ipr: IPRoute, wiring: EndpointWiring, sandbox: Sandbox) -> PreparedLink:
    """
    Create a pod's veth pair, its host side down: programs are attached before the first packet.

    LinkConflict if a name is taken by somebody else.  After any failure nothing that this call made is
    left.
    """
    if is_own_namespace(sandbox.netns):
        raise NetError(f"wire pod {wiring.pod}", f"{sandbox.path} is the node's own network namespace")
    host = _existing(ipr, wiring, sandbox)
    made = host is None
    host = host or _create(ipr, wiring, sandbox)
    try:
        links.mark(ipr, host.ifindex, links.endpoint_alias(wiring.endpoint_id, wiring.pod))
        if host.mtu != wiring.mtu:
            links.set_mtu(ipr, host.ifindex, wiring.mtu)
        sysctl.forward_through(host.name, ipv6=wiring.address6 is not None)
    except BaseException:
        if made:
            links.delete_link(ipr, host.ifindex)
        raise
    return PreparedLink(host, made)


def connect_endpoint(
    ipr: IPRoute, wiring: EndpointWiring, sandbox: Sandbox, prepared: PreparedLink
) -> EndpointLinks:
    """Bring a prepared pair up and configure the pod's end; a pair that is new goes if that fails."""
    host = prepared.link
    try:
        links.set_up(ipr, host.ifindex)
        with sandbox.routes() as inside:
            if prepared.made and wiring.mac is not None:
                _configure_new(inside, wiring, host.peer)
                return EndpointLinks(host.ifindex, host.name, host.mac, wiring.mac, host.peer)
            pod = _configure_pod(inside, wiring, host.ifindex)
    except BaseException:
        if prepared.made:
            links.delete_link(ipr, host.ifindex)
        raise
    return EndpointLinks(host.ifindex, host.name, host.mac, pod.mac, pod.ifindex)


def add_endpoint(ipr: IPRoute, wiring: EndpointWiring, path: str) -> EndpointLinks:
    """Wire the namespace at *path* in one go; doing it again for the same pod corrects what is there."""
    with open_sandbox(ipr, path) as sandbox:
        return connect_endpoint(ipr, wiring, sandbox, prepare_endpoint(ipr, wiring, sandbox))


def wiring_faults(ipr: IPRoute, wiring: EndpointWiring, sandbox: Sandbox, ifindex: int) -> tuple[str, ...]:
    """What of an existing pod's wiring is not as it was made; *ifindex* is its host side.  Reads only."""
    faults = []
    host = links.link_by_index(ipr, ifindex)
    owner = links.endpoint_owner(host.alias) if host is not None else None
    if host is None or owner is None or owner.endpoint_id != wiring.endpoint_id:
        faults.append(f"the node's device {wiring.name} is gone")
    elif not host.up:
        faults.append(f"the node's device {host.name} is down")
    with sandbox.routes() as inside:
        pod = links.link_by_name(inside, wiring.ifname)
        if pod is None or pod.peer != ifindex:
            return (*faults, f"the pod's device {wiring.ifname} is gone")
        if not pod.up:
            faults.append(f"the pod's device {wiring.ifname} is down")
        if pod.mac != wiring.mac:
            faults.append(f"the pod's device {wiring.ifname} has MAC address {pod.mac}, not {wiring.mac}")
        for address in wiring.addresses:
            present = addresses(inside, pod.ifindex, family_of(address))
            if single(address) not in present:
                shown = ", ".join(map(str, present)) or "none"
                faults.append(f"the pod's device {wiring.ifname} has address {shown}, not {single(address)}")
        # Others of the chain may have added routes; ours must be there.
        families = {family_of(address) for address in wiring.addresses}
        routes = {route for family in families for route in _routes(inside, pod.ifindex, family)}
        faults += [
            f"the pod's route to {route.destination} is gone or changed"
            for route in _as_made(wiring, pod).routes
            if route not in routes
        ]
    return tuple(faults)


def _as_made(wiring: EndpointWiring, pod: Link) -> EndpointWiring:
    """The wiring of a pod made when the node had another MTU: its device has that of then."""
    overhead = wiring.mtu - (wiring.route_mtu or wiring.mtu)
    return replace(wiring, mtu=pod.mtu, route_mtu=pod.mtu - overhead)


def _routes(inside: IPRoute, ifindex: int, family: int) -> tuple[Route, ...]:
    """The pod's routes of one family over a device, whoever made them."""
    with netlink_errors(f"list routes over link {ifindex}"):
        messages = tuple(inside.get_routes(family=family, oif=ifindex))
    return tuple(map(_route, messages))


def _route(message: Any) -> Route:
    metrics, via = message.get_attr("RTA_METRICS"), message.get_attr("RTA_GATEWAY")
    return Route(
        destination=destination_of(message),
        via=ip_address(via) if via else None,
        mtu=(metrics.get_attr("RTAX_MTU") if metrics else 0) or 0,
    )


def _existing(ipr: IPRoute, wiring: EndpointWiring, sandbox: Sandbox) -> Link | None:
    """The host side of an earlier attempt if it can be used; what is left of a broken one is deleted."""
    host = links.link_by_name(ipr, wiring.name)
    if host is None:
        return None
    owner = links.endpoint_owner(host.alias)
    # A veth without any mark is one whose creator died before marking it; a retired one is to be deleted.
    leftover = host.alias in {"", links.RETIRED_ALIAS} and host.kind == "veth"
    if not leftover and (owner is None or owner.pod != wiring.pod):
        raise LinkConflict(
            f"wire pod {wiring.pod}", f"device {host.name} belongs to {host.alias or host.kind}"
        )
    with sandbox.routes() as inside:
        pod = links.link_by_name(inside, wiring.ifname)
    connected = pod is not None and pod.peer == host.ifindex and host.peer == pod.ifindex
    # With another MAC it is of an attempt nobody remembers: the datapath would take the pod for a spoofer.
    if not leftover and connected and pod is not None and wiring.mac in {None, pod.mac}:
        return host
    links.delete_link(ipr, host.ifindex)
    return None


def _create(ipr: IPRoute, wiring: EndpointWiring, sandbox: Sandbox) -> Link:
    try:
        return links.create_veth(
            ipr,
            wiring.name,
            peer=wiring.ifname,
            mtu=wiring.mtu,
            mac=wiring.node_mac,
            peer_mac=wiring.mac,
            peer_namespace=sandbox.netns,
        )
    except NetError as error:
        if error.errno != _EEXIST:
            raise
        reason = f"{sandbox.path} has a device {wiring.ifname} that is not ours"
        raise LinkConflict(f"wire pod {wiring.pod}", reason, errno=_EEXIST) from error


def _configure_new(inside: IPRoute, wiring: EndpointWiring, ifindex: int) -> None:
    """Configure the pod's end of a pair that was just made: nothing needs to be looked up or taken away."""
    for address in wiring.addresses:
        add_address(inside, ifindex, address)
    links.set_up(inside, ifindex)
    add_routes(inside, ifindex, wiring.routes)
    # Last: it is the one thing that deleting the veth does not undo.
    links.set_up(inside, _LOOPBACK)


def _configure_pod(inside: IPRoute, wiring: EndpointWiring, host_ifindex: int) -> Link:
    """Configure the pod's end."""
    link = links.link_by_name(inside, wiring.ifname)
    if link is None or link.peer != host_ifindex:
        raise LinkGone(f"wire pod {wiring.pod}", f"device {wiring.ifname} disappeared from the pod")
    if link.mtu != wiring.mtu:
        links.set_mtu(inside, link.ifindex, wiring.mtu)
    for address in wiring.addresses:
        ensure_address(inside, link.ifindex, address)
    links.set_up(inside, link.ifindex)
    ensure_routes(inside, link.ifindex, wiring.routes)
    loopback = links.link_by_name(inside, "lo")
    # Last: it is the one thing that deleting the veth does not undo.
    if loopback is not None and not loopback.up:
        links.set_up(inside, loopback.ifindex)
    return link
