# SPDX-License-Identifier: Apache-2.0
"""
However the news arrives, the maps end as those of an agent that starts now, and open nothing on the way.

Events of every kind come late, twice, out of order across kinds or not at all, watches begin anew, numbers,
names and addresses change hands.  After every single row that is written some flows are looked up as the
programs would: one that passes must be allowed by the objects before the step or after it, or by a mixture
of them where a step brings several.
"""

import asyncio
import json
import os
import random
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, settings

from ciliumd.daemon import stages as names
from ciliumd.kubernetes.kinds import TABLES_OF, Kind
from ciliumd.kubernetes.store import KindStore, Sweep
from ciliumd.reconcile.target import Stage
from property.churn import services
from property.churn.agent import HOST, Agent, Watched, complete, quiet_loop
from property.churn.cluster import (
    ADDRESSES,
    BALANCERS,
    FAR_ADDRESSES,
    OTHER_NODES,
    OUTSIDE,
    Cluster,
    Told,
    Wired,
)
from property.churn.judge import Flow, Known, Rows, mixtures
from property.documents import cilium_policy, clusterwide_policy, kubernetes_policy
from property.reference.oracle import EGRESS, INGRESS
from property.worlds import Document

pytestmark = pytest.mark.property

DEFAULT, LONG = 150, 50_000
STEPS = (5, 11)
MOST_AT_ONCE = 3
FLOWS = 10
# Rows that decide about packets of pods; the others are not looked at in between.
JUDGING = frozenset({names.POLICY, names.STATES, names.FACTS, names.LXC, names.IPCACHE, names.IPCACHE_LPM})
PEERS = (*ADDRESSES, *FAR_ADDRESSES, *OUTSIDE, HOST, OTHER_NODES["node-two"][0], "10.1.0.77")
TRAFFIC = (("TCP", 80), ("TCP", 443), ("UDP", 53), ("TCP", 53), ("TCP", 8080), ("ICMP", 8))


@dataclass
class Outcome:
    """What became of some interleavings."""

    interleavings: int = 0
    events: Counter[str] = field(default_factory=Counter)
    rows_written: int = 0
    looked_up: int = 0
    passed: int = 0
    let_in: int = 0
    lost: list[str] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    wrongly_allowed: list[str] = field(default_factory=list)

    def add(self, other: "Outcome") -> None:
        """Both together."""
        for name in ("interleavings", "rows_written", "looked_up", "passed", "let_in"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.events += other.events
        self.lost += other.lost
        self.differences += other.differences
        self.wrongly_allowed += other.wrongly_allowed


def policies(count: int) -> list[Document]:
    """Policies of every kind with every field, the same on every run."""
    pool: list[Document] = []
    for kind in (cilium_policy, clusterwide_policy, kubernetes_policy):

        @settings(max_examples=count // 3, derandomize=True, database=None, deadline=None)
        @given(kind(0))
        def draw(document: Document) -> None:
            pool.append(document)

        draw()
    return pool


class Interleaving:
    """One agent, one cluster, and what lies between them."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        seed: int,
        pool: list[Document],
        outcome: Outcome,
        *,
        agent: Callable[..., Agent] = Agent,
    ) -> None:
        self.chance = random.Random(seed)
        self.seed = seed
        self.outcome = outcome
        self.loop = loop
        self.enforcement = self.chance.choice(("default",) * 9 + ("always",))
        self.cluster = Cluster(self.chance, pool)
        self.rows = Rows()
        self.agent = agent(loop, wrote=self._wrote, enforcement=self.enforcement)
        self.known = Known(self.enforcement)
        self.queues: dict[Kind, list[Told]] = {kind: [] for kind in TABLES_OF}
        self.history: list[Told] = []
        self.flows: list[Flow] = []
        self.changes: list[Any] = []
        self._verdicts: dict[Flow, bool] = {}
        self._mixtures: list[Known] = []

    # ---- news --------------------------------------------------------------------------------

    def _happen(self, said: list[Told | Wired]) -> None:
        """Events queue up; the runtime's are there at once."""
        for one in said:
            if isinstance(one, Told):
                self.queues[one.kind].append(one)
                self.history.append(one)
            else:
                self._take(one, "wired")

    def _take(self, change: Any, how: str) -> None:
        self.changes.append(change)
        self.outcome.events[how] += 1

    def _deliver(self) -> None:
        waiting = [kind for kind, queue in self.queues.items() if queue]
        if waiting:
            queue = self.queues[self.chance.choice(waiting)]
            late = self.chance.random() < 0.1
            self._take(queue.pop(self.chance.randrange(len(queue)) if late else 0), "told")

    def _repeat(self) -> None:
        if self.history:
            waiting = {id(one) for queue in self.queues.values() for one in queue}
            told = self.chance.choice(self.history)
            if id(told) not in waiting:
                self._take(told, "repeated")

    def _lose(self) -> None:
        waiting = [kind for kind, queue in self.queues.items() if queue]
        if waiting:
            queue = self.queues[self.chance.choice(waiting)]
            queue.pop(self.chance.randrange(len(queue)))
            self.outcome.events["lost"] += 1

    def _list(self) -> None:
        kind = self.chance.choice(list(TABLES_OF))
        shown = {key: one for key, one in self.cluster.objects.items() if key[0] == kind}
        self._take((kind, self.cluster.version, shown), "listed")

    def _begin_watch_again(self) -> None:
        """Of one kind everything there is will be told, in any order; what was under way is lost."""
        kind = self.chance.choice(list(TABLES_OF))
        there = [Told(kind, "ADDED", one) for key, one in self.cluster.objects.items() if key[0] == kind]
        self.queues[kind] = self.chance.sample(there, len(there))
        self.outcome.events["watches begun"] += 1

    # ---- steps -------------------------------------------------------------------------------

    def run(self) -> None:
        """From a small cluster to the end."""
        for one in self.cluster.begin():
            self._apply([one])
        for kind in TABLES_OF:
            self._apply([(kind, self.cluster.version, self.cluster.objects)])
        self._settle()
        self._ask_for_numbers()
        for _ in range(self.chance.randint(*STEPS)):
            self._step()
        self._end()
        self.outcome.interleavings += 1

    def _step(self) -> None:
        self.changes = []
        for _ in range(self.chance.randint(1, 3)):
            self._happen(self.cluster.change())
        actions: list[Callable[[], None]] = [
            *([self._deliver] * 12),
            self._repeat,
            self._lose,
            self._list,
            self._begin_watch_again,
        ]
        for _ in range(self.chance.randint(1, 4)):
            if len(self.changes) < MOST_AT_ONCE:
                self.chance.choice(actions)()
        while self.changes:
            self._do(self.changes[:MOST_AT_ONCE])
            self.changes = self.changes[MOST_AT_ONCE:]
        self._ask_for_numbers()

    def _do(self, changes: list[Any]) -> None:
        """Take *changes* in and look at some flows after every row."""
        before = self.known.copy()
        subjects = [one.address for one in self.known.endpoints.values()] or list(ADDRESSES)
        subjects += [one.address for one in changes if isinstance(one, Wired) and one.address]
        # Half of the flows are with those the news is about.
        peers = [*PEERS, *(self._concerned(changes) * len(PEERS))]
        self.flows = [
            Flow(
                self.chance.choice(subjects),
                self.chance.choice((INGRESS, EGRESS)),
                self.chance.choice(peers),
                *self.chance.choice(TRAFFIC),
            )
            for _ in range(FLOWS)
        ]
        self._verdicts = {}
        self._mixtures = list(mixtures(before, changes))
        self._apply(changes)
        self._settle()
        if self.chance.random() < 0.3:
            self.agent.now += 5.0
            self._settle()
        # What was in between does not count any more.
        self._verdicts, self._mixtures = {}, [self.known]
        self._look("the last one")
        self.flows = []

    def _concerned(self, changes: list[Any]) -> list[str]:
        """Addresses of the pods that *changes* are about."""
        texts = [json.dumps(one.document) for one in changes if isinstance(one, Told)]
        found = [one.address for one in changes if isinstance(one, Wired) and one.address]
        found += [one for one in PEERS if any(f'"{one}"' in text for text in texts)]
        pods = {one.key[1:] for one in changes if isinstance(one, Told)}
        return found + [one.address for one in self.known.endpoints.values() if one.pod in pods]

    def _apply(self, changes: list[Any]) -> None:
        for change in changes:
            if isinstance(change, Told):
                self.agent.tell(change)
                self.known.tell(change)
            elif isinstance(change, Wired):
                self.agent.wire(change)
                self.known.tell(change)
            else:
                kind, version, objects = change
                self.agent.show(kind, version, [one for key, one in objects.items() if key[0] == kind])
                self.known.show(kind, version, objects)

    def _settle(self) -> None:
        self.agent.settle()
        self.known.settled()

    def _ask_for_numbers(self) -> None:
        for labels in self.agent.unallocated:
            self._happen(self.cluster.number(labels))

    def _wrote(self, name: str, key: bytes, value: bytes | None) -> None:
        self.rows.wrote(name, key, value)
        self.outcome.rows_written += 1
        if name in JUDGING:
            self._look(f"one of {name}")
        if name in services.OF_SERVICES and self.flows:
            self._look_at_services(f"one of {name}")

    def _look(self, row: str) -> None:
        """Look up every flow of the step after a *row* was written."""
        for flow in self.flows:
            self.outcome.looked_up += 1
            if self.rows.allow(flow):
                self.outcome.passed += 1
                self._must_be_allowed(flow, row)

    def _look_at_services(self, row: str) -> None:
        """Follow every service after a *row* of one was written."""
        maps = self.rows.maps
        nowhere = services.lead_nowhere(maps)
        self.outcome.lost += [f"seed {self.seed}: {one} after row {row}" for one in nowhere]
        for asked in services.let_in(maps):
            self.outcome.let_in += 1
            if not any(services.may_ask(known, *asked) for known in self._mixtures):
                self.outcome.wrongly_allowed.append(f"seed {self.seed}: {asked} after row {row}")

    def _must_be_allowed(self, flow: Flow, row: str) -> None:
        if flow not in self._verdicts:
            self._verdicts[flow] = any(known.allows(flow) for known in self._mixtures)
            if not self._verdicts[flow]:
                self.outcome.wrongly_allowed.append(f"seed {self.seed}: {flow} after row {row}")

    # ---- the end -----------------------------------------------------------------------------

    def _end(self) -> None:
        """Everything is told once more and listed; a fresh agent is told the same in another order."""
        self.cluster.repair()
        told: dict[str, int] = {}
        while told != (there := {f"{key}": id(one) for key, one in self.cluster.objects.items()}):
            told = there
            for key, one in self.cluster.objects.items():
                self.agent.tell(Told(key[0], "ADDED", one))
            complete(self.agent, self.cluster.version, self.cluster.objects)
            self.agent.settle()
            for labels in self.agent.unallocated:
                self.cluster.number(labels)
        self.agent.rest()
        fresh = Agent(self.loop, enforcement=self.enforcement)
        everything = list(self.cluster.objects.items())
        for key, one in self.chance.sample(everything, len(everything)):
            fresh.tell(Told(key[0], "ADDED", one))
        wired = list(self.cluster.endpoints.values())
        for change in self.chance.sample(wired, len(wired)):
            fresh.wire(change)
        complete(fresh, self.cluster.version, self.cluster.objects)
        fresh.rest()
        self._compare(fresh)

    def _compare(self, fresh: Agent) -> None:
        said, expected = self.agent.said(), fresh.said()
        found = said.differences(expected) + said.broken + said.unused + expected.broken
        for name in ("cilium_nodes_v1", "cilium_endpoints_v1", "cilium_lxc_v1", "cilium_ifindex_v1"):
            if name != "cilium_endpoints_v1" and self.agent.maps[name].rows != fresh.maps[name].rows:
                found.append(f"{name} differs")
        if self.agent.plan.remote_routes != fresh.plan.remote_routes:
            found.append("routes differ")
        self.outcome.differences += [f"seed {self.seed}: {one}" for one in found]


def interleave(
    first: int, count: int, pool: list[Document], *, agent: Callable[..., Agent] = Agent
) -> Outcome:
    """*count* interleavings, by their seeds, of an *agent* that is as it should be or is not."""
    outcome = Outcome()
    with quiet_loop() as loop:
        for seed in range(first, first + count):
            Interleaving(loop, seed, pool, outcome, agent=agent).run()
    return outcome


def test_news_in_any_order_ends_in_the_maps_of_a_fresh_agent(
    is_long: bool, record_property: Callable[[str, object], None]
) -> None:
    """A3: no difference at the end, nothing allowed on the way that neither before nor after allows."""
    count = LONG if is_long else DEFAULT
    pool = policies(600 if is_long else 150)
    outcome = Outcome()
    if is_long:
        workers = os.cpu_count() or 1
        share = 250
        with ProcessPoolExecutor(workers) as processes:
            jobs = [processes.submit(interleave, first, share, pool) for first in range(0, count, share)]
            for job in jobs:
                outcome.add(job.result())
    else:
        outcome = interleave(0, count, pool)
    events = sum(outcome.events.values())
    record_property(
        "figure",
        f"A3: {outcome.interleavings} interleavings, {events} events "
        f"({', '.join(f'{name} {many}' for name, many in sorted(outcome.events.items()))}), "
        f"{outcome.rows_written} rows written, {outcome.looked_up} flows looked up, {outcome.passed} passed; "
        f"{outcome.let_in} clients of balancers let in, {len(outcome.lost)} rows of services led nowhere; "
        f"{len(outcome.differences)} differences, {len(outcome.wrongly_allowed)} wrongly allowed",
    )
    record_property(
        "data",
        json.dumps(
            {
                "case": "A3",
                "interleavings": outcome.interleavings,
                "events": events,
                "flows": outcome.looked_up,
                "differences": len(outcome.differences),
                "wrongly_allowed": len(outcome.wrongly_allowed),
            }
        ),
    )
    assert outcome.differences[:20] == []
    assert outcome.wrongly_allowed[:20] == []
    assert outcome.lost[:20] == []
    assert outcome.let_in > 0
    assert 0.1 < outcome.passed / outcome.looked_up < 0.9, "flows that say nothing"
    assert min(outcome.events[how] for how in ("told", "repeated", "lost", "listed", "wired")) > 0


# ---- controls -----------------------------------------------------------------------------------


class FirstKnown(Watched):
    """A map whose rows stay as they were first written."""

    def update(self, items: Mapping[bytes, bytes]) -> dict[bytes, Exception]:
        """Write what is not there."""
        return super().update({key: value for key, value in items.items() if key not in self.rows})

    def delete(self, keys: Collection[bytes]) -> dict[bytes, Exception]:
        """Delete nothing."""
        del keys
        return {}


class Clinging(Agent):
    """Leaves each pod under the first policy it was under."""

    def stages(self) -> list[Stage]:
        """Of which two write nothing anew."""
        for name in (names.POLICY, names.STATES):
            self.maps[name] = FirstKnown(name, self.wrote)
        return super().stages()


class Hasty(Agent):
    """Writes frontends before all that they need."""

    def stages(self) -> list[Stage]:
        """With frontends behind the first, which plans."""
        first, *others = super().stages()
        (frontends,) = (one for one in others if one.name == names.SERVICES)
        others.remove(frontends)
        return [first, replace(frontends, needs=(), refers=None, reads=None), *others]


@pytest.fixture(scope="module")
def few_policies() -> list[Document]:
    """Policies for the controls."""
    return policies(60)


def test_a_pod_that_keeps_its_policy_is_noticed(few_policies: list[Document]) -> None:
    """The negative control of what is allowed on the way."""
    assert interleave(0, 30, few_policies, agent=Clinging).wrongly_allowed


def test_a_frontend_that_comes_too_early_is_noticed(few_policies: list[Document]) -> None:
    """The negative control of services: packets are lost, and clients let in whom nobody allows."""
    outcome = interleave(0, 60, few_policies, agent=Hasty)
    assert outcome.lost
    assert any(one in wrong for one in BALANCERS for wrong in outcome.wrongly_allowed)


def test_an_object_that_stays_is_noticed(
    few_policies: list[Document], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control of how it ends: an agent that learns of no deletion from a listing."""
    real = KindStore.sweep

    def forgetful(self: KindStore, *arguments: Any, **named: Any) -> Sweep:
        kept = dict(self._entries)
        sweep = real(self, *arguments, **named)
        self._entries = {**kept, **self._entries}
        return replace(sweep, changes=())

    monkeypatch.setattr(KindStore, "sweep", forgetful)

    assert interleave(0, 20, few_policies).differences
