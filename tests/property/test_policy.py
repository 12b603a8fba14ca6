# SPDX-License-Identifier: Apache-2.0
"""
Policy is what was written: independent judges agree on every packet of generated worlds.

The oracle reads the documents; the other judges look at the maps computed from them.  The number of
cases follows the profile: ``CILIUMD_PROPERTY_PROFILE=long`` takes many more, and random ones.
"""

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ciliumd import abi
from ciliumd.desired.policy import MapState
from property.computed import InterpreterJudge, Judge, Node, verdict_name
from property.kernel_judge import KernelJudge
from property.reference.oracle import INGRESS, Packet, Pod, Stranger, Subject, verdict
from property.strategies import cases
from property.tally import Tally
from property.worlds import Case, pod

pytestmark = pytest.mark.property

few = settings(max_examples=settings().max_examples // 5)


def written(case: Case, subject: Subject, packet: Packet) -> str:
    """What the documents say."""
    return verdict((*case.policies, *case.objects), subject, packet, enforcement=case.enforcement)


def judge_case(case: Case, judges: list[Judge], tally: Tally) -> None:
    """Fail on the first packet on which a judge differs from the oracle."""
    tally.add_case(case)
    node = Node(case)
    for subject in case.subjects():
        state = node.state(subject)
        for judge in judges:
            judge.load(state)
        said_of = [(packet, written(case, subject, packet)) for packet in case.packets()]
        tally.add_verdicts(said_of)
        for packet, expected in said_of:
            for judge in judges:
                said = verdict_name(node, judge, packet)

                assert expected == said, f"{judge.name} on {packet} of {subject}"


@pytest.mark.usefixtures("share")
def test_judges_agree_with_the_oracle(
    judges: list[Judge], record_property: Callable[[str, object], None]
) -> None:
    """A2: every verdict read from the maps is the one read from the documents, with every field in use."""
    tally = Tally()

    @given(case=cases())
    def agree(case: Case) -> None:
        judge_case(case, judges, tally)

    agree()
    names = ["oracle", *(judge.name for judge in judges)]
    record_property("figure", tally.report(names))
    record_property("data", tally.data(names))

    assert set() == tally.missing
    assert tally.judged_apart > 0
    assert 0.2 <= tally.allowed_share <= 0.8


def test_kernel_is_among_the_judges(kernel_judge: KernelJudge | None) -> None:
    """Without it the other tests say nothing of the datapath."""
    if kernel_judge is None:
        pytest.skip("loading programs needs CAP_BPF")

    assert kernel_judge.name == "kernel"


FIXED = Case(
    namespaces=({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "blue"}},),
    pods=tuple(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": app, "namespace": "blue", "labels": {"app": app}},
            "spec": {"serviceAccountName": "default", "containers": [{"name": "main", "ports": []}]},
        }
        for app in ("web", "db")
    ),
    policies=(
        {
            "apiVersion": "cilium.io/v2",
            "kind": "CiliumNetworkPolicy",
            "metadata": {"name": "web", "namespace": "blue"},
            "spec": {
                "endpointSelector": {"matchLabels": {"app": "web"}},
                "ingress": [
                    {
                        "fromEndpoints": [{"matchLabels": {"app": "db"}}],
                        "toPorts": [{"ports": [{"port": "80", "protocol": "TCP"}]}],
                    }
                ],
            },
        },
    ),
    traffic=(("TCP", 80), ("TCP", 81), ("ICMP", 8)),
)


def _without_port_rows(state: MapState) -> MapState:
    return MapState(state.classes, {k: v for k, v in state.entries.items() if k.prefixlen == 24})


def _without_classes(state: MapState) -> MapState:
    return MapState({}, state.entries)


def _with_everything_allowed(state: MapState) -> MapState:
    allow = abi.PolicyVerdict.POLICY_VERDICT_ALLOW
    return MapState(state.classes, {k: replace(v, verdict=allow) for k, v in state.entries.items()})


@pytest.mark.parametrize(
    "spoil",
    [None, _without_port_rows, _without_classes, _with_everything_allowed],
    ids=["as written", "no port rows", "no classes", "all allowed"],
)
def test_judges_notice_a_wrong_map(judges: list[Judge], spoil: Callable[[MapState], MapState] | None) -> None:
    """The negative control: maps that are not what was written are told from those that are."""
    subject, node = FIXED.subjects()[0], Node(FIXED)
    state = node.state(subject)
    for judge in judges:
        judge.load(spoil(state) if spoil else state)
        differing = [
            packet
            for packet in FIXED.packets()
            if written(FIXED, subject, packet) != verdict_name(node, judge, packet)
        ]

        assert bool(spoil) == bool(differing)


def test_pods_judged_by_their_identity_alone_are_noticed(judges: list[Judge]) -> None:
    """The negative control of blocks: one of two replicas is in a block, and its number says so."""
    block = {"cidr": "10.0.0.0/30", "except": ["10.0.0.2/31"]}
    policy = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "block", "namespace": "blue"},
        "spec": {"podSelector": {}, "ingress": [{"from": [{"ipBlock": block}]}]},
    }
    drawn = {"namespace": "blue", "labels": {"app": "web"}, "serviceAccountName": "default", "ports": []}
    addresses = (["10.0.0.1", "fd00:1:0:1::1"], ["10.0.0.2", "fd00:1:0:1::2"], ["10.0.0.5"])
    case = replace(
        FIXED, pods=tuple(pod(i, drawn, one) for i, one in enumerate(addresses)), policies=(policy,)
    )
    subject, node = case.subjects()[0], Node(case)
    packets = [Packet(INGRESS, peer, "TCP", 80) for peer in case.peers() if isinstance(peer, Pod)]
    for judge in judges:
        judge.load(node.state(subject))
        said = [verdict_name(node, judge, packet) for packet in packets]
        alone = [
            verdict_name(node, judge, replace(packet, peer=replace(packet.peer, address="")))
            for packet in packets
        ]

        assert said == ["ALLOW", *["DEFAULT_DENY"] * 4] == [written(case, subject, one) for one in packets]
        assert alone == ["DEFAULT_DENY"] * 5


@few
@given(case=cases(), data=st.data())
def test_identities_that_turn_up_late_are_judged_alike(case: Case, data: st.DataObject) -> None:
    """A version grown by additions says what one computed from scratch says, and never changes a row."""
    node = Node(case)
    late = data.draw(st.lists(st.sampled_from(sorted(node.identities)), unique=True))
    judge = InterpreterJudge()
    for subject in case.subjects():
        scratch = node.state(subject)
        grown = node.grown_state(subject, late)

        assert scratch.meaning() == grown.meaning()
        judge.load(grown)
        for packet in case.packets():
            assert written(case, subject, packet) == verdict_name(node, judge, packet)


@few
@given(case=cases())
def test_removed_identities_are_strangers(case: Case) -> None:
    """Once its row is gone, an identity is judged by the rules for everybody."""
    node = Node(case)
    judge = InterpreterJudge()
    for subject in case.subjects():
        judge.load(node.state(subject).without(node.identities))
        for packet in case.packets():
            unknown = packet.__class__(packet.direction, Stranger(), packet.protocol, packet.port)

            assert written(case, subject, unknown) == verdict_name(node, judge, packet)
