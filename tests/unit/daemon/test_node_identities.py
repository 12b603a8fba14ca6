# SPDX-License-Identifier: Apache-2.0
"""Nodes by their labels, planned: who has which number, what rules make of it, and what a restart keeps."""

import asyncio
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from ciliumd import abi
from ciliumd.daemon import stages
from ciliumd.daemon.recovery import restore_numbers
from ciliumd.daemon.release import IDENTITY_REST, Release
from ciliumd.desired import identities
from ciliumd.desired.ipcache import address_key
from ciliumd.desired.policy import lookup
from ciliumd.model.identity import NODE_MIN, NamedNode, Reserved, lost_node
from ciliumd.model.label_filter import EVERY_LABEL, parse_label_filter
from ciliumd.model.labels import NODE, labels_text
from ciliumd.model.objects import API_SERVER, EndpointSliceRow, NodeRow
from ciliumd.model.policy import PeerNodes, Selector
from ciliumd.model.service import Backend
from ciliumd.reconcile import restore
from ciliumd.reconcile.loop import Reconciler
from unit.daemon import nodes
from unit.daemon.kernel import Maps
from unit.reconcile.rounds import Inline

pytestmark = pytest.mark.unit

HOST, REMOTE_NODE, KUBE_APISERVER = 1, 6, 7
API_SERVER_NODE = NODE_MIN + 0x10000


def row(number, **labels):
    """Node *number*, whose every address says so."""
    return NodeRow(
        name=f"node-{number}",
        addresses=(
            ("InternalIP", ip_address(f"192.0.2.{number}")),
            ("InternalIP", ip_address(f"2001:db8::{number}")),
            ("CiliumInternalIP", ip_address(f"10.0.{number}.1")),
        ),
        pod_cidrs=(ip_network(f"10.0.{number}.0/24"),),
        health=(ip_address(f"10.0.{number}.2"),),
        labels=labels,
    )


def selecting(**labels):
    """Nodes with these labels."""
    return PeerNodes(Selector(frozenset((NODE, key, value) for key, value in labels.items())))


def node_of_three(*, option=EVERY_LABEL):
    """A node with a web pod that edge nodes may reach, and two others, of which one is at the edge."""
    here = nodes.Planned(nodes.filled(), node_labels=option, addresses=("192.0.2.1",))
    nodes.add_pod(here.tables, 1, {"app": "web"})
    here.tables.nodes.set("node-2", row(2, role="edge"))
    here.tables.nodes.set("node-3", row(3, role="core"))
    nodes.add_policy(here.tables, nodes.policy("web", nodes.rule(selecting(role="edge"))))
    here.refresh()
    return here


def numbers(here):
    """The identity of every node by name."""
    return {
        node.name if not node.api_server else f"{node.name} (API)": number
        for node, number in here.tables.node_identities.items()
    }


def at(here, address):
    """The identity that the ipcache has for an address."""
    return restore.identities(here.plan.ipcache_rows.addresses).get(ip_address(address))


def verdict(here, address):
    """What the maps say about packets from an address to the web pod."""
    return nodes.says(here, 1, at(here, address))


def test_every_other_node_has_an_identity_of_its_own():
    """All of its addresses lead to it, but the one of its health endpoint."""
    here = node_of_three()
    assert numbers(here) == {"node-2": NODE_MIN, "node-3": NODE_MIN + 1}
    for address in ("192.0.2.2", "2001:db8::2", "10.0.2.1"):
        assert at(here, address) == NODE_MIN
    assert at(here, "10.0.2.2") == Reserved.HEALTH
    assert at(here, "192.0.2.1") == HOST
    assert labels_text(here.plan.known_identities[NODE_MIN]) == (
        "node:io.cilium.k8s.node.name=node-2",
        "node:role=edge",
        "reserved:remote-node",
    )


def test_rules_tell_nodes_apart():
    """By the labels of the node a packet is from."""
    here = node_of_three()
    assert verdict(here, "192.0.2.2") == "ALLOW"
    assert verdict(here, "192.0.2.3") == "DEFAULT_DENY"
    assert nodes.says(here, 1, REMOTE_NODE) == "DEFAULT_DENY"


def test_this_node_has_its_labels_too():
    """Its number stays; rules of both directions go by it."""
    here = node_of_three()
    here.tables.nodes.set("node", replace(row(1, role="core"), name="node"))
    nodes.add_policy(
        here.tables, nodes.policy("deny", nodes.rule(selecting(role="core"), deny=True), egress=True)
    )
    here.refresh()
    assert labels_text(here.plan.known_identities[HOST]) == (
        "node:io.cilium.k8s.node.name=node",
        "node:role=core",
        "reserved:host",
    )
    assert nodes.says(here, 1, HOST) == "DENY"
    assert "node" not in numbers(here)


def test_without_the_option_nodes_are_what_they_were():
    """No number is given, and this node has no labels."""
    here = node_of_three(option=None)
    assert numbers(here) == {}
    assert at(here, "192.0.2.2") == at(here, "10.0.2.1") == REMOTE_NODE
    assert labels_text(here.plan.known_identities[HOST]) == ("reserved:host",)


def test_labels_that_change_are_another_version_under_the_same_number():
    """Established connections go by versions; whoever is not touched stays where it is."""
    here = node_of_three()
    before = here.plan.policy.versions[1]
    here.tables.nodes.set("node-3", row(3, role="edge"))
    here.refresh()
    assert numbers(here) == {"node-2": NODE_MIN, "node-3": NODE_MIN + 1}
    assert verdict(here, "192.0.2.3") == "ALLOW"
    after = here.plan.policy.versions[1]
    assert after != before
    # The version of before says what it said: packets may still read it.
    state = here.plan.policy.states[before]
    assert lookup(state, NODE_MIN + 1, nodes.INGRESS, nodes.TCP, 80)[0].name.endswith("DEFAULT_DENY")

    here.tables.nodes.set("node-3", row(3, role="edge", disk="ssd"))
    here.refresh()
    assert here.plan.policy.versions[1] == after


def test_labels_that_come_after_their_node_are_not_forgotten():
    """CVE-2024-42488: in whichever order a node, its labels and policies were heard of."""
    here = nodes.Planned(nodes.filled(), node_labels=EVERY_LABEL)
    here.tables.nodes.set("node-2", row(2))
    here.refresh()
    nodes.add_pod(here.tables, 1, {"app": "web"})
    here.refresh()
    here.tables.nodes.set("node-2", row(2, role="edge"))
    here.refresh()
    nodes.add_policy(here.tables, nodes.policy("web", nodes.rule(selecting(role="edge"))))
    here.refresh()
    assert verdict(here, "192.0.2.2") == "ALLOW"

    here.tables.nodes.set("node-2", row(2))
    here.refresh()
    assert verdict(here, "192.0.2.2") == "DEFAULT_DENY"


def test_filtered_labels_select_nobody():
    """Who changes what is left out changes no identity."""
    here = node_of_three(option=parse_label_filter("disk", before=()))
    assert verdict(here, "192.0.2.2") == "DEFAULT_DENY"
    revision = here.plan.nodes.revision
    here.tables.nodes.set("node-2", row(2, role="core"))
    here.refresh()
    assert here.plan.nodes.revision == revision


def api_server(here, *addresses):
    """Where the API server is."""
    backends = tuple(("https", Backend(ip_address(one), 6443, "TCP")) for one in addresses)
    here.tables.slices.set(API_SERVER, EndpointSliceRow(*API_SERVER, API_SERVER[1], backends))


def test_the_api_server_is_where_it_was_and_the_node_as_well():
    """Only under its addresses a node is judged as kube-apiserver; by its labels under all."""
    here = node_of_three()
    nodes.add_policy(here.tables, nodes.policy("api", nodes.rule(nodes.entity("kube-apiserver"))))
    api_server(here, "192.0.2.3")
    here.refresh()
    assert at(here, "192.0.2.3") == API_SERVER_NODE
    assert at(here, "10.0.3.1") == NODE_MIN + 1
    assert (verdict(here, "192.0.2.3"), verdict(here, "10.0.3.1")) == ("ALLOW", "DEFAULT_DENY")

    nodes.add_policy(here.tables, nodes.policy("core", nodes.rule(selecting(role="core"))))
    here.refresh()
    assert (verdict(here, "192.0.2.3"), verdict(here, "10.0.3.1")) == ("ALLOW", "ALLOW")


def test_an_api_server_that_is_no_node_has_no_labels():
    """It is who it was."""
    here = node_of_three()
    nodes.add_policy(here.tables, nodes.policy("all", nodes.rule(PeerNodes(Selector()))))
    api_server(here, "203.0.113.9")
    here.refresh()
    assert at(here, "203.0.113.9") == KUBE_APISERVER
    assert verdict(here, "203.0.113.9") == "DEFAULT_DENY"


def test_prefixes_and_nodes_do_not_meet():
    """A prefix that is a node's address is the node's, and each has numbers of its own."""
    here = node_of_three()
    prefixes = ("192.0.2.2/32", "192.0.2.0/24", "198.51.100.0/24")
    nodes.add_policy(
        here.tables,
        nodes.policy(
            "out", *(nodes.rule(nodes.cidr(one), direction=nodes.EGRESS) for one in prefixes), egress=True
        ),
    )
    here.refresh()
    assert at(here, "192.0.2.2") == NODE_MIN
    assert nodes.says(here, 1, NODE_MIN, direction=nodes.EGRESS) == "DEFAULT_DENY"
    assert not {*here.tables.prefixes.values()} & {*here.tables.node_identities.values()}
    assert set(restore.prefixes(here.plan.ipcache_rows.addresses, here.plan.ipcache_rows.prefixes)) == {
        ip_network(one) for one in prefixes[1:]
    }


class Machine:
    """A node with its maps in memory, on one clock; agents come and go."""

    def __init__(self):
        self.maps = Maps()
        self.journal = self.maps.journal
        self.clock = nodes.Clock()
        self.start(nodes.filled())

    def start(self, tables, *, option=EVERY_LABEL):
        """Another agent takes over what the maps hold."""
        reserved = max([1, *(self.planned.reserved if hasattr(self, "planned") else ())])
        self.planned = nodes.Planned(
            tables, clock=self.clock, next_version=reserved, node_labels=option, addresses=("192.0.2.1",)
        )
        self.reconciler = Reconciler(
            stages.stages(self.planned.plan, self.tables, self.maps, devices=dict, route_mtu=lambda: 1450),
            executor=Inline(),
            may_delete=lambda: self.tables.in_sync,
            clock=self.clock,
        )
        asyncio.run(self.reconciler.load())
        restore_numbers(tables, rows=lambda name: self.reconciler.tracker(name).realized)
        realized = self.reconciler.tracker
        live = restore.endpoints(realized(stages.FACTS).realized, realized(stages.STATES).realized)
        self.planned.plan.nodes.restore(restore.nodes(realized(stages.IPCACHE).realized))
        self.planned.plan.restore_versions(
            realized(stages.POLICY).realized, versions={one.id: one.policy_version for one in live.values()}
        )
        self.planned.plan.prefixes.identity_at = stages.prefixes_written(self.reconciler)
        self.release = Release(
            self.tables,
            self.planned.plan,
            rows=lambda name: self.reconciler.tracker(name).realized,
            settled=lambda: self.reconciler.status().in_sync,
            readers={"problems": lambda: 0},
            clock=self.clock,
        )

    def restart(self, *, option=EVERY_LABEL):
        """The next agent, whose sources tell the same; numbers it has of the maps alone."""
        tables = nodes.Tables()
        for name in nodes.SOURCES:
            for key, one in getattr(self.tables, name).items():
                getattr(tables, name).set(key, one)
        nodes.mark_in_sync(tables)
        self.start(tables, option=option)

    @property
    def tables(self):
        """The tables of the agent there is."""
        return self.planned.tables

    def rounds(self, count=2):
        """Rounds, a second apart; what they wrote."""
        del self.journal[:]
        for _ in range(count):
            self.clock.now += 1.0
            self.reconciler.trigger()
            asyncio.run(self.reconciler.round())
        return list(self.journal)

    def identity_at(self, address):
        """What the map says."""
        found = self.maps[stages.IPCACHE].rows.get(address_key(ip_address(address)))
        return None if found is None else abi.IpcacheEntry.unpack(found).identity

    def verdict(self, address):
        """What the maps say about packets from an address to the web pod."""
        plan = self.planned.plan
        state = plan.policy.states[plan.policy.versions[1]]
        found, _ = lookup(state, self.identity_at(address), nodes.INGRESS, nodes.TCP, 80)
        return found.name.removeprefix("POLICY_VERDICT_")


@pytest.fixture
def machine():
    """As :func:`node_of_three`, with maps."""
    machine = Machine()
    nodes.add_pod(machine.tables, 1, {"app": "web"})
    machine.tables.nodes.set("node-2", row(2, role="edge"))
    machine.tables.nodes.set("node-3", row(3, role="core"))
    nodes.add_policy(machine.tables, nodes.policy("web", nodes.rule(selecting(role="edge"))))
    machine.rounds()
    return machine


def test_policy_knows_a_node_before_its_address_leads_to_it(machine):
    """As of pods: no packet is from somebody nobody has judged."""
    machine.tables.nodes.set("node-4", row(4, role="edge"))
    written = [one for one in machine.rounds() if one.value is not None]
    policy = max(i for i, one in enumerate(written) if one.target == stages.POLICY)
    address = address_key(ip_address("192.0.2.4"))
    ipcache = next(i for i, one in enumerate(written) if one.target == stages.IPCACHE and one.key == address)
    assert policy < ipcache
    assert machine.verdict("192.0.2.4") == "ALLOW"


def test_a_restart_keeps_the_numbers(machine):
    """Also of nodes whose names sort otherwise; not a row of any map changes."""
    machine.tables.nodes.set("a-node", replace(row(9, role="edge"), name="a-node"))
    machine.rounds()
    before = numbers(machine)
    assert before["a-node"] > before["node-2"]
    machine.restart()
    written = machine.rounds()
    assert numbers(machine) == before
    assert {one.target for one in written} <= {stages.ENDPOINT_FILE, stages.IDENTITY_FILE}


def test_a_node_that_went_while_no_agent_was_there_leaves_its_number_to_nobody(machine):
    """Not before it has rested: its rows are still there when the first round begins."""
    gone = numbers(machine)["node-2"]
    machine.tables.nodes.delete("node-2")
    machine.tables.nodes.set("node-4", row(4, role="core"))
    machine.restart()
    assert machine.tables.node_identities.get(lost_node(gone)) == gone
    machine.rounds()
    assert numbers(machine)["node-4"] not in (gone, numbers(machine)["node-3"])
    assert machine.identity_at("192.0.2.2") is None


def live(machine, seconds):
    """Time passes in steps, each with a look and a round."""
    for _ in range(round(seconds / 10)):
        machine.clock.now += 10
        machine.release.look()
        machine.reconciler.trigger()
        asyncio.run(machine.reconciler.round())


def test_a_node_that_is_gone_gives_its_number_back_when_nobody_knows_it_any_more(machine):
    """Rows go at once; versions know the number until it has rested."""
    gone = numbers(machine)["node-2"]
    machine.tables.nodes.delete("node-2")
    machine.rounds()
    assert machine.identity_at("192.0.2.2") is None
    plan = machine.planned.plan
    assert nodes.says(machine.planned, 1, gone) == "ALLOW"

    live(machine, IDENTITY_REST - 100)
    assert gone in plan.known_identities
    live(machine, 200)
    assert gone not in plan.known_identities
    assert NamedNode("node-2") not in machine.tables.node_identities
    for state in plan.policy.states.values():
        assert not any(identity == gone for identity, _ in state.classes)


def test_a_node_that_is_back_is_the_same(machine):
    """By its name, as long as its number rests."""
    before = numbers(machine)
    machine.tables.nodes.delete("node-2")
    machine.rounds()
    machine.tables.nodes.set("node-2", replace(row(2, role="edge"), addresses=row(7).addresses))
    machine.rounds()
    assert numbers(machine) == before
    assert machine.verdict("192.0.2.7") == "ALLOW"


def test_option_switched_off_and_on_over_restarts(machine):
    """Nodes are judged as nodes in every round, whichever number their addresses still have."""
    nodes.add_policy(machine.tables, nodes.policy("remote", nodes.rule(nodes.entity("remote-node"))))
    machine.rounds()
    number = numbers(machine)["node-2"]
    machine.tables.policies.delete(("CNP", "shop", "web"))
    machine.restart(option=None)
    machine.planned.plan.refresh()
    assert nodes.says(machine.planned, 1, number) == "ALLOW"
    machine.rounds()
    assert machine.identity_at("192.0.2.2") == REMOTE_NODE
    assert machine.verdict("192.0.2.2") == "ALLOW"

    machine.restart()
    machine.rounds()
    assert machine.identity_at("192.0.2.2") >= NODE_MIN
    assert machine.verdict("192.0.2.2") == "ALLOW"


def test_more_nodes_than_numbers_are_told(monkeypatch):
    """Who has none is judged as any node."""
    monkeypatch.setattr(identities, "NODE_MAX", NODE_MIN)
    here = node_of_three()
    assert at(here, "192.0.2.3") == REMOTE_NODE
    problem = here.tables.problems.get(("CiliumNode", "", "node-3"))
    assert problem is not None
    assert "no identity is left" in problem.message
