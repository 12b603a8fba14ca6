# SPDX-License-Identifier: Apache-2.0
"""Between the world and a node that serves IPv6 to it: wire.py for the other family."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scapy.layers.inet6 import IPv6ExtHdrFragment

from ciliumd.abi import Mark
from datapath.harness import PASS, REDIRECT, Datapath, Result, forwarded
from datapath.openworld6 import SIX_ONE
from datapath.rows import ALLOW_ALL, EGRESS
from datapath.wire import AWAY, AWAY_DNS, AWAY_IDENTITY, DNS, GATEWAY, NODE_PORT, WEB
from fixtures.packets import Raw
from fixtures.packets6 import Ether, IPv6, frame, from_pod, node_one, pod_away, pod_one, world_one

if TYPE_CHECKING:
    from scapy.packet import Packet

TCP, UDP = 6, 17


def expose6(datapath: Datapath) -> None:
    """A node with a way out; 80/TCP and 53/UDP of pod one, and of a pod elsewhere, as node ports."""
    datapath.native_device("net0", node_one.place.ip, ip6=node_one.ip)
    datapath.host_address(node_one.ip)
    datapath.add_endpoint(SIX_ONE, *ALLOW_ALL)
    datapath.ipcache(f"{pod_away.ip}/128", AWAY_IDENTITY)
    datapath.add_service(1, node_one.ip, WEB, TCP, {101: (pod_one.ip, 80)}, flags=NODE_PORT)
    datapath.add_service(2, node_one.ip, DNS, UDP, {102: (pod_one.ip, 53)}, flags=NODE_PORT)
    datapath.add_service(3, node_one.ip, AWAY, TCP, {103: (pod_away.ip, 80)}, flags=NODE_PORT)
    datapath.add_service(4, node_one.ip, AWAY_DNS, UDP, {104: (pod_away.ip, 53)}, flags=NODE_PORT)


def asks(client: str, *layers: Packet, dst: str = node_one.ip, **ip: object) -> bytes:
    """What comes from outside, seen by the node."""
    return frame(GATEWAY.mac, node_one.mac, client, dst, *layers, **ip)


def arrive(outside: Datapath, packet: bytes) -> Result:
    """From the network."""
    return outside.run("from_netdev", packet, "net0")


def forward(outside: Datapath, packet: bytes) -> bytes:
    """A client's packet, or an answer to one, as it is on the wire again: nobody behind us changes it."""
    result = arrive(outside, packet)
    seen = (result.action, result.mark, result.counted)
    assert seen == (REDIRECT, Mark.MARK_SKIP_SNAT, forwarded(EGRESS)), result.events
    wired = outside.run("to_netdev", result.packet, "net0", mark=result.mark)
    assert (wired.action, wired.packet, wired.mark) == (PASS, result.packet, 0)
    return wired.packet


def answers(outside: Datapath, *layers: Packet, dst: str = world_one.ip) -> bytes:
    """What pod one answers, as the world gets it: past masquerading, with the MACs of the pod's veth."""
    sent = outside.send(SIX_ONE, from_pod(pod_one, dst, *layers))
    assert (sent.action, sent.mark) == (REDIRECT, Mark.MARK_SKIP_SNAT)
    wired = outside.run("to_netdev", sent.packet, "net0", mark=sent.mark)
    assert (wired.action, wired.mark, wired.packet) == (PASS, 0, sent.packet)
    return wired.packet


def hidden(src: str, dst: str, *layers: Packet, **ip: object) -> bytes:
    """What the node sends on, as it must be on the wire."""
    return frame(GATEWAY.mac, node_one.mac, src, dst, *layers, **({"hlim": 63} | ip))


def seen_port(wired: bytes) -> int:
    """The port the backend is asked from."""
    return int(Ether(wired)[IPv6].payload.sport)


def pieces(src: str, dst: str, layer: Packet) -> list[tuple[Packet, Packet]]:
    """A datagram in two fragments."""
    whole = frame(GATEWAY.mac, node_one.mac, src, dst, layer)
    return [
        (IPv6ExtHdrFragment(nh=whole[20], offset=0, m=1, id=77), Raw(whole[54:102])),
        (IPv6ExtHdrFragment(nh=whole[20], offset=6, m=0, id=77), Raw(whole[102:])),
    ]
