# SPDX-License-Identifier: Apache-2.0
"""Packets that cannot be delivered, and what their sender is told at once."""

from __future__ import annotations

import pytest
from scapy.layers.inet import IPOption_NOP

from ciliumd.abi import Call, DropReason
from datapath.harness import DROP, REDIRECT, Datapath
from datapath.rows import (
    EGRESS,
    POD_ONE,
    a16,
)
from fixtures.packets import (
    ICMP,
    Raw,
    assert_frame,
    from_pod,
    pod_one,
    router,
    svc_one,
    tcp,
    to_pod,
    udp,
)

pytestmark = pytest.mark.datapath

TCP, UDP, SCTP = 6, 17, 132
WEB, DNS = 80, 53
TO_WEB = from_pod(pod_one, svc_one.ip, tcp(30000, WEB))


@pytest.mark.parametrize(
    ("layer", "quoted"),
    [
        pytest.param(tcp(30000, WEB), 40, id="tcp"),
        pytest.param(tcp(30000, WEB, "S", b"fast open"), 40, id="tcp with data"),
        pytest.param(udp(5000, WEB), 28, id="udp"),
        pytest.param(udp(5000, WEB, b""), 28, id="udp without payload"),
        pytest.param(udp(5000, WEB, bytes(1400)), 28, id="long udp"),
        pytest.param(udp(5000, WEB, b"odd", chksum=0), 28, id="udp without checksum"),
    ],
)
def test_service_without_backends_refuses_at_once(two_pods: Datapath, layer: object, quoted: int) -> None:
    """ICMP port unreachable to the sender, counted as a drop; the whole answer is exact."""
    for protocol in (TCP, UDP):
        two_pods.add_service(1, svc_one.ip, WEB, protocol, {})
    packet = from_pod(pod_one, svc_one.ip, layer)
    result = two_pods.send(POD_ONE, packet)

    assert result.action == REDIRECT
    assert (result.drop.reason, result.drop.direction) == (DropReason.DROP_NO_SERVICE, EGRESS)
    assert (result.drop.dst, result.drop.dport) == (a16(svc_one.ip), WEB)
    answer = ICMP(type=3, code=3) / Raw(packet[14 : 14 + quoted])
    assert_frame(to_pod(pod_one, router.ip, answer, ttl=64, id=0), result.packet)
    assert two_pods.ct(None) == {}


def test_refusal_that_cannot_be_said_is_a_silent_drop(two_pods: Datapath) -> None:
    """Not about packets with IP options, nor when the refusing program is missing."""
    two_pods.add_service(1, svc_one.ip, WEB, TCP, {})
    with_options = from_pod(pod_one, svc_one.ip, tcp(30000, WEB), options=[IPOption_NOP()] * 4)
    result = two_pods.send(POD_ONE, with_options)
    assert (result.action, result.packet, result.drop.reason) == (
        DROP,
        with_options,
        DropReason.DROP_NO_SERVICE,
    )

    with two_pods.without_call(Call.CALL_REFUSE):
        result = two_pods.send(POD_ONE, TO_WEB)
    assert (result.action, result.packet, result.drop.reason) == (DROP, TO_WEB, DropReason.DROP_NO_SERVICE)


def test_service_that_lost_its_last_backend_refuses_open_flows_too(service: Datapath) -> None:
    """The remembered backend does not outlive the frontend's count."""
    service.send(POD_ONE, TO_WEB)
    service.add_service(1, svc_one.ip, WEB, TCP, {})
    result = service.send(POD_ONE, from_pod(pod_one, svc_one.ip, tcp(30000, WEB, "A")))
    assert result.drop.reason == DropReason.DROP_NO_SERVICE


def test_time_exceeded_about_a_service_quotes_the_service(service: Datapath) -> None:
    """The sender's socket knows the frontend only: traceroute to a service must find itself."""
    packet = from_pod(pod_one, svc_one.ip, udp(5000, DNS, b""), ttl=1)
    result = service.send(POD_ONE, packet)

    assert result.drop.reason == DropReason.DROP_TTL_EXCEEDED
    answer = ICMP(type=11, code=0) / Raw(packet[14:42])
    assert_frame(to_pod(pod_one, router.ip, answer, ttl=64, id=0), result.packet)
