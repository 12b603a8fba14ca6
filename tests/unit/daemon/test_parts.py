# SPDX-License-Identifier: Apache-2.0
"""Pods judged by their addresses: case by case, over maps in memory."""

import asyncio
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from ciliumd import abi
from ciliumd.daemon import stages
from ciliumd.daemon.recovery import restore_numbers
from ciliumd.daemon.release import IDENTITY_REST, Release
from ciliumd.desired.ipcache import address_key
from ciliumd.desired.policy import RETIRE_AFTER
from ciliumd.model.identity import PART_MAX, PART_MIN, PartOf, lost_part
from ciliumd.model.objects import NodeRow, RemoteEndpointRow
from ciliumd.reconcile import restore
from ciliumd.resources import parse
from unit.daemon import nodes
from unit.daemon.kernel import Kernel
from unit.daemon.nodes import EGRESS, allow, cidr, says

pytestmark = pytest.mark.unit

PODS = "10.0.0.0/16"
SERVER, LOW, HIGH = ip_address("10.0.0.3"), ip_address("10.0.0.4"), ip_address("10.0.9.4")
BLOCK = "10.0.0.0/24"


def network_policy(name, *blocks, app="server"):
    """Who may come in to the pods of an app: (block, exceptions...)."""
    peers = [
        {"ipBlock": {"cidr": one, **({"except": excepts} if excepts else {})}} for one, *excepts in blocks
    ]
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {"podSelector": {"matchLabels": {"app": app}}, "ingress": [{"from": peers}]},
    }


def put(kernel, name, *blocks):
    """Write a policy."""
    for table, key, row in parse(network_policy(name, *blocks)).rows():
        getattr(kernel.tables, table).set(key, row)


def drop(kernel, name):
    """Delete a policy."""
    kernel.tables.policies.delete(("NetworkPolicy", "shop", name))


def with_pods(**about):
    """A server, and two pods of the same labels, of which one is in the block."""
    kernel = Kernel(pod_cidrs=(PODS,), **about)
    nodes.add_pod(kernel.tables, 1, {"app": "server"}, address=SERVER)
    nodes.add_pod(kernel.tables, 2, {"app": "web"}, address=LOW)
    nodes.add_pod(kernel.tables, 3, {"app": "web"}, address=HIGH)
    kernel.round(2)
    return kernel


def row(kernel, address):
    """The ipcache's row of an address."""
    return abi.IpcacheEntry.unpack(kernel.maps[stages.IPCACHE].rows[address_key(address)])


def judged(kernel, address):
    """What packets of an address are judged by."""
    found = row(kernel, address)
    return found.judged or found.identity


def verdicts(kernel, *addresses):
    """What the server's policy says of these, by what is in the maps."""
    return [says(kernel.node, 1, judged(kernel, one)) for one in addresses]


def test_a_block_tells_pods_of_the_same_labels_apart():
    """Tunnels and events go on with one identity; the rows of endpoints say the same as the ipcache's."""
    kernel = with_pods()
    put(kernel, "block", (BLOCK,))
    kernel.round(2)

    assert verdicts(kernel, LOW, HIGH) == ["ALLOW", "DEFAULT_DENY"]
    assert row(kernel, LOW).identity == row(kernel, HIGH).identity
    assert PART_MIN <= row(kernel, LOW).judged <= PART_MAX
    assert row(kernel, HIGH).judged == 0
    facts = [
        abi.Endpoint.unpack(kernel.maps[stages.FACTS].rows[slot.to_bytes(4, "little")]) for slot in range(3)
    ]
    assert [(one.identity, one.judged_ipv4) for one in facts[1:]] == [
        (row(kernel, LOW).identity, row(kernel, LOW).judged),
        (row(kernel, HIGH).identity, 0),
    ]


def test_an_exception_is_a_part_of_its_own():
    """The narrowest block decides, and a block that another rule allows allows its exception, too."""
    kernel = with_pods()
    put(kernel, "block", (PODS, BLOCK))
    kernel.round(2)
    assert verdicts(kernel, LOW, HIGH) == ["DEFAULT_DENY", "ALLOW"]

    put(kernel, "overlapping", ("10.0.0.4/32",))
    kernel.round(2)
    assert verdicts(kernel, LOW, HIGH) == ["ALLOW", "ALLOW"]


def test_rows_come_a_round_before_rules():
    """Until pods are told apart an exception would be let in with what it is an exception of."""
    kernel = with_pods()
    put(kernel, "block", ("10.0.4.0/22",))
    kernel.round(2)
    before = kernel.word()
    put(kernel, "block", (PODS, BLOCK))
    kernel.round()
    assert row(kernel, LOW).judged
    assert row(kernel, HIGH).judged
    assert verdicts(kernel, LOW, HIGH) == ["DEFAULT_DENY", "DEFAULT_DENY"]
    assert kernel.word() == before
    assert kernel.node.plan.policy.waiting == {1}
    assert kernel.reconciler._dirty

    kernel.round()
    assert verdicts(kernel, LOW, HIGH) == ["DEFAULT_DENY", "ALLOW"]
    assert kernel.word() != before
    assert not kernel.reconciler._dirty


def test_policy_rows_are_there_before_anybody_is_judged_by_them():
    """What versions in use say of a new number is written before rows lead to it."""
    kernel = with_pods()
    put(kernel, "labels", (PODS,))
    kernel.round(2)
    put(kernel, "block", (BLOCK,))
    kernel.round()
    rows = {stages.IPCACHE, stages.FACTS}
    assert kernel.last(stages.POLICY) < min(kernel.first(one) for one in rows)


@pytest.mark.parametrize("name", [stages.IPCACHE, stages.FACTS])
def test_a_row_that_could_not_be_written_opens_nothing(name):
    """Its pod is still judged by the number of what is around it, which is as closed until it is written."""
    kernel = with_pods()
    key = address_key(LOW) if name == stages.IPCACHE else (1).to_bytes(4, "little")
    kernel.maps[name].failures[key] = OSError(12, "no memory")
    put(kernel, "block", (PODS, BLOCK))
    kernel.round(3)
    base = row(kernel, LOW).identity if name == stages.IPCACHE else row(kernel, HIGH).identity
    assert says(kernel.node, 1, base) == "DEFAULT_DENY"

    kernel.maps[name].failures.clear()
    kernel.round(3)
    assert verdicts(kernel, LOW, HIGH) == ["DEFAULT_DENY", "ALLOW"]


def test_a_part_goes_after_the_rules_that_name_it():
    """Its row stays while a version that packets may still meet tells it apart."""
    kernel = with_pods()
    put(kernel, "block", (BLOCK,))
    kernel.round(2)
    drop(kernel, "block")
    put(kernel, "other", ("192.0.2.0/24",))
    kernel.round(2)
    assert row(kernel, LOW).judged
    assert verdicts(kernel, LOW, HIGH) == ["DEFAULT_DENY", "DEFAULT_DENY"]

    kernel.round(int(RETIRE_AFTER) + 2)
    assert row(kernel, LOW).judged == 0


def test_a_pod_that_comes_is_in_its_part_at_once():
    """Its row is written once, with the number it is judged by."""
    kernel = with_pods()
    put(kernel, "block", (BLOCK,))
    kernel.round(2)
    late = ip_address("10.0.0.77")
    nodes.add_pod(kernel.tables, 4, {"app": "web"}, address=late)
    kernel.round()
    assert judged(kernel, late) == judged(kernel, LOW)
    assert kernel.node.plan.policy.waiting == frozenset()
    assert not kernel.reconciler._dirty


def test_a_round_without_news_asks_for_no_pod():
    """There may be a hundred thousand of them, and rounds for every change of a service."""
    kernel = with_pods()
    put(kernel, "block", (BLOCK,))
    kernel.round(3)
    asked = []
    kernel.node.plan.parts.judged_as = lambda addr: asked.append(addr) or ()
    before = kernel.node.plan.parts.judged
    kernel.round(2)
    assert asked == []
    assert kernel.node.plan.parts.judged is before

    nodes.add_pod(kernel.tables, 4, {"app": "web"}, address=ip_address("10.0.0.78"))
    kernel.round()
    assert set(asked) == {SERVER, LOW, HIGH, ip_address("10.0.0.78")}


def test_what_holds_no_pod_costs_nothing():
    """The usual exception of everything private, and the rules of Cilium's kinds."""
    kernel = with_pods()
    put(kernel, "world", ("0.0.0.0/0", "10.0.0.0/8"))
    nodes.add_policy(kernel.tables, allow("cidr", cidr(BLOCK), app="server"))
    kernel.round(2)
    assert verdicts(kernel, LOW, HIGH) == ["DEFAULT_DENY", "DEFAULT_DENY"]
    assert says(kernel.node, 1, judged(kernel, LOW), direction=EGRESS) == "DEFAULT_DENY"
    assert len(kernel.tables.parts) == 0


def test_pods_of_other_nodes_are_told_apart_alike():
    """Where a pod is makes no difference."""
    kernel = with_pods()
    number = row(kernel, LOW).identity
    far = NodeRow(name="far", pod_cidrs=(ip_network("10.7.0.0/16"),))
    kernel.tables.nodes.set("far", far)
    inside, outside = ip_address("10.7.0.9"), ip_address("10.7.9.9")
    for name, address in (("inside", inside), ("outside", outside)):
        published = RemoteEndpointRow("shop", name, number, (address,), ip_address("192.0.2.9"), {})
        kernel.tables.remote_endpoints.set(("shop", name), published)
    put(kernel, "block", ("10.7.0.0/24",))
    kernel.round(2)
    assert verdicts(kernel, inside, outside, LOW) == ["ALLOW", "DEFAULT_DENY", "DEFAULT_DENY"]


def test_addresses_of_both_families_are_judged_each_by_itself():
    """A block of one says nothing of the other address of a pod that is in it."""
    kernel = with_pods()
    six = ip_address("fd00::4")
    kernel.tables.endpoints.set(2, replace(kernel.tables.endpoints.get(2), ipv6=six))
    put(kernel, "block", (BLOCK,))
    kernel.round(2)
    assert verdicts(kernel, LOW, six) == ["ALLOW", "DEFAULT_DENY"]
    facts = abi.Endpoint.unpack(kernel.maps[stages.FACTS].rows[(1).to_bytes(4, "little")])
    assert (facts.judged_ipv4, facts.judged_ipv6) == (row(kernel, LOW).judged, 0)


def test_named_ports_are_those_of_the_pod():
    """A rule out to a port's name means it whichever part the pod is in."""
    kernel = with_pods()
    nodes.add_pod(kernel.tables, 2, {"app": "web"}, address=LOW, named_ports=nodes.HTTP)
    named = nodes.rule(nodes.app("web"), direction=EGRESS, ports=(nodes.port(name="http"),))
    nodes.add_policy(
        kernel.tables,
        nodes.policy("out", named, subject=nodes.subject(app="server"), ingress=False, egress=True),
    )
    put(kernel, "block", (BLOCK,))
    kernel.round(2)
    assert row(kernel, LOW).judged
    assert says(kernel.node, 1, judged(kernel, LOW), port=8080, direction=EGRESS) == "ALLOW"
    assert says(kernel.node, 1, judged(kernel, LOW), port=80, direction=EGRESS) == "DEFAULT_DENY"


def restarted(kernel, *, forgets=()):
    """The next agent over the same maps and objects, which finds no row of files it *forgets*."""
    tables = nodes.copied(kernel.tables)
    for key in list(tables.parts):
        tables.parts.delete(key)
    for name in forgets:
        kernel.maps[name].rows.clear()
    after = Kernel(
        tables=tables,
        maps=kernel.maps,
        pod_cidrs=(PODS,),
        next_version=kernel.node.reserved[-1],
    )
    asyncio.run(after.reconciler.load())
    tracker = after.reconciler.tracker
    restore_numbers(tables, rows=lambda name: tracker(name).realized)
    live = restore.endpoints(tracker(stages.FACTS).realized, tracker(stages.STATES).realized)
    after.node.plan.restore_versions(
        tracker(stages.POLICY).realized, versions={one.id: one.policy_version for one in live.values()}
    )
    return after


def test_a_restart_keeps_numbers():
    """And changes no row."""
    kernel = with_pods()
    put(kernel, "block", (BLOCK,))
    kernel.round(2)
    before = {name: dict(one.rows) for name, one in kernel.maps.items()}
    after = restarted(kernel)
    after.round(2)
    assert {name: dict(one.rows) for name, one in after.maps.items()} == before


def test_a_lost_file_gives_no_number_to_somebody_else():
    """Rows still lead to it; the pods get another one, and nothing is opened meanwhile."""
    kernel = with_pods()
    put(kernel, "block", (BLOCK,))
    kernel.round(2)
    number = row(kernel, LOW).judged
    after = restarted(kernel, forgets=(stages.PART_FILE,))
    assert after.tables.parts.get(lost_part(number)) == number
    after.round(3)
    assert row(after, LOW).judged not in (0, number)
    assert verdicts(after, LOW, HIGH) == ["ALLOW", "DEFAULT_DENY"]


def test_a_number_rests_before_it_is_given_away():
    """As long as conntrack may remember it."""
    kernel = with_pods()
    put(kernel, "block", (BLOCK,))
    kernel.round(2)
    part = PartOf(row(kernel, LOW).identity, ip_network(BLOCK))
    release = Release(
        kernel.tables,
        kernel.node.plan,
        rows=lambda name: kernel.maps[name].rows,
        settled=lambda: True,
        readers={},
        clock=kernel.node.clock,
    )
    drop(kernel, "block")
    kernel.round(int(RETIRE_AFTER) + 3)
    release.look()
    assert part in kernel.tables.parts
    kernel.node.clock.now += IDENTITY_REST
    release.look()
    assert part not in kernel.tables.parts


def test_without_a_number_left_a_pod_is_in_no_block(monkeypatch):
    """Nothing is opened, and it is told."""
    monkeypatch.setattr("ciliumd.daemon.parts.PART_MAX", PART_MIN - 1)
    kernel = with_pods()
    put(kernel, "block", (BLOCK,))
    kernel.round(3)
    assert verdicts(kernel, LOW, HIGH) == ["DEFAULT_DENY", "DEFAULT_DENY"]
    (problem,) = [one for key, one in kernel.tables.problems.items() if key == ("CIDR", "", BLOCK)]
    assert "no identity is left" in problem.message
