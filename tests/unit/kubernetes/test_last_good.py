# SPDX-License-Identifier: Apache-2.0
"""A policy in force stays in force over a restart, whatever somebody made of its object meanwhile."""

import asyncio
from contextlib import suppress
from dataclasses import replace

import pytest
from structlog.testing import capture_logs

from ciliumd.kubernetes import lastgood
from ciliumd.kubernetes.client import Listing, ObjectName
from ciliumd.kubernetes.kinds import (
    CILIUM_CLUSTERWIDE_NETWORK_POLICY,
    CILIUM_NETWORK_POLICY,
    NETWORK_POLICY,
    SERVICE,
)
from ciliumd.kubernetes.lastgood import REMEMBERED, LastGoodPolicies, essence
from ciliumd.kubernetes.pace import Pace
from ciliumd.kubernetes.read import read_event
from ciliumd.kubernetes.source import KubernetesSource
from ciliumd.statefile import paced
from ciliumd.statefile.journal import Records
from ciliumd.tables import Tables
from unit.kubernetes.test_source import Listed, config_of

STAYS = "; its last good version stays"
GOOD = {"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"]}
OTHER = {"podSelector": {"matchLabels": {"app": "other"}}, "policyTypes": ["Ingress"]}
BAD = {"podSelector": 3}
KEY = ("NetworkPolicy", "shop", "p")
FILE = "last-good-policies"


def policy(spec, *, kind=NETWORK_POLICY, name="p", uid="u1", **metadata):
    """A policy as the API server tells it."""
    metadata = {"name": name, "uid": uid, **metadata}
    if kind.namespaced:
        metadata["namespace"] = "shop"
    return {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": metadata, "spec": spec}


class Agent:
    """The source of one agent's life: what it is told, and how it ends."""

    def __init__(self, folder):
        self.tables = Tables()
        self.api = Listed()
        self.version = 10
        self.told = {}
        self.last_good = LastGoodPolicies(folder / FILE)
        self.source = KubernetesSource(
            config_of(folder),
            self.api,
            self.tables,
            node="n1",
            pace=Pace(),
            observe=lambda *_: None,
            last_good=self.last_good,
            node_changed=lambda _: None,
        )
        self.source._watch.restart = lambda: 1

    def tell(self, kind, document, event="ADDED"):
        """As the watch does."""
        self.version += 1
        self.told[kind, document["metadata"]["name"]] = (document["metadata"]["uid"], str(self.version))
        document = {**document, "metadata": {**document["metadata"], "resourceVersion": str(self.version)}}
        told = read_event(kind, {"type": event, "object": document}, recalled=self.last_good.recall.document)
        self.source.deliver([told])

    def list(self, *names, kind=NETWORK_POLICY):
        """Listings of every kind of policies; *names* are all that is there of *kind*."""
        self.version += 1
        for one in REMEMBERED:
            there = names if one == kind else ()
            namespace = "shop" if one.namespaced else ""
            objects = [ObjectName(name, namespace, *self.told[one, name]) for name in there]
            self.api.listings[one] = Listing(str(self.version), objects)
            asyncio.run(self.source._list(one))

    def write(self):
        """What the writing task does in a while."""
        return asyncio.run(self.last_good._write())


@pytest.fixture
def restart(tmp_path):
    """Start an agent; the files of the one before are there."""
    agents = []

    def restart():
        agents.append(Agent(tmp_path))
        return agents[-1]

    yield restart
    for agent in agents:
        agent.last_good.recall.end()


def live(agent, *documents, kind=NETWORK_POLICY):
    """The agent is told of all *documents* there are, and writes."""
    for document in documents:
        agent.tell(kind, document)
    agent.list(*(one["metadata"]["name"] for one in documents), kind=kind)
    assert agent.tables.policies.initialized
    assert agent.write()


SPECS = {
    NETWORK_POLICY: (GOOD, BAD),
    CILIUM_NETWORK_POLICY: ({"endpointSelector": {}, "ingress": [{}]}, {"endpointSelector": 3}),
    CILIUM_CLUSTERWIDE_NETWORK_POLICY: ({"endpointSelector": {}, "egress": [{}]}, {"ingress": 3}),
}


@pytest.mark.parametrize("kind", SPECS, ids=lambda kind: kind.kind)
def test_object_that_is_invalid_at_the_start_has_its_last_good_rows(restart, kind):
    """Over several restarts, until it is right again; the problem says so."""
    good, bad = SPECS[kind]
    first = restart()
    live(first, policy(good, kind=kind), kind=kind)
    rows = dict(first.tables.policies.items())
    assert len(rows) == 1
    for _ in range(3):
        agent = restart()
        live(agent, policy(bad, kind=kind), kind=kind)
        assert dict(agent.tables.policies.items()) == rows
        (problem,) = agent.tables.problems.values()
        assert problem.message.endswith(STAYS)
        assert problem.field
    agent.tell(kind, policy(good, kind=kind))
    assert len(agent.tables.problems) == 0


def test_version_that_was_in_force_at_last_counts(restart):
    """Not an older one, and not one that was invalid."""
    agent = restart()
    live(agent, policy(OTHER))
    agent.tell(NETWORK_POLICY, policy(GOOD))
    agent.tell(NETWORK_POLICY, policy(BAD))
    rows = dict(agent.tables.policies.items())
    agent.write()
    agent = restart()
    live(agent, policy(BAD))
    assert dict(agent.tables.policies.items()) == rows


def test_other_object_of_the_same_name_has_no_past(restart):
    """Its own first version was never good."""
    live(restart(), policy(GOOD))
    agent = restart()
    live(agent, policy(BAD, uid="u2"))
    assert len(agent.tables.policies) == 0
    assert STAYS not in agent.tables.problems.get(KEY).message
    agent = restart()
    live(agent, policy(BAD))
    assert len(agent.tables.policies) == 0, "and the one before is forgotten"


def test_other_object_that_takes_the_name_of_an_invalid_one_has_no_past(restart):
    """Its rows go with it, here and at the next start."""
    live(restart(), policy(GOOD))
    agent = restart()
    live(agent, policy(BAD))
    assert len(agent.tables.policies) == 1
    agent.tell(NETWORK_POLICY, policy(BAD, uid="u2"))
    assert len(agent.tables.policies) == 0
    agent.write()
    agent = restart()
    live(agent, policy(BAD))
    assert len(agent.tables.policies) == 0


@pytest.mark.parametrize("how", ["told", "listed", "while away"])
def test_deleted_object_is_forgotten(restart, how):
    """Also one that has gone while no agent was there."""
    agent = restart()
    live(agent, policy(GOOD))
    if how == "told":
        agent.tell(NETWORK_POLICY, policy(GOOD), event="DELETED")
    elif how == "listed":
        agent.list()
    else:
        agent = restart()
        live(agent)
    assert agent.write()
    agent = restart()
    live(agent, policy(BAD))
    assert len(agent.tables.policies) == 0


def test_agent_that_ends_before_it_knows_everything_forgets_nothing(restart):
    """Half of the policies told is no proof that the others are gone."""
    live(restart(), policy(GOOD), policy(GOOD, name="q"))
    agent = restart()
    agent.tell(NETWORK_POLICY, policy(GOOD, name="q"))
    agent.write()
    agent = restart()
    live(agent, policy(BAD), policy(BAD, name="q"))
    assert len(agent.tables.policies) == 2


def test_invalid_news_of_an_object_this_agent_has_seen_are_not_answered_from_the_file(restart):
    """What it knows itself is younger."""
    live(restart(), policy(OTHER))
    agent = restart()
    agent.tell(NETWORK_POLICY, policy(GOOD))
    rows = dict(agent.tables.policies.items())
    agent.tell(NETWORK_POLICY, policy(BAD))
    assert dict(agent.tables.policies.items()) == rows


def test_nothing_is_recalled_once_all_policies_are_known(restart, tmp_path):
    """An object that is told later is new."""
    live(restart(), policy(GOOD))
    before = (tmp_path / FILE).read_bytes()
    agent = restart()
    live(agent)
    (tmp_path / FILE).write_bytes(before)
    agent.tell(NETWORK_POLICY, policy(BAD))
    assert len(agent.tables.policies) == 0


def test_document_the_new_agent_refuses_is_not_in_force(restart):
    """What an older version took may be invalid by now: it is left out and named in the log."""
    agent = restart()
    agent.last_good.keep(NETWORK_POLICY, ("shop", "p"), essence(policy({"podSelector": 4})))
    live(agent)
    agent = restart()
    with capture_logs() as logs:
        live(agent, policy(BAD))
    assert len(agent.tables.policies) == 0
    (refused,) = [one for one in logs if one["event"] == "lastgood.document_refused"]
    assert (refused["object"], refused["field"]) == ("NetworkPolicy/shop/p", "spec.podSelector")


@pytest.mark.parametrize("damage", [b"", b"noise" * 10, None], ids=["empty", "noise", "missing"])
def test_file_that_cannot_be_trusted_is_ignored_and_replaced(restart, tmp_path, damage):
    """It is named in the log; what is valid is in force."""
    live(restart(), policy(GOOD))
    if damage is None:
        (tmp_path / FILE).unlink()
    else:
        (tmp_path / FILE).write_bytes(damage)
    agent = restart()
    with capture_logs() as logs:
        live(agent, policy(BAD), policy(GOOD, name="q"))
    told = [one for one in logs if one["event"] in {"lastgood.file_ignored", "lastgood.file_missing"}]
    assert [one["path"] for one in told] == [str(tmp_path / FILE)]
    assert list(agent.tables.policies) == [("NetworkPolicy", "shop", "q")]
    with Records(tmp_path / FILE) as records:
        assert list(records) == ["NetworkPolicy/shop/q"]


def test_file_that_cannot_be_written_is_a_problem_and_is_written_later(restart, tmp_path, monkeypatch):
    """Nothing is lost meanwhile, in memory."""
    monkeypatch.setattr(paced, "RETRY", 0.0)
    (tmp_path / f"{FILE}.new").mkdir()
    agent = restart()
    agent.tell(NETWORK_POLICY, policy(GOOD))
    agent.list("p")
    assert not agent.write()
    (problem,) = agent.tables.problems.values()
    assert "cannot be written: Is a directory" in problem.message
    assert len(agent.tables.policies) == 1
    assert not agent.write()

    (tmp_path / f"{FILE}.new").rmdir()
    assert agent.write()
    assert len(agent.tables.problems) == 0
    agent = restart()
    live(agent, policy(BAD))
    assert len(agent.tables.policies) == 1


def test_only_what_decides_is_stored(restart, tmp_path):
    """Neither who wrote it nor what others note on it; and only policies."""
    noise = {"managedFields": [{"manager": "kubectl"}], "annotations": {"a": "note"}, "labels": {"b": "c"}}
    agent = restart()
    live(agent, policy(GOOD, **noise))
    agent.tell(SERVICE, policy({"clusterIP": "None", "ports": [{"port": 80}]}, kind=SERVICE))
    agent.tell(SERVICE, policy({}, kind=SERVICE), event="DELETED")
    agent.write()
    with Records(tmp_path / FILE) as records:
        assert list(records) == ["NetworkPolicy/shop/p"]
        text = records.text("NetworkPolicy/shop/p")
    assert not [word for word in ("kubectl", "note", '"c"', "resourceVersion") if word in text]


def test_running_source_writes_soon_and_at_its_end(restart, tmp_path, monkeypatch):
    """Changes that come together are one write; what is left at the end is written then."""
    monkeypatch.setattr(lastgood, "_GATHER", 0.01)

    async def life():
        agent = restart()
        work = asyncio.create_task(agent.last_good.run())
        for name in "abc":
            agent.last_good.keep(NETWORK_POLICY, ("shop", name), essence(policy(GOOD, name=name)))
        agent.last_good.complete()
        async with asyncio.timeout(10):
            while not (tmp_path / FILE).exists():  # noqa: ASYNC110  a thread's effect is waited for
                await asyncio.sleep(0.01)
        monkeypatch.setattr(lastgood, "_GATHER", 3600)
        agent.last_good.keep(NETWORK_POLICY, ("shop", "last"), essence(policy(GOOD, name="last")))
        await asyncio.sleep(0)
        work.cancel()
        with suppress(asyncio.CancelledError):
            await work

    asyncio.run(life())
    with Records(tmp_path / FILE) as records:
        assert sorted(records) == [f"NetworkPolicy/shop/{name}" for name in ("a", "b", "c", "last")]


def test_event_of_a_document_recalled_says_both(restart):
    """Rows of the past, the problem of the present."""
    event = read_event(
        NETWORK_POLICY,
        {"type": None, "object": policy(BAD)},
        recalled=lambda *_: policy(GOOD),
    )
    valid = read_event(NETWORK_POLICY, {"type": None, "object": policy(GOOD)})
    assert replace(event, problem=None) == valid
    assert event.problem is not None
