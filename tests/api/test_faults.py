# SPDX-License-Identifier: Apache-2.0
"""
An API server that fails in every way, comes and goes, or tells of the past: nothing is lost by it.

Each test follows objects that are never deleted, and notes every moment one of them is not in the tables.
With ``--long`` as often as a release is asked for.
"""

import contextlib
import json
import random
import time
import urllib.error

import pytest

from api.agents import USER, Follower, prepare
from ciliumd.kubernetes.kinds import CILIUM_IDENTITY, NETWORK_POLICY, SERVICE
from lab.apiserver import ApiServer
from lab.confined import Confinement
from lab.faultproxy import FAULTS, FaultProxy
from lab.figures import Figures
from lab.gate import Gate
from lab.waiting import eventually

STEADY = 20
SEED = 20261
RATE, SECONDS = 10, 10
"""Requests in a second that an agent may make after a return, and for how long they are counted."""
TABLES = ("services", "policies", "cluster_identities")


@pytest.fixture
def many(request):
    """A number for every day, or the one with ``--long``."""
    long = request.config.getoption("--long", default=False)
    return lambda usual, release: release if long else usual


def survived(record_property, fault, injected, **more):
    """Report faults none of which took a row away: that is asserted where they happen."""
    figures = Figures(fault, injected=injected, survived=injected)
    figures.more = {name.replace("_", " "): value for name, value in more.items()}
    figures.record(record_property)


def service(name):
    """A Service without an address."""
    return {"metadata": {"name": name}, "spec": {"clusterIP": "None", "ports": [{"port": 80}]}}


def policy(name):
    """A NetworkPolicy that isolates some pods."""
    return {"metadata": {"name": name}, "spec": {"podSelector": {"matchLabels": {"app": name}}}}


def identity(number):
    """A CiliumIdentity."""
    kind = {"apiVersion": "cilium.io/v2", "kind": "CiliumIdentity"}
    return {**kind, "metadata": {"name": number}, "security-labels": {"k8s:app": number}}


def make_steady(server):
    """Objects nobody deletes, of kinds whose absence would be felt."""
    for i in range(STEADY):
        server.request("POST", SERVICE.path(namespace="default"), service(f"steady-{i}"))
        server.request("POST", NETWORK_POLICY.path(namespace="default"), policy(f"steady-{i}"))
        server.request("POST", CILIUM_IDENTITY.path(), identity(str(5000 + i)))


def steady_rows():
    """Their rows."""
    names = [f"steady-{i}" for i in range(STEADY)]
    return {
        "services": {("default", name) for name in names},
        "policies": {("NetworkPolicy", "default", name) for name in names},
        "cluster_identities": {5000 + i for i in range(STEADY)},
    }


def rows(follower):
    """All rows of the tables that are looked at."""
    return follower.look(lambda: {name: dict(getattr(follower.tables, name).items()) for name in TABLES})


@contextlib.contextmanager
def nothing_lost(follower):
    """Nothing steady is ever missing from the tables, not even for a moment."""
    lost = []

    def look():
        lost.extend(
            (name, key)
            for name, keys in steady_rows().items()
            for key in keys - getattr(follower.tables, name).view().keys()
        )

    ends = follower.look(lambda: [getattr(follower.tables, name).subscribe(look) for name in TABLES])
    yield
    follower.look(look)
    follower.look(lambda: [end() for end in ends])
    assert lost == []


@pytest.fixture(scope="module", autouse=True)
def confinement(tmp_path_factory):
    """All agents of this module are under the chart's profile of system calls."""
    one = Confinement(tmp_path_factory.mktemp("confined") / "blocked")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Follower, "confinement", one)
        yield one


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """An API server that holds what is steady."""
    with ApiServer(tmp_path_factory.mktemp("faults"), users=(USER,)) as one:
        prepare(one)
        make_steady(one)
        yield one


def churn(server, turn):
    """Something comes, and what came before goes."""
    server.request("POST", SERVICE.path(namespace="default"), service(f"turn-{turn}"))
    if turn:
        server.request("DELETE", SERVICE.path(f"turn-{turn - 1}", namespace="default"))


def end_churn(server, turn):
    """The last one goes."""
    with contextlib.suppress(urllib.error.HTTPError):
        server.request("DELETE", SERVICE.path(f"turn-{turn}", namespace="default"))


def services_of(server):
    """What there is."""
    items = server.request("GET", SERVICE.path())["items"]
    return sorted((one["metadata"]["namespace"], one["metadata"]["name"]) for one in items)


def test_spoilt_answers_take_nothing_away(server, many, record_property):
    """Refused, cut, half an answer: tables keep what they have, and are right soon after it ends."""
    wanted, limit = many(25, 10_000), many(15, 3000)
    chance = random.Random(SEED)
    with FaultProxy(server.port, server.certificates, chance=chance) as proxy:
        config = server.kubeconfig(USER, port=proxy.port)
        with Follower(config, period=2.0) as follower:
            follower.wait_complete()
            turn, began = 0, time.monotonic()
            with nothing_lost(follower):
                proxy.rate = 0.5
                while proxy.injected.total() < wanted and time.monotonic() - began < limit:
                    churn(server, turn)
                    turn += 1
                    time.sleep(0.2)
                proxy.rate = 0.0
                back = time.monotonic()
                end_churn(server, turn - 1)
                follower.wait(
                    lambda tables: sorted(tables.services) == services_of(server), "all is right", seconds=30
                )
                took = time.monotonic() - back
                time.sleep(max(0.0, SECONDS - took))
                asked = proxy.requests_since(back)
    injected = proxy.injected
    survived(
        record_property,
        "F8-spoilt answers",
        injected.total(),
        kinds=dict(injected),
        ms_until_all_was_right=int(took * 1000),
        requests_since=asked,
    )
    assert injected.keys() == set(FAULTS)
    assert asked <= RATE * max(SECONDS, took)


def test_flapping_takes_nothing_away(server, many, record_property):
    """Every few seconds the API server is away; what happens meanwhile is known after the last time."""
    flaps, seconds = many((3, 1.0), (120, 5.0))
    with Gate(server.port) as gate, Follower(server.kubeconfig(USER, port=gate.port)) as follower:
        follower.wait_complete()
        with nothing_lost(follower):
            for turn in range(flaps):
                gate.shut()
                churn(server, turn)
                time.sleep(seconds)
                gate.open()
                time.sleep(seconds)
            end_churn(server, flaps - 1)
            follower.wait(
                lambda tables: sorted(tables.services) == services_of(server), "all is right", seconds=30
            )
    survived(record_property, "F8-API server flaps", flaps, seconds_away_each=seconds)


def test_long_absence_takes_nothing_away(server, many, record_property):
    """The API server is away for ten minutes; what happened meanwhile is known seconds after its return."""
    away, watched = many((3.0, 1.0), (600.0, float(SECONDS)))
    proxy = FaultProxy(server.port, server.certificates, chance=random.Random(SEED))
    with proxy, Gate(proxy.port) as gate, Follower(server.kubeconfig(USER, port=gate.port)) as follower:
        follower.wait_complete()
        with nothing_lost(follower):
            gate.shut()
            churn(server, 0)
            time.sleep(away)
            assert follower.source.status().error
            gate.open()
            back = time.monotonic()
            follower.wait(
                lambda tables: sorted(tables.services) == services_of(server), "all is right", seconds=30
            )
            took = time.monotonic() - back
            time.sleep(max(0.0, watched - took))
            asked = proxy.requests_since(back)
            end_churn(server, 0)
            follower.wait(lambda tables: ("default", "turn-0") not in tables.services, "the end of it")
    survived(
        record_property,
        "F8-API server away for long",
        1,
        seconds_away=int(away),
        ms_until_all_was_right=int(took * 1000),
        requests_since=asked,
    )
    assert asked <= RATE * max(watched, took)


def test_agent_that_starts_while_the_api_server_is_away(server, many, tmp_path, record_property):
    """It knows that it knows nothing; when the API server is back a policy spoilt meanwhile is in force."""
    path = NETWORK_POLICY.path("mine", namespace="default")
    good = policy("mine")
    bad = {"spec": {"podSelector": {"matchLabels": {"io.kubernetes.pod.namespace": "other"}}}}
    server.request("POST", NETWORK_POLICY.path(namespace="default"), good)
    try:
        with Gate(server.port) as gate:
            config = server.kubeconfig(USER, port=gate.port)
            with Follower(config, state=tmp_path) as follower:
                follower.wait_complete()
                before = rows(follower)
            server.request("PATCH", path, bad, patch=True)
            for _ in range(many(2, 20)):
                gate.shut()
                with Follower(config, state=tmp_path) as follower:
                    eventually(lambda: follower.source.status().error, "it is noticed")
                    time.sleep(0.5)
                    assert not follower.look(lambda: follower.source.status().initialized)
                    gate.open()
                    follower.wait_complete(seconds=30)
                    assert rows(follower) == before
        survived(record_property, "F8-API server away during a start", many(2, 20))
    finally:
        server.request("DELETE", path)


def test_agent_that_never_reaches_the_api_server_forgets_no_policy(server, tmp_path, record_property):
    """It ends without having known anything; the next one remembers."""
    path = NETWORK_POLICY.path("mine", namespace="default")
    bad = {"spec": {"podSelector": {"matchLabels": {"io.kubernetes.pod.namespace": "other"}}}}
    server.request("POST", NETWORK_POLICY.path(namespace="default"), policy("mine"))
    try:
        with Gate(server.port) as gate:
            config = server.kubeconfig(USER, port=gate.port)
            with Follower(config, state=tmp_path) as follower:
                follower.wait_complete()
                before = rows(follower)
            gate.shut()
            with Follower(config, state=tmp_path) as follower:
                eventually(lambda: follower.source.status().error, "it is noticed")
            gate.open()
            server.request("PATCH", path, bad, patch=True)
            with Follower(config, state=tmp_path) as follower:
                follower.wait_complete()
                assert rows(follower) == before
        survived(record_property, "F8-API server away during all of an agent's life", 1)
    finally:
        server.request("DELETE", path)


def test_cluster_put_back_changes_only_what_differs(tmp_path, many, record_property):
    """What is in both states is never away; afterwards the tables are those of an agent that starts anew."""
    with ApiServer(tmp_path / "server", users=(USER,)) as server:
        prepare(server)
        make_steady(server)
        server.request("POST", SERVICE.path(namespace="default"), service("old"))
        saved = server.save()
        config = server.kubeconfig(USER)
        with Follower(config) as follower:
            follower.wait_complete()
            for turn in range(many(1, 20)):
                server.request("DELETE", SERVICE.path("old", namespace="default"))
                for i in range(10):
                    server.request("POST", SERVICE.path(namespace="default"), service(f"new-{turn}-{i}"))
                    server.request(
                        "POST", NETWORK_POLICY.path(namespace="default"), policy(f"new-{turn}-{i}")
                    )
                follower.wait(
                    lambda tables, turn=turn: ("default", f"new-{turn}-9") in tables.services, "what is new"
                )
                with nothing_lost(follower):
                    server.put_back(saved)
                    follower.wait(
                        lambda tables: ("default", "old") in tables.services, "the past", seconds=60
                    )
                    with Follower(config) as fresh:
                        fresh.wait_complete()
                        expected = rows(fresh)
                    eventually(lambda: rows(follower) == expected, "the same", seconds=30)  # noqa: B023
                assert follower.source.status().restarts > turn
                server.request("POST", SERVICE.path(namespace="default"), service(f"next-{turn}"))
                follower.wait(
                    lambda tables, turn=turn: ("default", f"next-{turn}") in tables.services, "what is next"
                )
    survived(record_property, "F9-cluster put back", many(1, 20))


def test_no_call_was_refused(confinement, record_property):
    """Nothing that agents of this module did is outside of the chart's profile of system calls."""
    blocked = confinement.blocked()
    data = {"case": "S4", "agents of F8": confinement.entered, "refused calls in F8": blocked.total()}
    record_property("data", json.dumps(data))

    assert confinement.entered > 0
    assert blocked == {}
