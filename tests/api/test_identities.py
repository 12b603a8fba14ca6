# SPDX-License-Identifier: Apache-2.0
"""
Numbers of label sets in a cluster: agents that take them up and an operator that collects them, against a
real API server and with no more rights than they declare.
"""

import asyncio
import contextlib
import urllib.error

import pytest

from api.agents import RULES, USER, Follower, prepare
from ciliumd.daemon.membership import Numbers
from ciliumd.daemon.node_facts import NodeFacts
from ciliumd.daemon.plan import NodePlan
from ciliumd.kubernetes.claims import CLAIMS, CONDEMNED
from ciliumd.kubernetes.kinds import CILIUM_IDENTITY, CILIUM_NODE, NODE, POD
from ciliumd.kubernetes.node import NodePublisher
from lab import operators
from lab.apiserver import ApiServer
from lab.operators import Operator
from lab.waiting import NotInTime, eventually
from unit.daemon import nodes

NOW = {"kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": 0}
ROUNDS = 4


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """An API server for agents and an operator."""
    users = (USER, operators.USER)
    with ApiServer(tmp_path_factory.mktemp("server"), users=users) as one:
        prepare(one)
        one.grant(operators.USER, list(operators.RULES))
        for name in ("n1", "n2"):
            one.request("POST", NODE.path(), {"metadata": {"name": name}})
        one.request("POST", "/api/v1/namespaces", {"metadata": {"name": "shop"}})
        yield one


class Agent:
    """What of an agent numbers label sets, on top of a source that follows the cluster."""

    def __init__(self, server, follower, name):
        self.server, self.follower, self.name = server, follower, name
        self.tables = follower.tables
        follower.wait_complete()
        eventually(lambda: follower.nodes, "its Node is known")
        follower.call(self._start())

    async def _start(self):
        self.tables.endpoints.mark_initialized()
        self.plan = NodePlan(
            self.tables,
            NodeFacts(self.name, "default", (), allocates=False),
            reserve_version=lambda _: None,
            next_version=1,
            clock=lambda: 0.0,
        )
        node = self.node = NodePublisher(
            self.follower.api, self.tables, name=self.name, mode="cluster-pool", pod_cidrs=tuple
        )
        node.node_changed(self.follower.nodes[-1])
        again = asyncio.Event()
        numbers = Numbers(self.follower.api, self.tables, self.plan, node, plan_again=again.set)
        for table in (*self.tables.sources, self.tables.endpoints, self.tables.identities):
            table.subscribe(again.set)

        async def rounds():
            while True:
                self.plan.refresh()
                await again.wait()
                again.clear()

        parts = (rounds(), node.run(), numbers.allocator.run(), numbers.claims.run())
        self.tasks = [asyncio.create_task(part) for part in parts]

    async def stop(self):
        """End what it does."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    def pod(self, slot, app):
        """A pod of this node with its endpoint."""
        body = {
            "metadata": {"name": f"pod-{slot}", "labels": {"app": app}},
            "spec": {"nodeName": self.name, "containers": [{"name": "a", "image": "a"}]},
        }
        self.server.request("POST", POD.path(namespace="shop"), body)
        key = ("shop", f"pod-{slot}")
        self.follower.wait(lambda tables: key in tables.pods, "the pod is known")
        self.follower.look(lambda: self.tables.endpoints.set(slot, nodes.endpoint(slot)))

    def remove(self, slot):
        """The pod and its endpoint go."""
        self.follower.look(lambda: self.tables.endpoints.delete(slot))
        self.server.request("DELETE", POD.path(f"pod-{slot}", namespace="shop"), NOW)

    def number(self, slot):
        """The identity that packets of the endpoint carry, once there is one."""
        look = self.follower.look
        try:
            return eventually(lambda: look(lambda: self.plan.identities.get(slot)), "a number", every=0.02)
        except NotInTime as late:
            state = look(
                lambda: (self.plan.unallocated, self.plan.unclaimed, self.node.claimed, self.node.error)
            )
            raise AssertionError(f"{late}; {state}") from late


@contextlib.contextmanager
def agent(server, name="n1"):
    """An agent that works."""
    with Follower(server.kubeconfig(USER), node=name) as follower:
        one = Agent(server, follower, name)
        try:
            yield one
        finally:
            for slot in follower.look(lambda: list(one.tables.endpoints)):
                one.remove(slot)
            follower.call(one.stop())


def identity(server, number):
    """The CiliumIdentity, or None."""
    try:
        return server.request("GET", CILIUM_IDENTITY.path(str(number)))
    except urllib.error.HTTPError as error:
        assert error.code == 404  # noqa: PT017  anything else is an error of the test
        return None


def claims(server, name="n1"):
    """What the node claims."""
    annotations = server.request("GET", CILIUM_NODE.path(name))["metadata"].get("annotations", {})
    return annotations.get(CLAIMS, "").split()


def test_number_is_claimed_before_it_is_used(server):
    """And the second pod of the same labels needs nothing more."""
    with agent(server) as one:
        one.pod(1, "web")
        number = one.number(1)
        assert identity(server, number)["security-labels"]["k8s:app"] == "web"
        assert claims(server) == [str(number)]
        one.pod(2, "web")
        assert one.number(2) == number
        with agent(server, "n2") as other:
            other.pod(3, "web")
            assert other.number(3) == number
            assert claims(server, "n2") == [str(number)]


def test_identity_in_use_that_somebody_deletes_is_made_again_under_its_number(server):
    """No packet changes its number for it."""
    with agent(server) as one:
        one.pod(1, "db")
        number = one.number(1)
        before = identity(server, number)["metadata"]["uid"]
        for _ in range(2):
            server.request("DELETE", CILIUM_IDENTITY.path(str(number)))
            made = eventually(lambda: identity(server, number), "it is there again")
            assert made["metadata"]["uid"] != before
            assert made["security-labels"]["k8s:app"] == "db"
            assert one.number(1) == number
            one.follower.wait(lambda tables: number in tables.cluster_identities, "every node knows it")
            before = made["metadata"]["uid"]


def test_endpoint_keeps_its_number_until_its_new_labels_have_one(server):
    """An endpoint in between has one or the other, and never none."""
    with agent(server) as one:
        one.pod(1, "old")
        before = one.number(1)
        seen = set()

        def record():
            seen.add(one.plan.identities.get(1))

        one.follower.look(lambda: one.tables.identities.subscribe(record))
        path = POD.path("pod-1", namespace="shop")
        server.request("PATCH", path, {"metadata": {"labels": {"app": "new"}}}, patch=True)
        eventually(lambda: one.number(1) != before, "it has the new number", every=0.01)
        assert seen <= {before, one.number(1)}


def test_condemned_identity_is_not_taken_up(server):
    """Its labels get another number at once; who has the number keeps it."""
    with agent(server) as one:
        one.pod(1, "late")
        number = one.number(1)
        label = {"metadata": {"labels": {CONDEMNED: "true"}}}
        server.request("PATCH", CILIUM_IDENTITY.path(str(number)), label, patch=True)
        with agent(server, "n2") as other:
            other.pod(2, "late")
            assert other.number(2) != number
        assert one.number(1) == number


def test_operator_collects_what_is_unused_and_nothing_that_is_used(server, tmp_path):
    """Pods come and go all the time, next to an operator that collects every second."""
    wrong = []
    with Operator(server, tmp_path) as operator, agent(server) as one, agent(server, "n2") as other:
        operator.wait_leading()
        one.pod(1, "steady")
        steady = one.number(1)
        for turn in range(ROUNDS):
            slot = 10 + turn
            other.pod(slot, f"turn-{turn}")
            number = other.number(slot)
            looks = operator.metrics()['cilium_operator_identity_gc_runs_total{outcome="success"}'] + 1
            eventually(
                lambda looks=looks: (
                    operator.metrics()['cilium_operator_identity_gc_runs_total{outcome="success"}'] >= looks
                ),
                "a look",
            )
            wrong += [one for one in (steady, number) if identity(server, one) is None]
            other.remove(slot)
        assert wrong == []
        # Claims are taken back when something else is written, or after a while.
        left = eventually(lambda: _numbers_if_few(server), "those of earlier turns are collected", seconds=30)
        assert str(steady) in left
        assert claims(server) == [str(steady)]
    refused = [
        asked for user in (USER, operators.USER) for asked in server.requests(user) if asked.status == 403
    ]
    assert refused == []
    assert not [
        rule for rule in RULES if rule.get("resources") == ["ciliumidentities"] and "update" in rule["verbs"]
    ]


def _numbers_if_few(server):
    names = [one["metadata"]["name"] for one in server.request("GET", CILIUM_IDENTITY.path())["items"]]
    return names if len(names) <= 3 else None
