# SPDX-License-Identifier: Apache-2.0
"""
Devices: look up, create veth pairs, mark as ours, delete.

What is ours says so in its link alias, so that an agent without memory finds it again.  Addresses,
routes and sysctls are in the modules that know what a device is for.
"""

import hashlib
import secrets
from dataclasses import dataclass
from socket import AF_INET, AF_INET6
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.rtnl.ifinfmsg import IFF_NOARP, IFF_UP

from ciliumd.net.errors import LinkConflict, LinkGone, netlink_errors

ALIAS_MAX = 255
ENDPOINT_ALIAS = "cilium:endpoint:"
HOST_ALIAS = "cilium:host"
RETIRED_ALIAS = "cilium:retired"
HOST_LINK = "cilium_host"
NET_LINK = "cilium_net"
OVERLAY_ALIAS = "cilium:overlay"
OVERLAY_LINK = "cilium_vxlan"
LXC_PREFIX = "lxc"
HEALTH_LINK = "lxc_health"
DEFAULT_MTU = 1500


@dataclass(frozen=True, slots=True)
class Link:
    """A device of the current namespace; *peer* is the ifindex of a veth's other end, wherever that is."""

    ifindex: int
    name: str
    mac: str
    mtu: int
    up: bool
    noarp: bool
    alias: str
    kind: str
    peer: int


@dataclass(frozen=True, slots=True)
class EndpointOwner:
    """Whose veth it is, as its alias says."""

    endpoint_id: int
    pod: str


def lxc_name(key: str) -> str:
    """Host-side device name of an endpoint: stable for *key* (its container id), 15 characters."""
    return LXC_PREFIX + hashlib.sha256(key.encode()).hexdigest()[:12]


def random_mac() -> str:
    """A unicast, locally administered MAC address; given explicitly, udev does not replace it."""
    octets = bytearray(secrets.token_bytes(6))
    octets[0] = octets[0] & 0xFE | 0x02
    return octets.hex(":")


def endpoint_alias(endpoint_id: int, pod: str) -> str:
    """The owner mark of an endpoint's veth; *pod* is ``namespace/name``."""
    return f"{ENDPOINT_ALIAS}{endpoint_id}:{pod}"[:ALIAS_MAX]


def endpoint_owner(alias: str) -> EndpointOwner | None:
    """Whose veth carries *alias*; None if it is not one of ours."""
    number, colon, pod = alias.removeprefix(ENDPOINT_ALIAS).partition(":")
    if not alias.startswith(ENDPOINT_ALIAS) or not colon or not number.isdecimal():
        return None
    return EndpointOwner(int(number), pod)


def is_ours(link: Link) -> bool:
    """Whether ciliumd made this device."""
    return link.alias in {HOST_ALIAS, OVERLAY_ALIAS, RETIRED_ALIAS} or endpoint_owner(link.alias) is not None


def all_links(ipr: IPRoute) -> tuple[Link, ...]:
    """Every device of the namespace."""
    with netlink_errors("list links"):
        return tuple(_link(message) for message in ipr.get_links())


def endpoint_links(ipr: IPRoute) -> dict[int, Link]:
    """Host sides of all endpoints, by endpoint id."""
    owned = ((endpoint_owner(link.alias), link) for link in all_links(ipr))
    return {owner.endpoint_id: link for owner, link in owned if owner is not None}


def link_by_name(ipr: IPRoute, name: str) -> Link | None:
    """The device called *name*, if there is one."""
    try:
        with netlink_errors(f"look up link {name}"):
            messages = tuple(ipr.link("get", ifname=name))
    except LinkGone:
        return None
    return _link(messages[0]) if messages else None


def link_by_index(ipr: IPRoute, ifindex: int) -> Link | None:
    """The device with *ifindex*, if there is one."""
    try:
        with netlink_errors(f"look up link {ifindex}"):
            messages = tuple(ipr.get_links(ifindex))
    except LinkGone:
        return None
    return _link(messages[0]) if messages else None


def default_mtu(ipr: IPRoute) -> int:
    """MTU of the device the default route leaves by; 1500 without one."""
    return uplink_mtu(ipr) or DEFAULT_MTU


def uplink_mtu(ipr: IPRoute) -> int | None:
    """MTU of the device the default route leaves by, of IPv4 if there is one; None without any."""
    with netlink_errors("list default routes"):
        routes = [route for family in (AF_INET, AF_INET6) for route in ipr.get_default_routes(family=family)]
    for route in routes:
        ifindex = route.get("oif")
        link = link_by_index(ipr, ifindex) if ifindex else None
        if link is not None:
            return link.mtu
    return None


def create_veth(
    ipr: IPRoute,
    name: str,
    *,
    peer: str,
    mtu: int,
    mac: str | None = None,
    peer_mac: str | None = None,
    peer_namespace: int | None = None,
) -> Link:
    """
    Create a veth pair, its *peer* directly in the namespace of descriptor *peer_namespace* if given.

    Created there rather than moved: the peer's name need not be free in this namespace, and there is
    no moment when it is here.
    """
    there: dict[str, Any] = {"ifname": peer, "mtu": mtu, "address": peer_mac or random_mac()}
    if peer_namespace is not None:
        there["net_ns_fd"] = peer_namespace
    operation = f"create veth {name} with peer {peer}"
    with netlink_errors(operation):
        ipr.link("add", ifname=name, kind="veth", mtu=mtu, address=mac or random_mac(), peer=there)
    link = link_by_name(ipr, name)
    if link is None:
        raise LinkGone(operation, "it disappeared at once")
    return link


def mark(ipr: IPRoute, ifindex: int, alias: str) -> None:
    """Write the owner mark of a device."""
    with netlink_errors(f"set alias of link {ifindex}"):
        ipr.link("set", index=ifindex, ifalias=alias)


def set_up(ipr: IPRoute, ifindex: int, *, noarp: bool = False) -> None:
    """Bring a device up; with *noarp* no address is ever resolved over it."""
    with netlink_errors(f"set link {ifindex} up"):
        if noarp:
            ipr.link("set", index=ifindex, flags=IFF_UP | IFF_NOARP, change=IFF_UP | IFF_NOARP)
        else:
            ipr.link("set", index=ifindex, state="up")


def set_mtu(ipr: IPRoute, ifindex: int, mtu: int) -> None:
    """Change the MTU of a device."""
    with netlink_errors(f"set mtu of link {ifindex} to {mtu}"):
        ipr.link("set", index=ifindex, mtu=mtu)


def delete_link(ipr: IPRoute, ifindex: int) -> bool:
    """Delete a device (a veth's peer goes with it); False if it was gone already."""
    try:
        with netlink_errors(f"delete link {ifindex}"):
            ipr.link("del", index=ifindex)
    except LinkGone:
        return False
    return True


def retire_endpoint_link(ipr: IPRoute, ifindex: int, endpoint_id: int) -> bool:
    """
    Take the veth of an endpoint down and mark it as nobody's, to be deleted; False if it is gone already.

    Its owner mark must say so: ifindexes are used again, and a row that outlived its device must not
    take somebody else's with it.
    """
    link = link_by_index(ipr, ifindex)
    if link is None:
        return False
    owner = endpoint_owner(link.alias)
    if owner is None or owner.endpoint_id != endpoint_id:
        raise LinkConflict(
            f"delete veth of endpoint {endpoint_id}", f"link {link.name} ({ifindex}) is not its veth"
        )
    try:
        with netlink_errors(f"retire link {ifindex}"):
            ipr.link("set", index=ifindex, ifalias=RETIRED_ALIAS, flags=0, change=IFF_UP)
    except LinkGone:
        return False
    return True


def retired_links(ipr: IPRoute) -> tuple[Link, ...]:
    """Devices of pods that are gone, still to be deleted."""
    return tuple(link for link in all_links(ipr) if link.alias == RETIRED_ALIAS)


def delete_retired(ipr: IPRoute, ifindex: int) -> bool:
    """Delete a retired device; False if there is none, or another has its number."""
    link = link_by_index(ipr, ifindex)
    return link is not None and link.alias == RETIRED_ALIAS and delete_link(ipr, ifindex)


def leftovers(ipr: IPRoute, name: str | None = None) -> tuple[Link, ...]:
    """
    Host sides of pods' veth pairs that carry our mark; with *name* that one, also if it has no mark yet.

    Without a mark and a name that only we would ask for it may be anybody's.
    """
    if name is None:
        return tuple(link for link in all_links(ipr) if endpoint_owner(link.alias) is not None)
    link = link_by_name(ipr, name)
    if link is None or link.kind != "veth":
        return ()
    if link.alias not in {"", RETIRED_ALIAS} and endpoint_owner(link.alias) is None:
        return ()
    return (link,)


def _link(message: Any) -> Link:
    info = message.get_attr("IFLA_LINKINFO")
    flags = message["flags"]
    return Link(
        ifindex=message["index"],
        name=message.get_attr("IFLA_IFNAME"),
        mac=message.get_attr("IFLA_ADDRESS") or "",
        mtu=message.get_attr("IFLA_MTU") or 0,
        up=bool(flags & IFF_UP),
        noarp=bool(flags & IFF_NOARP),
        alias=message.get_attr("IFLA_IFALIAS") or "",
        kind=(info.get_attr("IFLA_INFO_KIND") if info else "") or "",
        peer=message.get_attr("IFLA_LINK") or 0,
    )
