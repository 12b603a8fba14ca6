# SPDX-License-Identifier: Apache-2.0
"""When a packet belongs to a flow, when it starts a new one, and how long a flow is remembered."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ciliumd.abi import CtFlags, CtState, DropReason, EventType
from datapath.harness import DROP, REDIRECT, Datapath
from datapath.rows import (
    ALLOW,
    ALLOW_ALL,
    DEFAULT_DENY,
    DENY,
    EGRESS,
    INGRESS,
    ONLY_IN,
    ONLY_OUT,
    POD_ONE,
    POD_THREE,
    POD_TWO,
    Rule,
)
from fixtures.packets import (
    ICMP,
    Raw,
    assert_frame,
    from_pod,
    ping,
    pod_one,
    pod_three,
    pod_two,
    pong,
    tcp,
    to_pod,
    udp,
    unreachable,
)

pytestmark = pytest.mark.datapath

CLOSED = CtFlags.CT_F_LOCAL_CLOSED | CtFlags.CT_F_REMOTE_CLOSED


@pytest.fixture
def one_way(datapath: Datapath) -> Datapath:
    """Pod one may only open, pod two may only be opened to."""
    datapath.add_endpoint(POD_ONE, *ONLY_OUT)
    datapath.add_endpoint(POD_TWO, *ONLY_IN)
    return datapath


def _handshake(datapath: Datapath) -> None:
    assert datapath.send(POD_ONE, from_pod(pod_one, pod_two.ip, tcp(30000, 80))).action == REDIRECT
    assert datapath.send(POD_TWO, from_pod(pod_two, pod_one.ip, tcp(80, 30000, "SA"))).action == REDIRECT
    assert datapath.send(POD_ONE, from_pod(pod_one, pod_two.ip, tcp(30000, 80, "A"))).action == REDIRECT


def _asked_policy(datapath: Datapath, layer: object) -> bool:
    """Whether a packet of pod one to pod two was a new flow's."""
    result = datapath.send(POD_ONE, from_pod(pod_one, pod_two.ip, layer))
    assert result.action == REDIRECT
    return bool(result.of_type(EventType.EVENT_POLICY_VERDICT))


def _lifetimes(datapath: Datapath) -> set[int]:
    return {row.expires - row.last_report for row in datapath.ct().values()}


def test_silent_flow_is_forgotten_and_judged_anew(two_pods: Datapath) -> None:
    """A row past its time is none, though the LRU still holds it."""
    assert _asked_policy(two_pods, udp(5000, 53))
    two_pods.age(58)
    assert not _asked_policy(two_pods, udp(5000, 53)), "still remembered, and remembered anew"
    two_pods.age(58)
    assert not _asked_policy(two_pods, udp(5000, 53))
    two_pods.age(61)
    assert _asked_policy(two_pods, udp(5000, 53))


def test_lifetime_follows_the_state_of_the_connection(two_pods: Datapath) -> None:
    """A minute for a handshake, hours for a connection, seconds once both sides have closed."""
    two_pods.send(POD_ONE, from_pod(pod_one, pod_two.ip, tcp(30000, 80)))
    assert _lifetimes(two_pods) == {60}
    _handshake(two_pods)
    assert _lifetimes(two_pods) == {8000}
    two_pods.send(POD_ONE, from_pod(pod_one, pod_two.ip, tcp(30000, 80, "FA")))
    assert _lifetimes(two_pods) == {8000}, "half closed is open"
    two_pods.send(POD_TWO, from_pod(pod_two, pod_one.ip, tcp(80, 30000, "FA")))
    assert _lifetimes(two_pods) == {10}
    assert {row.flags & CLOSED for row in two_pods.ct().values()} == {CLOSED}


@pytest.mark.parametrize("sender", [POD_ONE, POD_TWO], ids=["opener", "other side"])
def test_reset_closes_both_sides(two_pods: Datapath, sender: object) -> None:
    """After RST, from either side, the flow is remembered for seconds only."""
    _handshake(two_pods)
    if sender is POD_ONE:
        two_pods.send(POD_ONE, from_pod(pod_one, pod_two.ip, tcp(30000, 80, "R")))
    else:
        two_pods.send(POD_TWO, from_pod(pod_two, pod_one.ip, tcp(80, 30000, "RA")))
    assert _lifetimes(two_pods) == {10}
    assert {row.flags & CLOSED for row in two_pods.ct().values()} == {CLOSED}


def test_repeated_syn_of_an_open_handshake_is_the_same_flow(two_pods: Datapath) -> None:
    """A retransmission asks no policy."""
    assert _asked_policy(two_pods, tcp(30000, 80))
    assert not _asked_policy(two_pods, tcp(30000, 80))


def test_syn_over_a_closed_flow_starts_anew(two_pods: Datapath) -> None:
    """A port used again within the closing time is a new connection: judged, with a fresh row."""
    _handshake(two_pods)
    two_pods.send(POD_ONE, from_pod(pod_one, pod_two.ip, tcp(30000, 80, "R")))

    assert _asked_policy(two_pods, tcp(30000, 80))
    assert {row.flags for row in two_pods.ct().values()} == {0, CtFlags.CT_F_ORIGIN_REMOTE}
    assert _lifetimes(two_pods) == {60}


def test_syn_against_the_flow_is_judged_as_new(one_way: Datapath) -> None:
    """The row let one side open the connection, not the other with the same ports."""
    _handshake(one_way)
    back = one_way.send(POD_TWO, from_pod(pod_two, pod_one.ip, tcp(80, 30000, "S")))

    assert (back.drop.reason, back.drop.endpoint_id) == (DropReason.DROP_POLICY, POD_TWO.id)
    assert one_way.send(POD_ONE, from_pod(pod_one, pod_two.ip, tcp(30000, 80, "A"))).action == REDIRECT


@pytest.mark.parametrize("identifier", [7, 0])
def test_echo_request_against_the_flow_is_judged_as_new(one_way: Datapath, identifier: int) -> None:
    """The same identifier from the other side is another ping, also where it is zero."""
    assert one_way.send(POD_ONE, from_pod(pod_one, pod_two.ip, ping(identifier))).action == REDIRECT
    assert one_way.send(POD_TWO, from_pod(pod_two, pod_one.ip, pong(identifier))).action == REDIRECT

    own = one_way.send(POD_TWO, from_pod(pod_two, pod_one.ip, ping(identifier)))
    assert (own.action, own.drop.reason) == (DROP, DropReason.DROP_POLICY)


@pytest.mark.parametrize("identifier", [7, 0])
def test_unasked_echo_reply_opens_nothing_for_the_other_side(one_way: Datapath, identifier: int) -> None:
    """A reply that nobody asked for does not let its receiver ping back."""
    one_way.send(POD_ONE, from_pod(pod_one, pod_two.ip, pong(identifier)))

    own = one_way.send(POD_TWO, from_pod(pod_two, pod_one.ip, ping(identifier)))
    assert (own.action, own.drop.reason) == (DROP, DropReason.DROP_POLICY)


def test_data_against_a_udp_flow_is_its_reply(one_way: Datapath) -> None:
    """UDP has no opening packet: the opener's ports are the flow."""
    assert one_way.send(POD_ONE, from_pod(pod_one, pod_two.ip, udp(5000, 53))).action == REDIRECT
    assert one_way.send(POD_TWO, from_pod(pod_two, pod_one.ip, udp(53, 5000))).action == REDIRECT
    assert one_way.send(POD_TWO, from_pod(pod_two, pod_one.ip, udp(53, 5001))).action == DROP


# ---- ICMP errors ------------------------------------------------------------------------------


def _error_about(quoted: bytes, **fields: object) -> bytes:
    """Pod two cannot do what pod one asked it for."""
    return from_pod(pod_two, pod_one.ip, unreachable(quoted, **fields))


QUERY = from_pod(pod_one, pod_two.ip, udp(5000, 53))
ARRIVED = to_pod(pod_two, pod_one.ip, udp(5000, 53))


@pytest.mark.parametrize(
    "layer",
    [
        pytest.param(udp(5000, 53), id="udp"),
        pytest.param(tcp(30000, 80), id="tcp"),
        pytest.param(ping(9), id="icmp"),
    ],
)
def test_error_goes_with_the_flow_it_is_about(one_way: Datapath, layer: object) -> None:
    """Neither the reporter's egress nor the receiver's ingress policy is asked; the bytes are untouched."""
    one_way.send(POD_ONE, from_pod(pod_one, pod_two.ip, layer))
    error = unreachable(to_pod(pod_two, pod_one.ip, layer))
    result = one_way.send(POD_TWO, from_pod(pod_two, pod_one.ip, error))

    assert result.action == REDIRECT
    assert_frame(to_pod(pod_one, pod_two.ip, error), result.packet)
    assert result.of_type(EventType.EVENT_POLICY_VERDICT) == []
    assert len(one_way.ct()) == 2, "an error makes no row"


def test_error_about_nothing_known_is_judged_by_its_type(datapath: Datapath) -> None:
    """Without a flow it is an ICMP packet like any other, and never makes a row."""
    icmp_type_3 = Rule(EGRESS, ALLOW, 1, 3, cookie=0x33)
    datapath.add_endpoint(POD_ONE, *ALLOW_ALL)
    datapath.add_endpoint(POD_TWO, *ONLY_IN, icmp_type_3)

    result = datapath.send(POD_TWO, _error_about(ARRIVED))
    assert (result.action, result.events[0].rule_cookie) == (REDIRECT, 0x33)
    assert datapath.ct() == {}

    time_exceeded = from_pod(pod_two, pod_one.ip, ICMP(type=11) / Raw(ARRIVED[14:]))
    assert datapath.send(POD_TWO, time_exceeded).drop.reason == DropReason.DROP_POLICY


def test_error_about_a_revoked_flow_is_refused(two_pods: Datapath) -> None:
    """An error is as welcome as the flow it is about."""
    two_pods.send(POD_ONE, QUERY)
    two_pods.policy(99, *ALLOW_ALL, Rule(EGRESS, DENY, cookie=0x99))
    two_pods.use_version(POD_ONE, 99)

    drop = two_pods.send(POD_TWO, _error_about(ARRIVED)).drop
    assert (drop.reason, drop.rule_cookie) == (DropReason.DROP_POLICY_DENY, 0x99)
    assert (drop.endpoint_id, drop.ct_state) == (POD_ONE.id, CtState.CT_STATE_RELATED)


def test_error_about_the_flow_of_others_is_judged_as_its_own(one_way: Datapath) -> None:
    """Quoting somebody else's flow gives a pod nothing, not even one with the very same policy."""
    one_way.add_endpoint(replace(POD_THREE, version=POD_TWO.version))
    one_way.send(POD_ONE, QUERY)

    # Pod three, which may not send, talks to pod one about pod two's flow.
    forged = one_way.send(POD_THREE, from_pod(pod_three, pod_one.ip, unreachable(ARRIVED)))
    assert (forged.drop.reason, forged.drop.endpoint_id) == (DropReason.DROP_POLICY, POD_THREE.id)


def test_error_sent_to_another_than_the_quoted_sender_is_judged_as_its_own(datapath: Datapath) -> None:
    """A pod that may receive nothing gets no error about a flow of another pod with the same policy."""
    datapath.add_endpoint(POD_ONE, *ONLY_OUT)
    datapath.add_endpoint(POD_TWO, *ALLOW_ALL)
    datapath.add_endpoint(replace(POD_THREE, version=POD_ONE.version))
    datapath.send(POD_ONE, QUERY)

    strayed = datapath.send(POD_TWO, from_pod(pod_two, pod_three.ip, unreachable(ARRIVED)))
    assert (strayed.drop.reason, strayed.drop.endpoint_id) == (DropReason.DROP_POLICY, POD_THREE.id)


def test_error_of_a_pod_to_another_than_the_quoted_sender_is_judged_as_its_own(datapath: Datapath) -> None:
    """Quoting what pod two has sent gives pod one no way to pod three, to whom it may send nothing."""
    only_two = (Rule(EGRESS, DEFAULT_DENY, cookie=0xDE2), Rule(EGRESS, ALLOW, class_id=1))
    datapath.add_endpoint(POD_ONE, Rule(INGRESS, ALLOW), *only_two, classes={(POD_TWO.identity, EGRESS): 1})
    datapath.add_endpoint(POD_TWO, *ALLOW_ALL)
    datapath.add_endpoint(POD_THREE, *ALLOW_ALL)
    datapath.send(POD_TWO, from_pod(pod_two, pod_one.ip, udp(53, 5000)))
    asked = to_pod(pod_one, pod_two.ip, udp(53, 5000))
    assert datapath.send(POD_ONE, from_pod(pod_one, pod_two.ip, unreachable(asked))).action == REDIRECT

    for elsewhere in (pod_three.ip, "203.0.113.7"):
        drop = datapath.send(POD_ONE, from_pod(pod_one, elsewhere, unreachable(asked))).drop
        assert (drop.reason, drop.endpoint_id) == (DropReason.DROP_POLICY, POD_ONE.id)
