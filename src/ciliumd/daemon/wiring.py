# SPDX-License-Identifier: Apache-2.0
"""The node's own end of the pod network: made or corrected at start, before any program is attached."""

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import structlog

from ciliumd.daemon.endpoint_wiring import PodNetwork
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

    *mtu* is of pods' devices, *route_mtu* what their packets may measure that leave the node.  *router*
    and *pod_cidr* are of nodes whose pods have IPv4, *router6* and *pod_cidr6* of those with IPv6.
    """

    router: IPv4Address | None
    pod_cidr: IPv4Network | None
    host: HostLinks
    overlay: Link | None
    native: tuple[NativeDevice, ...]
    addresses: tuple[Addr, ...]
    mtu: int
    route_mtu: int
    router6: IPv6Address | None = None
    pod_cidr6: IPv6Network | None = None

    @property
    def routers(self) -> tuple[Addr, ...]:
        """The node's addresses inside its pod networks, IPv4 first."""
        return tuple(router for router in (self.router, self.router6) if router is not None)


async def wire_node(
    netlink: NetlinkThread,
    settings: Settings,
    *,
    router: IPv4Address | None,
    pod_cidr: IPv4Network | None,
    router6: IPv6Address | None = None,
    pod_cidr6: IPv6Network | None = None,
) -> NodeWiring:
    """Make cilium_host and, in tunnel mode, cilium_vxlan, and look at what is there.  Raises NetError."""
    mtu = settings.mtu or await netlink.call(links.default_mtu)
    host, tunnel, route_mtu = await _wire_devices(
        netlink,
        settings,
        HostWiring(router=router, pod_cidr=pod_cidr, mtu=mtu, router6=router6, pod_cidr6=pod_cidr6),
    )
    for warning in host.warnings:
        log.warning("agent.machine_setting", problem=warning)
    return NodeWiring(
        router=router,
        pod_cidr=pod_cidr,
        host=host,
        overlay=tunnel,
        native=await netlink.call(devices.native_devices, settings.devices),
        addresses=tuple(sorted(await netlink.call(devices.node_addresses), key=str)),
        mtu=mtu,
        route_mtu=route_mtu,
        router6=router6,
        pod_cidr6=pod_cidr6,
    )


async def _wire_devices(
    netlink: NetlinkThread, settings: Settings, wanted: HostWiring
) -> tuple[HostLinks, Link | None, int]:
    """The node's devices made or corrected: the pair, the tunnel, and what may leave the node."""
    host = await netlink.call(ensure_host, wanted)
    if settings.routing_mode != "tunnel":
        await netlink.call(overlay.remove_overlay)
        return host, None, wanted.mtu
    route_mtu = wanted.mtu - overlay.VXLAN_OVERHEAD[settings.underlay]
    tunnel = await netlink.call(overlay.ensure_overlay, port=settings.tunnel_port, mtu=route_mtu)
    return host, tunnel, route_mtu


class MtuFollower:
    """
    Follows the MTU of the uplink: the node's devices and routes, and pods that are made from now on.

    Pods that are there keep theirs, for nobody may enter them.  Programs answer "fragmentation needed" by
    the MTU of the agent's start; what no longer fits then travels in outer fragments.
    """

    def __init__(
        self, settings: Settings, wiring: NodeWiring, network: PodNetwork, *, netlink: NetlinkThread
    ) -> None:
        self._settings = settings
        self._wiring = wiring
        self._network = network
        self._netlink = netlink

    async def look(self) -> None:
        """Look once.  Raises NetError, and then it is to be tried again."""
        if self._settings.mtu:
            return
        mtu = await self._netlink.call(links.uplink_mtu)
        if mtu is None or mtu == self._network.mtu:
            return
        wanted = HostWiring(
            router=self._wiring.router,
            pod_cidr=self._wiring.pod_cidr,
            mtu=mtu,
            router6=self._wiring.router6,
            pod_cidr6=self._wiring.pod_cidr6,
        )
        _, _, route_mtu = await _wire_devices(self._netlink, self._settings, wanted)
        log.info("network.mtu_changed", before=self._network.mtu, now=mtu)
        self._network.mtu, self._network.route_mtu = mtu, route_mtu
