# SPDX-License-Identifier: Apache-2.0
"""Between a pod and the wire: both programs on the way out, one on the way in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ciliumd.abi import LbServiceFlags
from datapath.harness import PASS, REDIRECT, Datapath
from datapath.rows import ALLOW_ALL, POD_ONE, Pod
from fixtures.packets import (
    IP,
    Ether,
    Place,
    from_pod,
    ipv4_sum,
    node_one,
    on_wire,
    pod_away,
    pod_one,
    world_one,
    wrong_sums,
)

if TYPE_CHECKING:
    from scapy.packet import Packet


GATEWAY = Place("192.168.9.254", "ee:00:00:00:00:01")
NODE_PORT = LbServiceFlags.LB_F_NODE_PORT
# Node ports, and what is behind them.
WEB, DNS, AWAY, AWAY_DNS = 30080, 30053, 31080, 31053
AWAY_IDENTITY = 2021


def expose(datapath: Datapath) -> None:
    """A node with a way out; 80/TCP and 53/UDP of pod one, and of a pod elsewhere, as node ports."""
    datapath.native_device("net0", node_one.ip)
    datapath.host_address(node_one.ip)
    datapath.add_endpoint(POD_ONE, *ALLOW_ALL)
    datapath.ipcache(pod_away.ip, AWAY_IDENTITY)
    datapath.add_service(1, node_one.ip, WEB, 6, {101: (pod_one.ip, 80)}, flags=NODE_PORT)
    datapath.add_service(2, node_one.ip, DNS, 17, {102: (pod_one.ip, 53)}, flags=NODE_PORT)
    datapath.add_service(3, node_one.ip, AWAY, 6, {103: (pod_away.ip, 80)}, flags=NODE_PORT)
    datapath.add_service(4, node_one.ip, AWAY_DNS, 17, {104: (pod_away.ip, 53)}, flags=NODE_PORT)


def asks(client: str, *layers: Packet, dst: str = node_one.ip, **ip: object) -> bytes:
    """What comes from outside, seen by the node."""
    return on_wire(GATEWAY.mac, node_one.mac, client, dst, *layers, **ip)


def leave(datapath: Datapath, pod: Pod, packet: bytes) -> bytes:
    """Through both programs on the way out; the frame's MACs are set behind them."""
    sent = datapath.send(pod, packet)
    assert sent.action == REDIRECT
    wired = datapath.run("to_netdev", sent.packet, "net0", mark=sent.mark)
    assert (wired.action, wired.counted) == (PASS, {})
    return wired.packet


def masqueraded(pod: Place, dst: str, *layers: Packet, **ip: object) -> bytes:
    """What *pod* sent, as it must be on the wire."""
    return on_wire(pod.mac, pod.node_mac, node_one.ip, dst, *layers, **({"ttl": 63} | ip))


def back(datapath: Datapath, src: str, *layers: Packet, **ip: object) -> bytes:
    """What the world sends to the node's address, as it leaves our program."""
    result = datapath.run(
        "from_netdev", on_wire(GATEWAY.mac, node_one.mac, src, node_one.ip, *layers, **ip), "net0"
    )
    assert result.action == REDIRECT
    return result.packet


def assert_quotes(told: bytes, quoted: bytes) -> None:
    """
    The ICMP error *told* quotes the packet in the frame *quoted*, as far as its ports.

    Sums of the error and of the quoted IP header are right; a quoted L4 sum stays as it was.
    """
    ethernet, ip, icmp, ports = 14, 20, 8, 4
    held = told[ethernet + ip + icmp :]
    assert held[: ip + ports] == quoted[ethernet:][: ip + ports]
    assert wrong_sums(told) == []
    assert ipv4_sum(held[:ip]) == 0


def port_of(frame: bytes) -> int:
    """The source port, or echo id, that a masqueraded packet left with."""
    ip = Ether(frame)[IP]
    assert ip.src == node_one.ip
    return int(ip.payload.id if ip.proto == 1 else ip.sport)


def node_after_pod(world: Datapath, layer: Packet) -> int:
    """Pod and node want one port; the pod was first.  The port the node's packet leaves with."""
    leave(world, POD_ONE, from_pod(pod_one, world_one.ip, layer))
    own = world.run("to_netdev", on_wire(node_one.mac, GATEWAY.mac, node_one.ip, world_one.ip, layer), "net0")
    assert own.action == PASS
    return port_of(own.packet)
