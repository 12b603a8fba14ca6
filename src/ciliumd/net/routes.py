# SPDX-License-Identifier: Apache-2.0
"""
Addresses and IPv4 routes of one device: exactly those wanted, others of ours removed.

Routes of ours carry a protocol number of their own; nobody else's route is ever touched.
"""

from collections.abc import Collection
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from socket import AF_INET
from typing import Any

from pyroute2 import IPRoute

from ciliumd.net.errors import NetError, netlink_errors

# Owner mark of our routes (rtm_protocol); not in iproute2's list of known ones.
ROUTE_PROTOCOL = 193

_MAIN_TABLE = 254
_SCOPE_LINK = 253
_ANY_SCOPE = 255  # in a deletion
_GONE = frozenset({3, 99})  # ESRCH, EADDRNOTAVAIL: removed by somebody else in the meantime


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """An IPv4 route over one device; without *via* its destination is on the link itself."""

    destination: IPv4Network
    via: IPv4Address | None = None
    source: IPv4Address | None = None
    mtu: int = 0


def ipv4_addresses(ipr: IPRoute, ifindex: int) -> tuple[IPv4Interface, ...]:
    """The IPv4 addresses of a device, in the kernel's order."""
    with netlink_errors(f"list addresses of link {ifindex}"):
        messages = tuple(ipr.get_addr(family=AF_INET, index=ifindex))
    return tuple(
        IPv4Interface(
            (message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS"), message["prefixlen"])
        )
        for message in messages
    )


def ensure_address(ipr: IPRoute, ifindex: int, address: IPv4Address) -> None:
    """Give a device of ours *address*/32 and no other IPv4 address."""
    wanted = IPv4Interface((address, 32))
    add_address(ipr, ifindex, address)
    for other in ipv4_addresses(ipr, ifindex):
        if other != wanted:
            _remove_address(ipr, ifindex, other)


def add_address(ipr: IPRoute, ifindex: int, address: IPv4Address) -> None:
    """Give a device *address*/32; others stay."""
    with netlink_errors(f"add {address}/32 to link {ifindex}"):
        ipr.addr("replace", index=ifindex, address=str(address), prefixlen=32)


def ensure_routes(ipr: IPRoute, ifindex: int, routes: Collection[Route]) -> None:
    """Install *routes* over a device, in order, and remove every other route of ours over it."""
    add_routes(ipr, ifindex, routes)
    wanted = {route.destination for route in routes}
    for destination in our_destinations(ipr, ifindex):
        if destination not in wanted:
            remove_route(ipr, ifindex, destination)


def add_routes(ipr: IPRoute, ifindex: int, routes: Collection[Route]) -> None:
    """Install or correct *routes* over a device, in order; others stay."""
    for route in routes:
        replace_route(ipr, ifindex, route)


def replace_route(ipr: IPRoute, ifindex: int, route: Route) -> None:
    """Install or correct one route over a device."""
    with netlink_errors(f"add route {route.destination} over link {ifindex}"):
        ipr.route("replace", **_arguments(ifindex, route))


def our_destinations(ipr: IPRoute, ifindex: int) -> dict[IPv4Network, int]:
    """Destinations of the routes of ours over a device, with their MTU (0: the device's)."""
    with netlink_errors(f"list routes over link {ifindex}"):
        messages = tuple(ipr.get_routes(family=AF_INET, oif=ifindex, table=_MAIN_TABLE))
    return {
        IPv4Network((message.get_attr("RTA_DST") or "0.0.0.0", message["dst_len"])): _mtu(message)  # noqa: S104  a route
        for message in messages
        if message["proto"] == ROUTE_PROTOCOL and message.get_attr("RTA_OIF") == ifindex
    }


def _mtu(message: Any) -> int:
    metrics = message.get_attr("RTA_METRICS")
    return int(metrics.get_attr("RTAX_MTU") or 0) if metrics else 0


def _arguments(ifindex: int, route: Route) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "dst": str(route.destination),
        "oif": ifindex,
        "proto": ROUTE_PROTOCOL,
        "table": _MAIN_TABLE,
    }
    if route.via is None:
        arguments["scope"] = _SCOPE_LINK
    else:
        arguments["gateway"] = str(route.via)
    if route.source is not None:
        arguments["prefsrc"] = str(route.source)
    if route.mtu:
        arguments["metrics"] = {"mtu": route.mtu}
    return arguments


def _remove_address(ipr: IPRoute, ifindex: int, address: IPv4Interface) -> None:
    try:
        with netlink_errors(f"remove {address} from link {ifindex}"):
            ipr.addr("del", index=ifindex, address=str(address.ip), prefixlen=address.network.prefixlen)
    except NetError as error:
        if error.errno not in _GONE:
            raise


def remove_route(ipr: IPRoute, ifindex: int, destination: IPv4Network) -> None:
    """Remove a route of ours; one that is gone is no error."""
    try:
        with netlink_errors(f"remove route {destination} over link {ifindex}"):
            ipr.route(
                "del",
                dst=str(destination),
                oif=ifindex,
                proto=ROUTE_PROTOCOL,
                table=_MAIN_TABLE,
                scope=_ANY_SCOPE,
            )
    except NetError as error:
        if error.errno not in _GONE:
            raise
