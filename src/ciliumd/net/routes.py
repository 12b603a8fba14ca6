# SPDX-License-Identifier: Apache-2.0
"""
Addresses and routes of one device: exactly those wanted, others of ours removed.

Routes of ours carry a protocol number of their own; nobody else's route is ever touched.
"""

from collections.abc import Collection
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Interface, ip_interface, ip_network
from socket import AF_INET, AF_INET6
from typing import Any

from pyroute2 import IPRoute

from ciliumd.model.net import Addr, Prefix
from ciliumd.net.errors import NetError, netlink_errors

# Owner mark of our routes (rtm_protocol); not in iproute2's list of known ones.
ROUTE_PROTOCOL = 193

_MAIN_TABLE = 254
_SCOPE_LINK = 253
_ANY_SCOPE = 255  # in a deletion
_SCOPE_UNIVERSE = 0
_NODAD = 0x02  # IFA_F_NODAD: nobody else can have an address of ours, so it is usable at once
_GONE = frozenset({3, 99})  # ESRCH, EADDRNOTAVAIL: removed by somebody else in the meantime


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A route over one device; without *via* its destination is on the link itself."""

    destination: Prefix
    via: Addr | None = None
    source: Addr | None = None
    mtu: int = 0


def addresses(ipr: IPRoute, ifindex: int, family: int) -> tuple[IPv4Interface | IPv6Interface, ...]:
    """The addresses of a device that are of more than its link, in the kernel's order."""
    with netlink_errors(f"list addresses of link {ifindex}"):
        messages = tuple(ipr.get_addr(family=family, index=ifindex))
    return tuple(
        ip_interface((message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS"), message["prefixlen"]))
        for message in messages
        if family == AF_INET or message["scope"] == _SCOPE_UNIVERSE
    )


def single(address: Addr) -> IPv4Interface | IPv6Interface:
    """*address* with a prefix of its own length."""
    return ip_interface((address, address.max_prefixlen))


def ensure_address(ipr: IPRoute, ifindex: int, address: Addr) -> None:
    """Give a device of ours *address*, alone in its prefix, and no other one of its family."""
    wanted = single(address)
    add_address(ipr, ifindex, address)
    for other in addresses(ipr, ifindex, family_of(address)):
        if other != wanted:
            _remove_address(ipr, ifindex, other)


def remove_addresses(ipr: IPRoute, ifindex: int, family: int) -> None:
    """Take from a device of ours every address of *family*."""
    for address in addresses(ipr, ifindex, family):
        _remove_address(ipr, ifindex, address)


def add_address(ipr: IPRoute, ifindex: int, address: Addr) -> None:
    """Give a device *address*, alone in its prefix; others stay."""
    flags = {} if address.version == 4 else {"flags": _NODAD}
    with netlink_errors(f"add {single(address)} to link {ifindex}"):
        ipr.addr(
            "replace",
            index=ifindex,
            address=str(address),
            prefixlen=address.max_prefixlen,
            family=family_of(address),
            **flags,
        )


def ensure_routes(ipr: IPRoute, ifindex: int, routes: Collection[Route]) -> None:
    """Install *routes* over a device, in order, and remove every other route of ours of these families."""
    add_routes(ipr, ifindex, routes)
    wanted = {route.destination for route in routes}
    for family in {AF_INET, *(family_of(route.destination) for route in routes)}:
        for destination in our_destinations(ipr, ifindex, family):
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


def our_destinations(ipr: IPRoute, ifindex: int, family: int = AF_INET) -> dict[Prefix, int]:
    """Destinations of the routes of ours over a device, with their MTU (0: the device's)."""
    with netlink_errors(f"list routes over link {ifindex}"):
        messages = tuple(ipr.get_routes(family=family, oif=ifindex, table=_MAIN_TABLE))
    return {
        destination_of(message): _mtu(message)
        for message in messages
        if message["proto"] == ROUTE_PROTOCOL and message.get_attr("RTA_OIF") == ifindex
    }


def destination_of(message: Any) -> Prefix:
    """Where a route leads, of a message of the kernel's."""
    anywhere = "::" if message["family"] == AF_INET6 else "0.0.0.0"  # noqa: S104  a route
    return ip_network((message.get_attr("RTA_DST") or anywhere, message["dst_len"]))


def family_of(one: Addr | Prefix | IPv4Interface | IPv6Interface) -> int:
    """As netlink numbers them."""
    return AF_INET if one.version == 4 else AF_INET6


def _mtu(message: Any) -> int:
    metrics = message.get_attr("RTA_METRICS")
    return int(metrics.get_attr("RTAX_MTU") or 0) if metrics else 0


def _arguments(ifindex: int, route: Route) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "dst": str(route.destination),
        "family": family_of(route.destination),
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


def _remove_address(ipr: IPRoute, ifindex: int, address: IPv4Interface | IPv6Interface) -> None:
    try:
        with netlink_errors(f"remove {address} from link {ifindex}"):
            ipr.addr(
                "del",
                index=ifindex,
                address=str(address.ip),
                prefixlen=address.network.prefixlen,
                family=family_of(address),
            )
    except NetError as error:
        if error.errno not in _GONE:
            raise


def remove_route(ipr: IPRoute, ifindex: int, destination: Prefix) -> None:
    """Remove a route of ours; one that is gone is no error."""
    try:
        with netlink_errors(f"remove route {destination} over link {ifindex}"):
            ipr.route(
                "del",
                dst=str(destination),
                family=family_of(destination),
                oif=ifindex,
                proto=ROUTE_PROTOCOL,
                table=_MAIN_TABLE,
                scope=_ANY_SCOPE,
            )
    except NetError as error:
        if error.errno not in _GONE:
            raise
