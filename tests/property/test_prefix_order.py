# SPDX-License-Identifier: Apache-2.0
"""
Rules that name prefixes come and go: after every row that is written, packets pass as before or as after.

What neither the policies before a step nor those after it allow never passes, also when the ipcache is full,
endpoints cannot be told of their rules, or the agent is killed after any row and another one goes on.
What both allow always passes, unless a row could not be written or an agent was killed.
"""

import random
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from ciliumd.daemon import stages as names
from ciliumd.daemon.node_facts import NodeFacts
from ciliumd.daemon.plan import NodePlan
from ciliumd.daemon.prefixes import Prefixes
from ciliumd.daemon.recovery import restore_numbers
from ciliumd.daemon.stages import prefixes_written, stages
from ciliumd.model.policy import Direction, Peer, PeerCIDR, PeerEntity, Policy, Rule
from ciliumd.reconcile import restore
from ciliumd.reconcile.loop import Reconciler
from property.churn.agent import TARGETS, Inline, Watched, quiet_loop
from property.churn.judge import Flow, Rows
from unit.daemon import nodes

pytestmark = pytest.mark.property

DEFAULT, LONG = 100, 5_000
STEPS = 6
WORLDS = ("0.0.0.0/0", "::/0")
# Each in the one before it; addresses are in all up to one of them and no further.
NESTS = (
    ("198.0.0.0/8", "198.51.0.0/16", "198.51.100.0/24", "198.51.100.7/32"),
    ("203.0.0.0/8", "203.0.113.0/24", "203.0.113.128/25"),
    ("2001:db8::/32", "2001:db8:1::/48"),
)
PEERS = (
    *("192.0.2.1", "198.1.0.1", "198.51.1.1", "198.51.100.1", "198.51.100.7"),
    *("203.1.0.1", "203.0.113.1", "203.0.113.129", "2001:db9::1", "2001:db8:2::1", "2001:db8:1::1"),
)
SUBJECTS = ("10.0.0.3", "10.0.0.4")  # of the endpoints 1 and 2
PORTS = (80, 443)
FLOWS = [
    Flow(subject, direction, peer, "TCP", port)
    for subject in SUBJECTS
    for direction in ("ingress", "egress")
    for peer in PEERS
    for port in PORTS
]
STEADY_ROWS = 2
JUDGING = frozenset({names.POLICY, names.STATES, names.FACTS, names.LXC, names.IPCACHE, names.IPCACHE_LPM})


class Killed(BaseException):
    """The agent dies here."""


@dataclass
class Outcome:
    """What became of some runs."""

    steps: int = 0
    kills: int = 0
    refused: int = 0
    rows: int = 0
    opened: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)


class Small(Watched):
    """A map of limited size."""

    def __init__(self, name: str, wrote: Callable[[str, bytes, bytes | None], None]) -> None:
        super().__init__(name, wrote)
        self.room: int | None = None
        self.stuck = False
        self.refused = 0

    def update(self, items: Mapping[bytes, bytes]) -> dict[bytes, Exception]:
        """Write *items* as long as there is room."""
        failed: dict[bytes, Exception] = {}
        for key, value in items.items():
            full = self.room is not None and key not in self.rows and len(self.rows) >= self.room
            if full or self.stuck:
                failed[key] = OSError(7, "map is full")
                self.refused += 1
            else:
                super().update({key: value})
        return failed


class Node:
    """Maps, and the agents that write them one after the other."""

    def __init__(self, loop: Any, wrote: Callable[[str, bytes, bytes | None], None]) -> None:
        self.loop = loop
        self.now = 1000.0
        self.next_version = 1
        self.maps = {name: Small(name, wrote) for name in TARGETS}
        self.policies: dict[Any, Policy] = {}
        self.start()

    def start(self) -> None:
        """An agent takes over what is in the maps."""
        self.tables = nodes.filled(in_sync=False)
        self.plan = NodePlan(
            self.tables,
            NodeFacts("node", "default", (ip_address("10.0.0.1"),)),
            reserve_version=self._reserve,
            next_version=self.next_version,
            clock=lambda: self.now,
        )
        self.reconciler = Reconciler(
            stages(self.plan, self.tables, self.maps, devices=dict, route_mtu=lambda: 1450),
            executor=Inline(),
            may_delete=lambda: self.tables.in_sync,
            unfinished=self.plan.prefixes.unfinished,
            clock=lambda: self.now,
        )
        self.plan.prefixes.identity_at = prefixes_written(self.reconciler)
        tracker = self.reconciler.tracker
        self.loop.run_until_complete(self.reconciler.load())
        restore_numbers(self.tables, rows=lambda name: tracker(name).realized)
        live = restore.endpoints(tracker(names.FACTS).realized, tracker(names.STATES).realized)
        self.plan.restore_versions(
            tracker(names.POLICY).realized, versions={one.id: one.policy_version for one in live.values()}
        )
        nodes.add_pod(self.tables, 1, {"app": "web"})
        nodes.add_pod(self.tables, 2, {"app": "db"})
        for key, policy in self.policies.items():
            self.tables.policies.set(key, policy)
        nodes.mark_in_sync(self.tables)

    def _reserve(self, number: int) -> None:
        self.next_version = number

    def apply(self, policies: Mapping[Any, Policy]) -> None:
        """These are all the policies there are."""
        self.policies = dict(policies)
        for key in list(self.tables.policies.view()):
            if key not in policies:
                self.tables.policies.delete(key)
        for key, policy in policies.items():
            self.tables.policies.set(key, policy)

    def settle(self) -> None:
        """Rounds until nothing is left to do but to wait."""
        self.reconciler.trigger()
        for _ in range(12):
            self.loop.run_until_complete(self.reconciler.round())
            if not self.reconciler._dirty:
                return
        raise AssertionError("rounds without end")

    def rest(self, seconds: float = 5.0, times: int = 6) -> None:
        """Time passes: what is unused goes, what failed is tried again."""
        for _ in range(times):
            self.now += seconds
            self.settle()


# ---- what is meant ------------------------------------------------------------------------------


def allows(policies: Collection[Policy], flow: Flow) -> bool:
    """Whether *policies* allow *flow*, read off their rules."""
    direction = Direction[flow.direction.upper()]
    app = "web" if flow.subject == SUBJECTS[0] else "db"
    closed, allowed = False, False
    for policy in policies:
        if policy.subject != nodes.subject(app=app):
            continue
        closed |= (
            policy.default_deny_ingress if direction is Direction.INGRESS else policy.default_deny_egress
        )
        for rule in policy.rules:
            if rule.direction is direction and _means(rule, flow):
                if rule.deny:
                    return False
                allowed = True
    return allowed or not closed


def _means(rule: Rule, flow: Flow) -> bool:
    if rule.ports is not None and all(port.port != flow.port for port in rule.ports):
        return False
    return rule.peers is None or any(_holds(peer, flow.peer) for peer in rule.peers)


def _holds(peer: Peer, address: str) -> bool:
    match peer:
        case PeerEntity(name):
            assert name in ("world", "all")
            return True
        case PeerCIDR(prefix, excepts):
            addr = ip_address(address)
            return addr in prefix and not any(addr in one for one in excepts)
    raise AssertionError(peer)


# ---- what happens -------------------------------------------------------------------------------


class Run:
    """Policies that change step by step, and every flow after every row."""

    def __init__(self, loop: Any, seed: int, outcome: Outcome, *, harsh: bool) -> None:
        self.chance = random.Random(seed)
        self.seed = seed
        self.outcome = outcome
        self.harsh = harsh
        self.rows = Rows()
        self.kill_in = -1
        self.gentle = True
        self.after: Collection[Policy] = ()
        self.meant: dict[Flow, tuple[bool, bool]] = {}
        self.node = Node(loop, self._wrote)
        self.node.settle()

    def run(self) -> None:
        """All the steps."""
        policies: dict[Any, Policy] = {}
        for _ in range(STEPS):
            policies = dict(policies)
            for _ in range(self.chance.choice((1, 1, 1, 2))):
                one = self._policy(f"p{self.chance.randrange(3)}")
                key = (one.kind, one.namespace, one.name)
                policies.pop(key, None)
                if self.chance.random() < 0.8:
                    policies[key] = one
            self._step(policies)

    def _step(self, policies: dict[Any, Policy]) -> None:
        before, self.after = tuple(self.node.policies.values()), tuple(policies.values())
        flows = self.chance.sample(FLOWS, 30)
        self.meant = {flow: (allows(before, flow), allows(self.after, flow)) for flow in flows}
        lpm, addresses = self.node.maps[names.IPCACHE_LPM], self.node.maps[names.IPCACHE]
        self.gentle = True
        if self.harsh and self.chance.random() < 0.5:
            lpm.room, addresses.room = len(lpm.rows), len(addresses.rows) + self.chance.randint(0, 1)
            lpm.room += self.chance.randint(0, 2)
            self.gentle = False
        self.node.apply(policies)
        states = self.node.maps[names.STATES]
        states.stuck = self.harsh and self.chance.random() < 0.2
        self.gentle &= not states.stuck
        if self.harsh and self.chance.random() < 0.5:
            self.kill_in, self.gentle = self.chance.randint(1, 30), False
        self._survive(self.node.settle)
        self.kill_in = -1
        self._survive(self.node.rest if states.stuck else self.node.settle)
        states.stuck = False
        self.node.rest(40.0, 1)
        # What was before does not count any more.
        self.meant = {flow: (after, after) for flow, (_, after) in self.meant.items()}
        self._look("the last one")
        self._survive(self.node.rest)
        self.outcome.refused += lpm.refused + addresses.refused
        lpm.room = addresses.room = None
        self.node.rest(40.0)
        self.gentle = True
        self._look("the last one, with room for all")
        self.outcome.steps += 1
        if not self.node.reconciler.status().in_sync or self.node.plan.policy.waiting:
            self.outcome.unfinished.append(f"seed {self.seed}: {self.node.reconciler.status()}")
        if len(lpm.rows) - STEADY_ROWS != sum(one.prefixlen < one.max_prefixlen for one in self._named()):
            self.outcome.unfinished.append(f"seed {self.seed}: rows of {sorted(map(str, self._named()))}")

    def _named(self) -> set[Any]:
        peers = [
            peer
            for policy in self.after
            for rule in policy.rules
            for peer in rule.peers or ()
            if isinstance(peer, PeerCIDR)
        ]
        return {one for peer in peers for one in (peer.prefix, *peer.excepts) if one.prefixlen}

    def _survive(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Killed:
            self.outcome.kills += 1
            self.node.start()
            work()

    def _wrote(self, name: str, key: bytes, value: bytes | None) -> None:
        self.rows.wrote(name, key, value)
        self.outcome.rows += 1
        if name in JUDGING:
            self._look(name)
        if self.kill_in > 0:
            self.kill_in -= 1
            if self.kill_in == 0:
                self.kill_in = -1
                raise Killed

    def _look(self, row: str) -> None:
        for flow, meant in self.meant.items():
            passes = self.rows.allow(flow)
            if passes and not any(meant):
                self.outcome.opened.append(f"seed {self.seed}: {flow} after {row}")
            if not passes and all(meant) and self.gentle:
                self.outcome.lost.append(f"seed {self.seed}: {flow} after {row}")

    def _policy(self, name: str) -> Policy:
        chance = self.chance
        rules = [
            Rule(
                chance.choice(tuple(Direction)),
                chance.random() < 0.3,
                tuple(self._peer() for _ in range(chance.randint(1, 2))),
                chance.choice((None, None, (nodes.port(80),))),
                "0",
            )
            for _ in range(chance.randint(1, 3))
        ]
        return nodes.policy(
            name,
            *rules,
            subject=nodes.subject(app=chance.choice(("web", "web", "db"))),
            ingress=chance.random() < 0.6,
            egress=chance.random() < 0.6,
        )

    def _peer(self) -> Peer:
        nest = self.chance.choice(NESTS)
        chain = (WORLDS["::" in nest[0]], *nest)
        at = self.chance.randrange(len(chain) + 1)
        if at == len(chain):
            return PeerEntity("world")
        inside = chain[at + 1 :]
        if at == 0:
            inside = tuple(one for each in NESTS for one in each if (":" in one) == (":" in chain[0]))
        excepts = self.chance.sample(inside, min(len(inside), self.chance.choice((0, 1, 1, 2))))
        return PeerCIDR(ip_network(chain[at]), tuple(ip_network(one) for one in excepts))


def runs(first: int, count: int, *, harsh: bool) -> Outcome:
    """Some runs, by their seeds."""
    outcome = Outcome()
    with quiet_loop() as loop:
        for seed in range(first, first + count):
            Run(loop, seed, outcome, harsh=harsh).run()
    return outcome


def test_nothing_is_opened_or_lost_while_prefixes_come_and_go(
    is_long: bool, record_property: Callable[[str, object], None]
) -> None:
    """Every row can be written."""
    outcome = runs(0, LONG if is_long else DEFAULT, harsh=False)
    record_property(
        "figure", f"{outcome.steps} changes of prefixes, {outcome.rows} rows, none opened or lost"
    )
    assert outcome.opened[:10] == []
    assert outcome.lost[:10] == []
    assert outcome.unfinished[:3] == []


def test_a_full_ipcache_and_agents_that_die_open_nothing(is_long: bool) -> None:
    """Rows that do not fit, agents killed after any row; in the end all is as written."""
    outcome = runs(0, LONG if is_long else DEFAULT, harsh=True)
    assert outcome.opened[:10] == []
    assert outcome.lost[:10] == []
    assert outcome.unfinished[:3] == []
    assert outcome.kills > 50
    assert outcome.refused > 50


# ---- controls -----------------------------------------------------------------------------------


def test_rules_that_do_not_wait_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as rules and prefixes came in one round, exceptions were let in until their rows were there."""

    def look(self: Prefixes, *arguments: Any) -> None:
        real(self, *arguments)
        self.awaited, self.stand_ins = frozenset(), {}

    real = Prefixes.look
    monkeypatch.setattr(Prefixes, "look", look)
    assert runs(0, 10, harsh=False).opened


def test_rules_that_close_instead_of_waiting_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The world is shut until an exception from it is there: nothing is opened, but something lost."""

    def look(self: Prefixes, *arguments: Any) -> None:
        real(self, *arguments)
        self.awaited = frozenset()

    real = Prefixes.look
    monkeypatch.setattr(Prefixes, "look", look)
    outcome = runs(0, 10, harsh=False)
    assert outcome.lost
    assert not outcome.opened
