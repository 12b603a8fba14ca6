# SPDX-License-Identifier: Apache-2.0
"""What runtimes are answered, in the words of each version of the specification."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from ciliumd.cni.errors import CniError, Code
from ciliumd.cni.request import VERSIONS

Json = dict[str, Any]
Address = IPv4Address | IPv6Address

ERROR_VERSION = VERSIONS[-1]
"""Of errors about requests whose own version nobody could read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attached:
    """
    A pod's device as it was made; *mtu* is the devices', *route_mtu* the default routes'.

    It has at least one address, and a router of each family that it has an address of.
    """

    host_ifname: str
    host_mac: str
    ifname: str
    mac: str
    sandbox: str
    address: IPv4Address | None
    router: IPv4Address | None
    mtu: int
    route_mtu: int
    address6: IPv6Address | None = None
    router6: IPv6Address | None = None


def success(made: Attached, version: str) -> Json:
    """The result of an ADD: the node's device, the pod's device with its address, and its routes."""
    host: Json = {"name": made.host_ifname, "mac": made.host_mac}
    pod: Json = {"name": made.ifname, "mac": made.mac, "sandbox": made.sandbox}
    ips: list[Json] = []
    routes: list[Json] = []
    if not _before(version, "1.1.0"):
        host["mtu"] = pod["mtu"] = made.mtu
    for address, router, anywhere in _families(made):
        own = f"{address}/{address.max_prefixlen}"
        ip: Json = {"address": own, "gateway": str(router), "interface": 1}
        default: Json = {"dst": anywhere, "gw": str(router)}
        if _before(version, "1.0.0"):
            ip = {"version": str(address.version), **ip}
        if not _before(version, "1.1.0"):
            default["mtu"] = made.route_mtu
        ips.append(ip)
        routes += [{"dst": f"{router}/{router.max_prefixlen}"}, default]
    return {
        "cniVersion": version,
        "interfaces": [host, pod],
        "ips": ips,
        "routes": routes,
        "dns": {},
    }


def _families(made: Attached) -> Iterator[tuple[Address, Address, str]]:
    """Address, router and where the default route leads, IPv4 first: runtimes take that for the pod's."""
    if made.address is not None and made.router is not None:
        yield made.address, made.router, "0.0.0.0/0"
    if made.address6 is not None and made.router6 is not None:
        yield made.address6, made.router6, "::/0"


def failure(error: CniError, version: str) -> Json:
    """An error."""
    told: Json = {"cniVersion": version, "code": int(error.code), "msg": str(error)}
    return told | ({"details": error.details} if error.details else {})


def encoded(answer: Json | None) -> bytes:
    """What the executable prints; a success without a result is nothing."""
    return b"" if answer is None else json.dumps(answer, separators=(",", ":")).encode() + b"\n"


def differences(previous: Json, made: Attached) -> list[str]:
    """
    Where the result of an ADD, as the runtime kept it, is not what the pod has.

    Plugins behind us may have added devices, addresses and routes; ours must be there.  CniError when it
    cannot be read.
    """
    expected = success(made, "1.0.0")
    try:
        interfaces = [(one["name"], one.get("mac", "").lower()) for one in previous.get("interfaces", [])]
        addresses = [one["address"] for one in previous.get("ips", [])]
    except (TypeError, KeyError, AttributeError) as error:
        raise CniError(Code.INVALID_CONFIG, f"prevResult cannot be read: {error!r}") from error
    found = [
        f"prevResult has no device {one['name']} with MAC address {one['mac']}"
        for one in expected["interfaces"]
        if (one["name"], one["mac"]) not in interfaces
    ]
    found += [
        f"prevResult has address {', '.join(addresses) or 'none'}, the pod {one['address']}"
        for one in expected["ips"]
        if one["address"] not in addresses
    ]
    return found


def _before(version: str, other: str) -> bool:
    return VERSIONS.index(version) < VERSIONS.index(other)
