# SPDX-License-Identifier: Apache-2.0
"""The node's own end of the pod network: made or corrected at start, before any program is attached."""

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

import structlog

from ciliumd.daemon.settings import Settings
from ciliumd.model.net import Addr
from ciliumd.net import devices, links, overlay
from ciliumd.net.devices import NativeDevice
from ciliumd.net.host import HostLinks, HostWiring, ensure_host
from ciliumd.net.links import Link
from ciliumd.net.thread import NetlinkThread

log = structlog.get_logger("agent")


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeWiring:
    """
    Devices and addresses of the node as they were at start; *overlay* is None without a tunnel.

    *mtu* is of pods' devices, *route_mtu* what their packets may measure that leave the node.
    """

    router: IPv4Address
    pod_cidr: IPv4Network
    host: HostLinks
    overlay: Link | None
    native: tuple[NativeDevice, ...]
    addresses: tuple[Addr, ...]
    mtu: int
    route_mtu: int


async def wire_node(
    netlink: NetlinkThread, settings: Settings, *, router: IPv4Address, pod_cidr: IPv4Network
) -> NodeWiring:
    """Make cilium_host and, in tunnel mode, cilium_vxlan, and look at what is there.  Raises NetError."""
    mtu = settings.mtu or await netlink.call(links.default_mtu)
    host = await netlink.call(ensure_host, HostWiring(router=router, pod_cidr=pod_cidr, mtu=mtu))
    for warning in host.warnings:
        log.warning("agent.machine_setting", problem=warning)
    tunnel, route_mtu = None, mtu
    if settings.routing_mode == "tunnel":
        route_mtu = mtu - overlay.VXLAN_OVERHEAD
        tunnel = await netlink.call(overlay.ensure_overlay, port=settings.tunnel_port, mtu=route_mtu)
    else:
        await netlink.call(overlay.remove_overlay)
    return NodeWiring(
        router=router,
        pod_cidr=pod_cidr,
        host=host,
        overlay=tunnel,
        native=await netlink.call(devices.native_devices, settings.devices),
        addresses=tuple(sorted(await netlink.call(devices.node_addresses), key=str)),
        mtu=mtu,
        route_mtu=route_mtu,
    )
