# SPDX-License-Identifier: Apache-2.0
"""Audit: what policy would drop gets through, is told of, and ends when audit ends."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pytest

from ciliumd.abi import CtVersion, DropReason, EndpointFlags, EventType
from datapath.harness import REDIRECT, Datapath, Result, forwarded
from datapath.openworld6 import SIX_ONE, SIX_TWO
from datapath.rows import ALLOW, ALLOW_ALL, DEFAULT_DENY, DENY, EGRESS, INGRESS, Pod, Rule, a16
from fixtures import packets, packets6
from fixtures.packets import assert_frame, tcp, udp

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from ciliumd.abi import CtEntry, Direction, Event, PolicyVerdict
    from datapath.conftest import Load

pytestmark = pytest.mark.datapath

TCP, UDP = 6, 17
AUDIT = EndpointFlags.ENDPOINT_F_AUDIT
REASONS = {DENY: DropReason.DROP_POLICY_DENY, DEFAULT_DENY: DropReason.DROP_POLICY}
COOKIE = 0xBAD


@dataclass(frozen=True, slots=True)
class Family:
    """The two pods as one family knows them."""

    packets: ModuleType

    def sent(self, *layers: object) -> bytes:
        """By pod one to pod two."""
        return self.packets.from_pod(self.packets.pod_one, self.packets.pod_two.ip, *layers)

    def answered(self, *layers: object) -> bytes:
        """By pod two to pod one."""
        return self.packets.from_pod(self.packets.pod_two, self.packets.pod_one.ip, *layers)

    def arrived(self, *layers: object) -> bytes:
        """What pod two gets of what pod one sent."""
        return self.packets.to_pod(self.packets.pod_two, self.packets.pod_one.ip, *layers)


@pytest.fixture(params=[packets, packets6], ids=["ipv4", "ipv6"])
def family(request: pytest.FixtureRequest) -> Family:
    """Each family in turn."""
    return Family(request.param)


@pytest.fixture(params=[EGRESS, INGRESS], ids=["egress", "ingress"])
def direction(request: pytest.FixtureRequest) -> Direction:
    """The direction whose policy refuses what pod one sends to pod two."""
    return request.param


@pytest.fixture(params=[DENY, DEFAULT_DENY], ids=["deny", "default deny"])
def verdict(request: pytest.FixtureRequest) -> PolicyVerdict:
    """Why it refuses."""
    return request.param


def judge_of(direction: Direction) -> Pod:
    """The pod whose policy refuses."""
    return replace(SIX_ONE if direction == EGRESS else SIX_TWO, version=90)


def refusing(direction: Direction, verdict: PolicyVerdict) -> tuple[Rule, ...]:
    """Rules that refuse one direction and allow the other."""
    return (Rule(direction, verdict, cookie=COOKIE), Rule(opposite(direction), ALLOW))


def opposite(direction: Direction) -> Direction:
    """The other one."""
    return INGRESS if direction == EGRESS else EGRESS


def set_audit(datapath: Datapath, pod: Pod, flags: int) -> None:
    """Switch it on or off, under traffic."""
    datapath.add_endpoint(replace(pod, flags=flags))


@pytest.fixture
def audited(two_sixes: Datapath, direction: Direction, verdict: PolicyVerdict) -> Datapath:
    """Two pods, of which one refuses the other and is audited."""
    judge = judge_of(direction)
    two_sixes.policy(90, *refusing(direction, verdict))
    set_audit(two_sixes, judge, AUDIT)
    return two_sixes


def verdicts_of(result: Result, judge: Pod) -> list[Event]:
    """What was told of a pod's policy."""
    return [one for one in result.of_type(EventType.EVENT_POLICY_VERDICT) if one.endpoint_id == judge.id]


def row_of(datapath: Datapath, judge: Pod) -> CtEntry:
    """Its one conntrack row."""
    (row,) = [row for key, row in datapath.ct().items() if key.local in {judge.ipv6, a16(judge.place.ip)}]
    return row


@pytest.mark.parametrize(
    "layer", [pytest.param(tcp(30000, 80), id="tcp"), pytest.param(udp(30000, 80), id="udp")]
)
def test_what_policy_refuses_arrives_and_is_told_once(
    audited: Datapath, family: Family, direction: Direction, verdict: PolicyVerdict, layer: packets.Packet
) -> None:
    """The packet is forwarded and counted as such; the event names both sides, the ports and the rule."""
    judge = judge_of(direction)

    result = audited.send(SIX_ONE, family.sent(layer))

    assert result.action == REDIRECT
    assert_frame(family.arrived(layer), result.packet)
    assert result.counted == forwarded(EGRESS, INGRESS)
    assert result.of_type(EventType.EVENT_DROP) == []
    (told,) = verdicts_of(result, judge)
    assert (told.audit, told.reason, told.rule_cookie, told.policy_version) == (1, verdict, COOKIE, 90)
    assert (told.direction, told.src_identity, told.dst_identity) == (direction, 1001, 1002)
    assert (told.src, told.sport) == (a16(family.packets.pod_one.ip), 30000)
    assert (told.dst, told.dport) == (a16(family.packets.pod_two.ip), 80)
    assert row_of(audited, judge).policy_version == 90 | CtVersion.CT_VERSION_AUDITED

    again = audited.send(SIX_ONE, family.sent(layer))
    assert (again.action, again.of_type(EventType.EVENT_POLICY_VERDICT)) == (REDIRECT, [])
    flags = {"flags": "SA"} if layer.name == "TCP" else {}
    back = audited.send(SIX_TWO, family.answered((tcp if flags else udp)(80, 30000, *flags.values())))
    assert (back.action, back.of_type(EventType.EVENT_POLICY_VERDICT)) == (REDIRECT, [])


def test_ping_and_the_error_about_it(
    audited: Datapath, family: Family, direction: Direction, verdict: PolicyVerdict
) -> None:
    """ICMP is audited by its type; an error about a flow that only audit let through goes with it."""
    request = family.sent(family.packets.ping(7))

    assert audited.send(SIX_ONE, request).action == REDIRECT
    assert audited.send(SIX_TWO, family.answered(family.packets.pong(7))).action == REDIRECT
    got = audited.send(SIX_ONE, family.sent(udp(5, 6))).packet
    error = family.answered(family.packets.unreachable(got))
    assert audited.send(SIX_TWO, error).action == REDIRECT

    set_audit(audited, judge_of(direction), 0)
    assert audited.send(SIX_TWO, error).drop.reason == REASONS[verdict]
    assert audited.send(SIX_ONE, request).drop.reason == REASONS[verdict]


@pytest.mark.parametrize("first", ["sent", "answered"])
def test_flow_that_only_audit_let_through_ends_with_it(
    audited: Datapath, family: Family, direction: Direction, verdict: PolicyVerdict, first: str
) -> None:
    """With the next packet, whichever way it goes; with audit again it goes on."""
    judge = judge_of(direction)
    audited.send(SIX_ONE, family.sent(tcp(30000, 80)))
    audited.send(SIX_TWO, family.answered(tcp(80, 30000, "SA")))
    audited.send(SIX_ONE, family.sent(tcp(30000, 80, "A")))
    ways: dict[str, Callable[[], Result]] = {
        "sent": lambda: audited.send(SIX_ONE, family.sent(tcp(30000, 80, "PA"))),
        "answered": lambda: audited.send(SIX_TWO, family.answered(tcp(80, 30000, "PA"))),
    }

    set_audit(audited, judge, 0)
    drop = ways[first]().drop
    assert (drop.reason, drop.rule_cookie, drop.endpoint_id) == (REASONS[verdict], COOKIE, judge.id)
    assert {ways[way]().drop.reason for way in ways} == {REASONS[verdict]}

    set_audit(audited, judge, AUDIT)
    assert {ways[way]().action for way in ways} == {REDIRECT}


def test_flow_that_policy_allows_outlives_audit_unasked(two_sixes: Datapath, family: Family) -> None:
    """Its row is the same with audit and without: no policy is looked up again."""
    for pod in (SIX_ONE, SIX_TWO):
        set_audit(two_sixes, pod, AUDIT)
    result = two_sixes.send(SIX_ONE, family.sent(tcp(30000, 80)))
    assert [one.audit for one in result.of_type(EventType.EVENT_POLICY_VERDICT)] == [0, 0]
    for pod in (SIX_ONE, SIX_TWO):
        set_audit(two_sixes, pod, 0)
        two_sixes.drop_policy(pod.version)

    assert two_sixes.send(SIX_ONE, family.sent(tcp(30000, 80, "A"))).action == REDIRECT


def test_flow_is_told_of_again_when_the_policy_changed(audited: Datapath, direction: Direction) -> None:
    """Another policy that would drop it: its rule is told; one that allows it: nothing of audit is left."""
    family, judge = Family(packets), judge_of(direction)
    audited.send(SIX_ONE, family.sent(tcp(30000, 80)))
    audited.policies(
        {
            91: (Rule(direction, DENY, cookie=0x91), Rule(opposite(direction), ALLOW)),
            92: (Rule(INGRESS, ALLOW, cookie=0x92), Rule(EGRESS, ALLOW, cookie=0x92)),
        }
    )
    for version, told in ((91, (1, 0x91)), (92, (0, 0x92))):
        judge = replace(judge, version=version)
        audited.use_version(judge, version)
        (event,) = verdicts_of(audited.send(SIX_ONE, family.sent(tcp(30000, 80, "A"))), judge)
        assert (event.audit, event.rule_cookie) == told

    set_audit(audited, judge, 0)
    assert audited.send(SIX_ONE, family.sent(tcp(30000, 80, "A"))).action == REDIRECT


def test_faults_of_rows_are_not_audited(two_sixes: Datapath) -> None:
    """No version, no row, a damaged row: nobody can tell what policy says, and nothing passes."""
    family = Family(packets)
    set_audit(two_sixes, replace(SIX_TWO, version=95), AUDIT)
    assert two_sixes.send(SIX_ONE, family.sent(udp(1, 2))).drop.reason == DropReason.DROP_POLICY_NO_CONFIG

    two_sixes.policy(95, *ALLOW_ALL)
    key = Rule(INGRESS, ALLOW).key.pack()
    two_sixes._inner[-1].update(key, replace(Rule(INGRESS, ALLOW).entry, check=1).pack())
    assert two_sixes.send(SIX_ONE, family.sent(udp(1, 2))).drop.reason == DropReason.DROP_POLICY_DAMAGED


def test_backend_behind_a_service_is_audited_like_any_peer(audited: Datapath, direction: Direction) -> None:
    """Policy judges the translated flow, and so does audit; the answer shows the frontend."""
    audited.add_service(1, packets.svc_one.ip, 80, TCP, {101: (packets.pod_two.ip, 8080)})
    judge = judge_of(direction)
    to_service = packets.from_pod(packets.pod_one, packets.svc_one.ip, tcp(30000, 80))

    result = audited.send(SIX_ONE, to_service)

    assert_frame(Family(packets).arrived(tcp(30000, 8080)), result.packet)
    (told,) = verdicts_of(result, judge)
    assert (told.audit, told.dst, told.dport) == (1, a16(packets.pod_two.ip), 8080)
    back = audited.send(SIX_TWO, Family(packets).answered(tcp(8080, 30000, "SA")))
    assert_frame(packets.to_pod(packets.pod_one, packets.svc_one.ip, tcp(80, 30000, "SA")), back.packet)

    set_audit(audited, judge, 0)
    refused = packets.from_pod(packets.pod_one, packets.svc_one.ip, tcp(30000, 80, "A"))
    assert audited.send(SIX_ONE, refused).drop.endpoint_id == judge.id


def test_what_the_nodes_stack_sends_to_a_pod_is_audited(two_sixes: Datapath) -> None:
    """By the route to pods, as probes of kubelet come."""
    two_sixes.host_address(packets.router.ip)
    judge = judge_of(INGRESS)
    two_sixes.policy(judge.version, *refusing(INGRESS, DEFAULT_DENY))
    set_audit(two_sixes, judge, AUDIT)
    probe = packets.from_stack(packets.router.ip, packets.pod_two.ip, tcp(30000, 80))

    result = two_sixes.run("from_host", probe, "cilium_net")
    assert result.action == REDIRECT
    assert [one.audit for one in verdicts_of(result, judge)] == [1]

    set_audit(two_sixes, judge, 0)
    assert two_sixes.run("from_host", probe, "cilium_net").drop.reason == DropReason.DROP_POLICY


def test_audit_is_told_where_verdicts_are_not(load: Load) -> None:
    """With verdict events off an allowed flow is silent; one that only audit let through never is."""
    datapath = load()
    datapath.silence(EventType.EVENT_POLICY_VERDICT)
    datapath.add_endpoint(SIX_ONE, *ALLOW_ALL)
    datapath.add_endpoint(replace(SIX_TWO, flags=AUDIT), *refusing(INGRESS, DENY))

    result = datapath.send(SIX_ONE, Family(packets).sent(udp(1, 2)))

    assert [(one.endpoint_id, one.audit) for one in result.of_type(EventType.EVENT_POLICY_VERDICT)] == [
        (SIX_TWO.id, 1)
    ]
