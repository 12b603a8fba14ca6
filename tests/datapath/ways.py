# SPDX-License-Identifier: Apache-2.0
"""Who sends to whom at which port: what each hook must tell apart, and so where frames are tried."""

from __future__ import annotations

from datapath.openworld import DNS, FAR_WEB, WEB
from datapath.tunnel import TUNNEL_PORT, node_two, pod_far, router_two
from fixtures.packets import (
    Place,
    loopback,
    node_one,
    pod_away,
    pod_one,
    pod_three,
    pod_two,
    router,
    svc_one,
    svc_two,
    world_one,
)

NO_ROUTE = Place("198.51.100.9", node_one.mac)

Way = tuple[Place, Place, int | None]
WAYS: dict[str, list[Way]] = {
    "from_container": [
        (pod_one, to, None)
        for to in (
            *(pod_two, svc_one, svc_two, node_one, router, world_one, pod_away),
            *(pod_three, NO_ROUTE, loopback, pod_one),
        )
    ],
    "to_container": [(router, pod_one, None), (node_one, pod_two, None), (router, pod_three, None)],
    "from_host": [
        *((router, pod_one, None), (pod_two, pod_one, None)),
        *((world_one, pod_two, None), (router, world_one, None)),
    ],
    "from_netdev": [
        *((world_one, pod_one, None), (world_one, node_one, None), (world_one, svc_one, None)),
        *((world_one, node_one, port) for port in (WEB, DNS, FAR_WEB)),
        *((pod_two, node_one, WEB), (node_one, pod_one, None), (world_one, world_one, None)),
    ],
    "to_netdev": [
        *((pod_one, world_one, None), (pod_two, world_one, None), (pod_one, pod_away, None)),
        *((node_one, world_one, None), (world_one, pod_one, None), (pod_three, pod_three, None)),
    ],
    # Pod one's policies let it to pod two alone, and nobody to it.
    "from_container, closed": [
        (pod_one, to, None)
        for to in (pod_two, svc_one, svc_two, node_one, world_one, pod_away, loopback, pod_one)
    ],
    "to_container, closed": [(router, pod_one, None), (node_one, pod_two, None)],
    "from_host, closed": [(router, pod_one, None), (pod_two, pod_one, None), (world_one, pod_two, None)],
    "from_netdev, closed": [
        *((world_one, pod_one, None), (world_one, node_one, WEB), (world_one, node_one, DNS)),
        *((world_one, pod_two, None), (world_one, node_one, FAR_WEB)),
    ],
    # Pod two is not on the node with the tunnel.
    "from_container, tunnel": [
        (pod_one, to, port)
        for to, port in (
            *((pod_away, None), (pod_far, None), (pod_one, None), (world_one, None), (router_two, None)),
            *((pod_away, TUNNEL_PORT), (node_two, TUNNEL_PORT), (router_two, TUNNEL_PORT)),
            *((node_one, TUNNEL_PORT), (world_one, TUNNEL_PORT), (pod_one, TUNNEL_PORT)),
        )
    ],
    "to_container, tunnel": [(router, pod_one, None)],
    "from_host, tunnel": [
        *((router, pod_away, None), (node_one, pod_away, None), (world_one, pod_away, None)),
        *((pod_one, pod_away, None), (router, pod_one, None), (router, pod_three, None)),
    ],
    "from_netdev, tunnel": [
        *((world_one, pod_one, None), (pod_away, pod_one, None), (node_two, pod_one, None)),
        *((node_two, node_one, TUNNEL_PORT), (router_two, pod_one, None)),
    ],
    "to_netdev, tunnel": [
        *((pod_one, world_one, None), (pod_one, node_two, None), (pod_one, world_one, TUNNEL_PORT)),
        (node_one, node_two, TUNNEL_PORT),
    ],
    "from_overlay": [
        *((pod_away, pod_one, None), (pod_away, router, None), (pod_away, pod_three, None)),
        *((pod_away, world_one, None), (pod_one, pod_one, None), (world_one, pod_one, None)),
    ],
    "to_overlay": [(pod_one, pod_away, None)],
}


def macs_of(hook: str, source: Place, target: Place) -> tuple[str, str]:
    """A pod's frames have its MACs; elsewhere they mean nothing."""
    mine = hook.startswith("from_container")
    return (pod_one.mac, pod_one.node_mac) if mine else (source.mac, target.mac)
