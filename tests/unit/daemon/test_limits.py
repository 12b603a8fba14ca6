# SPDX-License-Identifier: Apache-2.0
"""
Policy maps, identities and selectors at their limits, over maps in memory.

Who does not fit lets nothing through that policies forbid, others notice nothing, everybody is told, and it
passes without a restart once there is room.
"""

import json
import time
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from structlog.testing import capture_logs

from ciliumd import abi
from ciliumd.bpf.policy_maps import CLASSES, split_key
from ciliumd.daemon import stages
from ciliumd.daemon.limits import Limits, identities, policy_maps, unrealized
from ciliumd.desired import identities as identity_stage
from ciliumd.desired.policy.ruling import Ruling
from ciliumd.metrics.collectors import MapUsage
from ciliumd.model.identity import CLUSTER_MAX, CLUSTER_MIN, Reserved
from ciliumd.model.labels import Label
from ciliumd.model.objects import RemoteEndpointRow
from unit.daemon import nodes
from unit.daemon.kernel import Kernel
from unit.daemon.nodes import EGRESS, says

WEB, DB = 1, 2
WORLD = int(Reserved.WORLD)
ENDPOINT = ("Endpoint", "shop", "pod-1")
CLASSES_MAP = "cilium_policy_classes_v1"
ROOM = 8
FITTING, MORE = range(ROOM - 1), range(ROOM - 1, ROOM + 1)  # the node itself takes a row where it may come in
MANY = 50_000
FIRST = ip_address("10.128.0.1")


def crowd(kernel, numbers):
    """Pods elsewhere of one app, each of an identity of its own."""
    for number in numbers:
        pairs = {"app": "many", "io.kubernetes.pod.namespace": "shop", "pod": str(number)}
        labels = frozenset(Label("k8s", key, value) for key, value in pairs.items())
        kernel.tables.cluster_identities.set(300 + number, labels)


def leave(kernel, numbers):
    """They go, with their identities."""
    for number in numbers:
        kernel.tables.cluster_identities.delete(300 + number)


def told_limits(kernel):
    """The part of the status, and whom the metric counts."""
    limits = Limits(kernel.tables, lambda: policy_maps(kernel.node.plan))
    limits.look()
    return limits.model(), unrealized(kernel.node.plan.unrealized)


@pytest.fixture
def kernel():
    """A node with a web pod under no policy and a db pod that only web may reach."""
    kernel = Kernel()
    nodes.add_pod(kernel.tables, WEB, {"app": "web"})
    nodes.add_pod(kernel.tables, DB, {"app": "db"})
    nodes.add_policy(
        kernel.tables, nodes.policy("db", nodes.rule(nodes.app("web")), subject=nodes.subject(app="db"))
    )
    kernel.round(2)
    return kernel


@pytest.fixture
def little_room(monkeypatch):
    """Few identities fit into a policy."""
    whole = abi.MAPS[CLASSES_MAP]
    small = replace(whole, inner=replace(whole.inner, max_entries=ROOM))
    monkeypatch.setitem(abi.MAPS, CLASSES_MAP, small)


def elsewhere(kernel, number):
    """A pod of another node, of one of ten identities."""
    row = RemoteEndpointRow(
        "shop", f"many-{number}", 300 + number % 10, (FIRST + number,), ip_address("192.0.2.9"), {}
    )
    kernel.tables.remote_endpoints.set((row.namespace, row.name), row)


def policy_of_many(kernel, *, deny=False):
    """Web is under a rule about the crowd; a deny alone leaves it open to everybody else."""
    rule = nodes.rule(nodes.app("many"), deny=deny)
    one = nodes.policy("many", rule, subject=nodes.subject(app="web"), ingress=not deny)
    nodes.add_policy(kernel.tables, one)


def word(kernel, number):
    """The word packets of an endpoint are judged by."""
    return kernel.maps[stages.STATES].rows[kernel.tables.endpoints.get(number).slot.to_bytes(4, "little")]


@pytest.mark.parametrize("deny", [False, True])
def test_an_open_pod_is_shut_by_a_policy_that_does_not_fit(kernel, little_room, deny):
    """Named by status, told, counted, and mended by identities that go."""
    news = []
    kernel.node.plan.on_unrealized = lambda: news.append(dict(kernel.node.plan.unrealized))
    crowd(kernel, FITTING)
    kernel.round(2)
    others = word(kernel, DB)
    crowd(kernel, MORE)
    policy_of_many(kernel, deny=deny)
    kernel.round(2)

    for peer in (300, 300 + MORE[-1], kernel.node.plan.identities[DB], WORLD):
        assert says(kernel.node, WEB, peer) == "DEFAULT_DENY"
    assert word(kernel, DB) == others
    assert says(kernel.node, DB, kernel.node.plan.identities[WEB]) == "ALLOW"
    status, counted = told_limits(kernel)
    assert status["state"] == "Warning"
    assert status["msg"].startswith("Endpoint shop/pod-1: needs more rows of cilium_policy_classes_v1")
    assert "nothing passes" in status["msg"]
    assert counted == {"policy": 1, "identity": 0}
    assert kernel.tables.problems.get(ENDPOINT) == news[-1][ENDPOINT]
    assert kernel.reconciler.status().in_sync

    leave(kernel, MORE)
    kernel.round(2)
    assert says(kernel.node, WEB, 300) == ("DENY" if deny else "ALLOW")
    assert says(kernel.node, WEB, WORLD) == ("ALLOW" if deny else "DEFAULT_DENY")
    assert word(kernel, DB) == others
    assert news[-1] == {}
    assert told_limits(kernel)[1] == {"policy": 0, "identity": 0}


def test_identities_more_than_fit_open_nothing(kernel, little_room):
    """Nobody who is there notices where they are allowed; where they are denied, the pod is shut."""
    crowd(kernel, FITTING)
    for deny, said, old in ((False, "rules of before", "ALLOW"), (True, "nothing passes", "DEFAULT_DENY")):
        policy_of_many(kernel, deny=deny)
        kernel.round(3)
        assert kernel.tables.problems.get(ENDPOINT) is None
        crowd(kernel, MORE)
        kernel.round(2)
        assert said in kernel.tables.problems.get(ENDPOINT).message
        assert says(kernel.node, WEB, 300 + MORE[-1]) == "DEFAULT_DENY"
        assert says(kernel.node, WEB, 300) == old
        leave(kernel, MORE)
        kernel.round(2)
        assert kernel.tables.problems.get(ENDPOINT) is None


def test_who_was_as_it_was_is_shut_when_the_rules_begin_to_deny(kernel, little_room):
    """The rules of before would go on letting in whom the new ones keep out."""
    crowd(kernel, FITTING)
    policy_of_many(kernel)
    kernel.round(2)
    crowd(kernel, MORE)
    kernel.round(2)
    assert says(kernel.node, WEB, 300) == "ALLOW"
    deny = nodes.rule(nodes.app("many"), ports=(nodes.port(22),), deny=True)
    nodes.add_policy(kernel.tables, nodes.policy("no-ssh", deny, subject=nodes.subject(app="web")))
    kernel.round(2)
    assert says(kernel.node, WEB, 300) == says(kernel.node, WEB, 300, port=22) == "DEFAULT_DENY"


def test_fifty_thousand_identities_are_worked_out_once(kernel, monkeypatch, capsys, record_property):
    """More than fit: shut at once; what a pod more costs is counted, and how long it takes is printed."""
    resolved, classified = [], []
    resolve, classify = Ruling.resolve, Ruling.classify
    monkeypatch.setattr(Ruling, "resolve", lambda self, *a: resolved.append(self) or resolve(self, *a))
    monkeypatch.setattr(
        Ruling, "classify", lambda self, among, *a: classified.append(len(among)) or classify(self, among, *a)
    )
    policy_of_many(kernel, deny=True)
    kernel.round(2)
    del resolved[:], classified[:]
    crowd(kernel, range(MANY))
    seconds = {"all at once": timed(kernel)}
    assert says(kernel.node, WEB, 300 + MANY - 1) == "DEFAULT_DENY"
    web = [one for one in resolved if one.rules.rules and one.rules.rules[0].deny]
    assert len(web) == 1
    rows = len(kernel.maps[stages.POLICY].rows)
    del resolved[:], classified[:]

    for number in range(MANY, MANY + 5):
        crowd(kernel, [number])
        seconds["one more"] = timed(kernel)
    assert [one for one in resolved if one.rules.rules] == []
    assert set(classified) <= {0, 1}
    assert len(kernel.maps[stages.POLICY].rows) <= rows
    tell(capsys, record_property, "identities", seconds)


def test_fifty_thousand_pods_of_few_identities_just_work(kernel, capsys, record_property):
    """They cost the rows of their identities, and a row of the ipcache each."""
    crowd(kernel, range(10))
    policy_of_many(kernel)
    kernel.round(5)  # the version of before is gone
    rows = dict(kernel.maps[stages.POLICY].rows)
    for number in range(MANY):
        elsewhere(kernel, number)
    seconds = {"all at once": timed(kernel)}
    assert kernel.maps[stages.POLICY].rows == rows
    classes = [key for key in rows if split_key(key)[1] == CLASSES]
    assert len(classes) < 40
    assert len(kernel.maps[stages.IPCACHE].rows) > MANY
    assert kernel.node.plan.unrealized == {}
    assert says(kernel.node, WEB, 309) == "ALLOW"

    elsewhere(kernel, MANY)
    seconds["one more"] = timed(kernel)
    assert len(kernel.journal) == 1, "one row for one pod"
    tell(capsys, record_property, "pods of ten identities", seconds)


def timed(kernel):
    """Seconds of a processor that a round takes."""
    began = time.process_time()
    kernel.round()
    return round(time.process_time() - began, 3)


def tell(capsys, record_property, what, seconds):
    """Print how long it took."""
    text = ", ".join(f"{part} {took} s" for part, took in seconds.items())
    with capsys.disabled():
        print(f"\n{MANY} {what}: {text}")
    record_property("figure", f"a selector of {MANY} {what}: {text}")
    record_property("data", json.dumps({"case": f"selector of {MANY} {what}", "seconds": seconds}))


# ---- identities ----------------------------------------------------------------------------------


@pytest.fixture
def few_prefixes(monkeypatch):
    """The range of prefixes has two numbers."""
    monkeypatch.setattr(identity_stage, "LOCAL_MAX", identity_stage.LOCAL_MIN + 1)


@pytest.mark.parametrize("deny", [False, True])
def test_a_prefix_without_a_number_closes_what_is_around_it(kernel, few_prefixes, deny):
    """An exception keeps out what it is an exception of, a deny what it is inside of; pods go on."""
    for number in range(2):
        nodes.add_policy(
            kernel.tables, nodes.allow(f"old-{number}", nodes.cidr(f"10.{number}.0.0/16"), app="x")
        )
    kernel.round(2)
    others = word(kernel, DB)
    last = ip_network("203.0.113.0/24")
    if deny:
        rules = nodes.rule(nodes.cidr(str(last)), deny=True), nodes.rule(nodes.app("db"))
    else:
        rules = nodes.rule(nodes.cidr("0.0.0.0/0", str(last))), nodes.rule(nodes.app("db"))
    one = nodes.policy("last", *rules, subject=nodes.subject(app="web"), ingress=not deny)
    nodes.add_policy(kernel.tables, one)
    kernel.round(3)

    assert kernel.number(last) is None
    assert says(kernel.node, WEB, WORLD) == ("DENY" if deny else "DEFAULT_DENY")
    assert says(kernel.node, WEB, kernel.node.plan.identities[DB]) == "ALLOW"
    assert word(kernel, DB) == others
    status, _ = told_limits(kernel)
    assert status["state"] == "Warning"
    assert f"CIDR {last}: no identity is left" in status["msg"]
    numbers = {int.from_bytes(split_key(key)[2][:4], "little") for key in kernel.maps[stages.POLICY].rows}
    assert max(numbers) < identity_stage.UNNUMBERED_MIN, "nobody carries what stands for it"

    kernel.tables.policies.delete(("CNP", "shop", "old-0"))
    kernel.round(2)
    kernel.tables.prefixes.delete(ip_network("10.0.0.0/16"))  # as its number is let go of
    kernel.round(4)
    assert kernel.written(last) == kernel.number(last) is not None
    assert says(kernel.node, WEB, WORLD) == "ALLOW"
    assert says(kernel.node, WEB, kernel.number(last)) == ("DENY" if deny else "DEFAULT_DENY")
    assert told_limits(kernel)[0]["state"] == "Ok"


def test_an_allowed_prefix_without_a_number_lets_nobody_in_and_closes_nothing(kernel, few_prefixes):
    """What is around it is told apart from it by nothing that would be too open."""
    for number in range(2):
        nodes.add_policy(
            kernel.tables, nodes.allow(f"old-{number}", nodes.cidr(f"10.{number}.0.0/16"), app="x")
        )
    kernel.round(2)
    rules = (
        nodes.rule(nodes.cidr("203.0.113.0/24"), ports=(nodes.port(80),)),
        nodes.rule(nodes.entity("world"), ports=(nodes.port(443),)),
    )
    nodes.add_policy(kernel.tables, nodes.policy("last", *rules, subject=nodes.subject(app="web")))
    kernel.round(3)
    assert says(kernel.node, WEB, WORLD, port=80) == "DEFAULT_DENY"
    assert says(kernel.node, WEB, WORLD, port=443) == "ALLOW"


def fill_cluster(kernel):
    """Every number but those in use is somebody's."""
    used = set(kernel.tables.identities.values())
    for number in range(CLUSTER_MIN, CLUSTER_MAX + 1):
        if number not in used:
            kernel.tables.identities.set(frozenset({Label("k8s", "full", str(number))}), number)


def give_back(kernel):
    """One of the others lets go of its number."""
    kernel.tables.identities.delete(frozenset({Label("k8s", "full", "400")}))


def test_a_pod_whose_labels_change_is_shut_while_no_number_is_left(kernel):
    """Nobody lets it in for what it was, and it is under no policy it no longer has; others go on."""
    others, before = word(kernel, DB), kernel.node.plan.identities[WEB]
    fill_cluster(kernel)
    nodes.add_pod(kernel.tables, WEB, {"app": "other"})
    kernel.round(2)
    assert kernel.node.plan.identities[WEB] == before, "packets carry what they carried"
    for direction in (EGRESS, nodes.INGRESS):
        assert says(kernel.node, WEB, WORLD, direction=direction) == "DEFAULT_DENY"
        assert says(kernel.node, WEB, kernel.node.plan.identities[DB], direction=direction) == "DEFAULT_DENY"
    assert word(kernel, DB) == others
    assert told_limits(kernel)[0]["msg"].startswith("Endpoint shop/pod-1: no identity is left")
    assert told_limits(kernel)[1] == {"policy": 0, "identity": 1}

    give_back(kernel)
    kernel.round(2)
    assert kernel.node.plan.identities[WEB] == 400
    assert says(kernel.node, WEB, WORLD) == "ALLOW"
    assert kernel.node.plan.unrealized == {}


def test_a_new_pod_that_no_number_is_left_for_has_no_rows(kernel):
    """Packets find no endpoint; then it is as any other."""
    fill_cluster(kernel)
    made = nodes.add_pod(kernel.tables, 3, {"app": "other"})
    kernel.round(2)
    slot = made.slot.to_bytes(4, "little")
    assert slot not in kernel.maps[stages.STATES].rows
    assert slot not in kernel.maps[stages.FACTS].rows
    assert told_limits(kernel)[1] == {"policy": 0, "identity": 1}
    give_back(kernel)
    kernel.round(2)
    assert slot in kernel.maps[stages.STATES].rows
    assert told_limits(kernel)[1] == {"policy": 0, "identity": 0}


def test_in_a_cluster_only_who_was_refused_a_number_is_shut():
    """Who waits for one goes on as before, as ever; who made it out says which."""
    kernel = Kernel()
    plan = kernel.node.plan
    plan.node = replace(plan.node, allocates=False)
    nodes.add_pod(kernel.tables, WEB, {"app": "web"})
    kernel.round()
    (web,) = plan.unallocated
    kernel.tables.cluster_identities.set(300, web)
    kernel.tables.identities.set(web, 300)
    kernel.round(2)
    nodes.add_pod(kernel.tables, WEB, {"app": "other"})
    kernel.round(2)
    assert plan.unrealized == {}
    assert says(kernel.node, WEB, WORLD) == "ALLOW"

    refused = frozenset(plan.unallocated)
    plan.refused = lambda: refused
    kernel.round(2)
    assert says(kernel.node, WEB, WORLD) == "DEFAULT_DENY"
    assert plan.unrealized[ENDPOINT].field == "identity"
    plan.refused = frozenset
    kernel.round(2)
    assert says(kernel.node, WEB, WORLD) == "ALLOW"
    assert plan.unrealized == {}


# ---- before ----------------------------------------------------------------------------------------


def test_what_is_nearly_full_is_told_once_and_so_is_that_it_no_longer_is(kernel):
    """Nothing is wrong yet; a row that comes and goes is no news."""
    usage = [MapUsage("cilium_lb_services_v1", 89, 100)]
    limits = Limits(kernel.tables, lambda: usage)

    def look(entries):
        usage[:] = [usage[0]._replace(entries=entries)]
        with capture_logs() as logs:
            limits.look()
        return [(one["event"], one["what"]) for one in logs]

    assert look(89) == []
    assert look(90) == [("limits.nearly_full", "cilium_lb_services_v1")]
    assert limits.model() == {"state": "Ok", "msg": "nearly full: cilium_lb_services_v1 90/100"}
    assert look(100) == look(85) == look(95) == []
    assert look(79) == [("limits.relieved", "cilium_lb_services_v1")]
    assert limits.model() == {"state": "Ok", "msg": ""}


@pytest.mark.parametrize("range_", ["cluster", "cidr", "node"])
def test_a_range_of_identities_warns_long_before(kernel, range_):
    """From nine tenths on."""
    tables = kernel.tables
    table = {"cluster": tables.cluster_identities, "cidr": tables.prefixes, "node": tables.node_identities}
    (most,) = (one.most for one in identities(tables) if one.name == range_)
    limits = Limits(tables, list)
    for number in range(most * 9 // 10 - 5):
        table[range_].set(1000 + number, 1000 + number)
    limits.look()
    assert limits.near == ()
    for number in range(most * 9 // 10 - 5, most * 9 // 10 + 1):
        table[range_].set(1000 + number, 1000 + number)
    limits.look()
    assert [one.name for one in limits.near] == [f"{range_} identities"]


def test_the_fullest_policy_warns_before_it_does_not_fit(kernel, little_room):
    """And is full, not empty, once it does not."""
    policy_of_many(kernel)
    shares = {}
    for count in (2, ROOM - 1, 2 * ROOM):
        crowd(kernel, range(count))
        kernel.round(2)
        (shares[count],) = (one for one in policy_maps(kernel.node.plan) if one.map_name == CLASSES_MAP)
    assert [one.entries for one in shares.values()] == [3, ROOM, ROOM]
    assert all(one.max_entries == ROOM for one in shares.values())
