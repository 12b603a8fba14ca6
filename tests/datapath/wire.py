# SPDX-License-Identifier: Apache-2.0
"""Between a pod and the wire: both programs on the way out, one on the way in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from datapath.harness import PASS, REDIRECT, Datapath
from datapath.rows import POD_ONE, Pod
from fixtures.packets import (
    IP,
    Ether,
    Place,
    from_pod,
    node_one,
    on_wire,
    pod_one,
    world_one,
)

if TYPE_CHECKING:
    from scapy.packet import Packet


GATEWAY = Place("192.168.9.254", "ee:00:00:00:00:01")


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
