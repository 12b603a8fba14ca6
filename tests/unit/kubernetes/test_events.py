# SPDX-License-Identifier: Apache-2.0
"""Events: said once, however often and by however many; and what an agent tells of its node's maps."""

import asyncio

import pytest

from ciliumd.kubernetes.errors import Unreachable
from ciliumd.kubernetes.events import EVENT, ProblemEvents, warning
from ciliumd.kubernetes.kinds import POD, SERVICE
from ciliumd.tables import Problem
from unit.kubernetes.fake_api import FakeApi

WAITS = Problem("spec.clusterIPs", "10.96.0.1:80/TCP waits for room in cilium_lb_services_v1")


def test_an_event_is_the_same_one_until_the_object_or_the_message_changes():
    """Its name is what it says; it lies where ``kubectl describe`` looks."""

    def one(about, message):
        return warning(about, "Reason", message, component="who")

    about = {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": "a", "uid": "u", "resourceVersion": "7"},
    }
    first = one(about, "message")
    touched = {**about, "metadata": {**about["metadata"], "resourceVersion": "8"}}
    assert one(touched, "message")["metadata"] == first["metadata"]
    assert one(about, "other")["metadata"] != first["metadata"]
    edited = {**about, "metadata": {**about["metadata"], "generation": 2}}
    assert one(edited, "message")["metadata"] != first["metadata"]
    assert first["metadata"]["namespace"] == "default"
    assert first["involvedObject"]["namespace"] == ""
    assert first["source"] == {"component": "who"}
    assert len(one(about, "m" * 5000)["message"]) == 1024


class Lab:
    """What two agents tell an API server."""

    def __init__(self):
        self.api = FakeApi()
        self.problems = {}

    def agent(self, node="here"):
        """The publisher of a node."""
        return ProblemEvents(self.api, lambda: self.problems, node=node)

    def put(self, kind, name):
        """An object that somebody wrote."""
        self.api.put(
            kind,
            {
                "apiVersion": kind.api_version,
                "kind": kind.kind,
                "metadata": {"name": name, "namespace": "shop"},
            },
        )

    @property
    def events(self):
        """What was told, of which object."""
        return [
            (one["involvedObject"]["kind"], one["involvedObject"]["name"], one["message"])
            for one in self.api.of(EVENT).values()
        ]


@pytest.fixture
def lab():
    """A service and a pod."""
    lab = Lab()
    lab.put(SERVICE, "web")
    lab.put(POD, "one")
    return lab


def work(publisher):
    """One run."""
    return asyncio.run(publisher.work())


def test_the_author_is_told_once(lab):
    """By the first of the nodes; again when it is something else."""
    here, there = lab.agent(), lab.agent("there")
    lab.problems = {("Service", "shop", "web"): WAITS}
    for publisher in (here, there, here, lab.agent()):
        work(publisher)
    assert lab.events == [("Service", "web", f"{WAITS.field}: {WAITS.message}")]
    event = next(iter(lab.api.of(EVENT).values()))
    assert event["source"] == {"component": "cilium-agent", "host": "here"}
    assert (event["type"], event["reason"]) == ("Warning", "FrontendPending")

    asked = len(lab.api.asked)
    work(here)
    assert len(lab.api.asked) == asked, "what was said costs nothing"

    lab.problems = {("Service", "shop", "web"): Problem("spec.clusterIPs", "another")}
    work(here)
    assert len(lab.events) == 2


def test_a_pod_with_a_host_port_is_told_and_what_is_no_object_is_not(lab):
    """Nobody describes a prefix, or the node's own endpoint; who is gone is not told."""
    lab.problems = {
        ("CIDR", "", "10.0.0.0/8"): WAITS,
        ("Endpoint", "", "cilium-health"): WAITS,
        ("Pod", "shop", "one"): WAITS,
        ("Service", "shop", "gone"): WAITS,
    }
    work(lab.agent())
    assert [(kind, name) for kind, name, _ in lab.events] == [("Pod", "one")]


def test_a_pod_whose_policy_cannot_be_realized_is_told_of_it(lab):
    """Under a reason of its own; what is over is not told, and told again when it comes back as another."""
    here = lab.agent()
    lab.problems = {("Endpoint", "shop", "one"): Problem("policy", "needs more rows; nothing passes")}
    work(here)
    assert lab.events == [("Pod", "one", "policy: needs more rows; nothing passes")]
    assert next(iter(lab.api.of(EVENT).values()))["reason"] == "PolicyNotRealized"
    lab.problems = {}
    work(here)
    lab.problems = {("Endpoint", "shop", "one"): Problem("identity", "no identity is left")}
    work(here)
    assert [message for *_, message in lab.events][1:] == ["identity: no identity is left"]


def test_what_could_not_be_told_is_told_later(lab):
    """An API server that is away is asked again."""
    here = lab.agent()
    lab.problems = {("Service", "shop", "web"): WAITS}
    lab.api.failing = Unreachable("get", "services shop/web", 0, "connection refused")
    with pytest.raises(Unreachable):
        work(here)
    lab.api.failing = None
    work(here)
    assert len(lab.events) == 1


def test_thousands_are_told_one_after_the_other(lab):
    """The agent has other things to write."""
    names = [f"web-{number}" for number in range(12)]
    for name in names:
        lab.put(SERVICE, name)
    lab.problems = {("Service", "shop", name): WAITS for name in names}
    here = lab.agent()
    told = []
    for _ in range(3):
        due = work(here)
        told.append((len(lab.events), due < 60.0))
    assert told == [(5, True), (10, True), (12, False)]
