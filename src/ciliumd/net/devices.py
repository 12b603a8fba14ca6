# SPDX-License-Identifier: Apache-2.0
"""
The node's native devices and addresses: where traffic leaves the node and what the node is called.

A device is native when a default route leaves by it, or when it was named explicitly.
"""

from collections.abc import Collection
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from socket import AF_INET, AF_INET6
from typing import Any

from pyroute2 import IPRoute

from ciliumd.model.net import Addr
from ciliumd.net import links
from ciliumd.net.errors import LinkGone, netlink_errors
from ciliumd.net.links import HOST_LINK, LXC_PREFIX, NET_LINK, OVERLAY_LINK, Link

_UNIVERSE = 0  # scope of addresses that are valid beyond the link
# Of IPv6 (linux/if_addr.h): temporary, duplicate, tentative.
_PASSING = 0x01 | 0x08 | 0x40


@dataclass(frozen=True, slots=True)
class NativeDevice:
    """
    A device the node reaches the world by, with its addresses in the kernel's order.

    Those of IPv6 that come and go, or are not the device's yet, are left out: nobody may count on them.
    """

    ifindex: int
    name: str
    mac: str
    mtu: int
    ipv4: tuple[IPv4Address, ...]
    ipv6: tuple[IPv6Address, ...]

    @property
    def addresses(self) -> tuple[Addr, ...]:
        """Those of IPv4 first."""
        return (*self.ipv4, *self.ipv6)


def native_devices(ipr: IPRoute, names: Collection[str] = ()) -> tuple[NativeDevice, ...]:
    """
    The native devices by name: those of default routes, or exactly *names* if any are given.

    LinkGone if one of *names* does not exist.
    """
    present = {link.ifindex: link for link in links.all_links(ipr)}
    if names:
        by_name = {link.name: link for link in present.values()}
        if missing := sorted(set(names) - by_name.keys()):
            raise LinkGone("find native devices", f"no device {', '.join(missing)}")
        chosen = [by_name[name] for name in names]
    else:
        chosen = [present[index] for index in _default_route_links(ipr) if index in present]
    addresses = _addresses(ipr, lasting=True)
    return tuple(
        _native(link, addresses.get(link.ifindex, ()))
        for link in sorted(chosen, key=lambda link: link.name)
        if not _is_pod_network(link)
    )


def node_port_addresses(devices: Collection[NativeDevice]) -> tuple[Addr, ...]:
    """The addresses node ports are served on: those of native devices."""
    found: list[Addr] = []
    for device in devices:
        found += device.ipv4
        found += device.ipv6
    return tuple(found)


def node_addresses(ipr: IPRoute) -> frozenset[Addr]:
    """Every address the node is reachable at, the router address included, loopback excluded."""
    pods = {link.ifindex for link in links.all_links(ipr) if links.endpoint_owner(link.alias)}
    return frozenset(
        address
        for ifindex, addresses in _addresses(ipr).items()
        if ifindex not in pods
        for address in addresses
        if not address.is_loopback
    )


def _default_route_links(ipr: IPRoute) -> set[int]:
    """Devices of all default routes, IPv4 and IPv6, single and multipath."""
    with netlink_errors("list default routes"):
        routes = [route for family in (AF_INET, AF_INET6) for route in ipr.get_default_routes(family=family)]
    found: set[int] = set()
    for route in routes:
        if (ifindex := route.get_attr("RTA_OIF")) is not None:
            found.add(ifindex)
        found.update(hop["oif"] for hop in route.get_attr("RTA_MULTIPATH") or ())
    return found


def _addresses(ipr: IPRoute, *, lasting: bool = False) -> dict[int, tuple[Addr, ...]]:
    """Addresses of more than link scope, by device; *lasting*: without those of IPv6 that are not."""
    with netlink_errors("list addresses"):
        messages = tuple(ipr.get_addr())
    found: dict[int, tuple[Addr, ...]] = {}
    for message in messages:
        address = _address(message)
        if lasting and message["family"] == AF_INET6 and message["flags"] & _PASSING:
            continue
        if message["scope"] == _UNIVERSE and address is not None:
            found[message["index"]] = (*found.get(message["index"], ()), address)
    return found


def _address(message: Any) -> Addr | None:
    """IFA_LOCAL is the device's own address where both are given (point to point)."""
    text = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
    return ip_address(text) if text else None


def _native(link: Link, addresses: Collection[Addr]) -> NativeDevice:
    return NativeDevice(
        ifindex=link.ifindex,
        name=link.name,
        mac=link.mac,
        mtu=link.mtu,
        ipv4=tuple(address for address in addresses if isinstance(address, IPv4Address)),
        ipv6=tuple(address for address in addresses if isinstance(address, IPv6Address)),
    )


def _is_pod_network(link: Link) -> bool:
    """Whether the device is part of the pod network and so never native."""
    names = {HOST_LINK, NET_LINK, OVERLAY_LINK}
    return links.is_ours(link) or link.name in names or link.name.startswith(LXC_PREFIX)
