# SPDX-License-Identifier: Apache-2.0
"""With host_legacy_routing what leaves the node goes up its stack, where netfilter sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ciliumd.abi import DropReason, EventType, Mark, TracePoint
from datapath.harness import DROP, PASS, REDIRECT, Datapath, forwarded
from datapath.rows import ALLOW_ALL, EGRESS, POD_ONE, POD_TWO
from datapath.wire import GATEWAY, WEB, asks, expose, leave, masqueraded
from fixtures.packets import (
    assert_frame,
    from_pod,
    node_one,
    on_wire,
    pod_one,
    pod_two,
    tcp,
    to_host,
    to_pod,
    world_one,
)

if TYPE_CHECKING:
    from datapath.conftest import Load

pytestmark = pytest.mark.datapath


@pytest.fixture
def legacy(load: Load) -> Datapath:
    """A node with a way out, through its stack."""
    datapath = load(host_legacy_routing=1, masquerade=1)
    datapath.policies({POD_ONE.version: ALLOW_ALL, POD_TWO.version: ALLOW_ALL})
    datapath.add_endpoint(POD_ONE)
    datapath.add_endpoint(POD_TWO)
    datapath.native_device("net0", node_one.ip)
    datapath.host_address(node_one.ip)
    return datapath


def test_flow_to_the_world_goes_up_whole(legacy: Datapath) -> None:
    """The stack takes the hop; without its doing anything the native device masquerades as ever."""
    sent = legacy.send(POD_ONE, from_pod(pod_one, world_one.ip, tcp(40001, 443)))

    assert (sent.action, sent.mark, sent.counted) == (REDIRECT, 0, forwarded(EGRESS))
    assert_frame(to_host(pod_one, world_one.ip, tcp(40001, 443)), sent.packet)
    assert [e.trace_point for e in sent.of_type(EventType.EVENT_TRACE)] == [TracePoint.TRACE_TO_NETWORK]

    routed = from_pod(pod_one, world_one.ip, tcp(40001, 443), ttl=63)
    wired = legacy.run("to_netdev", routed, "net0", mark=sent.mark)
    assert wired.action == PASS
    assert_frame(masqueraded(pod_one, world_one.ip, tcp(40001, 443)), wired.packet)


def test_answer_keeps_what_netfilter_makes_of_it(legacy: Datapath) -> None:
    """The mark lasts through the stack: what has the node's address by then is not translated again."""
    request = on_wire(GATEWAY.mac, node_one.mac, world_one.ip, pod_one.ip, tcp(50000, 80), ttl=60)
    assert_frame(
        to_pod(pod_one, world_one.ip, tcp(50000, 80), ttl=59),
        legacy.run("from_netdev", request, "net0").packet,
    )

    reply = legacy.send(POD_ONE, from_pod(pod_one, world_one.ip, tcp(80, 50000, "SA")))
    assert (reply.action, reply.mark) == (REDIRECT, Mark.MARK_SKIP_SNAT)
    assert_frame(to_host(pod_one, world_one.ip, tcp(80, 50000, "SA")), reply.packet)


def test_pods_of_the_node_never_go_that_way(legacy: Datapath) -> None:
    """They have no need of netfilter."""
    sent = legacy.send(POD_ONE, from_pod(pod_one, pod_two.ip, tcp(40001, 80)))

    assert sent.action == REDIRECT
    assert_frame(to_pod(pod_two, pod_one.ip, tcp(40001, 80), ttl=63), sent.packet)


def test_where_there_is_no_route_nothing_goes_up(legacy: Datapath) -> None:
    """The drop has its name here and not in the stack."""
    sent = legacy.send(POD_ONE, from_pod(pod_one, "198.51.100.7", tcp(40001, 80)))

    assert sent.action == DROP
    assert [e.reason for e in sent.of_type(EventType.EVENT_DROP)] == [DropReason.DROP_NO_FIB]


def test_answer_of_a_node_port_goes_past_the_stack(load: Load) -> None:
    """It has the node's own address already, and the stack takes nobody's word for being the node."""
    datapath = load(host_legacy_routing=1, node_port=1)
    expose(datapath)
    asked = datapath.run("from_netdev", asks(world_one.ip, tcp(50000, WEB)), "net0")
    assert_frame(to_pod(pod_one, world_one.ip, tcp(50000, 80)), asked.packet)

    told = leave(datapath, POD_ONE, from_pod(pod_one, world_one.ip, tcp(80, 50000, "SA")))
    expected = on_wire(
        pod_one.mac, pod_one.node_mac, node_one.ip, world_one.ip, tcp(WEB, 50000, "SA"), ttl=63
    )
    assert_frame(expected, told)
