# SPDX-License-Identifier: Apache-2.0
"""Numbers come back when nobody can mistake their new owner for the old one, and not before."""

import asyncio
from ipaddress import ip_address, ip_network

import pytest

from ciliumd.daemon import stages
from ciliumd.daemon.release import IDENTITY_REST, ROW_REST, Release, Resting
from ciliumd.model.service import BackendKey, Frontend, FrontendKey, Service, ServiceKind, ServicePort
from ciliumd.reconcile.loop import Reconciler
from unit.daemon import nodes
from unit.daemon.kernel import Maps
from unit.reconcile.rounds import Inline

FRONTEND = FrontendKey(ip_address("10.96.0.1"), 80, "TCP")


class Node:
    """A plan, maps in memory and the release of numbers, all on one clock."""

    def __init__(self):
        self.planned = nodes.Planned(nodes.filled())
        self.clock = self.planned.clock
        self.maps = Maps()
        every = stages.stages(self.planned.plan, self.tables, self.maps, devices=dict, route_mtu=lambda: 1450)
        self.reconciler = Reconciler(
            every, executor=Inline(), may_delete=lambda: self.tables.in_sync, clock=self.clock
        )
        self.release = Release(
            self.tables,
            self.planned.plan,
            rows=lambda name: self.reconciler.tracker(name).realized,
            settled=lambda: self.reconciler.status().in_sync,
            readers={"problems": lambda: 0},
            clock=self.clock,
        )

    @property
    def tables(self):
        """The node's tables."""
        return self.planned.tables

    def live(self, seconds):
        """Time passes in steps, each with a look and a round; how many numbers were released."""
        released = 0
        for _ in range(max(1, round(seconds / 10))):
            self.clock.now += min(seconds, 10)
            released += self.release.look()
            self.reconciler.trigger()
            asyncio.run(self.reconciler.round())
        return released


@pytest.fixture
def node():
    """A node with a web pod and a service before it."""
    node = Node()
    nodes.add_pod(node.tables, 1, {"app": "web"})
    front = Frontend(FRONTEND.addr, 80, "TCP", ServiceKind.CLUSTER_IP)
    node.tables.services.set(
        ("shop", "web"),
        Service(
            "shop",
            "web",
            "ClusterIP",
            (front,),
            (ServicePort("", "TCP", 80, 8080),),
            selector=(("app", "web"),),
        ),
    )
    node.live(10)
    return node


def test_only_what_was_unused_at_every_look_has_rested():
    """Being wanted once in between starts the time anew."""
    resting = Resting(60.0)
    assert resting.rested(["a", "b"], 0.0) == []
    assert resting.rested(["b"], 30.0) == []
    assert resting.rested(["a", "b"], 59.9) == []
    assert resting.rested(["a", "b"], 60.0) == ["b"]
    assert resting.rested(["a"], 119.8) == []
    assert resting.rested(["a"], 119.9) == ["a"]
    assert len(resting) == 1


def test_service_and_backend_ids_rest_after_their_rows_are_gone(node):
    """Deleted, then 60 seconds, then free; the ids of what is served stay."""
    assert dict(node.tables.service_ids.items()) == {FRONTEND: 1}
    assert len(node.tables.backend_ids) == 1
    assert node.live(10 * ROW_REST) == 0

    node.tables.services.delete(("shop", "web"))
    node.live(ROW_REST)
    assert len(node.tables.service_ids) == len(node.tables.backend_ids) == 1
    node.live(20)
    assert len(node.tables.service_ids) == len(node.tables.backend_ids) == 0


def test_an_id_whose_rows_cannot_be_deleted_is_kept(node):
    """Packets still find the row, so the time does not even begin."""
    revnat = (1).to_bytes(4, "little")
    node.maps[stages.REVNAT].failures[revnat] = OSError(5, "no")
    node.tables.services.delete(("shop", "web"))
    node.live(3 * ROW_REST)
    assert node.tables.service_ids.get(FRONTEND) == 1
    node.maps[stages.REVNAT].failures.clear()
    node.live(60)
    assert node.tables.service_ids.get(FRONTEND) == 1
    node.live(ROW_REST)
    assert node.tables.service_ids.get(FRONTEND) is None


def test_a_service_that_comes_back_in_time_keeps_its_id(node):
    """Its rest is over, and begins anew with the next deletion."""
    saved = node.tables.services.get(("shop", "web"))
    node.tables.services.delete(("shop", "web"))
    node.live(ROW_REST - 10)
    node.tables.services.set(("shop", "web"), saved)
    node.live(2 * ROW_REST)
    node.tables.services.delete(("shop", "web"))
    node.live(ROW_REST - 10)
    assert node.tables.service_ids.get(FRONTEND) == 1


def test_an_identity_rests_longer_than_conntrack_remembers_it(node):
    """A pod and a policy with a prefix go; 8100 seconds later both numbers, their rows and classes do."""
    nodes.add_pod(node.tables, 2, {"app": "db"})
    nodes.add_policy(
        node.tables, nodes.policy("web", nodes.rule(nodes.app("db"), nodes.cidr("192.0.2.0/24")))
    )
    node.live(10)
    identity = node.planned.plan.identities[2]
    prefix = ip_network("192.0.2.0/24")
    labels = node.planned.plan.labels[2]
    assert node.tables.prefixes.get(prefix) is not None

    node.tables.endpoints.delete(2)
    node.live(IDENTITY_REST)
    assert node.tables.identities.get(labels) == identity
    assert identity in {one for state in node.planned.plan.policy.states.values() for one, _ in state.classes}
    node.live(20)
    assert node.tables.identities.get(labels) is None
    assert node.tables.prefixes.get(prefix) is not None
    assert str(identity).encode() not in node.maps[stages.IDENTITY_FILE].rows
    assert node.maps[stages.POLICY].rows == node.planned.plan.policy_rows
    assert identity not in {
        one for state in node.planned.plan.policy.states.values() for one, _ in state.classes
    }

    node.tables.policies.delete(("CNP", "shop", "web"))
    node.live(IDENTITY_REST + 30)
    assert node.tables.prefixes.get(prefix) is None
    assert dict(node.tables.identities.items()) == {
        node.planned.plan.labels[1]: node.planned.plan.identities[1]
    }


def test_nothing_is_released_before_every_source_is_in_sync():
    """What nobody wants yet may only not have been read."""
    node = Node()
    node.planned.tables.pods.initialized = False
    key = BackendKey(ip_address("10.0.0.9"), 80, "TCP")
    node.tables.backend_ids.set(key, 5)
    node.live(5 * ROW_REST)
    assert node.tables.backend_ids.get(key) == 5
    node.tables.pods.mark_initialized()
    node.live(ROW_REST)
    assert node.tables.backend_ids.get(key) == 5
    node.live(20)
    assert node.tables.backend_ids.get(key) is None


def test_deleted_keys_are_forgotten_once_their_readers_have_passed(node):
    """A table nobody follows forgets at once; one that is followed keeps what its reader has not seen."""
    read = node.tables.problems.revision
    node.release._readers["problems"] = lambda: read
    for number in range(100):
        node.tables.pods.set(("shop", f"gone-{number}"), nodes.pod(f"gone-{number}", {}))
        node.tables.pods.delete(("shop", f"gone-{number}"))
        node.tables.problems.set(("Pod", "shop", f"gone-{number}"), nodes.pod("x", {}))
        node.tables.problems.delete(("Pod", "shop", f"gone-{number}"))
    node.release.look()
    assert len(node.tables.pods._log) == len(node.tables.pods)
    keys, read = node.tables.problems.changes_since(read)
    assert len(keys) == 100
    node.release.look()
    assert len(node.tables.problems._log) == 0
