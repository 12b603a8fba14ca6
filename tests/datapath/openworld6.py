# SPDX-License-Identifier: Apache-2.0
"""A node whose pods have both families, as the reference sees it, and as rows; it allows everything."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path

from ciliumd.abi import LbServiceFlags
from ciliumd.model.net import mac_bytes
from datapath.contest import Contest, contests
from datapath.harness import QUIET, Datapath
from datapath.node import NOWHERE6, POD_CIDR6
from datapath.openworld import NODE, OPTIONS, TCP, UDP, fill
from datapath.rows import POD_ONE, POD_THREE, POD_TWO
from datapath.tunnel import AWAY
from fixtures.packets6 import (
    Place6,
    balancer,
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
from reference.forwarding import UNROUTABLE, Forwarding
from reference.forwarding6 import Forwarding6
from reference.node import Node
from reference.parser import Pod
from reference.translating import NO_FIB

SIX_ONE = replace(POD_ONE, ip6=pod_one.ip)
SIX_TWO = replace(POD_TWO, ip6=pod_two.ip)
SIX_THREE = replace(POD_THREE, ip6=pod_three.ip)
# What the tests' namespace has beside its default route, and what no router sends on.
NOWHERE = (
    NOWHERE6,
    *(ip_network(prefix) for prefix in ("ff00::/8", "fe80::/10", "::/96")),
    *(ip_network(f"{own.ip}/128") for own in (router, node_one)),
)


def _leads_to(address: bytes) -> int:
    number = ip_address(address)
    if any(number in network for network in NOWHERE):
        return NO_FIB
    return UNROUTABLE if number in POD_CIDR6 else 0


PODS = {
    pod.address.packed: Pod(mac_bytes(pod.mac), mac_bytes(pod.node_mac), pod.address.packed)
    for pod in (pod_one, pod_two)
}
NODE6 = Node(
    router=router.address.packed,
    router_mac=mac_bytes(router.mac),
    address=node_one.address.packed,
    pods=PODS,
    is_pod_address=lambda address: ip_address(address) in POD_CIDR6,
    leads_to=_leads_to,
    sender=PODS[pod_one.address.packed],
    loopback=loopback.address.packed,
    cluster_ips=frozenset({svc_one.address.packed, svc_two.address.packed}),
    services={
        (svc_one.address.packed, 80, TCP): (pod_two.address.packed, 8080),
        (svc_one.address.packed, 53, UDP): (pod_two.address.packed, 5353),
        (svc_two.address.packed, 80, TCP): None,
    },
    node_ports={
        (node_one.address.packed, 80, TCP): (pod_one.address.packed, 8080),
        (node_one.address.packed, 53, UDP): (pod_one.address.packed, 5353),
        (balancer.address.packed, 80, TCP): (pod_away.address.packed, 8080),
        (balancer.address.packed, 53, UDP): (pod_away.address.packed, 53),
    },
)

Way6 = tuple[Place6, Place6]
WAYS6: dict[str, list[Way6]] = {
    "from_container": [
        (pod_one, to)
        for to in (
            *(pod_two, svc_one, svc_two, node_one, router, world_one, pod_away),
            *(pod_three, pod_one, loopback, balancer),
        )
    ],
    "to_container": [(router, pod_one), (node_one, pod_two), (router, pod_three)],
    "from_host": [(router, pod_one), (pod_two, pod_one), (router, world_one)],
    "from_netdev": [
        *((world_one, node_one), (world_one, balancer), (world_one, pod_one), (world_one, svc_one)),
        *((world_one, svc_two), (pod_two, pod_one), (node_one, pod_one), (pod_two, balancer)),
    ],
    "to_netdev": [(node_one, world_one), (pod_one, world_one)],
}


def macs_of6(hook: str, source: Place6, target: Place6) -> tuple[str, str]:
    """A pod's frames have its MACs; elsewhere they mean nothing."""
    return (pod_one.mac, pod_one.node_mac) if hook == "from_container" else (source.mac, target.mac)


def fill6(datapath: Datapath) -> None:
    """The rows of NODE and NODE6."""
    fill(datapath)
    datapath.add_endpoint(SIX_ONE)
    datapath.add_endpoint(SIX_TWO)
    for address in (node_one.ip, router.ip):
        datapath.host_address(address)
    datapath.native_device("net0", node_one.place.ip, ip6=node_one.ip)
    datapath.ipcache(f"{pod_away.ip}/128", AWAY)
    datapath.add_service(11, svc_one.ip, 80, TCP, {111: (pod_two.ip, 8080)})
    datapath.add_service(12, svc_one.ip, 53, UDP, {112: (pod_two.ip, 5353)})
    datapath.add_service(13, svc_two.ip, 80, TCP, {})
    for address in (svc_one.ip, svc_two.ip):
        datapath.cluster_ip(address)
    port, far = LbServiceFlags.LB_F_NODE_PORT, LbServiceFlags.LB_F_LOAD_BALANCER
    datapath.add_service(14, node_one.ip, 80, TCP, {114: (pod_one.ip, 8080)}, flags=port)
    datapath.add_service(15, node_one.ip, 53, UDP, {115: (pod_one.ip, 5353)}, flags=port)
    datapath.add_service(16, balancer.ip, 80, TCP, {116: (pod_away.ip, 8080)}, flags=far)
    datapath.add_service(17, balancer.ip, 53, UDP, {117: (pod_away.ip, 53)}, flags=far)


@contextlib.contextmanager
def all_contests6() -> Iterator[dict[str, Contest]]:
    """Every hook; this thread is on the tests' node already, and may load programs."""
    with (
        tempfile.TemporaryDirectory(prefix=f"contest6-{os.getpid()}-") as scratch,
        Datapath.loaded(Path(scratch), silent=QUIET, node_port=1, ipv6=1, **OPTIONS) as datapath,
    ):
        datapath.reset()
        fill6(datapath)
        yield contests(datapath, NODE6, lambda: Forwarding6(NODE6, Forwarding(NODE)))
