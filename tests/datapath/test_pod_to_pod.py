# SPDX-License-Identifier: Apache-2.0
"""Pods of one node: what is let through, how it looks on arrival, what is remembered of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ciliumd.abi import CtFlags, CtKey, CtState, DropReason, EventType, TracePoint
from datapath.harness import DROP, REDIRECT, Datapath, forwarded
from datapath.rows import (
    ALLOW,
    ALLOW_ALL,
    DEFAULT_DENY,
    DENY,
    DENY_ALL,
    EGRESS,
    INGRESS,
    POD_ONE,
    POD_TWO,
    Rule,
    a16,
)
from fixtures.packets import (
    ICMP,
    Raw,
    assert_frame,
    from_pod,
    ping,
    pod_one,
    pod_two,
    pong,
    router,
    sctp,
    tcp,
    to_pod,
    udp,
)

pytestmark = pytest.mark.datapath

TCP = 6
SYN = from_pod(pod_one, pod_two.ip, tcp(30000, 80))
SYN_ACK = from_pod(pod_two, pod_one.ip, tcp(80, 30000, "SA"))
ACK = from_pod(pod_one, pod_two.ip, tcp(30000, 80, "A"))
ALLOW_WEB = (
    Rule(INGRESS, DEFAULT_DENY, cookie=0xDE1),
    Rule(INGRESS, ALLOW, TCP, 80, cookie=0x80),
    Rule(EGRESS, ALLOW, cookie=0xA12),
)

ONE_TO_TWO = CtKey(a16(pod_one.ip), a16(pod_two.ip), 30000, 80, TCP, 0, 0)
TWO_FROM_ONE = CtKey(a16(pod_two.ip), a16(pod_one.ip), 80, 30000, TCP, 0, 0)


@pytest.mark.parametrize(
    ("request_layer", "reply_layer"),
    [
        pytest.param(tcp(30000, 80), tcp(80, 30000, "SA"), id="tcp"),
        pytest.param(udp(30000, 53), udp(53, 30000), id="udp"),
        pytest.param(udp(30000, 53, chksum=0), udp(53, 30000, chksum=0), id="udp without checksum"),
        pytest.param(sctp(30000, 99), sctp(99, 30000), id="sctp"),
        pytest.param(ping(7), pong(7), id="icmp"),
    ],
)
def test_request_and_reply_arrive_with_macs_and_ttl_changed_alone(
    two_pods: Datapath, request_layer: object, reply_layer: object
) -> None:
    """A pod receives from the host side of its veth, one hop later; every other byte is the sender's."""
    there = two_pods.send(POD_ONE, from_pod(pod_one, pod_two.ip, request_layer))
    back = two_pods.send(POD_TWO, from_pod(pod_two, pod_one.ip, reply_layer))

    assert (there.action, back.action) == (REDIRECT, REDIRECT)
    assert_frame(to_pod(pod_two, pod_one.ip, request_layer), there.packet)
    assert_frame(to_pod(pod_one, pod_two.ip, reply_layer), back.packet)
    assert there.counted == back.counted == forwarded(EGRESS, INGRESS)


def test_mark_of_the_sender_does_not_reach_the_receiver(two_pods: Datapath) -> None:
    """A mark set inside a pod says nothing on this side, nor in the pod that receives."""
    assert two_pods.run("from_container", SYN, POD_ONE.device, mark=0xC00).mark == 0


def test_each_pod_has_one_conntrack_row_of_the_flow(two_pods: Datapath) -> None:
    """A row per pod that judged, keyed from its side, with the verdict's version, peer and rule."""
    two_pods.send(POD_ONE, SYN)
    rows = two_pods.ct()

    assert rows.keys() == {ONE_TO_TWO, TWO_FROM_ONE}
    one, two = rows[ONE_TO_TWO], rows[TWO_FROM_ONE]
    assert (one.policy_version, one.peer_identity, one.rule_cookie) == (11, 1002, 0xA12)
    assert (two.policy_version, two.peer_identity, two.rule_cookie) == (12, 1001, 0xA11)
    assert (one.flags, two.flags) == (0, CtFlags.CT_F_ORIGIN_REMOTE)

    two_pods.send(POD_TWO, SYN_ACK)
    two_pods.send(POD_ONE, ACK)
    rows = two_pods.ct()
    assert rows.keys() == {ONE_TO_TWO, TWO_FROM_ONE}
    beyond = CtFlags.CT_F_SEEN_REPLY | CtFlags.CT_F_SEEN_NON_SYN
    assert rows[ONE_TO_TWO].flags == beyond
    assert rows[TWO_FROM_ONE].flags == beyond | CtFlags.CT_F_ORIGIN_REMOTE
    assert (rows[ONE_TO_TWO].tcp_flags_local, rows[ONE_TO_TWO].tcp_flags_remote) == (0x12, 0x12)


def test_established_flow_asks_no_policy(two_pods: Datapath) -> None:
    """With every policy map gone, an open connection goes on both ways; a new one is refused."""
    two_pods.send(POD_ONE, SYN)
    two_pods.send(POD_TWO, SYN_ACK)
    two_pods.drop_policy(POD_ONE.version)
    two_pods.drop_policy(POD_TWO.version)

    assert two_pods.send(POD_ONE, ACK).action == REDIRECT
    assert two_pods.send(POD_TWO, from_pod(pod_two, pod_one.ip, tcp(80, 30000, "A"))).action == REDIRECT

    new = two_pods.send(POD_ONE, from_pod(pod_one, pod_two.ip, tcp(30001, 80)))
    assert (new.action, new.drop.reason) == (DROP, DropReason.DROP_POLICY_NO_CONFIG)


def test_new_connection_is_told_with_both_verdicts_and_its_arrival(two_pods: Datapath) -> None:
    """Egress verdict of the sender, ingress verdict of the receiver, one trace; nothing for later packets."""
    events = two_pods.send(POD_ONE, SYN).events

    told = [(e.type, e.direction, e.endpoint_id, e.policy_version, e.rule_cookie) for e in events]
    assert told == [
        (EventType.EVENT_POLICY_VERDICT, EGRESS, 101, 11, 0xA12),
        (EventType.EVENT_POLICY_VERDICT, INGRESS, 102, 12, 0xA11),
        (EventType.EVENT_TRACE, INGRESS, 102, 12, 0xA11),
    ]
    assert all(
        (e.src_identity, e.dst_identity, e.ct_state) == (1001, 1002, CtState.CT_STATE_NEW) for e in events
    )
    assert all(
        (e.src, e.dst, e.sport, e.dport) == (a16(pod_one.ip), a16(pod_two.ip), 30000, 80) for e in events
    )
    assert all((e.protocol, e.tcp_flags, e.length) == (TCP, 2, len(SYN)) for e in events)
    assert events[2].trace_point == TracePoint.TRACE_TO_ENDPOINT

    two_pods.send(POD_TWO, SYN_ACK)
    assert [e.type for e in two_pods.send(POD_ONE, ACK).events] == [EventType.EVENT_TRACE]  # the first ACK
    assert two_pods.send(POD_ONE, ACK).events == ()


@pytest.mark.parametrize(
    ("verdict", "reason"),
    [(DENY, DropReason.DROP_POLICY_DENY), (DEFAULT_DENY, DropReason.DROP_POLICY)],
    ids=["deny rule", "default deny"],
)
@pytest.mark.parametrize("direction", [EGRESS, INGRESS])
def test_refused_flow_names_the_rule_and_leaves_no_row(
    datapath: Datapath, direction: int, verdict: int, reason: DropReason
) -> None:
    """The drop event carries the cookie, the version and the endpoint whose policy it was."""
    judge, other = (POD_ONE, POD_TWO) if direction == EGRESS else (POD_TWO, POD_ONE)
    datapath.add_endpoint(other, *ALLOW_ALL)
    datapath.add_endpoint(judge, *ALLOW_ALL, Rule(direction, verdict, TCP, 80, cookie=0xBAD))

    result = datapath.send(POD_ONE, SYN)

    assert (result.action, result.packet) == (DROP, SYN)
    drop = result.drop
    assert (drop.reason, drop.direction, drop.endpoint_id) == (reason, direction, judge.id)
    assert (drop.rule_cookie, drop.policy_version) == (0xBAD, judge.version)
    assert (drop.src_identity, drop.dst_identity) == (1001, 1002)
    # The sender's own context may have let it out before the receiver's refused it.
    rows = datapath.ct().keys()
    assert rows == (set() if direction == EGRESS else {ONE_TO_TWO})


def test_longest_prefix_decides_and_a_class_has_its_own_rows(datapath: Datapath) -> None:
    """Port before protocol before wildcard, within the class of the peer's identity."""
    datapath.add_endpoint(POD_ONE, *ALLOW_ALL)
    datapath.add_endpoint(
        POD_TWO,
        *DENY_ALL,
        Rule(INGRESS, DEFAULT_DENY, cookie=1, class_id=5),
        Rule(INGRESS, ALLOW, TCP, cookie=2, class_id=5),
        Rule(INGRESS, DENY, TCP, 81, cookie=3, class_id=5),
        classes={(1001, INGRESS): 5},
    )

    def verdict(layer: object) -> tuple[int, int]:
        result = datapath.send(POD_ONE, from_pod(pod_one, pod_two.ip, layer))
        return (result.action, result.events[-1].rule_cookie)

    assert verdict(tcp(30000, 80)) == (REDIRECT, 2)
    assert verdict(tcp(30000, 81)) == (DROP, 3)
    assert verdict(udp(30000, 80)) == (DROP, 1)

    datapath.add_endpoint(replace(POD_ONE, identity=4444))
    assert verdict(tcp(30001, 80)) == (DROP, 0xDE1), "another identity is in class 0"


def test_reply_needs_no_allowance_of_its_own(datapath: Datapath) -> None:
    """A pod that may receive but not send answers; one that may send but not receive is answered."""
    datapath.add_endpoint(POD_ONE, Rule(EGRESS, ALLOW), Rule(INGRESS, DEFAULT_DENY))
    datapath.add_endpoint(POD_TWO, Rule(INGRESS, ALLOW), Rule(EGRESS, DEFAULT_DENY))

    datapath.send(POD_ONE, SYN)
    reply = datapath.send(POD_TWO, SYN_ACK)
    assert reply.action == REDIRECT
    # Beyond the handshake's SYN this is one trace event, and state REPLY in both contexts.
    assert [e.ct_state for e in reply.events] == [CtState.CT_STATE_REPLY]

    own = datapath.send(POD_TWO, from_pod(pod_two, pod_one.ip, tcp(40000, 80)))
    assert own.drop.direction == EGRESS


@pytest.mark.parametrize("who", ["sender", "receiver"])
@pytest.mark.parametrize("packet", ["request", "reply"])
def test_revoked_allow_stops_an_established_connection(datapath: Datapath, who: str, packet: str) -> None:
    """A new version judges again, also replies, by the rule of the flow's own direction."""
    datapath.add_endpoint(POD_ONE, *ALLOW_ALL)
    datapath.add_endpoint(POD_TWO, *ALLOW_ALL)
    datapath.send(POD_ONE, SYN)
    assert datapath.send(POD_TWO, SYN_ACK).action == REDIRECT

    pod, direction = (POD_ONE, EGRESS) if who == "sender" else (POD_TWO, INGRESS)
    datapath.policy(99, *ALLOW_ALL, Rule(direction, DENY, TCP, 80, cookie=0x99))
    datapath.use_version(pod, 99)

    data = from_pod(pod_two, pod_one.ip, tcp(80, 30000, "A"))
    stopped = datapath.send(POD_ONE, ACK) if packet == "request" else datapath.send(POD_TWO, data)
    assert (stopped.action, stopped.drop.reason) == (DROP, DropReason.DROP_POLICY_DENY)
    assert (stopped.drop.rule_cookie, stopped.drop.endpoint_id) == (0x99, pod.id)

    datapath.use_version(pod, pod.version)
    assert datapath.send(POD_ONE, ACK).action == REDIRECT, "allowed again"


def test_changed_policy_that_still_allows_is_asked_once(two_pods: Datapath) -> None:
    """The row takes the new version and rule over; the next packet asks nobody."""
    two_pods.send(POD_ONE, SYN)
    two_pods.policy(99, Rule(INGRESS, ALLOW, cookie=0x77), Rule(EGRESS, ALLOW, cookie=0x78))
    two_pods.use_version(POD_ONE, 99)

    assert two_pods.send(POD_ONE, ACK).of_type(EventType.EVENT_POLICY_VERDICT)[0].rule_cookie == 0x78
    row = two_pods.ct()[ONE_TO_TWO]
    assert (row.policy_version, row.rule_cookie) == (99, 0x78)
    two_pods.drop_policy(99)
    assert two_pods.send(POD_ONE, ACK).action == REDIRECT


def test_flow_is_judged_again_when_the_peer_became_another(datapath: Datapath) -> None:
    """The verdict was for an identity: whoever has the address now needs a verdict of its own."""
    datapath.add_endpoint(POD_ONE, *ALLOW_ALL)
    datapath.add_endpoint(
        POD_TWO, *ALLOW_ALL, Rule(INGRESS, DENY, cookie=4, class_id=5), classes={(4444, INGRESS): 5}
    )
    datapath.send(POD_ONE, SYN)
    datapath.add_endpoint(replace(POD_ONE, identity=4444))

    assert datapath.send(POD_ONE, ACK).drop.rule_cookie == 4


def test_audit_lets_through_what_policy_refuses_and_says_so(datapath: Datapath) -> None:
    """An endpoint in audit mode: the verdict event has the audit bit, the packet arrives."""
    datapath.add_endpoint(POD_ONE, *ALLOW_ALL)
    datapath.add_endpoint(replace(POD_TWO, flags=1), *ALLOW_ALL, Rule(INGRESS, DENY, TCP, 80, cookie=0xBAD))

    result = datapath.send(POD_ONE, SYN)

    assert result.action == REDIRECT
    verdicts = {e.endpoint_id: e for e in result.of_type(EventType.EVENT_POLICY_VERDICT)}
    assert (verdicts[101].audit, verdicts[101].reason) == (0, ALLOW)
    assert (verdicts[102].audit, verdicts[102].reason, verdicts[102].rule_cookie) == (1, DENY, 0xBAD)


def test_missing_version_is_refused(datapath: Datapath) -> None:
    """A version that no map has allows nothing."""
    datapath.add_endpoint(POD_ONE, *ALLOW_ALL)
    datapath.add_endpoint(POD_TWO)

    result = datapath.send(POD_ONE, SYN)
    assert (result.drop.reason, result.drop.endpoint_id) == (DropReason.DROP_POLICY_NO_CONFIG, 102)


def test_class_without_rows_is_refused(datapath: Datapath) -> None:
    """An LPM miss is an error of the writer, never an allowance."""
    datapath.add_endpoint(POD_ONE, *ALLOW_ALL)
    datapath.add_endpoint(POD_TWO, *ALLOW_ALL, classes={(1001, INGRESS): 6})

    assert datapath.send(POD_ONE, SYN).drop.reason == DropReason.DROP_POLICY_NO_CONFIG


@pytest.mark.parametrize("ttl", [0, 1])
def test_packet_without_a_hop_left_is_refused_and_answered(two_pods: Datapath, ttl: int) -> None:
    """Time exceeded from the router, quoting the packet's start; counted as a drop."""
    layer = udp(30000, 53)
    result = two_pods.send(POD_ONE, from_pod(pod_one, pod_two.ip, layer, ttl=ttl))

    assert result.action == REDIRECT
    assert result.drop.reason == DropReason.DROP_TTL_EXCEEDED
    quoted = from_pod(pod_one, pod_two.ip, layer, ttl=ttl)[14 : 14 + 28]
    answer = ICMP(type=11, code=0) / Raw(quoted)
    assert_frame(to_pod(pod_one, router.ip, answer, ttl=64, id=0), result.packet)
