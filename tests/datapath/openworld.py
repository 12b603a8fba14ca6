# SPDX-License-Identifier: Apache-2.0
"""Nodes as the reference sees them, and as rows: one allows everything, one is closed, one has a tunnel."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from ciliumd.abi import LbServiceFlags
from ciliumd.model.net import mac_bytes
from datapath.harness import Datapath
from datapath.node import POD_CIDR
from datapath.rows import ALLOW, ALLOW_ALL, DENY_ALL, EGRESS, POD_ONE, POD_TWO, Rule
from datapath.tunnel import AWAY, CLUSTER, TUNNEL_PORT
from fixtures.packets import loopback, node_one, pod_away, pod_one, pod_two, router, svc_one, svc_two
from reference.forwarding import UNROUTABLE
from reference.node import Backend, Frontend, Node
from reference.parser import Pod
from reference.translating import NO_FIB

TCP, UDP = 6, 17
WEB, DNS, FAR_WEB = 30080, 30053, 31080
# What the tests' namespace has beside its default route (datapath/node.py), and what no router sends on.
NOWHERE = tuple(
    ip_network(prefix)
    for prefix in (
        *("198.51.100.0/24", "127.0.0.0/8", "10.0.1.1/32", "192.168.9.1/32"),
        *("192.168.9.255/32", "255.255.255.255/32", "224.0.0.0/4", "0.0.0.0/8"),
    )
)
OPTIONS = {"nat_port_min": 32768, "nat_port_max": 65535}


def _packed(*pairs: tuple[tuple[str, int, int], tuple[str, int]]) -> dict[Frontend, Backend]:
    return {
        (socket.inet_aton(ip), port, protocol): (socket.inet_aton(backend), backend_port)
        for (ip, port, protocol), (backend, backend_port) in pairs
    }


def _leads_to(address: bytes) -> int:
    number = ip_address(address)
    if any(number in network for network in NOWHERE):
        return NO_FIB
    return UNROUTABLE if number in POD_CIDR else 0


def _within(network: IPv4Network | IPv6Network) -> Callable[[bytes], bool]:
    first, mask = int(network.network_address), int(network.netmask)
    return lambda address: int.from_bytes(address, "big") & mask == first


PODS = {
    pod.address.packed: Pod(mac_bytes(pod.mac), mac_bytes(pod.node_mac), pod.address.packed)
    for pod in (pod_one, pod_two)
}
NODE = Node(
    router=router.address.packed,
    router_mac=mac_bytes(router.mac),
    address=node_one.address.packed,
    pods=PODS,
    is_pod_address=_within(POD_CIDR),
    leads_to=_leads_to,
    sender=PODS[pod_one.address.packed],
    loopback=loopback.address.packed,
    cluster_ips=frozenset({svc_one.address.packed, svc_two.address.packed}),
    services=_packed(((svc_one.ip, 80, TCP), (pod_two.ip, 8080)), ((svc_one.ip, 53, UDP), (pod_two.ip, 5353)))
    | {(svc_two.address.packed, 80, TCP): None},
    node_ports=_packed(
        ((node_one.ip, WEB, TCP), (pod_one.ip, 80)),
        ((node_one.ip, DNS, UDP), (pod_one.ip, 53)),
        ((node_one.ip, FAR_WEB, TCP), (pod_away.ip, 80)),
    ),
    unmasked=frozenset({pod_away.address.packed}),
)


# Pod one may open flows to pod two alone, and nobody may open any to it.
CLOSED = replace(
    NODE,
    may_reach=lambda address: address == pod_two.address.packed,
    closed=frozenset({pod_one.address.packed}),
)
ONLY_TO_TWO = (*DENY_ALL, Rule(EGRESS, ALLOW, class_id=1))


def fill(datapath: Datapath, *, closed: bool = False) -> None:
    """The rows of NODE, or of CLOSED."""
    datapath.policies({POD_TWO.version: ALLOW_ALL})
    if closed:
        datapath.add_endpoint(POD_ONE, *ONLY_TO_TWO, classes={(POD_TWO.identity, EGRESS): 1})
    else:
        datapath.add_endpoint(POD_ONE, *ALLOW_ALL)
    datapath.add_endpoint(POD_TWO)
    datapath.native_device("net0", node_one.ip)
    for address in (node_one.ip, router.ip):
        datapath.host_address(address)
    datapath.ipcache(pod_away.ip, AWAY)
    datapath.add_service(1, svc_one.ip, 80, TCP, {101: (pod_two.ip, 8080)})
    datapath.add_service(2, svc_one.ip, 53, UDP, {102: (pod_two.ip, 5353)})
    datapath.add_service(3, svc_two.ip, 80, TCP, {})
    for address in (svc_one.ip, svc_two.ip):
        datapath.cluster_ip(address)
    port = LbServiceFlags.LB_F_NODE_PORT
    datapath.add_service(4, node_one.ip, WEB, TCP, {104: (pod_one.ip, 80)}, flags=port)
    datapath.add_service(5, node_one.ip, DNS, UDP, {105: (pod_one.ip, 53)}, flags=port)
    datapath.add_service(6, node_one.ip, FAR_WEB, TCP, {106: (pod_away.ip, 80)}, flags=port)


def _behind_tunnel(address: bytes) -> bool:
    text = socket.inet_ntoa(address)
    return any(ip_address(text) in ip_network(node.cidr) for node in CLUSTER.others)


def tunnel_node_of(outer: str, identity: int) -> Node:
    """The node with a tunnel; what comes out of that is of the node at *outer*, as *identity*'s."""
    routers = {socket.inet_aton(node.router) for node in CLUSTER.others}
    return Node(
        router=NODE.router,
        router_mac=NODE.router_mac,
        address=NODE.address,
        pods={pod_one.address.packed: NODE.sender},
        is_pod_address=NODE.is_pod_address,
        leads_to=NODE.leads_to,
        sender=NODE.sender,
        loopback=NODE.loopback,
        tunnel_port=TUNNEL_PORT,
        behind_tunnel=_behind_tunnel,
        is_other_node=routers.__contains__,
        may_send=lambda source: CLUSTER.refused(outer, identity, socket.inet_ntoa(source)),
    )
