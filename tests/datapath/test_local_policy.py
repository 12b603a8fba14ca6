# SPDX-License-Identifier: Apache-2.0
"""Services whose traffic policy keeps to this node: nobody here to serve is no reason to say no."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest

from ciliumd.abi import DropReason, LbServiceFlags
from datapath.harness import DROP, REDIRECT, Datapath, Result
from datapath.rows import ALLOW_ALL, EGRESS, INGRESS, POD_ONE, POD_TWO
from datapath.sockets import connect
from datapath.wire import NODE_PORT, asks
from fixtures.packets import (
    Packet,
    assert_frame,
    from_pod,
    node_one,
    pod_away,
    pod_one,
    pod_two,
    svc_one,
    tcp,
    to_pod,
    udp,
    world_one,
)
from lab.kernel import chooses_errno_of_connect

if TYPE_CHECKING:
    from lab.cgroup import Cgroup

pytestmark = pytest.mark.datapath

CLIENT, PORT, TCP, UDP = 45000, 30111, 6, 17
ELSEWHERE = LbServiceFlags.LB_F_ELSEWHERE
LAYERS = pytest.mark.parametrize("layer", [tcp(CLIENT, PORT), udp(CLIENT, PORT)], ids=["tcp", "udp"])


def both(datapath: Datapath, address: str, flags: int, *, scope: int = 0, backend: str = "") -> None:
    """PORT of both protocols at *address*, with one backend or none."""
    for number, protocol in ((41, TCP), (42, UDP)):
        backends = {100 + number: (backend, 80)} if backend else {}
        datapath.add_service(number, address, PORT, protocol, backends, flags=flags, scope=scope)


def silent(result: Result, packet: bytes, direction: int) -> None:
    """The packet is dropped for want of a backend, and nobody is told."""
    assert (result.action, result.packet) == (DROP, packet)
    assert result.counted == {(DropReason.DROP_NO_SERVICE, direction): 1}


@LAYERS
def test_client_outside_is_not_told_when_others_could_serve(outside: Datapath, layer: Packet) -> None:
    """externalTrafficPolicy Local: the balancer is about to learn it, and a second try may go elsewhere."""
    both(outside, node_one.ip, NODE_PORT | ELSEWHERE)
    packet = asks(world_one.ip, layer)
    silent(outside.run("from_netdev", packet, "net0"), packet, INGRESS)
    both(outside, node_one.ip, NODE_PORT)
    told = outside.run("from_netdev", packet, "net0")
    assert (told.action, told.drop.reason) == (REDIRECT, DropReason.DROP_NO_SERVICE)


@LAYERS
def test_pod_is_not_told_when_others_could_serve(outside: Datapath, layer: Packet) -> None:
    """internalTrafficPolicy Local, as other proxies do it; without any endpoint it is told."""
    both(outside, svc_one.ip, LbServiceFlags.LB_F_CLUSTER_IP | ELSEWHERE)
    packet = from_pod(pod_one, svc_one.ip, layer)
    silent(outside.send(POD_ONE, packet), packet, EGRESS)
    both(outside, svc_one.ip, LbServiceFlags.LB_F_CLUSTER_IP)
    told = outside.send(POD_ONE, packet)
    assert (told.action, told.drop.reason) == (REDIRECT, DropReason.DROP_NO_SERVICE)


def test_socket_is_told_at_once(outside: Datapath, group: Cgroup) -> None:
    """A process that connects has nothing to gain from waiting."""
    both(outside, svc_one.ip, LbServiceFlags.LB_F_CLUSTER_IP | ELSEWHERE)
    refused = errno.ECONNREFUSED if chooses_errno_of_connect() else errno.EPERM
    assert connect(group, svc_one.ip, PORT) == [refused, None, None]


def test_inside_the_cluster_the_others_are_asked(outside: Datapath, group: Cgroup) -> None:
    """What is local for the world is open for pods and sockets of the node."""
    flags = NODE_PORT | LbServiceFlags.LB_F_TWO_SCOPES
    both(outside, node_one.ip, flags | ELSEWHERE)
    both(outside, node_one.ip, NODE_PORT, scope=1, backend=pod_away.ip)
    assert connect(group, node_one.ip, PORT) == [0, [node_one.ip, PORT], [pod_away.ip, 80]]
    outside.add_endpoint(POD_TWO, *ALLOW_ALL)
    both(outside, node_one.ip, NODE_PORT, scope=1, backend=pod_one.ip)
    there = outside.send(POD_TWO, from_pod(pod_two, node_one.ip, tcp(CLIENT, PORT)))
    assert_frame(to_pod(pod_one, pod_two.ip, tcp(CLIENT, 80)), there.packet)


@LAYERS
def test_backend_here_sees_the_client(outside: Datapath, layer: Packet) -> None:
    """externalTrafficPolicy Local: its address is kept, and no port of the node's is taken."""
    both(outside, node_one.ip, NODE_PORT, backend=pod_one.ip)
    arrived = outside.run("from_netdev", asks(world_one.ip, layer), "net0")
    same = layer.copy()
    same.dport = 80
    assert_frame(to_pod(pod_one, world_one.ip, same), arrived.packet)
    assert outside.snat() == {}
