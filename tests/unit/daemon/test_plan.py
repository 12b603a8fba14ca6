# SPDX-License-Identifier: Apache-2.0
"""The plan, case by case: when it plans at all, what shares a version, what needs another one, what fails."""

from dataclasses import replace
from ipaddress import ip_address

import pytest

from ciliumd import abi
from ciliumd.bpf.policy_maps import CLASSES, flat_key
from ciliumd.daemon.policy_versions import RETIRE_AFTER
from ciliumd.daemon.service_plan import ZONE_LABEL
from ciliumd.desired.endpoints import state_rows
from ciliumd.model.labels import Label
from ciliumd.model.objects import INTERNAL_IP, HostPort, NodeRow
from ciliumd.model.service import EVERY_KIND, Backend, Frontend, Hints, Service, ServiceKind, ServicePort
from ciliumd.tables import EndpointSliceRow, Problem
from unit.daemon import nodes
from unit.daemon.nodes import EGRESS, says, two_pods


def service(name, created):
    """A service at an address that others claim, too."""
    port = ServicePort("", "TCP", 80, 80)
    front = Frontend(ip_address("10.96.0.1"), 80, "TCP", ServiceKind.CLUSTER_IP)
    return Service("shop", name, "ClusterIP", (front,), (port,), created=created)


def test_nothing_is_planned_before_every_source_is_in_sync():
    """Half of the policies would be other policies, and use up numbers."""
    node = nodes.Planned(nodes.filled(in_sync=False))
    nodes.add_pod(node.tables, 1, {"app": "web"})
    node.refresh()
    assert node.plan.policy_rows == {}
    assert node.plan.state_rows == {}
    assert node.reserved == [1]
    assert len(node.tables.identities) == 0

    nodes.mark_in_sync(node.tables)
    node.refresh()
    assert node.plan.policy.versions == {1: 3}
    assert node.reserved == [1, 4]


def test_a_new_identity_joins_the_version_in_place():
    """Its class is added; the version, and every row that was there, stays."""
    node = two_pods()
    versions, rows = node.plan.policy.versions, node.plan.policy_rows
    nodes.add_pod(node.tables, 3, {"app": "db", "revision": "2"})
    node.refresh()
    assert node.plan.policy.versions[1] == versions[1]
    assert rows.items() < node.plan.policy_rows.items()
    assert says(node, 1, node.plan.identities[3]) == "ALLOW"


def test_an_identity_whose_named_ports_change_is_not_changed_in_place():
    """Connections established under the version go by its verdict: another verdict is another version."""
    node = nodes.Planned(nodes.filled())
    nodes.add_pod(node.tables, 1, {"app": "web"})
    nodes.add_pod(node.tables, 2, {"app": "db"})
    to_http = nodes.rule(nodes.app("db"), direction=EGRESS, ports=(nodes.port(name="http"),), deny=True)
    everywhere = nodes.rule(nodes.entity("all"), direction=EGRESS)
    nodes.add_policy(
        node.tables,
        nodes.policy(
            "web", to_http, everywhere, subject=nodes.subject(app="web"), ingress=False, egress=True
        ),
    )
    node.refresh()
    before, peer = node.plan.policy.versions[1], node.plan.identities[2]
    assert says(node, 1, peer, port=8080, direction=EGRESS) == "ALLOW"

    node.tables.pods.set(("shop", "pod-2"), nodes.pod("pod-2", {"app": "db"}, named_ports=nodes.HTTP))
    node.refresh()
    assert says(node, 1, peer, port=8080, direction=EGRESS) == "DENY"
    assert node.plan.policy.versions[1] != before


def test_a_shared_version_grows_when_all_its_rules_want_the_same():
    """Two rule sets of one meaning share, and still do with a new identity both allow."""
    node = nodes.Planned(nodes.filled())
    nodes.add_pod(node.tables, 1, {"app": "web", "tier": "front"})
    nodes.add_pod(node.tables, 2, {"app": "web", "tier": "back"})
    allow = nodes.rule(nodes.app("db"))
    both = nodes.policy("both", allow, subject=nodes.subject(app="web"))
    nodes.add_policy(node.tables, both)
    # Says nothing new: what it allows is allowed already, and its origin sorts behind.
    nodes.add_policy(
        node.tables,
        replace(
            both,
            name="twice",
            subject=nodes.subject(tier="front"),
            rules=(replace(both.rules[0], origin="z"),),
        ),
    )
    node.refresh()
    rules, versions = node.plan.policy.rules, node.plan.policy.versions
    assert rules[1] != rules[2]
    assert versions[1] == versions[2]

    nodes.add_pod(node.tables, 3, {"app": "db"})
    node.refresh()
    assert node.plan.policy.versions[1] == node.plan.policy.versions[2] == versions[1]
    assert says(node, 1, node.plan.identities[3]) == says(node, 2, node.plan.identities[3]) == "ALLOW"


def test_a_shared_version_is_left_by_those_who_want_more():
    """Two rule sets alike for everybody known part when one of them allows a newcomer."""
    node = nodes.Planned(nodes.filled())
    nodes.add_pod(node.tables, 1, {"app": "web", "tier": "front"})
    nodes.add_pod(node.tables, 2, {"app": "web", "tier": "back"})
    nodes.add_policy(node.tables, nodes.policy("all", subject=nodes.subject(app="web")))
    one = nodes.policy("one", nodes.rule(nodes.app("db")), subject=nodes.subject(tier="front"), ingress=False)
    nodes.add_policy(node.tables, one)
    node.refresh()
    shared = node.plan.policy.versions
    assert shared[1] == shared[2]
    before = node.plan.policy.states[shared[1]]

    nodes.add_pod(node.tables, 3, {"app": "db"})
    node.refresh()
    after = node.plan.policy
    assert after.versions[2] == shared[2]
    assert after.versions[1] > shared[1]
    assert after.states[shared[2]] == before
    assert says(node, 1, node.plan.identities[3]) == "ALLOW"
    assert says(node, 2, node.plan.identities[3]) == "DEFAULT_DENY"


def test_a_policy_changes_the_words_of_endpoints_and_nothing_else():
    """Facts and addresses are the very same objects: of tens of thousands of rows none is made anew."""
    node = two_pods()
    before, words, ipcache = node.plan.endpoint_rows, node.plan.state_rows, node.plan.ipcache_rows
    version = node.plan.policy.versions[1]

    nodes.add_policy(node.tables, nodes.policy("deny", subject=nodes.subject(app="web")))
    node.refresh()
    assert node.plan.policy.versions[1] > version
    assert node.plan.state_rows != words
    assert node.plan.state_rows == state_rows(node.tables.endpoints.values(), node.plan.policy.versions)
    assert node.plan.endpoint_rows is before
    assert node.plan.ipcache_rows is ipcache


def test_an_unused_version_stays_for_a_while():
    """Packets that read its number just before still find it; then all its rows go."""
    node = two_pods()
    old = node.plan.policy.versions[1]
    node.tables.policies.delete(("CNP", "shop", "web"))
    node.refresh()
    assert node.plan.next_retirement() == node.clock.now + RETIRE_AFTER
    node.clock.now += RETIRE_AFTER - 0.01
    node.refresh()
    assert old in node.plan.policy.states
    node.clock.now += 0.01
    node.refresh()
    assert old not in node.plan.policy.states
    assert all(int.from_bytes(key[:4], "big") != old for key in node.kernel)
    assert node.kernel == node.plan.policy_rows
    assert node.plan.next_retirement() is None


def test_a_version_is_taken_up_again_before_it_goes():
    """Changed and changed back within the time: the old number again, nothing new used up."""
    node = two_pods()
    saved, old = node.tables.policies.get(("CNP", "shop", "web")), node.plan.policy.versions[1]
    node.tables.policies.delete(("CNP", "shop", "web"))
    node.refresh()
    nodes.add_policy(node.tables, saved)
    node.refresh()
    node.clock.now += 10 * RETIRE_AFTER
    node.refresh()
    assert node.plan.policy.versions[1] == old


def test_what_failed_is_planned_again():
    """A number that could not be reserved is in no row, and the next round makes up for it."""
    node = two_pods()
    rows = node.plan.policy_rows
    broken = OSError("the node's state cannot be written")
    reserve = node.reserve

    def refuse(number):
        node.reserve = reserve
        node.plan._policies._reserve_version = reserve
        raise broken

    node.plan._policies._reserve_version = refuse
    nodes.add_policy(node.tables, nodes.policy("db", subject=nodes.subject(app="db")))
    with pytest.raises(OSError, match="cannot be written"):
        node.refresh()
    assert node.plan.policy_rows == rows

    node.refresh()
    assert says(node, 2, node.plan.identities[1]) == "DEFAULT_DENY"
    assert node.plan.state_rows.keys() == {bytes(4), b"\1\0\0\0"}
    assert node.kernel == node.plan.policy_rows


def test_an_identity_seen_only_by_a_failed_round_leaves_no_trace():
    """It came and went while nothing could be planned: no class leads to it."""
    node = two_pods()
    reserve = node.plan._policies._reserve_version

    def refuse(number):
        raise OSError("no")

    node.plan._policies._reserve_version = refuse
    nodes.add_pod(node.tables, 3, {"app": "db", "revision": "2"})
    nodes.add_policy(
        node.tables, nodes.policy("more", nodes.rule(nodes.app("db")), nodes.rule(nodes.app("x")))
    )
    with pytest.raises(OSError, match="no"):
        node.refresh()
    node.tables.endpoints.delete(3)
    for labels, number in node.tables.identities.items():
        if Label("k8s", "revision", "2") in labels:
            gone = number
            node.tables.identities.delete(labels)
    node.plan._policies._reserve_version = reserve
    node.refresh()
    assert all(gone not in {one for one, _ in state.classes} for state in node.plan.policy.states.values())


def test_a_restarted_plan_gives_the_same_rows():
    """Also after growth, which numbers classes in the order of arrival."""
    node = two_pods()
    for number, labels in enumerate(({"app": "db", "revision": "2"}, {"app": "db", "revision": "1"}), 3):
        nodes.add_pod(node.tables, number, labels)
        node.refresh()
    again = node.restarted()
    again.refresh()
    assert again.plan.policy_rows == node.plan.policy_rows
    assert again.plan.endpoint_rows == node.plan.endpoint_rows
    assert again.plan.state_rows == node.plan.state_rows
    assert again.plan.ipcache_rows == node.plan.ipcache_rows
    assert len(again.reserved) == 1


def test_versions_that_came_to_say_the_same_stay_apart_after_a_restart():
    """Content decides which version fits, what the kernel judges by decides which of them."""
    node = nodes.Planned(nodes.filled())
    nodes.add_pod(node.tables, 1, {"app": "web", "tier": "front"})
    nodes.add_pod(node.tables, 2, {"app": "web", "tier": "back"})
    nodes.add_pod(node.tables, 3, {"app": "db"})
    nodes.add_policy(node.tables, nodes.policy("all", subject=nodes.subject(app="web")))
    one = nodes.policy("one", nodes.rule(nodes.app("db")), subject=nodes.subject(tier="front"), ingress=False)
    nodes.add_policy(node.tables, one)
    node.refresh()
    before = node.plan.policy.versions
    assert before[1] != before[2]
    labels = node.plan.labels[3]
    node.tables.endpoints.delete(3)
    node.refresh()
    node.tables.identities.delete(labels)
    node.clock.now += RETIRE_AFTER
    node.refresh()
    states = node.plan.policy.states
    assert states[before[1]].meaning() == states[before[2]].meaning()

    again = node.restarted()
    again.refresh()
    assert again.plan.policy.versions == node.plan.policy.versions == {1: before[1], 2: before[2]}
    assert again.plan.policy_rows == node.plan.policy_rows


def test_a_corrupt_version_is_left_out_and_its_number_not_used_again():
    """Its rows are nobody's, so they are swept; the endpoint gets another version."""
    node = two_pods()
    version = node.plan.policy.versions[1]
    key = next(key for key in node.kernel if key.startswith(flat_key(version, CLASSES, b"")))
    node.kernel[key] = abi.PolicyClass(check=1, class_id=1).pack()
    again = nodes.Planned(nodes.copied(node.tables), next_version=1, restored=node.kernel)
    again.refresh()
    assert version not in again.plan.policy.states
    assert again.plan.policy.versions[1] > max(node.plan.policy.states)
    assert again.reserved[-1] > again.plan.policy.versions[1]


def test_a_released_identity_leaves_every_version(monkeypatch):
    """Its number may come back with other labels and must find no class of its own."""
    node = two_pods()
    number = node.plan.identities[2]
    node.tables.endpoints.delete(2)
    node.refresh()
    assert says(node, 1, number) == "ALLOW"
    version = node.plan.policy.versions[1]
    node.tables.identities.delete(node.plan.known_identities[number])
    node.refresh()
    assert says(node, 1, number) == "DEFAULT_DENY"
    assert node.plan.policy.versions[1] == version

    nodes.add_pod(node.tables, 3, {"app": "cache"})
    node.refresh()
    assert node.plan.identities[3] == number
    assert says(node, 1, number) == "DEFAULT_DENY"


def test_known_identities_are_gathered_once_per_change():
    """Every event asks for the names of two identities."""
    node = two_pods()
    first = node.plan.known_identities
    assert node.plan.known_identities is first
    nodes.add_pod(node.tables, 3, {"app": "db", "revision": "2"})
    node.refresh()
    assert node.plan.identities[3] in node.plan.known_identities


def test_a_service_problem_vanishes_with_its_cause():
    """Two services claim one frontend; the younger is told until the older is gone."""
    node = two_pods()

    node.tables.services.set(("shop", "old"), service("old", "2020"))
    node.tables.services.set(("shop", "new"), service("new", "2021"))
    node.refresh()
    assert "belongs to service shop/old" in node.tables.problems.get(("Service", "shop", "new")).message
    node.tables.services.delete(("shop", "old"))
    node.refresh()
    assert node.tables.problems.get(("Service", "shop", "new")) is None


def test_what_kube_proxy_serves_beside_has_no_row():
    """Neither the frontend nor an id of it."""
    node = two_pods()
    node.plan.node = replace(node.plan.node, serves=EVERY_KIND - {ServiceKind.EXTERNAL_IP})
    port = ServicePort("", "TCP", 80, 80)
    own = Frontend(ip_address("10.96.0.1"), 80, "TCP", ServiceKind.CLUSTER_IP)
    outside = Frontend(ip_address("192.0.2.7"), 80, "TCP", ServiceKind.EXTERNAL_IP)
    node.tables.services.set(("shop", "web"), Service("shop", "web", "ClusterIP", (own, outside), (port,)))
    node.refresh()

    assert {one.frontend for one in node.plan.services.served} == {own}
    assert outside.key not in node.tables.service_ids.view()


def test_a_service_is_served_by_the_proxy_that_it_names():
    """Nobody's name: by those that have none; it changes hands with its label."""
    node = two_pods()
    port = ServicePort("", "TCP", 80, 80)
    front = Frontend(ip_address("10.96.0.1"), 80, "TCP", ServiceKind.CLUSTER_IP)
    web = Service("shop", "web", "ClusterIP", (front,), (port,))

    def served(proxy, *, name=""):
        node.plan.node = replace(node.plan.node, proxy=name)
        node.tables.services.set(web.key, replace(web, proxy=proxy))
        node.refresh()
        return len(node.plan.services.served)

    assert [served(""), served("mesh"), served(""), served("mesh")] == [1, 0, 1, 0]
    assert [served("mesh", name="mesh"), served("", name="mesh"), served("other", name="mesh")] == [1, 0, 0]


@pytest.mark.parametrize("six", [frozenset(), frozenset({ServiceKind.CLUSTER_IP}), EVERY_KIND])
def test_ipv6_is_served_as_far_as_the_node_says(six):
    """Host ports, too: one of two pods that want the same address has it, where it is served at all."""
    node = two_pods()
    own = (ip_address("192.0.2.1"), ip_address("2001:db8::1"))
    node.plan.node = replace(node.plan.node, serves6=six, node_port_addresses=own)
    port = ServicePort("", "TCP", 80, 80, node_port=30080)
    cluster = [Frontend(ip_address(ip), 80, "TCP", ServiceKind.CLUSTER_IP) for ip in ("10.96.0.1", "fd00::1")]
    node.tables.services.set(("shop", "web"), Service("shop", "web", "NodePort", tuple(cluster), (port,)))
    one, two = (node.tables.endpoints.get(number) for number in (1, 2))
    for each in (one, two):
        node.tables.endpoints.set(each.id, replace(each, ipv6=ip_address(f"fd00:1::{each.id}")))
        pod = node.tables.pods.get(each.pod_key)
        ports = (HostPort(ip_address("2001:db8::1"), 80, "TCP", 8080),)
        node.tables.pods.set(each.pod_key, replace(pod, host_ports=ports))
    node.refresh()

    shown = {str(each.frontend.key) for each in node.plan.services.served}
    outside = {"[2001:db8::1]:30080/TCP", "[2001:db8::1]:80/TCP"}
    expected = {"10.96.0.1:80/TCP", "192.0.2.1:30080/TCP"}
    expected |= {"[fd00::1]:80/TCP"} if six else set()
    assert shown == expected | (outside if six == EVERY_KIND else set())
    told = {key for key, _ in node.tables.problems.items()}
    assert told == {("Pod", *each.pod_key) for each in ((two,) if six else (one, two))}


def test_what_another_proxy_serves_is_not_for_the_taking():
    """Its cluster address is somebody's, though not ours to serve."""
    node = two_pods()
    port = ServicePort("", "TCP", 80, 80)
    front = Frontend(ip_address("10.96.0.1"), 80, "TCP", ServiceKind.CLUSTER_IP)
    theirs = Service("shop", "mesh", "ClusterIP", (front,), (port,), proxy="mesh")
    own = Frontend(ip_address("10.96.0.2"), 80, "TCP", ServiceKind.CLUSTER_IP)
    thief = Frontend(front.addr, 80, "TCP", ServiceKind.EXTERNAL_IP)
    node.tables.services.set(theirs.key, theirs)
    node.tables.services.set(("shop", "thief"), Service("shop", "thief", "ClusterIP", (own, thief), (port,)))
    node.refresh()

    assert {one.frontend for one in node.plan.services.served} == {own}
    problem = node.tables.problems.get(("Service", "shop", "thief"))
    assert problem == Problem("spec.externalIPs", "10.96.0.1 is the cluster address of service shop/mesh")


def test_who_takes_an_address_that_is_a_nodes_takes_nothing():
    """Whoever is first; without the node the address is free, without the service all is as before."""
    node = two_pods()
    before = node.plan.services.rows.services
    port = ServicePort("", "TCP", 80, 80)
    own = Frontend(ip_address("10.96.0.1"), 80, "TCP", ServiceKind.CLUSTER_IP)
    taken = Frontend(ip_address("192.0.2.7"), 80, "TCP", ServiceKind.EXTERNAL_IP)
    key = ("Service", "shop", "thief")
    far = NodeRow("far", addresses=((INTERNAL_IP, ip_address("192.0.2.7")),))

    node.tables.services.set(key[1:], Service(*key[1:], "ClusterIP", (own, taken), (port,)))
    node.refresh()
    assert {one.frontend for one in node.plan.services.served} == {own, taken}
    assert node.tables.problems.get(key) is None

    node.tables.nodes.set("far", far)
    node.refresh()
    assert {one.frontend for one in node.plan.services.served} == {own}
    assert node.tables.problems.get(key) == Problem("spec.externalIPs", "192.0.2.7 is an address of node far")

    node.tables.nodes.delete("far")
    node.refresh()
    assert {one.frontend for one in node.plan.services.served} == {own, taken}
    assert node.tables.problems.get(key) is None

    node.tables.services.delete(key[1:])
    node.refresh()
    assert node.plan.services.rows.services == before


def test_a_node_that_learns_its_zone_chooses_anew():
    """The label of its own CiliumNode; those of others say nothing about it."""
    node = two_pods()
    port = ServicePort("", "TCP", 80, 80)
    front = Frontend(ip_address("10.96.0.1"), 80, "TCP", ServiceKind.CLUSTER_IP)
    backends = tuple(
        ("", Backend(ip_address(f"10.0.9.{number}"), 80, "TCP", "far", hints=Hints((zone,))))
        for number, zone in enumerate("ab")
    )
    node.tables.services.set(("shop", "web"), Service("shop", "web", "ClusterIP", (front,), (port,)))
    node.tables.slices.set(("shop", "web-1"), EndpointSliceRow("shop", "web-1", "web", backends))

    def chosen():
        node.refresh()
        return [one.hints.zones for one in node.plan.services.served[0].chosen]

    assert chosen() == [("a",), ("b",)]
    node.tables.nodes.set("far", NodeRow("far", labels={ZONE_LABEL: "a"}))
    assert chosen() == [("a",), ("b",)]
    node.tables.nodes.set("node", NodeRow("node", labels={ZONE_LABEL: "b"}))
    assert chosen() == [("b",)]
    node.tables.nodes.delete("node")
    assert chosen() == [("a",), ("b",)]


def test_a_problem_found_here_does_not_hide_one_of_the_object():
    """An object that was refused stays refused in the status, whatever becomes of the version in force."""
    node = two_pods()
    key = ("Service", "shop", "new")
    refused = Problem("spec.type", "must be another; its last good version stays")

    node.tables.services.set(("shop", "new"), service("new", "2021"))
    node.tables.problems.set(key, refused)
    node.tables.services.set(("shop", "old"), service("old", "2020"))
    node.refresh()
    assert node.tables.problems.get(key) == refused
    node.tables.problems.delete(key)
    node.refresh()
    assert "belongs to service shop/old" in node.tables.problems.get(key).message
    node.tables.problems.set(key, refused)
    node.tables.services.delete(("shop", "old"))
    node.refresh()
    assert node.tables.problems.get(key) == refused
