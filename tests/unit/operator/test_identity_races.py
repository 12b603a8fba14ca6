# SPDX-License-Identifier: Apache-2.0
"""
No number that is in use is ever deleted, whatever happens in which order.

The collector and the parts of agents that number label sets are the real ones.  Each of their requests
reaches the API server at some moment and is answered at some later one; watches tell late; pods come and
go in between.  Who is next is chance's to say.
"""

import asyncio
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ciliumd.daemon.membership import Numbers
from ciliumd.daemon.node_facts import NodeFacts
from ciliumd.daemon.plan import NodePlan
from ciliumd.kubernetes.errors import ApiError
from ciliumd.kubernetes.kinds import CILIUM_IDENTITY
from ciliumd.kubernetes.node import NodePublisher
from ciliumd.operator.gc import IdentityGc
from ciliumd.operator.metrics import Metrics
from ciliumd.resources import parse
from ciliumd.resources.node import KubernetesNode
from ciliumd.tables import Tables
from unit.daemon import nodes
from unit.kubernetes.fake_api import FakeApi

APPS = ("web", "db")
STEPS = 400


class Server(FakeApi):
    """An API server to which requests are under way, and from which answers are."""

    def __init__(self):
        super().__init__()
        self.under_way = []

    async def pass_on(self):
        """Wait for chance."""
        turn = asyncio.get_running_loop().create_future()
        self.under_way.append(turn)
        await turn


def _delayed(name):
    async def request(self, *arguments, **options):
        await self.pass_on()
        try:
            return await getattr(FakeApi, name)(self, *arguments, **options)
        finally:
            await self.pass_on()

    return request


for _name in ("get", "create", "replace", "delete", "patch", "list", "names"):
    setattr(Server, _name, _delayed(_name))


class Agent:
    """What of an agent numbers label sets."""

    def __init__(self, server, name, *, numbers=Numbers):
        self.server = server
        self.tables = Tables()
        nodes.mark_in_sync(self.tables)
        self.plan = NodePlan(
            self.tables,
            NodeFacts(name, "default", (), allocates=False),
            reserve_version=lambda _: None,
            next_version=1,
            clock=lambda: 0.0,
        )
        self.node = NodePublisher(
            server, self.tables, name=name, mode="cluster-pool", pod_cidrs=tuple, boot_id=name
        )
        self.node.node_changed(KubernetesNode(name, f"uid-{name}", {}, (), ()))
        numbers = numbers(server, self.tables, self.plan, self.node, plan_again=lambda: None)
        self.works = [self.node.work, numbers.allocator.work, numbers.claims.work]
        numbers.allocator._chance = random.Random(name)
        self.running = [None, None, None]

    def pod(self, slot, app):
        """The pod of a *slot* has these labels now; None: there is none."""
        if app is None:
            self.tables.endpoints.delete(slot)
            self.tables.pods.delete(("shop", f"pod-{slot}"))
        else:
            nodes.add_pod(self.tables, slot, {"app": app})

    def watch(self):
        """The watch tells how things are."""
        rows = {}
        for one in self.server.of(CILIUM_IDENTITY).values():
            rows |= {key: row for _, key, row in parse(one).rows()}
        for gone in self.tables.cluster_identities.view().keys() - rows.keys():
            self.tables.cluster_identities.delete(gone)
        for key, row in rows.items():
            self.tables.cluster_identities.set(key, row)

    def work(self, which):
        """Begin to do what a part has to do, unless it is at it."""
        if self.running[which] is None or self.running[which].done():
            self.running[which] = asyncio.ensure_future(self.works[which]())

    def used(self):
        """Numbers that packets may carry."""
        return {
            self.plan.identities[number]: self.plan.labels[number]
            for number in self.plan.identities
            if self.plan.identities[number] >= 256
        }


class Story:
    """Two agents, a collector and a server, and what chance does to them."""

    def __init__(self, chance, numbers):
        self.chance = chance
        self.server = Server()
        self.agents = [Agent(self.server, f"n{i}", numbers=numbers) for i in range(2)]
        self.gc = IdentityGc(self.server, Metrics(), timeout=0.0, limit=100, clock=lambda: 0.0)
        self.collecting = None
        self.uses = self.deleted = 0

    @property
    def tasks(self):
        """Everything that was begun."""
        begun = (self.collecting, *(task for one in self.agents for task in one.running))
        return [task for task in begun if task is not None]

    async def step(self):
        """Something happens, and is looked at."""
        before, there = [one.used() for one in self.agents], len(self.server.of(CILIUM_IDENTITY))
        self._act()
        for _ in range(5):
            await asyncio.sleep(0)
        for task in self.tasks:
            if task.done() and (error := task.exception()):
                assert isinstance(error, ApiError), error
        self.deleted += max(0, there - len(self.server.of(CILIUM_IDENTITY)))
        for one, had in zip(self.agents, before, strict=True):
            self.uses += len(one.used().keys() - had.keys())
            self._judge(one)

    def _act(self):
        agent, under_way = self.chance.choice(self.agents), self.server.under_way
        match self.chance.randrange(16):
            case 0:
                agent.pod(self.chance.randint(1, 2), self.chance.choice((*APPS, None)))
            case 1:
                agent.watch()
            case 2 | 3:
                agent.plan.refresh()
            case 4 if self.collecting is None or self.collecting.done():
                self.collecting = asyncio.ensure_future(self.gc.collect())
            case 5 | 6 | 7:
                agent.work(self.chance.randrange(3))
            case _ if under_way:
                under_way.pop(self.chance.randrange(len(under_way))).set_result(None)

    def _judge(self, agent):
        for number, labels in agent.used().items():
            stored = self.server.of(CILIUM_IDENTITY).get(("", str(number)))
            assert stored is not None, f"{number} is in use and was deleted"
            ((_, _, says),) = parse(stored).rows()
            assert says == labels, f"{number} is in use and means something else"


async def live(chance, *, numbers=Numbers):
    """One story; how often a number was taken into use, and how many were deleted."""
    story = Story(chance, numbers)
    try:
        for _ in range(STEPS):
            await story.step()
    finally:
        for task in story.tasks:
            task.cancel()
        await asyncio.gather(*story.tasks, return_exceptions=True)
    return story.uses, story.deleted


def first_failure(numbers, seeds):
    """What goes wrong in the first story in which something does; empty if nothing does."""
    for seed in seeds:
        try:
            asyncio.run(live(random.Random(seed), numbers=numbers))
        except AssertionError as error:
            return str(error)
    return ""


@settings(max_examples=60, deadline=None)
@given(st.randoms(use_true_random=True))
def test_number_in_use_is_never_deleted(chance):
    """Neither by a collector that is slow, nor because an agent believes an old watch."""
    asyncio.run(live(chance))


def test_stories_are_about_something():
    """Numbers are taken into use and deleted, many times."""
    uses = deleted = 0
    for seed in range(20):
        story = asyncio.run(live(random.Random(seed)))
        uses, deleted = uses + story[0], deleted + story[1]
    assert uses > 20
    assert deleted > 20


class Trusting(Numbers):
    """Uses what the watch shows without a claim, as if nobody deleted."""

    def __init__(self, api, tables, plan, node, *, plan_again):
        super().__init__(api, tables, plan, node, plan_again=plan_again)
        node.wanted_claims = lambda: None
        self.claims._claimed = lambda: dict.fromkeys(plan.unclaimed.values(), 1)


class Blind(Numbers):
    """Claims, and does not look whether the number is condemned."""

    def __init__(self, api, tables, plan, node, *, plan_again):
        super().__init__(api, tables, plan, node, plan_again=plan_again)

        async def found(number):
            labels = next(one for one, wanted in plan.unclaimed.items() if wanted == number)
            return {
                "metadata": {},
                "security-labels": {f"{label.source}:{label.key}": label.value for label in labels},
            }

        self.claims._found = found


@pytest.mark.parametrize("numbers", [Trusting, Blind])
def test_stories_find_what_goes_wrong_without_a_part_of_the_protocol(numbers):
    """Both halves are needed, and the stories would tell if one were lost."""
    assert "is in use and" in first_failure(numbers, range(300))
