# SPDX-License-Identifier: Apache-2.0
"""Pods of IPv6 behind the tunnel: tunnel.py for the other family."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ciliumd.abi import Identity
from datapath.openworld6 import SIX_ONE
from datapath.rows import ALLOW_ALL
from datapath.tunnel import AWAY, pod_unpublished, router_two
from fixtures.packets6 import Place6, frame, pod_away, router

if TYPE_CHECKING:
    from scapy.packet import Packet

    from datapath.harness import Datapath

router_away = Place6("fd00:2::1", router_two)
unpublished = Place6("fd00:2::63", pod_unpublished)


def fill_away(datapath: Datapath, node: str) -> None:
    """Rows of pod one, which allows everything, and of what is behind the other *node*."""
    datapath.add_endpoint(SIX_ONE, *ALLOW_ALL)
    datapath.host_address(router.ip)
    datapath.ipcache("fd00:2::/112", Identity.ID_UNMANAGED, tunnel=node)
    datapath.ipcache(router_away.ip, Identity.ID_REMOTE_NODE, tunnel=node)
    datapath.ipcache(pod_away.ip, AWAY, tunnel=node)


def inner(src: Place6, dst: str, *layers: Packet, **ip: object) -> bytes:
    """What the other node puts into the tunnel: one hop is behind it, its MACs are its own."""
    return frame(router_two.mac, router_two.mac, src.ip, dst, *layers, **({"hlim": 63} | ip))
