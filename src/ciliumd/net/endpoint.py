# SPDX-License-Identifier: Apache-2.0
"""
Wires a pod: a veth pair, its end inside the pod's namespace configured, all of it or nothing.

The pod gets a /32 address and reaches everything through the router address, which the datapath
answers for; its IPv6 is off.  Who gets which address, and the maps that make packets flow, are not
decided here: a wired pod is unreachable until its rows are written and its program is attached.
"""

from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address, IPv4Network

from pyroute2 import IPRoute

from ciliumd.net import links, sysctl
from ciliumd.net.errors import LinkConflict, LinkGone, NetError
from ciliumd.net.links import Link
from ciliumd.net.namespace import is_own_namespace, open_namespace, run_in_namespace_fd
from ciliumd.net.routes import Route, ensure_address, ensure_routes

_EEXIST = 17
_ANYWHERE = IPv4Network("0.0.0.0/0")


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointWiring:
    """
    What a pod's network is made of.

    *pod* is ``namespace/name``, *namespace* the path of its network namespace, *name* the host side's
    device name.  *route_mtu* is what packets may measure on the way out (0: as the device).
    """

    endpoint_id: int
    pod: str
    namespace: str
    name: str
    address: IPv4Address
    router: IPv4Address
    mtu: int
    route_mtu: int = 0
    ifname: str = "eth0"
    mac: str | None = None
    node_mac: str | None = None


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


def prepare_endpoint(ipr: IPRoute, wiring: EndpointWiring) -> PreparedLink:
    """
    Create a pod's veth pair, its host side down: programs are attached before the first packet.

    NamespaceGone if the pod is dead, LinkConflict if a name is taken by somebody else.  After any
    failure nothing that this call made is left.
    """
    with open_namespace(wiring.namespace) as fd:
        if is_own_namespace(fd):
            raise NetError(
                f"wire pod {wiring.pod}", f"{wiring.namespace} is the node's own network namespace"
            )
        host = _existing(ipr, wiring, fd)
        made = host is None
        host = host or _create(ipr, wiring, fd)
        try:
            links.mark(ipr, host.ifindex, links.endpoint_alias(wiring.endpoint_id, wiring.pod))
            if host.mtu != wiring.mtu:
                links.set_mtu(ipr, host.ifindex, wiring.mtu)
            sysctl.forward_through(host.name)
        except BaseException:
            if made:
                links.delete_link(ipr, host.ifindex)
            raise
    return PreparedLink(host, made)


def connect_endpoint(ipr: IPRoute, wiring: EndpointWiring, prepared: PreparedLink) -> EndpointLinks:
    """Bring a prepared pair up and configure the pod's end; a pair that is new goes if that fails."""
    host = prepared.link
    try:
        with open_namespace(wiring.namespace) as fd:
            links.set_up(ipr, host.ifindex)
            configure = partial(_configure_pod, wiring, host.ifindex)
            pod = run_in_namespace_fd(wiring.namespace, fd, configure)
    except BaseException:
        if prepared.made:
            links.delete_link(ipr, host.ifindex)
        raise
    return EndpointLinks(host.ifindex, host.name, host.mac, pod.mac, pod.ifindex)


def add_endpoint(ipr: IPRoute, wiring: EndpointWiring) -> EndpointLinks:
    """Wire a pod in one go; doing it again for the same pod corrects what is there."""
    return connect_endpoint(ipr, wiring, prepare_endpoint(ipr, wiring))


def _existing(ipr: IPRoute, wiring: EndpointWiring, fd: int) -> Link | None:
    """The host side of an earlier attempt if it can be used; what is left of a broken one is deleted."""
    host = links.link_by_name(ipr, wiring.name)
    if host is None:
        return None
    owner = links.endpoint_owner(host.alias)
    # A veth without any mark is one whose creator died before marking it.
    leftover = not host.alias and host.kind == "veth"
    if not leftover and (owner is None or owner.pod != wiring.pod):
        raise LinkConflict(
            f"wire pod {wiring.pod}", f"device {host.name} belongs to {host.alias or host.kind}"
        )
    pod = run_in_namespace_fd(wiring.namespace, fd, partial(_find, wiring.ifname))
    connected = pod is not None and pod.peer == host.ifindex and host.peer == pod.ifindex
    # With another MAC it is of an attempt nobody remembers: the datapath would take the pod for a spoofer.
    if not leftover and connected and pod is not None and wiring.mac in {None, pod.mac}:
        return host
    links.delete_link(ipr, host.ifindex)
    return None


def _create(ipr: IPRoute, wiring: EndpointWiring, fd: int) -> Link:
    try:
        return links.create_veth(
            ipr,
            wiring.name,
            peer=wiring.ifname,
            mtu=wiring.mtu,
            mac=wiring.node_mac,
            peer_mac=wiring.mac,
            peer_namespace=fd,
        )
    except NetError as error:
        if error.errno != _EEXIST:
            raise
        reason = f"{wiring.namespace} has a device {wiring.ifname} that is not ours"
        raise LinkConflict(f"wire pod {wiring.pod}", reason, errno=_EEXIST) from error


def _find(name: str) -> Link | None:
    """Look a device up in the namespace of the calling thread."""
    with IPRoute() as ipr:
        return links.link_by_name(ipr, name)


def _configure_pod(wiring: EndpointWiring, host_ifindex: int) -> Link:
    """Configure the pod's end; runs on a thread inside the pod's namespace."""
    with IPRoute() as ipr:
        link = links.link_by_name(ipr, wiring.ifname)
        if link is None or link.peer != host_ifindex:
            raise LinkGone(f"wire pod {wiring.pod}", f"device {wiring.ifname} disappeared from the pod")
        sysctl.disable_ipv6(wiring.ifname)
        if link.mtu != wiring.mtu:
            links.set_mtu(ipr, link.ifindex, wiring.mtu)
        ensure_address(ipr, link.ifindex, wiring.address)
        links.set_up(ipr, link.ifindex)
        routes = (
            Route(destination=IPv4Network(wiring.router)),
            Route(destination=_ANYWHERE, via=wiring.router, mtu=wiring.route_mtu or wiring.mtu),
        )
        ensure_routes(ipr, link.ifindex, routes)
        loopback = links.link_by_name(ipr, "lo")
        # Last: it is the one thing that deleting the veth does not undo.
        if loopback is not None and not loopback.up:
            links.set_up(ipr, loopback.ifindex)
        return link
