# SPDX-License-Identifier: Apache-2.0
"""What a node's options turn off is off, and nothing else is; metrics count in any case."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ciliumd.abi import DropReason, EventType
from datapath.harness import DROP, REDIRECT, Datapath, forwarded
from datapath.rows import ALLOW_ALL, DENY_ALL, EGRESS, INGRESS, POD_ONE, POD_TWO
from fixtures.packets import from_pod, loopback, pod_one, pod_two, tcp, udp

if TYPE_CHECKING:
    from datapath.conftest import Load

pytestmark = pytest.mark.datapath

SYN = from_pod(pod_one, pod_two.ip, tcp(30000, 80))


def _with_two_pods(datapath: Datapath) -> Datapath:
    datapath.policies({POD_ONE.version: ALLOW_ALL, POD_TWO.version: ALLOW_ALL})
    datapath.add_endpoint(POD_ONE)
    datapath.add_endpoint(POD_TWO)
    return datapath


@pytest.mark.parametrize("silent", EventType)
def test_events_of_each_kind_can_be_turned_off(datapath: Datapath, silent: EventType) -> None:
    """The other kinds still come, and all of them once it is turned on again."""
    datapath.silence(silent)
    assert _kinds(datapath) == set(EventType) - {silent}

    datapath.reset()
    assert _kinds(datapath) == set(EventType)


def _kinds(datapath: Datapath) -> set[int]:
    """Kinds of the events of a flow that is let through, and refused then; drops are counted in any case."""
    _with_two_pods(datapath)
    events = datapath.send(POD_ONE, SYN).events
    datapath.policies({99: DENY_ALL})
    datapath.use_version(POD_ONE, 99)
    refused = datapath.send(POD_ONE, SYN)

    assert refused.action == DROP
    assert refused.counted == {(DropReason.DROP_POLICY, EGRESS): 1}
    return {event.type for event in (*events, *refused.events)}


def test_lifetimes_are_the_operators_choice(load: Load) -> None:
    """Handshake, connection, closed connection, and everything else."""
    options = {"ct_timeout_tcp_syn": 61, "ct_timeout_tcp": 62, "ct_timeout_tcp_fin": 63, "ct_timeout_any": 64}
    datapath = _with_two_pods(load(**options))

    def lifetime(layer: object) -> set[int]:
        datapath.send(POD_ONE, from_pod(pod_one, pod_two.ip, layer))
        sport = layer.sport
        rows = datapath.ct().items()
        return {
            row.expires - row.last_report for key, row in rows if sport in {key.local_port, key.remote_port}
        }

    assert lifetime(tcp(30000, 80, "S")) == {61}
    assert lifetime(tcp(30000, 80, "A")) == {62}
    assert lifetime(tcp(30000, 80, "R")) == {63}
    assert lifetime(udp(5000, 53)) == {64}


def test_flow_is_reported_again_after_the_interval(load: Load) -> None:
    """One trace event, and a refreshed row; not for every packet."""
    datapath = _with_two_pods(load(report_interval=3))
    query = from_pod(pod_one, pod_two.ip, udp(5000, 53))
    datapath.send(POD_ONE, query)
    assert datapath.send(POD_ONE, query).events == ()
    datapath.age(3)
    assert [event.type for event in datapath.send(POD_ONE, query).events] == [EventType.EVENT_TRACE]
    assert datapath.send(POD_ONE, query).events == ()


def test_loopback_address_is_an_address_like_any_other_when_none_is_set(load: Load) -> None:
    """Without the option, a packet to it takes the route."""
    datapath = _with_two_pods(load(loopback_ipv4=0))
    result = datapath.send(POD_ONE, from_pod(pod_one, loopback.ip, udp(5000, 53)))
    assert (result.action, result.counted) == (REDIRECT, forwarded(EGRESS))
    assert INGRESS not in {direction for _, direction in result.counted}
