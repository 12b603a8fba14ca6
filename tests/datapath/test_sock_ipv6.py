# SPDX-License-Identifier: Apache-2.0
"""Sockets of IPv6 that connect to services, and those that carry IPv4."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest

from ciliumd import abi
from ciliumd.abi import LbScope, LbServiceFlags
from ciliumd.net.namespace import own_cookie
from datapath.openworld6 import SIX_ONE, SIX_TWO
from datapath.rows import ALLOW_ALL, a16, u32
from datapath.sockets import bind, connect, exchange
from datapath.test_sock import taken
from datapath.wire import NODE_PORT
from fixtures import packets
from fixtures.packets6 import node_one, pod_one, pod_two
from lab.kernel import chooses_errno_of_connect

if TYPE_CHECKING:
    from datapath.harness import Datapath
    from lab.cgroup import Cgroup

pytestmark = pytest.mark.datapath

TCP, UDP, DNS, WEB = 6, 17, 53, 30080
SERVICE, BALANCER = "fd00:96::10", "2001:db8:42::8"
ONE, TWO = (pod_one.ip, 5353), (pod_two.ip, 5354)
HOURS = 10800


def refused() -> list[object]:
    """What a process is told that may not talk to a service, or behind which nobody is."""
    return [errno.ECONNREFUSED if chooses_errno_of_connect() else errno.EPERM, None, None]


def test_process_talks_to_the_backend_and_sees_the_service(outside: Datapath, group: Cgroup) -> None:
    """All 128 bits of both; a port that no service has is refused on its address alone."""
    outside.add_service(21, SERVICE, DNS, UDP, {121: ONE})
    outside.cluster_ip(SERVICE)
    assert connect(group, SERVICE, DNS) == [0, [SERVICE, DNS], list(ONE)]
    assert connect(group, SERVICE, DNS + 1) == refused()
    assert connect(group, pod_one.ip, DNS) == [0, [pod_one.ip, DNS], [pod_one.ip, DNS]]


def test_ipv4_in_a_socket_of_ipv6_goes_to_the_service_of_ipv4(outside: Datapath, group: Cgroup) -> None:
    """::ffff:a.b.c.d is that address; its frontend has backends of its own family."""
    vip = packets.svc_one.ip
    outside.add_service(21, vip, DNS, UDP, {121: (packets.pod_one.ip, 5353)})
    outside.add_service(22, SERVICE, DNS, UDP, {122: ONE})
    found = connect(group, f"::ffff:{vip}", DNS)
    assert found == [0, [f"::ffff:{vip}", DNS], [f"::ffff:{packets.pod_one.ip}", 5353]]


def test_frontend_without_a_backend_refuses_at_once(outside: Datapath, group: Cgroup) -> None:
    """Also one whose local policy keeps it from those elsewhere."""
    outside.add_service(21, SERVICE, DNS, UDP, {})
    assert connect(group, SERVICE, DNS) == refused()
    outside.add_service(21, SERVICE, DNS, UDP, {}, flags=LbServiceFlags.LB_F_CLUSTER_IP | ELSEWHERE)
    assert connect(group, SERVICE, DNS) == refused()


ELSEWHERE = LbServiceFlags.LB_F_ELSEWHERE


def test_inside_the_cluster_every_backend_counts(outside: Datapath, group: Cgroup) -> None:
    """What is hidden from the world (externalTrafficPolicy Local) is not from the node."""
    flags = LbServiceFlags.LB_F_LOAD_BALANCER | LbServiceFlags.LB_F_TWO_SCOPES
    outside.add_service(21, BALANCER, DNS, UDP, {}, flags=flags | ELSEWHERE)
    outside.add_service(22, BALANCER, DNS, UDP, {122: TWO}, flags=LbServiceFlags.LB_F_LOAD_BALANCER, scope=1)
    assert connect(group, BALANCER, DNS) == [0, [BALANCER, DNS], list(TWO)]


def test_unconnected_socket_is_answered_by_the_service(outside: Datapath, group: Cgroup) -> None:
    """sendmsg(2) is translated, and what recvmsg(2) says who answered."""
    outside.add_service(21, SERVICE, DNS, UDP, {121: ("::1", 5353)})
    assert exchange(group, SERVICE, DNS, server=("::1", 5353)) == [SERVICE, DNS]
    outside.add_service(21, SERVICE, DNS, UDP, {})
    assert exchange(group, SERVICE, DNS, server=("::1", 5353)) == refused()[0]


def test_sockets_of_a_process_keep_their_backend(outside: Datapath, group: Cgroup) -> None:
    """Known by its network namespace; a pod's by its IPv6 address."""
    outside.add_service(21, SERVICE, DNS, UDP, {121: ONE, 122: TWO}, affinity=HOURS)
    assert len({tuple(connect(group, SERVICE, DNS)[2]) for _ in range(16)}) == 1
    ((key, _),) = outside.map("lb_affinity").items()
    assert abi.LbAffinityKey.unpack(key).kind == abi.LbClient.LB_CLIENT_NETNS
    if not own_cookie():  # before Linux 5.14 nobody can tell which pod a namespace is
        return
    outside.map("lb_affinity").delete(key)
    as_pod_one(outside)
    assert len({tuple(connect(group, SERVICE, DNS)[2]) for _ in range(16)}) == 1
    ((key, _),) = outside.map("lb_affinity").items()
    found = abi.LbAffinityKey.unpack(key)
    assert (found.kind, found.client) == (abi.LbClient.LB_CLIENT_ADDRESS, a16(pod_one.ip))


def as_pod_one(datapath: Datapath) -> None:
    """The namespace of these tests is pod one's from now on."""
    datapath.add_endpoint(SIX_ONE, *ALLOW_ALL)
    datapath.add_endpoint(SIX_TWO, *ALLOW_ALL)
    datapath.map("netns").update(own_cookie().to_bytes(8, "little"), u32(SIX_ONE.slot))


def test_source_ranges_judge_a_pod_by_its_ipv6_address(outside: Datapath, group: Cgroup) -> None:
    """The node's own processes are not kept out."""
    flags = LbServiceFlags.LB_F_LOAD_BALANCER | LbServiceFlags.LB_F_SOURCES_ALLOW
    outside.add_service(21, BALANCER, DNS, UDP, {121: ONE}, flags=flags)
    assert connect(group, BALANCER, DNS) == [0, [BALANCER, DNS], list(ONE)]
    as_pod_one(outside)
    if not own_cookie():  # before Linux 5.14, as above
        return
    assert connect(group, BALANCER, DNS) == refused()
    bits, allow = abi.LbSourcePrefix.LB_SOURCE_PREFIX_FRONTEND + 64, LbServiceFlags.LB_F_SOURCES_ALLOW
    source = abi.LbSourceKey(bits, 21, allow, a16("fd00:1::"))
    outside.map("lb_source_range").update(source.pack(), u32(1))
    assert connect(group, BALANCER, DNS) == [0, [BALANCER, DNS], list(ONE)]


def test_loopback_address_is_of_the_node_alone(outside: Datapath, group: Cgroup) -> None:
    """::1 of a pod is the pod's."""
    flags, scope = LbServiceFlags.LB_F_HOST_PORT, LbScope.LB_SCOPE_NODE
    outside.add_service(23, "::1", 8053, UDP, {121: ONE}, flags=flags, scope=scope)
    meant = list(ONE) if own_cookie() else ["::1", 8053]
    assert connect(group, "::1", 8053) == [0, ["::1", 8053], meant]
    assert connect(group, "::1", 8053, alone=True) == [0, ["::1", 8053], ["::1", 8053]]


def test_socket_of_the_node_cannot_take_a_node_port(outside: Datapath, group: Cgroup) -> None:
    """At the node's IPv6 address, and at every one; an address that is not the service's is free."""
    outside.add_service(21, node_one.ip, WEB, UDP, {121: ONE}, flags=NODE_PORT)
    outside.map("lb_bind").update(abi.LbBindKey(WEB, UDP).pack(), u32(1))
    assert bind(group, node_one.ip, WEB, family="AF_INET6") == [0, taken()]
    assert bind(group, "::", WEB, family="AF_INET6") == [0, taken()]
    assert bind(group, "::1", WEB, family="AF_INET6") == [0, 0]
    assert bind(group, "::", WEB, family="AF_INET6", alone=True) == [0, 0]
