# SPDX-License-Identifier: Apache-2.0
"""Sockets of a control group that connect to services: whom the kernel connects them to instead."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest

from ciliumd import abi
from ciliumd.abi import CtKind, LbScope, LbServiceFlags
from ciliumd.net.namespace import own_cookie
from datapath.harness import PASS
from datapath.rows import POD_ONE, u32
from datapath.sockets import bind, connect
from datapath.wire import NODE_PORT, asks
from fixtures.packets import IP, Ether, from_pod, node_one, pod_away, pod_one, svc_one, udp, world_one
from lab.cgroup import Cgroup
from lab.kernel import chooses_errno_of_connect

if TYPE_CHECKING:
    from datapath.conftest import Load
    from datapath.harness import Datapath

pytestmark = pytest.mark.datapath

TCP, UDP, DNS = 6, 17, 30153


def test_process_of_the_node_reaches_a_node_port(outside: Datapath, group: Cgroup) -> None:
    """It talks to the backend at once, and sees the node port."""
    outside.add_service(21, node_one.ip, DNS, UDP, {121: (pod_one.ip, 53)}, flags=NODE_PORT)
    assert connect(group, node_one.ip, DNS) == [0, [node_one.ip, DNS], [pod_one.ip, 53]]


def test_inside_the_cluster_every_backend_counts(outside: Datapath, group: Cgroup) -> None:
    """What is hidden from the world (externalTrafficPolicy Local) is not from the node."""
    flags = NODE_PORT | LbServiceFlags.LB_F_TWO_SCOPES
    outside.add_service(21, node_one.ip, DNS, UDP, {}, flags=flags)
    outside.add_service(21, node_one.ip, DNS, UDP, {122: (pod_away.ip, 53)}, flags=flags, scope=1)
    assert connect(group, node_one.ip, DNS) == [0, [node_one.ip, DNS], [pod_away.ip, 53]]


def test_port_that_no_service_has_is_refused_on_its_address(outside: Datapath, group: Cgroup) -> None:
    """At once, instead of a timeout somewhere in the world; other addresses are the network's."""
    outside.add_service(22, svc_one.ip, 53, UDP, {121: (pod_one.ip, 53)})
    outside.cluster_ip(svc_one.ip)
    assert connect(group, svc_one.ip, 53) == [0, [svc_one.ip, 53], [pod_one.ip, 53]]
    refused = errno.ECONNREFUSED if chooses_errno_of_connect() else errno.EPERM
    assert connect(group, svc_one.ip, 54) == [refused, None, None]
    assert connect(group, pod_one.ip, 54) == [0, [pod_one.ip, 54], [pod_one.ip, 54]]


def test_port_of_the_loopback_address_is_of_the_node_alone(outside: Datapath, group: Cgroup) -> None:
    """127.0.0.1 of a pod is the pod's: its sockets in the same control group are left as they are."""
    flags = LbServiceFlags.LB_F_HOST_PORT
    scope = LbScope.LB_SCOPE_NODE
    outside.add_service(23, "127.0.0.1", 8053, UDP, {121: (pod_one.ip, 53)}, flags=flags, scope=scope)
    # Before Linux 5.14 the node is taken to be where the kernel began, and these tests are not.
    meant = [pod_one.ip, 53] if own_cookie() else ["127.0.0.1", 8053]
    assert connect(group, "127.0.0.1", 8053) == [0, ["127.0.0.1", 8053], meant]
    assert connect(group, "127.0.0.1", 8054) == [0, ["127.0.0.1", 8054], ["127.0.0.1", 8054]]
    elsewhere = connect(group, "127.0.0.1", 8053, alone=True)
    assert elsewhere == [0, ["127.0.0.1", 8053], ["127.0.0.1", 8053]]


def test_packet_to_the_loopback_address_reaches_no_service(outside: Datapath) -> None:
    """Neither from a pod nor from outside: no packet means what sockets of the node mean."""
    flags = LbServiceFlags.LB_F_HOST_PORT
    scope = LbScope.LB_SCOPE_NODE
    outside.add_service(23, "127.0.0.1", 8053, UDP, {121: (pod_one.ip, 53)}, flags=flags, scope=scope)
    sent = outside.send(POD_ONE, from_pod(pod_one, "127.0.0.1", udp(5000, 8053)))
    assert outside.ct(CtKind.CT_KIND_SERVICE) == {}
    assert Ether(sent.packet)[IP].dst == "127.0.0.1"
    asked = outside.run("from_netdev", asks(world_one.ip, udp(5000, 8053), dst="127.0.0.1"), "net0")
    assert (asked.action, outside.ct(CtKind.CT_KIND_SERVICE)) == (PASS, {})


def taken() -> int:
    """What a process of the node is told that binds the port of a service."""
    if not own_cookie():
        # Before Linux 5.14 the node is taken to be where the kernel began, and these tests are not.
        return 0
    return errno.EADDRINUSE if chooses_errno_of_connect() else errno.EPERM


def reserve(datapath: Datapath, flags: int = NODE_PORT) -> None:
    """A service at the node's address by UDP, as the agent writes it."""
    datapath.add_service(21, node_one.ip, DNS, UDP, {121: (pod_one.ip, 53)}, flags=flags)
    if flags == NODE_PORT:
        datapath.map("lb_bind").update(abi.LbBindKey(DNS, UDP).pack(), u32(1))


@pytest.mark.parametrize("address", [node_one.ip, "0.0.0.0"])
def test_socket_of_the_node_cannot_take_a_node_port(outside: Datapath, group: Cgroup, address: str) -> None:
    """The protocol that no service has there stays free, and so does every other port."""
    reserve(outside)
    assert bind(group, address, DNS) == [0, taken()]
    assert bind(group, address, DNS + 1) == [0, 0]


def test_socket_of_ipv6_is_judged_by_the_address_it_takes(outside: Datapath, group: Cgroup) -> None:
    """Every address is those of IPv4 as well; one address that is not the service's is free."""
    reserve(outside)
    assert bind(group, "::", DNS, family="AF_INET6") == [0, taken()]
    assert bind(group, f"::ffff:{node_one.ip}", DNS, family="AF_INET6") == [0, taken()]
    assert bind(group, "::ffff:127.0.0.1", DNS, family="AF_INET6") == [0, 0]
    assert bind(group, "127.0.0.1", DNS) == [0, 0]


def test_pod_may_bind_every_port(outside: Datapath, group: Cgroup) -> None:
    """Its network namespace has ports of its own."""
    reserve(outside)
    assert bind(group, "0.0.0.0", DNS, alone=True) == [0, 0]


def test_host_port_is_no_obstacle(outside: Datapath, group: Cgroup) -> None:
    """A process of the node that has the same port as a container's is reached by its own people."""
    reserve(outside, LbServiceFlags.LB_F_HOST_PORT)
    assert bind(group, node_one.ip, DNS) == [0, 0]


def test_protection_can_be_switched_off(load: Load) -> None:
    """As the chart's nodePort.bindProtection says."""
    datapath = load(node_port=1, bind_protection=0)
    reserve(datapath)
    with Cgroup("bind") as group:
        datapath.generation.attach_cgroup(group.path)
        assert bind(group, node_one.ip, DNS) == [0, 0]
        assert bind(group, "0.0.0.0", DNS) == [0, 0]


def test_sockets_of_the_node_alone_are_translated_on_request(load: Load) -> None:
    """Those of pods send what was meant: their packets are translated by the programs of their devices."""
    datapath = load(node_port=1, sock_host_only=1)
    datapath.add_service(22, svc_one.ip, 53, UDP, {121: (pod_one.ip, 53)})
    datapath.add_service(23, svc_one.ip, 54, UDP, {})
    with Cgroup("hostns") as group:
        datapath.generation.attach_cgroup(group.path)
        meant = [pod_one.ip, 53] if own_cookie() else [svc_one.ip, 53]
        assert connect(group, svc_one.ip, 53) == [0, [svc_one.ip, 53], meant]
        # Nobody has a route there but the loopback device.
        assert connect(group, "127.0.0.1", 53, alone=True) == [0, ["127.0.0.1", 53], ["127.0.0.1", 53]]
        assert connect(group, svc_one.ip, 54, alone=True) == [errno.ENETUNREACH, None, None]
