# SPDX-License-Identifier: Apache-2.0
"""
An agent whose maps are written row by row, and flows that are looked up after every row.

For tests of an order: what neither the state before a step nor the one after it allows never passes, also
when rows cannot be written, or the agent is killed after any row and another one goes on.  What both allow
always passes, unless a row could not be written or an agent was killed.
"""

import random
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from ciliumd.daemon import stages as names
from ciliumd.daemon.node_facts import NodeFacts
from ciliumd.daemon.plan import NodePlan
from ciliumd.daemon.recovery import restore_numbers
from ciliumd.daemon.stages import judged_addresses, judged_as_written, prefixes_written, stages
from ciliumd.model.policy import Direction, Peer, Policy, Rule
from ciliumd.reconcile import restore
from ciliumd.reconcile.loop import Reconciler
from property.churn.agent import TARGETS, Inline, Watched, quiet_loop
from property.churn.judge import Flow, Rows
from unit.daemon import nodes

SUBJECTS = ("10.0.0.3", "10.0.0.4")  # of the endpoints 1 and 2, which are web and db
PORTS = (80, 443)
JUDGING = frozenset({names.POLICY, names.STATES, names.FACTS, names.LXC, names.IPCACHE, names.IPCACHE_LPM})
LEAST_KILLS, LEAST_REFUSALS = 50, 50


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

    def assert_harmless(self, *, harsh: bool) -> None:
        """Nothing was opened, lost or left undone; and if it was *harsh*, enough went wrong to tell."""
        assert self.opened[:10] == []
        assert self.lost[:10] == []
        assert self.unfinished[:3] == []
        if harsh:
            assert self.kills > LEAST_KILLS
            assert self.refused > LEAST_REFUSALS


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
    """Maps, and the agents that write them one after the other; *facts* are what each knows of the node."""

    def __init__(
        self, loop: Any, wrote: Callable[[str, bytes, bytes | None], None], facts: NodeFacts
    ) -> None:
        self.loop = loop
        self.facts = facts
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
            self.facts,
            reserve_version=self._reserve,
            next_version=self.next_version,
            clock=lambda: self.now,
        )
        self.reconciler = Reconciler(
            stages(self.plan, self.tables, self.maps, devices=dict, route_mtu=lambda: 1450),
            executor=Inline(),
            may_delete=lambda: self.tables.in_sync,
            unfinished=self.plan.unfinished,
            clock=lambda: self.now,
        )
        self.plan.prefixes.identity_at = prefixes_written(self.reconciler)
        tracker = self.reconciler.tracker
        self.loop.run_until_complete(self.reconciler.load())
        self.plan.parts.restore(judged_as_written(self.reconciler), judged_addresses(self.reconciler))
        restore_numbers(self.tables, rows=lambda name: tracker(name).realized)
        live = restore.endpoints(tracker(names.FACTS).realized, tracker(names.STATES).realized)
        self.plan.restore_versions(
            tracker(names.POLICY).realized, versions={one.id: one.policy_version for one in live.values()}
        )
        nodes.add_pod(self.tables, 1, {"app": "web"})
        nodes.add_pod(self.tables, 2, {"app": "db"})
        self.fill()
        nodes.mark_in_sync(self.tables)

    def fill(self) -> None:
        """What else there is when an agent starts: the policies in force."""
        self.set_policies(self.policies)

    def _reserve(self, number: int) -> None:
        self.next_version = number

    def set_policies(self, policies: Mapping[Any, Policy]) -> None:
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

    def in_the_end(self) -> str:
        """What is not as it is wanted; empty if all is."""
        if self.reconciler.status().in_sync and not self.plan.policy.waiting:
            return ""
        return str(self.reconciler.status())


def allows(policies: Collection[Policy], flow: Flow, holds: Callable[[Peer], bool]) -> bool:
    """Whether *policies* allow *flow*, read off their rules; *holds* tells whether a peer is the flow's."""
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
            if rule.direction is direction and _means(rule, flow, holds):
                if rule.deny:
                    return False
                allowed = True
    return allowed or not closed


def _means(rule: Rule, flow: Flow, holds: Callable[[Peer], bool]) -> bool:
    if rule.ports is not None and all(port.port != flow.port for port in rule.ports):
        return False
    return rule.peers is None or any(map(holds, rule.peers))


class Run:
    """
    A state that changes step by step, and every flow that is *meant* looked up after every row.

    Of each the states say whether it passes; those are what was before, what comes, and what may be between.
    """

    node: Any

    def __init__(self, loop: Any, seed: int, outcome: Outcome, *, harsh: bool) -> None:
        self.chance = random.Random(seed)
        self.seed = seed
        self.outcome = outcome
        self.harsh = harsh
        self.rows = Rows()
        self.kill_in = -1
        self.gentle = True
        self.meant: dict[Flow, tuple[bool, ...]] = {}
        self.node = self.made(loop)
        self.node.settle()

    def made(self, loop: Any) -> Any:
        """The node, which tells :meth:`wrote` of its rows."""
        raise NotImplementedError

    def run(self) -> None:
        """All the steps."""
        raise NotImplementedError

    def policy(self, name: str, *rules: Rule) -> Policy:
        """A policy with these rules."""
        chance = self.chance
        return nodes.policy(
            name,
            *rules,
            subject=nodes.subject(app=chance.choice(("web", "web", "db"))),
            ingress=chance.random() < 0.6,
            egress=chance.random() < 0.6,
        )

    def maybe_kill(self) -> None:
        """If it is harsh: the agent is to die after some row."""
        if self.harsh and self.chance.random() < 0.5:
            self.kill_in, self.gentle = self.chance.randint(1, 30), False

    def survive(self, work: Callable[[], None]) -> None:
        """Do *work*, and once more by another agent if this one dies."""
        try:
            work()
        except Killed:
            self.outcome.kills += 1
            self.node.start()
            work()

    def wrote(self, name: str, key: bytes, value: bytes | None) -> None:
        """A row was written, or deleted."""
        self.rows.wrote(name, key, value)
        self.outcome.rows += 1
        if name in JUDGING:
            self.look(name)
        if self.kill_in > 0:
            self.kill_in -= 1
            if self.kill_in == 0:
                self.kill_in = -1
                raise Killed

    def look(self, row: str) -> None:
        """Every flow passes as one of the states says."""
        for flow, meant in self.meant.items():
            passes = self.rows.allow(flow)
            if passes and not any(meant):
                self.outcome.opened.append(f"seed {self.seed}: {flow} after {row}")
            if not passes and all(meant) and self.gentle:
                self.outcome.lost.append(f"seed {self.seed}: {flow} after {row}")

    def unfinished(self, what: str) -> None:
        """Something is not as it should be in the end, unless *what* is empty."""
        if what:
            self.outcome.unfinished.append(f"seed {self.seed}: {what}")


def runs(run: type[Run], first: int, count: int, *, harsh: bool) -> Outcome:
    """Some runs, by their seeds."""
    outcome = Outcome()
    with quiet_loop() as loop:
        for seed in range(first, first + count):
            run(loop, seed, outcome, harsh=harsh).run()
    return outcome
