# SPDX-License-Identifier: Apache-2.0
"""Identities are condemned, reprieved and deleted, look by look."""

import asyncio

import pytest

from ciliumd.kubernetes.claims import CLAIMS, CONDEMNED
from ciliumd.kubernetes.kinds import CILIUM_ENDPOINT, CILIUM_IDENTITY, CILIUM_NODE, NAMESPACE
from ciliumd.operator.gc import IdentityGc
from ciliumd.operator.metrics import Metrics
from unit.kubernetes.fake_api import FakeApi


class Lab:
    """A cluster with one identity, and a collector."""

    def __init__(self):
        self.api = FakeApi()
        self.now = 0.0
        self.restart()
        self.api.put(CILIUM_IDENTITY, {"metadata": {"name": "300"}, "security-labels": {"k8s:app": "web"}})
        self.api.put(NAMESPACE, {"metadata": {"name": "shop"}})

    def restart(self):
        """Another leader, without memory."""
        self.gc = IdentityGc(self.api, Metrics(), timeout=100.0, limit=10, clock=lambda: self.now)

    def look(self, seconds=60.0):
        """A look after so many seconds; what it did to identities."""
        self.now += seconds
        self.api.asked.clear()
        asyncio.run(self.gc.collect())
        return [asked.split()[0] for asked in self.api.asked if asked.startswith(("patch", "delete"))]

    def claim(self, text):
        """A node claims."""
        self.api.put(CILIUM_NODE, {"metadata": {"name": "n1", "annotations": {CLAIMS: text}}})

    @property
    def condemned(self):
        """Whether the identity is."""
        return CONDEMNED in self.api.of(CILIUM_IDENTITY)["", "300"]["metadata"].get("labels", {})


@pytest.fixture
def lab():
    """A cluster with one identity."""
    return Lab()


def test_unused_identity_is_condemned_and_then_deleted(lab):
    """After its time, in two looks."""
    assert [lab.look() for _ in range(2)] == [[], []]
    assert lab.look() == ["patch"]
    assert lab.condemned
    assert lab.look() == ["delete"]
    assert lab.api.of(CILIUM_IDENTITY) == {}


@pytest.mark.parametrize("by", ["claim", "endpoint"])
def test_used_identity_is_left_alone(lab, by):
    """Whoever says so: agents of other versions claim nothing."""
    if by == "claim":
        lab.claim("299 300")
    else:
        status = {"identity": {"id": 300}}
        lab.api.put(CILIUM_ENDPOINT, {"metadata": {"name": "a", "namespace": "shop"}, "status": status})
    assert [lab.look() for _ in range(6)] == [[]] * 6


def test_condemned_identity_that_is_claimed_is_reprieved(lab):
    """And waits as long as any other one when it is not used any more."""
    [lab.look() for _ in range(3)]
    lab.claim("300")
    assert lab.look() == ["patch"]
    assert not lab.condemned
    lab.claim("")
    assert [lab.look() for _ in range(4)] == [[], [], ["patch"], ["delete"]]


def test_new_leader_goes_on_with_what_is_condemned(lab):
    """It reads the claims itself."""
    [lab.look() for _ in range(3)]
    lab.restart()
    assert lab.look() == ["delete"]


def test_identity_that_somebody_writes_waits_anew(lab):
    """Somebody wants it."""
    for _ in range(5):
        assert lab.look() == []
        lab.api.put(CILIUM_IDENTITY, lab.api.of(CILIUM_IDENTITY)["", "300"])


def test_outcomes_are_shown_before_the_first_look():
    """A rate needs the zero that comes before the first event."""
    shown = Metrics().exposition().decode()

    assert 'cilium_operator_identity_gc_runs_total{outcome="success"} 0.0' in shown
    assert 'cilium_operator_identity_gc_runs_total{outcome="fail"} 0.0' in shown
