# SPDX-License-Identifier: Apache-2.0
"""What ``bench policy`` counts of changes, on a small node, and what it says of samples."""

import contextlib
import json

import pytest

from bench import changes, newflows, opening, rounds
from bench.paths import CILIUMD
from bench.policynode import CLASSES_MAP, RULES_MAP, Cost, PolicyNode, crowd, labelled, lets_in
from bench.result import Section, write_json
from bench.rounds import Rounds
from bench.verdicts import SIZES
from ciliumd.daemon import stages
from unit.daemon import nodes

ENDPOINTS, POLICIES = 20, 100
ROUNDS = 8


@pytest.fixture
def node():
    """A small node whose policies are in force."""
    with contextlib.closing(PolicyNode(endpoints=ENDPOINTS, policies=POLICIES)) as made:
        yield made


def one_more(app="app11"):
    """A policy of one pod."""
    subject = nodes.subject(namespace="ns1", app=app)
    return lets_in("more", subject, labelled(app="peer1"), port=20_000, namespace="ns1")


@pytest.mark.parametrize("policies", [100, 200, 1000])
def test_the_crowd_is_as_large_as_asked(policies):
    """All by other names, and every pod is under one of its own."""
    made = list(crowd(100, policies))
    assert len({(one.namespace, one.name) for one in made}) == policies
    if policies > 100:
        own = {one.subject for one in made if one.name.startswith("only")}
        assert len(own) == 100


def test_each_endpoint_has_a_version_of_its_own(node):
    """So a change of one pod's policy cannot hide in a version of others."""
    assert node.start.versions == ENDPOINTS
    assert node.start.written[stages.STATES] == ENDPOINTS


def test_a_change_is_counted_map_by_map(node):
    """A policy of one pod: another version, its word, and the version of before is taken down."""
    node.add_policy(one_more())
    cost = node.settle([11])
    assert (cost.versions, cost.strays, cost.rounds) == (1, 0, 1)
    assert cost.written[stages.STATES] == 1
    assert cost.written[RULES_MAP] == cost.deleted[RULES_MAP] + 2  # one class, each way
    assert cost.written[CLASSES_MAP] == cost.deleted[CLASSES_MAP] + 1
    assert set(cost.written) == {stages.STATES, RULES_MAP, CLASSES_MAP}
    assert cost.calls == 3  # version written, word written, version deleted


def test_rows_of_others_are_seen(node):
    """The same change, said to concern another pod: all its rows are strays."""
    node.add_policy(one_more())
    cost = node.settle([12])
    assert cost.strays == cost.written.total() + cost.deleted.total() > 0


def test_nothing_is_written_where_nothing_changed(node):
    """Nor is any row made anew."""
    cost = node.settle([])
    assert (cost.written.total(), cost.deleted.total(), cost.calls, cost.versions) == (0, 0, 0, 0)
    assert cost.computed.total() == 0


def test_every_kind_of_change_leaves_the_node_as_it_was(node):
    """
    So one turn costs the same rows as the one before.

    But for the first: a class that nobody is in any more stays in its version.
    """
    kinds = changes.steps(node)
    assert len({step.name for step in kinds if step.name}) == 23
    _, first, second = (changes.taken(node, kinds, turns=1) for _ in range(3))
    for name, (cost,) in first.items():
        (again,) = second[name]
        assert (cost.written, cost.deleted) == (again.written, again.deleted), name


def test_no_change_touches_whom_it_does_not_concern(tmp_path):
    """The goals, on a node as small as can be measured in a test; samples are kept as they are."""
    section = changes.measure(endpoints=ENDPOINTS, policies=POLICIES, turns=1)
    judged = [one for one in section.figures if one.goal]
    assert [one.met for one in judged] == [True, True]
    assert section.table is not None
    assert len(section.table.rows) == 23
    assert section.case == "P8"
    write_json(tmp_path / "policy.json", {}, [section])
    kept = json.loads((tmp_path / "policy.json").read_text())["sections"]["changes"]["data"]
    (cost,) = kept["policy of one pod: added"]
    assert (cost["versions"], cost["written"][stages.STATES]) == (1, 1)


def test_a_change_that_touches_others_misses_and_is_named():
    """Rows of others, and versions nobody had to change to."""
    kinds = [changes.Step("good", print, [1], 1), changes.Step("bad", print, [1], 1)]
    costs = {"good": [Cost(versions=1)], "bad": [Cost(versions=3, strays=4)] * 2}
    section = Section("changes", "P8")
    changes.judge(section, kinds, costs)
    rows, versions = section.figures[:2]
    assert (rows.value, rows.met, rows.note) == (8, False, "bad: 8")
    assert (versions.value, versions.met, versions.note) == (4, False, "bad: 4")


def samples(*, slower, control=1.0):
    """As if a chain cost 10 ns a rule, and ciliumd *slower* times as much with the most rules."""
    taken = {}
    for count in SIZES:
        taken[newflows.named(CILIUMD, count)] = 1000.0 * (slower if count == SIZES[-1] else 1.0)
        taken[newflows.named(newflows.NFT_SET, count)] = 2000.0
        for name in (newflows.NFT_CHAIN, newflows.IPTABLES_CHAIN):
            taken[newflows.named(name, count)] = 2000.0 + 10 * count
    taken[rounds.CONTROL] = 2000.0 * control
    return Rounds({name: {"packet_ns": [ns] * ROUNDS} for name, ns in taken.items()})


@pytest.mark.parametrize(
    ("slower", "control", "met"), [(1.05, 1.0, True), (1.2, 1.0, False), (1.05, 1.1, None)]
)
def test_new_flows_are_judged_by_what_grows_with_the_rules(slower, control, met):
    """Only ciliumd is, and by nobody in a void run."""
    section = Section("new flows by rules", "P7")
    newflows.report(section, samples(slower=slower, control=control))
    found = {one.name: one for one in section.figures}
    grown = found[f"{CILIUMD}: 10000 rules / 1 rule"]
    assert (grown.value, grown.met) == (slower, met)
    assert found["nft chain: 10000 rules / 1 rule"].value == pytest.approx(102_000 / 2010, abs=1e-3)
    assert found["10000 rules: ciliumd / nft set"].value == slower / 2
    assert found["1 rule: ciliumd / nft set"].value == 0.5
    assert [one.name for one in section.figures if one.goal] == [grown.name, section.figures[-1].name]


@pytest.mark.parametrize("count", SIZES)
def test_all_sides_have_the_same_rules(count):
    """As many, of the protocol asked for, and the port that is sent to comes last."""
    spec = opening.policy("some", count, "udp")["spec"]
    ours = [port for group in spec["ingress"][0]["toPorts"] for port in group["ports"]]
    assert {port["protocol"] for port in ours} == {"UDP"}
    numbers = [port["port"] for port in ours]
    assert len(numbers) == len(set(numbers)) == count
    assert numbers[-1] == str(opening.PORT)
    chain = [line for line in opening.chain(count, "udp").splitlines() if "--dport" in line]
    assert [line.split()[5] for line in chain] == numbers
    lines = [line.split() for line in opening.lines(count, "udp").splitlines() if "dport" in line]
    assert lines == [["udp", "dport", number, "accept"] for number in numbers]
    assert f"{', '.join(numbers)} }}" in opening.table(count, "udp")
