# SPDX-License-Identifier: Apache-2.0
"""Addresses of services: nobody outside reaches them, and nothing of theirs follows the default route."""

from __future__ import annotations

import pytest

from ciliumd.abi import DropReason, LbServiceFlags
from datapath.harness import DROP, PASS, REDIRECT, Datapath
from datapath.rows import ALLOW_ALL, POD_ONE, POD_TWO
from datapath.wire import asks
from fixtures.packets import (
    Packet,
    assert_frame,
    from_pod,
    node_one,
    on_wire,
    ping,
    pod_one,
    pod_two,
    router,
    svc_one,
    svc_two,
    tcp,
    to_pod,
    udp,
    unreachable,
    world_one,
)

pytestmark = pytest.mark.datapath

LISTED, UNLISTED = tcp(30000, 80), tcp(30000, 81)
NOWHERE = [UNLISTED, udp(5000, 80), ping(5)]
IDS = ["tcp", "udp", "ping"]


@pytest.fixture
def cluster_ip(outside: Datapath) -> Datapath:
    """80/TCP of svc_one is pod two's, and the address is the service's alone."""
    outside.host_address(router.ip)
    outside.add_endpoint(POD_TWO, *ALLOW_ALL)
    outside.add_service(11, svc_one.ip, 80, 6, {111: (pod_two.ip, 8080)})
    outside.cluster_ip(svc_one.ip)
    return outside


def test_listed_port_is_the_services(cluster_ip: Datapath) -> None:
    """The row of the address takes nothing from those of its ports."""
    result = cluster_ip.send(POD_ONE, from_pod(pod_one, svc_one.ip, LISTED))
    assert_frame(to_pod(pod_two, pod_one.ip, tcp(30000, 8080)), result.packet)


@pytest.mark.parametrize("layer", NOWHERE, ids=IDS)
def test_what_no_port_takes_is_refused_and_the_pod_is_told(cluster_ip: Datapath, layer: Packet) -> None:
    """Instead of leaving for the world; no conntrack row is left."""
    packet = from_pod(pod_one, svc_one.ip, layer)
    result = cluster_ip.send(POD_ONE, packet)
    assert (result.action, result.drop.reason) == (REDIRECT, DropReason.DROP_IS_CLUSTER_IP)
    expected = on_wire(
        pod_one.node_mac, pod_one.mac, router.ip, pod_one.ip, unreachable(packet[: 14 + 40]), id=0, ttl=64
    )
    size = 14 + 20 + 8 + (40 if layer.name == "TCP" else 28)
    assert result.packet[14 + 20 + 8 :] == packet[14 : 14 + size - 42]
    assert result.packet[26:34] == expected[26:34]
    assert cluster_ip.ct(None) == {}


def test_address_without_the_row_is_any_other(cluster_ip: Datapath) -> None:
    """Headless services and external addresses have none."""
    result = cluster_ip.send(POD_ONE, from_pod(pod_one, svc_two.ip, UNLISTED))
    assert (result.action, result.of_type(1)) == (REDIRECT, [])


@pytest.mark.parametrize("layer", [LISTED, *NOWHERE], ids=["listed", *IDS])
def test_from_outside_it_is_nobodys(cluster_ip: Datapath, layer: Packet) -> None:
    """Neither translated nor routed on."""
    packet = asks(world_one.ip, layer, dst=svc_one.ip)
    result = cluster_ip.run("from_netdev", packet, "net0")
    assert (result.action, result.packet, result.drop.reason) == (
        DROP,
        packet,
        DropReason.DROP_IS_CLUSTER_IP,
    )


def test_cluster_address_that_is_open_is_reached_from_outside(cluster_ip: Datapath) -> None:
    """With bpf-lb-external-clusterip: as a node port is, and its other ports still lead nowhere."""
    flags = LbServiceFlags.LB_F_CLUSTER_IP | LbServiceFlags.LB_F_OPEN
    cluster_ip.add_service(11, svc_one.ip, 80, 6, {111: (pod_two.ip, 8080)}, flags=flags)
    result = cluster_ip.run("from_netdev", asks(world_one.ip, LISTED, dst=svc_one.ip), "net0")
    assert_frame(to_pod(pod_two, world_one.ip, tcp(30000, 8080)), result.packet)
    for layer in NOWHERE:
        other = cluster_ip.run("from_netdev", asks(world_one.ip, layer, dst=svc_one.ip), "net0")
        assert (other.action, other.drop.reason) == (DROP, DropReason.DROP_IS_CLUSTER_IP)


def test_what_the_node_routes_for_others_is_left_alone(cluster_ip: Datapath) -> None:
    """An address that is neither ours nor a service's."""
    packet = asks(world_one.ip, LISTED, dst="198.51.100.1")
    result = cluster_ip.run("from_netdev", packet, "net0")
    assert (result.action, result.packet, result.counted) == (PASS, packet, {})
    assert cluster_ip.run("from_netdev", asks(world_one.ip, tcp(1, 22)), "net0").counted == {}
    assert node_one.ip != svc_one.ip
