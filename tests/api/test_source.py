# SPDX-License-Identifier: Apache-2.0
"""Tables follow a real cluster: what exists, what changes, and an API server that is away for a while."""

import time
import urllib.error

import pytest

from api.agents import RULES, USER, Follower, prepare
from ciliumd.kubernetes.kinds import (
    CILIUM_ENDPOINT,
    CILIUM_IDENTITY,
    CILIUM_NODE,
    ENDPOINT_SLICE,
    NAMESPACE,
    NETWORK_POLICY,
    NODE,
    POD,
    SERVICE,
)
from lab.apiserver import ApiServer
from lab.gate import Gate
from lab.waiting import eventually

# What other parts of an agent write: its publishers are in the same audit log.
WRITTEN = frozenset({"ciliumendpoints", "ciliumidentities", "ciliumnodes", "events"})


@pytest.fixture
def follower(agents_server):
    """An agent's source that knows everything there is."""
    with Follower(agents_server.kubeconfig(USER)) as one:
        one.wait_complete()
        yield one


@pytest.fixture
def make(agents_server):
    """Makes objects, and takes them away afterwards."""
    made = []

    def make(kind, name, body=None, *, namespace="", labels=None):
        namespace = namespace or ("default" if kind.namespaced else "")
        document = {
            "apiVersion": kind.api_version,
            "kind": kind.kind,
            **(body or {}),
            "metadata": {"name": name, "labels": labels or {}},
        }
        made.append(kind.path(name, namespace=namespace))
        return agents_server.request("POST", kind.path(namespace=namespace), document)

    yield make
    for path in made:
        remove(agents_server, path)


def remove(server, path):
    """Delete an object at once, if it is there."""
    try:
        server.request("DELETE", path, {"kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": 0})
    except urllib.error.HTTPError as error:
        assert error.code == 404  # noqa: PT017  anything else is an error of the test


def slice_of(count, *, first="10.5"):
    """A slice with that many endpoints."""
    endpoints = [
        {"addresses": [f"{first}.{i // 250}.{i % 250 + 1}"], "conditions": {"ready": True}}
        for i in range(count)
    ]
    ports = [{"name": "http", "port": 80, "protocol": "TCP"}]
    return {"addressType": "IPv4", "ports": ports, "endpoints": endpoints}


def policy(port):
    """A NetworkPolicy that allows a port."""
    return {"spec": {"podSelector": {}, "ingress": [{"ports": [{"port": port, "protocol": "TCP"}]}]}}


def test_every_kind_becomes_rows_and_goes_again(agents_server, follower, make):
    """Also those that exist when the agent starts."""
    make(NAMESPACE, "shop", labels={"team": "a"})
    make(SERVICE, "web", {"spec": {"clusterIP": "10.96.0.77", "ports": [{"port": 80}]}})
    make(ENDPOINT_SLICE, "web-1", slice_of(2), labels={"kubernetes.io/service-name": "web"})
    make(POD, "web", {"spec": {"nodeName": "n1", "containers": [{"name": "a", "image": "a"}]}})
    make(POD, "far", {"spec": {"nodeName": "n2", "containers": [{"name": "a", "image": "a"}]}})
    make(NETWORK_POLICY, "allow", policy(80))
    make(NODE, "n1")
    make(NODE, "n2")
    make(CILIUM_NODE, "n2", {"spec": {"addresses": [{"type": "InternalIP", "ip": "192.0.2.2"}]}})
    make(CILIUM_IDENTITY, "4711", {"security-labels": {"k8s:app": "web"}})
    networking = {"addressing": [{"ipv4": "10.0.2.7"}], "node": "192.0.2.2"}
    make(CILIUM_ENDPOINT, "far", {"status": {"identity": {"id": 4711}, "networking": networking}})

    def all_there(tables):
        return (
            "shop" in tables.namespaces
            and ("default", "web") in tables.services
            and ("default", "web-1") in tables.slices
            and list(tables.pods) == [("default", "web")]
            and len(tables.policies) == 1
            and "n2" in tables.nodes
            and 4711 in tables.cluster_identities
            and ("default", "far") in tables.remote_endpoints
        )

    follower.wait(all_there, "every row")
    assert [node.name for node in follower.nodes] == ["n1"], "other nodes' status is no news for us"
    assert follower.source.pod_uid(("default", "web"))
    with Follower(agents_server.kubeconfig(USER)) as later:
        later.wait_complete()
        assert later.look(lambda: all_there(later.tables))

    remove(agents_server, POD.path("web", namespace="default"))
    remove(agents_server, CILIUM_NODE.path("n2"))
    remove(agents_server, NODE.path("n1"))
    follower.wait(lambda tables: "n2" not in tables.nodes and not len(tables.pods), "rows are gone")
    eventually(lambda: follower.nodes[-1] is None, "the Node is gone")


def test_invalid_object_is_reported_and_its_last_good_version_stays(agents_server, follower, make):
    """Until it is right again, or gone."""
    make(NETWORK_POLICY, "mine", policy("http"))
    follower.wait(lambda tables: len(tables.policies) == 1, "the policy is in force")
    path = NETWORK_POLICY.path("mine", namespace="default")
    # The API server takes any label; to us this one names the pod's namespace.
    agents_server.request(
        "PATCH",
        path,
        {"spec": {"podSelector": {"matchLabels": {"io.kubernetes.pod.namespace": "other"}}}},
        patch=True,
    )
    key = ("NetworkPolicy", "default", "mine")
    follower.wait(lambda tables: key in tables.problems, "the problem is told")
    assert "last good version stays" in follower.tables.problems.get(key).message
    assert len(follower.tables.policies) == 1
    assert follower.source.status().kinds["NetworkPolicy"].problems == 1
    remove(agents_server, path)
    follower.wait(lambda tables: key not in tables.problems and not len(tables.policies), "both are gone")


def test_policy_that_is_invalid_when_the_agent_starts_is_in_force_as_it_was_last_good(
    agents_server, make, tmp_path
):
    """Over restarts, until the object is gone; another one of its name begins anew."""
    key, path = ("NetworkPolicy", "default", "mine"), NETWORK_POLICY.path("mine", namespace="default")
    # The API server takes any label; to us this one names the pod's namespace.
    spoilt = {"spec": {"podSelector": {"matchLabels": {"io.kubernetes.pod.namespace": "other"}}}}
    make(NETWORK_POLICY, "mine", policy(80))
    config = agents_server.kubeconfig(USER)
    with Follower(config, state=tmp_path) as follower:
        follower.wait_complete()
        rows = follower.look(lambda: dict(follower.tables.policies.items()))
    assert list(rows) == [key]

    agents_server.request("PATCH", path, spoilt, patch=True)
    for _ in range(2):
        with Follower(config, state=tmp_path) as follower:
            follower.wait_complete()
            assert follower.look(lambda: dict(follower.tables.policies.items())) == rows
            problem = follower.look(lambda: follower.tables.problems.get(key))
            assert problem.message.endswith("its last good version stays")
    with Follower(config) as forgetful:
        forgetful.wait_complete()
        assert not forgetful.look(lambda: len(forgetful.tables.policies)), "no other memory is at work"

    remove(agents_server, path)
    make(NETWORK_POLICY, "mine", spoilt)
    with Follower(config, state=tmp_path) as follower:
        follower.wait_complete()
        assert not follower.look(lambda: len(follower.tables.policies))
        assert "stays" not in follower.look(lambda: follower.tables.problems.get(key)).message


def test_source_reads_and_never_writes(agents_server, follower, make):
    """With a token that has exactly the declared rights nothing was refused, and all was read."""
    make(NAMESPACE, "quiet")
    follower.wait(lambda tables: "quiet" in tables.namespaces, "the namespace")
    asked = agents_server.requests(USER)
    assert {"get", "list", "watch"} >= {one.verb for one in asked if one.resource not in WRITTEN}
    assert [one for one in asked if one.status == 403] == []
    assert {rule for rules in RULES for rule in rules.get("resources", ())} <= {one.resource for one in asked}


def test_status_tells_what_is_followed(follower):
    """As ``cilium status`` shows it."""
    status = follower.source.status()
    assert status.connected
    assert status.initialized
    assert status.server_version.startswith("v1.")
    assert "cilium/v2::CiliumNetworkPolicy" in status.apis
    assert len(status.apis) == 12


def test_definitions_that_come_late_are_waited_for(tmp_path):
    """The operator installs them; an agent does not die of it."""
    server = ApiServer(tmp_path / "server", users=(USER,))
    with server, Follower(server.kubeconfig()) as follower:
        eventually(
            lambda: "waiting for the definition of Cilium" in (follower.source.status().error or ""),
            "the agent waits",
            seconds=15,
        )
        assert not follower.tables.namespaces.initialized
        prepare(server)
        follower.wait_complete(seconds=30)


def test_agent_survives_an_api_server_that_is_away(agents_server, make):
    """Nothing is deleted; what happened meanwhile is known soon; requests do not come in waves."""
    make(NAMESPACE, "before")
    with Gate(agents_server.port) as gate:
        config = agents_server.kubeconfig(USER, port=gate.port)
        with Follower(config) as follower:
            follower.wait_complete()
            gate.shut()
            eventually(lambda: not follower.source.status().connected, "it is noticed")
            remove(agents_server, NAMESPACE.path("before"))
            make(NAMESPACE, "meanwhile")
            time.sleep(3)
            assert "before" in follower.tables.namespaces
            assert follower.source.status().error

            gate.open()
            back = time.time()
            follower.wait(lambda tables: "meanwhile" in tables.namespaces, "news", seconds=10)
            took = time.time() - back
            eventually(lambda: follower.source.status().connected, "all is well", seconds=10)
            time.sleep(max(0.0, 10 - (time.time() - back)))
            asked = since(agents_server, back)
            print(f"news after {took:.1f} s, {len(asked)} requests in 10 s")
            assert len(asked) <= 100


def since(server, moment):
    """What the agents asked since."""
    start = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(moment))
    return [one for one in server.requests(USER) if one.at[:19] >= start]


def test_deletion_that_no_watch_tells_is_found(tmp_path):
    """The API server restarts while we are cut off, and forgets its history: 410, and a new list."""
    with ApiServer(tmp_path / "server", users=(USER,)) as server:
        prepare(server)
        for name in ("stays", "goes"):
            server.request("POST", "/api/v1/namespaces/default/services", service(name))
        with Gate(server.port) as gate, Follower(server.kubeconfig(USER, port=gate.port)) as follower:
            follower.wait_complete()
            follower.wait(lambda tables: len(tables.services) == 3, "both services and kubernetes")
            gate.shut()
            server.request("DELETE", "/api/v1/namespaces/default/services/goes")
            server.request("POST", "/api/v1/namespaces/default/services", service("comes"))
            server.stop_server()
            server.start()
            gate.open()
            follower.wait(
                lambda tables: (
                    sorted(name for _, name in tables.services) == ["comes", "kubernetes", "stays"]
                ),
                "the services there are",
                seconds=20,
            )


def service(name):
    """A service without an address."""
    return {"metadata": {"name": name}, "spec": {"clusterIP": "None", "ports": [{"port": 80}]}}


def test_token_that_is_replaced_goes_on_working(tmp_path, agents_server):
    """The file is read when it is needed."""
    token = tmp_path / "token"
    token.write_text("nobody")
    with Follower(agents_server.kubeconfig(USER, token_file=token)) as follower:
        eventually(lambda: "401" in (follower.source.status().error or ""), "refused", seconds=15)
        token.write_text(agents_server.token(USER))
        follower.wait_complete(seconds=40)
        eventually(lambda: follower.source.status().connected, "all is well", seconds=30)


def test_many_endpoints_are_known_soon(agents_server, make):
    """100 slices of 100 endpoints; the figure is printed, the limit is generous."""
    for i in range(100):
        labels = {"kubernetes.io/service-name": "big"}
        make(ENDPOINT_SLICE, f"big-{i}", slice_of(100, first=f"10.{i}"), labels=labels)
    began = time.monotonic()
    with Follower(agents_server.kubeconfig(USER)) as follower:
        follower.wait_complete()
        took = time.monotonic() - began
        count = follower.look(lambda: sum(len(one.backends) for one in follower.tables.slices.values()))
    print(f"{count} endpoints in {took:.2f} s")
    assert count >= 10_000
    assert took < 10
