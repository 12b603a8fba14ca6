# SPDX-License-Identifier: Apache-2.0
"""
Blocks that cut through pods come and go, and pods with them: after every row packets pass as before or after.

What neither the policies and pods before a step nor those after it allow, in any mixture, never passes, also
when rows cannot be written, or the agent is killed after any row and another one goes on.  What all of the
mixtures allow always passes, unless a row could not be written or an agent was killed.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from ciliumd import abi
from ciliumd.daemon import stages as names
from ciliumd.daemon.node_facts import NodeFacts
from ciliumd.daemon.parts import Parts
from ciliumd.desired.identities import labels_of_pod
from ciliumd.model.objects import NodeRow, RemoteEndpointRow
from ciliumd.model.policy import BlockReference, Direction, Peer, PeerCIDR, PeerEntity, PeerSelector, Policy
from property import rowwise
from property.churn.agent import quiet_loop
from property.churn.judge import Flow
from property.rowwise import PORTS, SUBJECTS, Outcome
from unit.daemon import nodes

pytestmark = pytest.mark.property

DEFAULT, LONG = 100, 5_000
STEPS = 6
HERE, THERE = ip_network("10.0.0.0/24"), ip_network("10.1.0.0/24")
OTHER_NODE = ip_address("192.168.0.2")
WORLD = "0.0.0.0/0"
# Each in the one before it; addresses are in all up to one of them and no further.
NESTS = (
    (WORLD, "10.0.0.0/15", "10.0.0.0/24", "10.0.0.16/28", "10.0.0.16/30", "10.0.0.17/32"),
    (WORLD, "10.0.0.0/15", "10.1.0.0/24", "10.1.0.0/28", "10.1.0.4/30", "10.1.0.5/32"),
)
LOCAL = ("10.0.0.33", "10.0.0.20", "10.0.0.18", "10.0.0.17")
FAR = ("10.1.0.33", "10.1.0.9", "10.1.0.6", "10.1.0.5")
APPS = ("red", "blue")
FAR_NUMBERS = {"red": 50001, "blue": 50002}
"""Of pods of the other node, under another service account than those here: the same to every selector."""
FLOWS = [
    Flow(subject, direction, peer, "TCP", port)
    for subject in SUBJECTS
    for direction in ("ingress", "egress")
    for peer in (*LOCAL, *FAR)
    for port in PORTS
]
ELSEWHERE = nodes.policy(
    "elsewhere",
    nodes.rule(*map(nodes.cidr, sorted({one for nest in NESTS for one in nest}))),
    subject=nodes.subject(app="nobody"),
)
"""Of nobody: all that is told apart outside the cluster is there before any rule that needs it."""
STUCK = (names.STATES, names.FACTS, names.IPCACHE)

Pods = Mapping[str, tuple[str, int]]
"""By address: its app, and a number that the next pod of the address has not."""


class Node(rowwise.Node):
    """A node of a cluster of two, with pods on both."""

    def __init__(self, loop: Any, wrote: Callable[[str, bytes, bytes | None], None]) -> None:
        self.pods: Pods = {}
        facts = NodeFacts("node", "default", (ip_address("10.0.0.1"),), pod_cidrs=(HERE,))
        super().__init__(loop, wrote, facts)

    def fill(self) -> None:
        """The other node, identities of its pods, and what was applied before."""
        self.tables.nodes.set(
            "other", NodeRow("other", "default", (("InternalIP", OTHER_NODE),), pod_cidrs=(THERE,))
        )
        for app, number in FAR_NUMBERS.items():
            row = replace(nodes.pod("far", {"app": app}), service_account="far")
            labels = labels_of_pod(row, self.tables.namespaces.get("shop"))
            self.tables.cluster_identities.set(number, labels)
        pods, self.pods = self.pods, {}
        self.apply(self.policies, pods)

    def apply(self, policies: Mapping[Any, Policy], pods: Pods) -> None:
        """These are all the policies and pods there are, but for the two that are judged."""
        self.set_policies(policies)
        for address, (_, number) in self.pods.items():
            if self.pods[address] != pods.get(address):
                self._remove(address, number)
        for address, (app, number) in pods.items():
            if self.pods.get(address) != pods[address]:
                self._add(address, app, number)
        self.pods = dict(pods)

    def _add(self, address: str, app: str, number: int) -> None:
        if address in LOCAL:
            nodes.add_pod(self.tables, number, {"app": app}, address=ip_address(address))
            return
        row = RemoteEndpointRow(
            "shop", f"far-{number}", FAR_NUMBERS[app], (ip_address(address),), OTHER_NODE, {}
        )
        self.tables.remote_endpoints.set((row.namespace, row.name), row)

    def _remove(self, address: str, number: int) -> None:
        if address in LOCAL:
            self.tables.pods.delete(self.tables.endpoints.get(number).pod_key)
            self.tables.endpoints.delete(number)
        else:
            self.tables.remote_endpoints.delete(("shop", f"far-{number}"))


# ---- what is meant ------------------------------------------------------------------------------

NOBODY = "nobody"
"""In place of an app, where there is no pod: an address of the other node is something of the cluster."""


def allows(policies: Collection[Policy], flow: Flow, app: str) -> bool:
    """Whether *policies* allow *flow*, read off their rules, if its peer is a pod of *app*."""
    if app == NOBODY and flow.peer in LOCAL:
        return False
    return rowwise.allows(policies, flow, lambda peer: _holds(peer, flow.peer, app))


def _holds(peer: Peer, address: str, app: str) -> bool:
    match peer:
        case PeerEntity(name):
            assert name == "cluster"
            return True
        case PeerSelector():
            return peer == nodes.app(app)
        case PeerCIDR(prefix, excepts):
            addr = ip_address(address)
            return app != NOBODY and addr in prefix and not any(addr in one for one in excepts)
    raise AssertionError(peer)


def apps(address: str, pods: Pods) -> tuple[str, ...]:
    """Who may be at *address*."""
    if address in pods:
        return (pods[address][0],)
    return (NOBODY,)


def _reaches_pods(block: PeerCIDR) -> bool:
    """Whether something of the networks of pods is in *block*."""
    return any(
        network.overlaps(block.prefix)
        and not any(network.subnet_of(one) or block.prefix.subnet_of(one) for one in block.excepts)
        for network in (HERE, THERE)
    )


# ---- what happens -------------------------------------------------------------------------------


class Run(rowwise.Run):
    """Policies and pods that change step by step, and every flow after every row."""

    flows = 30
    _number = 10

    def made(self, loop: Any) -> Node:
        """Such a node."""
        return Node(loop, self.wrote)

    def run(self) -> None:
        """All the steps; in half of the runs no rule waits for what is outside the cluster."""
        policies: dict[Any, Policy] = {}
        if self.chance.random() < 0.5:
            policies["elsewhere"] = ELSEWHERE
        pods: dict[str, tuple[str, int]] = {}
        for address in (*LOCAL, *FAR):
            self._make(pods, address)
        self.step(policies, pods)
        for _ in range(STEPS):
            policies, pods = dict(policies), dict(pods)
            if self.chance.random() < 0.8:
                for _ in range(self.chance.choice((1, 1, 1, 2))):
                    one = self._policy(f"p{self.chance.randrange(3)}")
                    key = (one.kind, one.namespace, one.name)
                    policies.pop(key, None)
                    if self.chance.random() < 0.8:
                        policies[key] = one
            for _ in range(self.chance.choice((0, 1, 2))):
                address = self.chance.choice((*LOCAL, *FAR))
                if pods.pop(address, None) is None or self.chance.random() < 0.5:
                    self._make(pods, address)
            self.step(policies, pods)

    def _make(self, pods: dict[str, tuple[str, int]], address: str) -> None:
        self._number += 1
        pods[address] = self.chance.choice(APPS), self._number

    def step(self, policies: dict[Any, Policy], pods: dict[str, tuple[str, int]]) -> None:
        """One change, until nothing is left of what was before."""
        before, after = tuple(self.node.policies.values()), tuple(policies.values())
        flows = self.chance.sample(FLOWS, self.flows)
        self.meant = {
            flow: tuple(
                allows(rules, flow, app) for rules in (before, after) for app in self._apps(flow.peer, pods)
            )
            for flow in flows
        }
        self.gentle = True
        stuck = self.node.maps[self.chance.choice(STUCK)]
        stuck.stuck = self.harsh and self.chance.random() < 0.3
        self.gentle = not stuck.stuck
        self.node.apply(policies, pods)
        self.maybe_kill()
        self.survive(self.node.settle)
        self.kill_in = -1
        self.survive(self.node.rest if stuck.stuck else self.node.settle)
        stuck.stuck = False
        self.outcome.refused += stuck.refused
        stuck.refused = 0
        self.node.rest(40.0, 1)
        # What was before does not count any more.
        self.gentle = True
        self.meant = {
            flow: tuple(allows(after, flow, app) for app in apps(flow.peer, pods)) for flow in flows
        }
        self.look("the last one")
        self.survive(self.node.rest)
        self.look("the last one, and a rest")
        self.outcome.steps += 1
        self.unfinished(self.node.in_the_end())
        self._count(after, pods)

    def _apps(self, address: str, pods: Pods) -> set[str]:
        """Who may be there while *pods* take the place of those before; nobody when a pod is made anew."""
        before = self.node.pods
        if before.get(address) == pods.get(address):
            return set(apps(address, pods))
        return {*apps(address, before), *apps(address, pods), *apps(address, {})}

    def _count(self, policies: Collection[Policy], pods: Pods) -> None:
        """As many addresses are judged by another number as lie in a block, or in what is taken from one."""
        cut = {
            prefix
            for policy in policies
            for rule in policy.rules
            for one in rule.refers
            if isinstance(one, BlockReference) and _reaches_pods(one.block)
            for prefix in (one.block.prefix, *one.block.excepts)
        }
        wanted = sum(any(ip_address(one) in prefix for prefix in cut) for one in (*pods, *SUBJECTS))
        rows = map(abi.IpcacheEntry.unpack, self.node.maps[names.IPCACHE].rows.values())
        found = sum(row.judged != 0 for row in rows)
        if wanted != found:
            self.unfinished(f"{found} addresses in parts, {wanted} in blocks")

    def _policy(self, name: str) -> Policy:
        made = self.policy(name, *(self._rule() for _ in range(self.chance.randint(1, 3))))
        return replace(made, rules=tuple(map(_with_blocks, made.rules)))

    def _rule(self) -> Any:
        deny = self.chance.random() < 0.2
        peers = [self._peer(deny=deny) for _ in range(self.chance.randint(1, 2))]
        ports = self.chance.choice((None, None, (nodes.port(80),)))
        return nodes.rule(*peers, direction=self.chance.choice(tuple(Direction)), deny=deny, ports=ports)

    def _peer(self, *, deny: bool) -> Peer:
        if deny or self.chance.random() < 0.3:
            return self.chance.choice((*map(nodes.app, APPS), nodes.entity("cluster")))
        chain = self.chance.choice(NESTS)
        at = self.chance.randrange(len(chain))
        inside = sorted(
            {one for each in NESTS if chain[at] in each for one in each[each.index(chain[at]) + 1 :]}
        )
        excepts = self.chance.sample(inside, min(len(inside), self.chance.choice((0, 1, 1, 2))))
        return nodes.cidr(chain[at], *excepts)


def _with_blocks(rule: Any) -> Any:
    """The addresses of a rule are blocks of NetworkPolicy."""
    return replace(
        rule, refers=tuple(BlockReference(one) for one in rule.peers or () if isinstance(one, PeerCIDR))
    )


def runs(first: int, count: int, *, harsh: bool) -> Outcome:
    """Some runs, by their seeds."""
    return rowwise.runs(Run, first, count, harsh=harsh)


def test_nothing_is_opened_or_lost_while_blocks_and_pods_come_and_go(
    is_long: bool, record_property: Callable[[str, object], None]
) -> None:
    """Every row can be written."""
    outcome = runs(0, LONG if is_long else DEFAULT, harsh=False)
    record_property(
        "figure", f"{outcome.steps} changes of blocks and pods, {outcome.rows} rows, none opened or lost"
    )
    outcome.assert_harmless(harsh=False)


def test_rows_that_cannot_be_written_and_agents_that_die_open_nothing(is_long: bool) -> None:
    """Maps that take no row, agents killed after any row; in the end all is as written."""
    outcome = runs(0, LONG if is_long else DEFAULT, harsh=True)
    outcome.assert_harmless(harsh=True)


@pytest.mark.parametrize(
    "seed",
    [
        pytest.param(183, id="a part goes whose pods are then judged with others of their labels"),
        pytest.param(2543, id="a pod takes another one's address, which a new rule excepts"),
        pytest.param(2613, id="the same of the other node"),
        pytest.param(2908, id="a pod goes whose address a new rule excepts"),
    ],
)
def test_what_was_found_by_many_runs(seed: int) -> None:
    """What an agent made of the version of one before it let through what no policies allowed."""
    assert runs(seed, 1, harsh=True).opened == []


def test_a_part_goes_though_a_rule_names_its_addresses_outside_the_cluster() -> None:
    """An exception that leaves no pod in a block tells none apart, whatever was in force before."""
    former = nodes.policy("one", nodes.rule(nodes.cidr("10.0.0.0/15")))
    outside = nodes.policy("one", nodes.rule(nodes.cidr(WORLD, "10.0.0.0/15")))

    assert _stepwise((former,), (outside,)).unfinished == []


# ---- controls -----------------------------------------------------------------------------------


def test_rules_that_do_not_wait_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """If rules and parts came in one round, exceptions would be let in until their rows are there."""

    def look(self: Parts, *arguments: Any, of: object) -> None:
        real(self, *arguments, of=of)
        self.awaited, self.stand_ins = frozenset(), {}

    real = Parts.look
    assert _an_exception_from_more_ports().opened == []
    monkeypatch.setattr(Parts, "look", look)
    assert _an_exception_from_more_ports().opened


def _an_exception_from_more_ports() -> Outcome:
    """A block is let in to one port; then all of it but for a part to every port."""
    one = nodes.policy("one", nodes.rule(nodes.cidr("10.0.0.0/15"), ports=(nodes.port(80),)))
    more = nodes.policy("more", nodes.rule(nodes.cidr("10.0.0.0/15", "10.0.0.16/30", "10.1.0.4/30")))
    return _stepwise((), (one,), (one, more))


def _stepwise(*steps: Collection[Policy]) -> Outcome:
    """One set of policies of web after the other, over pods that stay, with every flow."""
    outcome = Outcome()
    pods = {address: ("red", 10 + number) for number, address in enumerate((*LOCAL, *FAR))}
    with quiet_loop() as loop:
        run = Run(loop, 0, outcome, harsh=False)
        run.flows = len(FLOWS)
        for step in steps:
            web = nodes.subject(app="web")
            made = {
                one.name: replace(one, subject=web, rules=tuple(map(_with_blocks, one.rules))) for one in step
            }
            run.step({"elsewhere": ELSEWHERE, **made}, pods)
    return outcome


def test_rules_that_close_instead_of_waiting_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those around a part are shut until it is there: nothing is opened, but something lost."""

    def look(self: Parts, *arguments: Any, of: object) -> None:
        real(self, *arguments, of=of)
        self.awaited = frozenset()

    real = Parts.look
    monkeypatch.setattr(Parts, "look", look)
    outcome = runs(0, 10, harsh=False)
    assert outcome.lost
    assert not outcome.opened
