# SPDX-License-Identifier: Apache-2.0
"""When a table counts as complete, what a listing changes, and what a failed one does not."""

import asyncio
import json

import pytest
from aiohttp import web

from ciliumd.kubernetes.client import Listing, ObjectName
from ciliumd.kubernetes.config import load
from ciliumd.kubernetes.errors import Unreachable
from ciliumd.kubernetes.kinds import (
    CILIUM_CLUSTERWIDE_NETWORK_POLICY,
    CILIUM_NETWORK_POLICY,
    NAMESPACE,
    NETWORK_POLICY,
    NODE,
)
from ciliumd.kubernetes.lastgood import LastGoodPolicies
from ciliumd.kubernetes.pace import Pace
from ciliumd.kubernetes.read import read_event
from ciliumd.kubernetes.session import Health, ReadOnly, read_session
from ciliumd.kubernetes.source import KubernetesSource
from ciliumd.tables import Tables


class Listed:
    """As much of an Api as a source uses: listings as they are set."""

    server = "http://127.0.0.1:1"

    def __init__(self):
        self.listings = {}
        self.failing = False

    async def names(self, kind, **_):
        """The listing of a kind; an empty one by default."""
        if self.failing:
            raise Unreachable("list", kind.plural, 0, "connection refused")
        return self.listings.get(kind, Listing("100", []))


def config_of(folder, port=1):
    """How to reach a server without TLS."""
    path = folder / "kubeconfig"
    document = {
        "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    path.write_text(json.dumps(document))
    return load(path)


class Lab:
    """A source whose watch is told what to tell."""

    def __init__(self, folder):
        self.api, self.tables = Listed(), Tables()
        self.now = 1000.0
        self.nodes, self.events, self.restarts = [], [], 0
        self.source = KubernetesSource(
            config_of(folder),
            self.api,
            self.tables,
            node="n1",
            pace=Pace(),
            observe=lambda *_: None,
            last_good=LastGoodPolicies(folder / "last-good-policies"),
            node_changed=self.nodes.append,
            received=lambda *event: self.events.append(event),
            clock=lambda: self.now,
        )
        self.source._watch.restart = self.restart
        self.source._health.answered("watch")

    def restart(self):
        """Counts, as the real one does."""
        self.restarts += 1
        return self.restarts

    def tell(self, kind, name, *, version, event="ADDED", run=0, **body):
        """An event of the watch."""
        metadata = {"name": name, "uid": f"uid-{name}", "resourceVersion": str(version)}
        if kind.namespaced:
            metadata["namespace"] = "shop"
        document = {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": metadata, **body}
        told = read_event(kind, {"type": event, "object": document})
        self.source.deliver([type(told)(**{**_fields(told), "run": run})])

    def compare(self, kind, *names, version=100, at=5):
        """A listing with these objects."""
        objects = [
            ObjectName(name, "shop" if kind.namespaced else "", f"uid-{name}", str(at)) for name in names
        ]
        self.api.listings[kind] = Listing(str(version), objects)
        asyncio.run(self.source._list(kind))


def _fields(event):
    return {name: getattr(event, name) for name in event.__dataclass_fields__}


@pytest.fixture
def lab(tmp_path):
    """A source that knows nothing yet."""
    return Lab(tmp_path)


def test_table_is_complete_when_all_that_is_listed_has_come(lab):
    """Not before the listing, not before the last object."""
    lab.tell(NAMESPACE, "a", version=5)
    assert not lab.tables.namespaces.initialized
    lab.compare(NAMESPACE, "a", "b")
    assert not lab.tables.namespaces.initialized
    lab.tell(NAMESPACE, "b", version=5)
    assert lab.tables.namespaces.initialized


def test_table_of_several_kinds_waits_for_all_of_them(lab):
    """Half of the policies would be other policies."""
    lab.compare(NETWORK_POLICY)
    lab.compare(CILIUM_NETWORK_POLICY)
    assert not lab.tables.policies.initialized
    lab.compare(CILIUM_CLUSTERWIDE_NETWORK_POLICY)
    assert lab.tables.policies.initialized


def test_listing_takes_away_what_is_gone_and_a_failed_one_nothing(lab):
    """Absence of data is no news."""
    lab.tell(NAMESPACE, "a", version=5)
    lab.api.failing = True
    lab.compare(NAMESPACE)
    assert "a" in lab.tables.namespaces
    assert "connection refused" in lab.source.status().error
    lab.api.failing = False
    lab.compare(NAMESPACE)
    assert "a" not in lab.tables.namespaces
    assert lab.source.status().error is None


def test_invalid_object_is_a_problem_until_it_is_right_or_gone(lab):
    """Counted, and with what stays in force."""
    good = {"spec": {"podSelector": {}}}
    key = ("NetworkPolicy", "shop", "p")
    lab.tell(NETWORK_POLICY, "p", version=5, **good)
    lab.tell(NETWORK_POLICY, "p", version=6, spec={"podSelector": 3})
    assert lab.tables.problems.get(key).field == "spec.podSelector"
    assert lab.tables.problems.get(key).message.endswith("its last good version stays")
    assert len(lab.tables.policies) == 1
    lab.tell(NETWORK_POLICY, "p", version=7, **good)
    assert key not in lab.tables.problems
    lab.tell(NETWORK_POLICY, "q", version=8, spec={"podSelector": 3})
    assert "stays" not in lab.tables.problems.get(("NetworkPolicy", "shop", "q")).message
    lab.tell(NETWORK_POLICY, "q", version=9, event="DELETED")
    assert len(lab.tables.problems) == 0


def test_own_node_is_told_and_not_a_row(lab):
    """Also its end."""
    lab.tell(NODE, "n1", version=5, spec={})
    lab.tell(NODE, "n1", version=6, event="DELETED")
    assert [node and node.name for node in lab.nodes] == ["n1", None]
    assert len(lab.tables.nodes) == 0


def test_events_are_counted_by_what_they_were(lab):
    """Kind, action, valid, no news."""
    lab.tell(NAMESPACE, "a", version=5)
    lab.tell(NAMESPACE, "a", version=5)
    lab.tell(NAMESPACE, "a", version=6, event="DELETED")
    lab.tell(NETWORK_POLICY, "p", version=6)
    assert lab.events == [
        ("Namespace", "create", True, False),
        ("Namespace", "update", True, True),
        ("Namespace", "delete", True, False),
        ("NetworkPolicy", "create", False, False),
    ]


def test_history_put_back_begins_a_new_watch_and_forgets_versions(lab):
    """What the old watch still tells is from the lost future."""
    lab.tell(NAMESPACE, "a", version=500)
    lab.compare(NAMESPACE, "a", version=100)
    assert lab.restarts == 1
    lab.tell(NAMESPACE, "lost", version=501)
    assert "lost" not in lab.tables.namespaces
    lab.tell(NAMESPACE, "b", version=50, run=1)
    assert "b" in lab.tables.namespaces
    lab.compare(NAMESPACE, "b", version=100, at=50)
    assert list(lab.tables.namespaces) == ["b"]


def test_watch_that_does_not_bring_what_is_listed_is_replaced(lab):
    """After it had its time."""
    lab.compare(NAMESPACE, "a")
    lab.now += 5
    lab.compare(NAMESPACE, "a")
    assert lab.restarts == 0
    lab.now += 20
    lab.compare(NAMESPACE, "a")
    assert lab.restarts == 1


def test_session_of_the_watch_reads_only(tmp_path):
    """What kopf would write never leaves; what it reads is told of."""
    asked, listed, failed = [], [], []

    async def answer(request):
        asked.append(request.method)
        return web.Response(status=403 if "secret" in request.path else 200, text="{}")

    async def work():
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        health = Health(lambda: None)
        session = read_session(
            config_of(tmp_path, runner.addresses[0][1]),
            pace=Pace(),
            health=health,
            observe=lambda *_: None,
            failed=lambda *one: failed.append(one),
            listed=listed.append,
        )
        async with session:
            await (await session.get(f"{url}/api/v1/pods?limit=500")).text()
            await (await session.get(f"{url}/api/v1/pods?watch=true&resourceVersion=7")).text()
            assert health.connected
            for method in ("patch", "post", "put", "delete"):
                with pytest.raises(ReadOnly, match=method.upper()):
                    await getattr(session, method)(f"{url}/api/v1/pods/a")
            await (await session.get(f"{url}/secret")).text()
        await runner.cleanup()
        return health

    health = asyncio.run(work())
    assert asked == ["GET"] * 3
    assert listed == ["/api/v1/pods"]
    assert failed == [("GET /secret", "403 Forbidden: GET /secret")]
    assert not health.connected
    assert "403" in health.error


def test_recovery_is_told_once_and_failures_by_their_reason():
    """Eleven watches that cannot connect are one piece of news."""
    told = []
    health = Health(lambda: told.append(1))
    assert health.failed("GET /a", "refused")
    assert not health.failed("GET /b", "refused")
    assert health.failed("GET /c", "403")
    for what in ("GET /a", "GET /b", "GET /c", "GET /c"):
        health.answered(what)
    assert told == [1]
    assert health.connected
