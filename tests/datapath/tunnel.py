# SPDX-License-Identifier: Apache-2.0
"""
A node with a tunnel on real devices: a test run has no tunnel key, so frames go over wires.

Node one's network card ends in `wire0`, where a test is everybody else; pod one lives in a
namespace of its own, as a redirect into it demands.  What left is read as bytes.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import socket
import struct
import subprocess
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ciliumd.abi import DropReason, Event, EventType, Identity, NodeScope
from datapath.attach import attached
from datapath.harness import Datapath
from datapath.node import CLONE_NEWNET, IP_TOOL, private_node
from datapath.rows import ALLOW_ALL, POD_ONE
from fixtures.packets import IP, UDP, Ether, Place, Raw, ipv4_sum, node_one, on_wire, pod_away, router
from reference.tunnel import Cluster, Node

if TYPE_CHECKING:
    from collections.abc import Iterator

PATIENCE = 5.0
ETH_P_ALL = 3
SOL_PACKET, PACKET_VNET_HDR = 263, 15
# struct virtio_net_hdr: flags, kind of segments, bytes of headers, of a segment, where the sum is.
VIRTIO = struct.Struct("=BBHHHH")
NEEDS_SUM, TCP_SEGMENTS = 1, 1
PACKET_HOST, PACKET_OUTGOING = 0, 4
TUNNEL_PORT = 8472
MTU = 1450
VXLAN_FLAGS = b"\x08\0\0\0"  # RFC 7348: the identifier is valid; then it, and a reserved byte

node_two = Place("192.168.9.2", "ee:00:00:00:00:02")
node_two_again = Place("192.168.9.12", "ee:00:00:00:00:02")  # another address of it
node_three = Place("192.168.9.3", "ee:00:00:00:00:03")  # the API server's
router_two = Place("10.0.2.1", "ba:00:00:00:00:02")
router_three = Place("10.0.3.1", "ba:00:00:00:00:03")
health_two = Place("10.0.2.4", router_two.mac)
pod_unpublished = Place("10.0.2.99", router_two.mac)  # on node two; nobody told about it yet
pod_far = Place("10.0.3.31", router_three.mac)  # on node three

AWAY, FAR = 2021, 2031  # identities of pod_away and pod_far
CLUSTER = Cluster(
    here=Node(frozenset({node_one.ip}), router.ip, "10.0.1.0/24", {POD_ONE.place.ip: POD_ONE.identity}),
    others=(
        Node(
            frozenset({node_two.ip, node_two_again.ip}),
            router_two.ip,
            "10.0.2.0/24",
            {pod_away.ip: AWAY, health_two.ip: Identity.ID_HEALTH},
        ),
        Node(
            frozenset({node_three.ip}), router_three.ip, "10.0.3.0/24", {pod_far.ip: FAR}, is_apiserver=True
        ),
    ),
)
# The same where nodes have identities by their labels; the API server's address has one of its own.
NODE_TWO, NODE_THREE = 2 << 24, (2 << 24) + 1
NODE_THREE_API = NODE_THREE | NodeScope.NODE_API_SERVER
LABELLED = replace(
    CLUSTER,
    others=tuple(
        replace(node, numbers=dict.fromkeys(node.addresses, of_addresses) | {node.router: number})
        for node, number, of_addresses in zip(
            CLUSTER.others, (NODE_TWO, NODE_THREE), (NODE_TWO, NODE_THREE_API), strict=True
        )
    ),
)
DEVICES = f"""
link add cilium_vxlan type vxlan external dstport {TUNNEL_PORT} nolearning
link set cilium_vxlan mtu {MTU} up
neighbour add {node_two.ip} lladdr {node_two.mac} dev net0
neighbour add {node_two_again.ip} lladdr {node_two.mac} dev net0
neighbour add {node_three.ip} lladdr {node_three.mac} dev net0
neighbour add {pod_away.ip} lladdr {router.mac} dev cilium_host
route add 10.0.2.0/24 dev cilium_host src {router.ip}
route add 10.0.3.0/24 dev cilium_host src {router.ip}
"""
ATTACHED = {
    "lxc1": ("entry_from_container", None),
    "cilium_net": ("entry_from_host", None),
    "cilium_vxlan": ("entry_from_overlay", "entry_to_overlay"),
    "net0": ("entry_from_netdev", "entry_to_netdev"),
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one frame: what is told of it, and where frames came out."""

    events: tuple[Event, ...]
    pod: tuple[bytes, ...]
    wire: tuple[bytes, ...]
    host: tuple[bytes, ...]

    @property
    def reasons(self) -> list[DropReason]:
        """Of every drop."""
        return [DropReason(event.reason) for event in self.events if event.type == EventType.EVENT_DROP]

    @property
    def frames(self) -> int:
        """How many came out."""
        return len(self.pod) + len(self.wire) + len(self.host)

    def with_more(self, more: Outcome) -> Outcome:
        """Both, in their order."""
        return Outcome(
            self.events + more.events,
            self.pod + more.pod,
            self.wire + more.wire,
            self.host + more.host,
        )


@dataclass(frozen=True, slots=True)
class Tunnelled:
    """A frame on the wire, taken apart by the RFC's offsets."""

    src: str
    dst: str
    identity: int
    inner: bytes

    @classmethod
    def read(cls, frame: bytes) -> Tunnelled:
        """Everything about the outer headers that is always the same is checked here."""
        outer = Ether(frame)
        assert (outer[UDP].dport, outer[UDP].chksum) == (TUNNEL_PORT, 0)
        payload = frame[42:]
        assert (payload[:4], payload[7]) == (VXLAN_FLAGS, 0)
        return cls(outer[IP].src, outer[IP].dst, int.from_bytes(payload[4:7], "big"), payload[8:])


def vxlan(identity: int, inner: bytes) -> bytes:
    """What a datagram of the tunnel carries: *inner*, as *identity*'s."""
    return VXLAN_FLAGS + identity.to_bytes(3, "big") + b"\0" + inner


def tunnelled(outer_src: str, identity: int, inner: bytes, *, sport: int = 50000) -> bytes:
    """A frame of the network that carries *inner* to this node, as *identity*'s."""
    return on_wire(
        node_two.mac,
        node_one.mac,
        outer_src,
        node_one.ip,
        UDP(sport=sport, dport=TUNNEL_PORT, chksum=0) / Raw(vxlan(identity, inner)),
    )


def fill_cluster(datapath: Datapath, cluster: Cluster = CLUSTER) -> None:
    """The rows of *cluster*, and of pod one, which allows everything."""
    datapath.native_device("net0", node_one.ip)
    datapath.add_endpoint(POD_ONE, *ALLOW_ALL)
    for address in (router.ip, node_one.ip):
        datapath.host_address(address)
    datapath.node_address(node_one.ip, 1)
    for number, node in enumerate(cluster.others, 2):
        (tunnel, *_) = sorted(node.addresses, key=socket.inet_aton)
        datapath.ipcache(node.cidr, Identity.ID_UNMANAGED, tunnel=tunnel)
        datapath.ipcache(node.router, node.numbers.get(node.router, Identity.ID_REMOTE_NODE), tunnel=tunnel)
        own = Identity.ID_KUBE_APISERVER if node.is_apiserver else Identity.ID_REMOTE_NODE
        for address in node.addresses:
            datapath.node_address(address, number)
            datapath.ipcache(address, node.numbers.get(address, own))
        for address, identity in node.pods.items():
            datapath.ipcache(address, identity, tunnel=tunnel)


@dataclass(slots=True)
class Tunnel:
    """The node, and the three places where a test can send and listen."""

    datapath: Datapath
    pod_end: socket.socket
    offload_end: socket.socket
    wire_end: socket.socket
    host_end: socket.socket

    def reset(self) -> None:
        """Empty maps but for the cluster's rows; pod one is here and allows everything."""
        self.datapath.reset()
        fill_cluster(self.datapath)
        self._collect()

    def pod_sends(self, frame: bytes, *, frames: int = 0) -> Outcome:
        """From pod one."""
        return self._send(self.pod_end, frame, frames)

    def pod_sends_segments(self, frame: bytes, size: int, *, frames: int = 0) -> Outcome:
        """A TCP packet of pod one that a device is to cut into segments of *size* bytes, and to sum."""
        l4, payload, checksum = 34, 54, 16
        header = VIRTIO.pack(NEEDS_SUM, TCP_SEGMENTS, payload, size, l4, checksum)
        pseudo = frame[26:34] + b"\0\x06" + (len(frame) - l4).to_bytes(2, "big")
        summed = (ipv4_sum(pseudo) ^ 0xFFFF).to_bytes(2, "big")
        at = l4 + checksum
        return self._send(self.offload_end, header + frame[:at] + summed + frame[at + 2 :], frames)

    def host_sends(self, frame: bytes) -> Outcome:
        """From the node's stack, along its route to pods."""
        return self._send(self.host_end, frame, 0)

    def arrives(self, frame: bytes, *, frames: int = 0) -> Outcome:
        """From the network."""
        return self._send(self.wire_end, frame, frames)

    def tunnel_brings(self, outer_src: str, identity: int, inner: bytes, *, frames: int = 0) -> Outcome:
        """Out of the tunnel."""
        return self._send(self.wire_end, tunnelled(outer_src, identity, inner), frames)

    def _send(self, end: socket.socket, frame: bytes, frames: int) -> Outcome:
        """
        One frame and what it leads to, as soon as that is there.

        That is so many *frames*, where a test knows that more follows; else a first one, or a drop.
        """
        self._collect()
        end.send(frame)
        deadline = time.monotonic() + PATIENCE
        outcome = Outcome((), (), (), ())
        while time.monotonic() < deadline:
            outcome = outcome.with_more(self._collect())
            if outcome.frames >= max(frames, 1) or (outcome.reasons and not frames):
                break
            select.select(self._ends, [], [], 0.001)
        return outcome.with_more(self._collect())

    @property
    def _ends(self) -> tuple[socket.socket, ...]:
        return (self.pod_end, self.wire_end, self.host_end)

    def _collect(self) -> Outcome:
        # What is not addressed to its receiver is there to be seen, but no stack takes it in.
        pod = tuple(frame for frame, kind in _incoming(self.pod_end) if kind == PACKET_HOST)
        host = tuple(frame for frame, kind in _incoming(self.host_end) if kind == PACKET_HOST)
        wired = tuple(frame for frame, _ in _incoming(self.wire_end))
        return Outcome(tuple(self.datapath.events()), pod, wired, host)


def _incoming(end: socket.socket) -> Iterator[tuple[bytes, int]]:
    """Frames that came to this end, and to whom; those that leave by its device are somebody else's."""
    while True:
        try:
            frame, place = end.recvfrom(65535)
        except BlockingIOError:
            return
        if place[2] != PACKET_OUTGOING:
            yield frame, place[2]


def _listening(device: str) -> socket.socket:
    end = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    end.bind((device, ETH_P_ALL))
    end.setblocking(False)
    return end


@contextlib.contextmanager
def _elsewhere() -> Iterator[int]:
    """A namespace beside this thread's; its descriptor."""
    libc = ctypes.CDLL(None, use_errno=True)
    with Path("/proc/thread-self/ns/net").open() as home:
        if libc.unshare(CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "unshare")
        try:
            Path("/proc/sys/net/ipv6/conf/default/disable_ipv6").write_text("1")
            made = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        finally:
            if libc.setns(home.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
    try:
        yield made
    finally:
        os.close(made)


@contextlib.contextmanager
def _inside(namespace: int) -> Iterator[None]:
    libc = ctypes.CDLL(None, use_errno=True)
    with Path("/proc/thread-self/ns/net").open() as home:
        if libc.setns(namespace, CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
        try:
            yield
        finally:
            if libc.setns(home.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")


def _ip(batch: str) -> None:
    subprocess.run([IP_TOOL, "-batch", "-"], input=batch, text=True, check=True, capture_output=True)


@contextlib.contextmanager
def tunnel_node(state_dir: Path, **config: bool | int) -> Iterator[Tunnel]:
    """A node of its own with every program in its place; this thread is in it meanwhile."""
    with private_node(), _elsewhere() as pods, contextlib.ExitStack() as stack:
        _ip(DEVICES + f"link set eth1 netns /proc/{os.getpid()}/fd/{pods}\n")
        options = {
            "tunnel": 1,
            "node_port": 1,
            "overlay_ifindex": socket.if_nametoindex("cilium_vxlan"),
            "overlay_mtu": MTU,
        }
        datapath = stack.enter_context(Datapath.loaded(state_dir, **(options | config)))
        for device, (ingress, egress) in ATTACHED.items():
            ifindex = socket.if_nametoindex(device)
            stack.enter_context(attached(datapath.generation, ifindex, ingress=ingress, egress=egress))
        with _inside(pods):
            _ip("link set eth1 up\n")
            pod_end = stack.enter_context(_listening("eth1"))
            offload_end = stack.enter_context(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))
            offload_end.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
            offload_end.bind(("eth1", 0))
        yield Tunnel(
            datapath,
            pod_end,
            offload_end,
            stack.enter_context(_listening("wire0")),
            stack.enter_context(_listening("cilium_host")),
        )


def inner(src: Place, dst: str, *layers: object, **ip: object) -> bytes:
    """What the other node puts into the tunnel: one hop is behind it, its MACs are its own."""
    return on_wire(src.mac, src.mac, src.ip, dst, *layers, **({"ttl": 63} | ip))


def packet_of(frame: bytes) -> bytes:
    """A frame without its MACs: the packet, with the EtherType before it."""
    return frame[12:]
