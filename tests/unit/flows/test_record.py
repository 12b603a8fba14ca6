# SPDX-License-Identifier: Apache-2.0
"""Flows are recorded once each, by who opened them, whatever packet policy judged; and not without end."""

import pytest

from ciliumd.abi import CtState, DropReason, PolicyVerdict
from ciliumd.flows.decode import RECORD_SIZE
from ciliumd.flows.record import _RECORD, FlowRecord
from ciliumd.model.net import addr16
from unit.flows.samples import COOKIE, DEATHSTAR, FIELDS, OFFSET_NS, TRACE, VERDICT, XWING, record

ALLOW = int(PolicyVerdict.POLICY_VERDICT_ALLOW)
DENY = int(PolicyVerdict.POLICY_VERDICT_DENY)
DEFAULT_DENY = int(PolicyVerdict.POLICY_VERDICT_DEFAULT_DENY)
INGRESS, EGRESS = 1, 2
BACK = {
    "src": addr16(DEATHSTAR),
    "dst": addr16(XWING),
    "src_identity": 257,
    "dst_identity": 256,
    "sport": 80,
    "dport": 1234,
    "ct_state": int(CtState.CT_STATE_REPLY),
}


def recorded(*records, **limits):
    """The flows of *records*."""
    made = FlowRecord(**limits)
    made.take(b"".join(records))
    return made.flows(offset_ns=OFFSET_NS)


def test_the_fields_lie_where_the_datapath_writes_them():
    """The layout is the ABI's."""
    assert _RECORD.size == RECORD_SIZE
    (one,) = recorded(record())
    assert one._asdict() == {
        "endpoint_id": 12,
        "direction": INGRESS,
        "source": XWING,
        "destination": DEATHSTAR,
        "peer_identity": 256,
        "protocol": 6,
        "port": 80,
        "verdict": DEFAULT_DENY,
        "rule_cookie": COOKIE,
        "times": 1,
        "last_seen_ns": OFFSET_NS + FIELDS["timestamp"],
    }


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({"reason": int(DropReason.DROP_POLICY_DENY)}, DENY),
        (VERDICT, ALLOW),
        ({**VERDICT, "reason": DENY, "audit": 1}, DENY),
        ({**VERDICT, "reason": DEFAULT_DENY, "audit": 1}, DEFAULT_DENY),
    ],
)
def test_what_policy_said_is_recorded(changes, verdict):
    """Denied, allowed, and what would be denied where policy only audits."""
    (one,) = recorded(record(**changes))
    assert one.verdict == verdict


@pytest.mark.parametrize(
    "changes",
    [
        TRACE,
        {"reason": int(DropReason.DROP_POLICY_NO_CONFIG)},
        {"type": 99},
        {**VERDICT, "reason": DENY},
        {**VERDICT, "ct_state": int(CtState.CT_STATE_RELATED)},
    ],
)
def test_what_policy_did_not_decide_is_not(changes):
    """Traces, other drops, what is told as a drop as well, and errors about another flow."""
    assert recorded(record(**changes)) == []


def test_a_flow_is_recorded_once_with_its_last_verdict():
    """Whatever port its opener has."""
    (one,) = recorded(record(), record(sport=1235), record(**VERDICT, sport=1236, timestamp=7_000_000_000))
    assert (one.times, one.verdict, one.last_seen_ns) == (3, ALLOW, OFFSET_NS + 7_000_000_000)


def test_a_reply_belongs_to_the_flow_it_answers():
    """Judged by the rules of the flow's own direction, which a drop does not tell."""
    verdict = record(**VERDICT, **BACK, direction=INGRESS)
    (one,) = recorded(verdict)
    assert (one.source, one.destination, one.port) == (XWING, DEATHSTAR, 80)
    assert (one.direction, one.peer_identity) == (INGRESS, 256)

    (one,) = recorded(record(**BACK, direction=EGRESS))
    assert (one.source, one.destination, one.port) == (XWING, DEATHSTAR, 80)
    assert (one.direction, one.peer_identity) == (INGRESS, 256)


def test_of_icmp_the_port_is_the_type():
    """That of the request, also where a reply was judged."""
    (request,) = recorded(record(protocol=1, sport=8 << 8, dport=0))
    (reply,) = recorded(record(**{**BACK, "protocol": 1, "sport": 0, "dport": 0, "direction": EGRESS}))
    (request6,) = recorded(record(protocol=58, sport=128 << 8, dport=0))
    assert (request.port, reply.port, request6.port) == (8, 8, 128)


def test_egress_is_of_the_source():
    """Its peer is the destination."""
    (one,) = recorded(record(direction=EGRESS))
    assert one.peer_identity == 257


def test_the_record_is_bounded_and_the_oldest_goes():
    """What is seen again stays."""
    flows = recorded(
        record(dport=1), record(dport=2), record(dport=1), record(dport=3), most_flows=2, most_rules=2
    )
    assert [one.port for one in flows] == [3, 1]


def test_rules_are_counted_by_version_direction_and_verdict():
    """As rows of a policy version decide; bounded likewise."""
    made = FlowRecord(most_rules=2)
    made.take(record() + record(dport=81) + record(**VERDICT))
    asked = {"version": 9, "direction": INGRESS, "rule_cookie": COOKIE}
    assert made.verdicts(**asked, verdict=DEFAULT_DENY) == 2
    assert made.verdicts(**asked, verdict=ALLOW) == 1
    assert made.verdicts(**{**asked, "version": 8}, verdict=ALLOW) == 0
    made.take(record(policy_version=10))
    assert made.verdicts(**asked, verdict=DEFAULT_DENY) == 0
