# SPDX-License-Identifier: Apache-2.0
"""What an agent tells the cluster, with no more rights than it declares, against a real API server."""

import asyncio
import urllib.error
from ipaddress import ip_address, ip_network

import pytest

from api.agents import USER, Follower
from ciliumd.kubernetes.bootstrap import own_node
from ciliumd.kubernetes.endpoints import EndpointFacts, EndpointPublisher
from ciliumd.kubernetes.events import ProblemEvents
from ciliumd.kubernetes.identities import IdentityAllocator
from ciliumd.kubernetes.kinds import (
    CILIUM_ENDPOINT,
    CILIUM_IDENTITY,
    CILIUM_NODE,
    EVENT,
    NODE,
    POD,
    SERVICE,
)
from ciliumd.kubernetes.node import NodePublisher, Reachable
from ciliumd.model.endpoint import EndpointSpec
from ciliumd.model.labels import Label
from ciliumd.tables import Problem
from lab.waiting import eventually

LABELS = frozenset({Label("k8s", "app", "web"), Label("k8s", "io.kubernetes.pod.namespace", "default")})
NOW = {"kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": 0}


@pytest.fixture
def agent(agents_server):
    """An agent's source that knows everything there is."""
    with Follower(agents_server.kubeconfig(USER)) as one:
        one.wait_complete()
        yield one


@pytest.fixture
def node(agents_server):
    """A Node that its kubelet has described."""
    agents_server.request("POST", NODE.path(), {"metadata": {"name": "n1", "labels": {"zone": "a"}}})
    status = {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]}
    path = NODE.path("n1")
    agents_server.request("PATCH", f"{path}/status", {"status": status}, patch=True)
    yield path
    agents_server.request("DELETE", path)
    discard(agents_server, CILIUM_NODE.path("n1"))


@pytest.fixture
def pod(agents_server):
    """A pod on n1."""
    body = {
        "metadata": {"name": "web"},
        "spec": {"nodeName": "n1", "containers": [{"name": "a", "image": "a"}]},
    }
    made = agents_server.request("POST", POD.path(namespace="default"), body)
    yield made["metadata"]["uid"]
    discard(agents_server, POD.path("web", namespace="default"))
    discard(agents_server, CILIUM_ENDPOINT.path("web", namespace="default"))


def discard(server, path):
    """Delete an object at once, if it is there."""
    try:
        server.request("DELETE", path, NOW)
    except urllib.error.HTTPError as error:
        assert error.code == 404  # noqa: PT017  anything else is an error of the test


def exists(server, path):
    """The object, or None."""
    try:
        return server.request("GET", path)
    except urllib.error.HTTPError as error:
        assert error.code == 404  # noqa: PT017  anything else is an error of the test
        return None


def test_agent_gets_its_pod_cidr_and_tells_where_it_is(agents_server, agent, node, tmp_path):
    """From the operator, by way of the CiliumNode that the agent creates."""
    path = CILIUM_NODE.path("n1")
    served = []

    async def make():
        return NodePublisher(
            agent.api,
            agent.tables,
            name="n1",
            mode="cluster-pool",
            pod_cidrs=lambda: tuple(served),
            boot_id="boot-1",
        )

    publisher = agent.call(make())
    asked = agent.spawn(
        own_node(
            agent.api,
            publisher,
            name="n1",
            mode="cluster-pool",
            memory=tmp_path / "node",
            waiting=lambda _: None,
        )
    )
    eventually(lambda: exists(agents_server, path), "the CiliumNode")
    spec = {"spec": {"ipam": {"podCIDRs": ["10.0.1.0/24"]}}}
    agents_server.request("PATCH", path, spec, patch=True)
    own = asked.result(10)
    assert own.pod_cidrs == (ip_network("10.0.1.0/24"),)
    assert own.addresses == (("InternalIP", ip_address("192.0.2.1")),)

    async def publish():
        publisher.node_changed(agent.nodes[-1])
        publisher.reachable(Reachable((ip_address("10.0.1.1"),), (ip_address("10.0.1.9"),)))
        await publisher.work()

    served += own.pod_cidrs
    eventually(lambda: agent.nodes, "the Node is seen")
    agent.call(publish())
    made = exists(agents_server, path)
    assert made["spec"]["addresses"] == [
        {"type": "InternalIP", "ip": "192.0.2.1"},
        {"type": "CiliumInternalIP", "ip": "10.0.1.1"},
    ]
    assert made["spec"]["health"] == {"ipv4": "10.0.1.9"}
    assert made["spec"]["ipam"]["podCIDRs"] == ["10.0.1.0/24"]
    assert made["metadata"]["labels"]["zone"] == "a"
    assert made["metadata"]["ownerReferences"][0]["uid"] == exists(agents_server, node)["metadata"]["uid"]
    agent.wait(lambda tables: tables.nodes.get("n1") and tables.nodes.get("n1").health, "its own row")

    version = made["metadata"]["resourceVersion"]
    agent.call(publisher.work())
    assert exists(agents_server, path)["metadata"]["resourceVersion"] == version, "nothing to write"


def test_endpoints_are_told_and_taken_back(agents_server, agent, pod):
    """The object is there with the endpoint and goes with it."""
    path = CILIUM_ENDPOINT.path("web", namespace="default")
    here = ip_address("192.0.2.1")
    facts = [EndpointFacts(300, LABELS, "ready", False, True, {"http": ("TCP", 80)})]
    endpoint = EndpointSpec(
        id=7,
        slot=1,
        slot_gen=1,
        namespace="default",
        pod="web",
        container_id="c0ffee",
        netns="/n",
        ifname="lxc1",
        ifindex=9,
        mac="02:00:00:00:00:01",
        node_mac="02:00:00:00:00:02",
        ipv4=ip_address("10.0.1.7"),
        ipv6=None,
    )

    async def make():
        publisher = EndpointPublisher(
            agent.api,
            agent.tables,
            facts=lambda _: facts[0],
            pod_uid=agent.source.pod_uid,
            node=lambda: here,
        )
        agent.tables.endpoints.mark_initialized()
        agent.tables.endpoints.set(7, endpoint)
        return publisher, asyncio.create_task(publisher.run())

    publisher, task = agent.call(make())
    made = eventually(lambda: exists(agents_server, path), "the CiliumEndpoint")
    assert made["metadata"]["ownerReferences"][0]["uid"] == pod
    assert made["status"]["policy"]["egress"] == {"enforcing": True, "state": "enforcing"}
    key = ("default", "web")
    agent.wait(lambda tables: key in tables.remote_endpoints, "as other nodes see it")
    assert agent.look(lambda: agent.tables.remote_endpoints.get(key)).identity == 300

    facts[0] = EndpointFacts(301, LABELS, "ready", True, True, {})
    agent.look(publisher.wake)
    agent.wait(lambda tables: tables.remote_endpoints.get(key).identity == 301, "its new identity")
    agents_server.request("DELETE", path)
    agent.wait(lambda tables: key not in tables.remote_endpoints, "somebody deleted it")
    agent.look(lambda: agent.tables.endpoints.delete(7))
    agent.look(lambda: agent.tables.endpoints.set(7, endpoint))
    facts[0] = EndpointFacts(302, LABELS, "ready", True, True, {})
    agent.look(publisher.wake)
    eventually(lambda: exists(agents_server, path), "it is there again")

    agent.look(lambda: agent.tables.endpoints.delete(7))
    eventually(lambda: exists(agents_server, path) is None, "it went with the endpoint")
    agent.look(task.cancel)


def test_two_agents_number_the_same_labels_and_know_both_numbers(agents_server):
    """Whoever was first: all nodes see the same objects, and each label set has a number everywhere."""
    sets = [frozenset({*LABELS, Label("k8s", "n", str(i))}) for i in range(5)]
    config = agents_server.kubeconfig(USER)
    with Follower(config) as one, Follower(config, node="n2") as other:
        agents = [one, other]
        for agent in agents:
            agent.wait_complete()

        async def make(agent):
            def unallocated():
                known = set(agent.tables.cluster_identities.values())
                return {labels: None for labels in sets if labels not in known}

            allocator = IdentityAllocator(agent.api, agent.tables, unallocated=unallocated)
            return asyncio.create_task(allocator.run())

        tasks = [agent.call(make(agent)) for agent in agents]
        for agent in agents:
            agent.wait(
                lambda tables: set(sets) <= set(tables.cluster_identities.values()), "every set has a number"
            )
        eventually(
            lambda: (
                len({tuple(sorted(agent.look(agent.tables.cluster_identities.items))) for agent in agents})
                == 1
            ),
            "both nodes know the same",
        )
        numbers = one.look(lambda: dict(one.tables.cluster_identities.items()))
        for agent, task in zip(agents, tasks, strict=True):
            agent.look(task.cancel)
    assert all(256 <= number <= 65535 for number in numbers)
    assert len(numbers) <= 2 * len(sets)
    made = agents_server.request("GET", CILIUM_IDENTITY.path())["items"]
    assert {one["metadata"]["labels"]["app"] for one in made if one["security-labels"].get("k8s:n")} == {
        "web"
    }
    for one in made:
        discard(agents_server, CILIUM_IDENTITY.path(one["metadata"]["name"]))


def test_the_author_of_a_service_that_waits_is_told(agents_server, agent):
    """An event that ``kubectl describe`` shows, once for all nodes."""
    path = SERVICE.path(namespace="default")
    spec = {"ports": [{"port": 80}]}
    service = agents_server.request("POST", path, {"metadata": {"name": "waits"}, "spec": spec})
    problem = Problem("spec.clusterIPs", "10.96.0.1:80/TCP waits for room in cilium_lb_services_v1")

    async def tell(node):
        problems = {("Service", "default", "waits"): problem}
        await ProblemEvents(agent.api, lambda: problems, node=node).work()

    for name in ("n1", "n2"):
        agent.call(tell(name))
    told = [
        one
        for one in agents_server.request("GET", EVENT.path(namespace="default"))["items"]
        if one["involvedObject"]["uid"] == service["metadata"]["uid"]
    ]
    assert [(one["reason"], one["source"]["host"]) for one in told] == [("FrontendPending", "n1")]
    assert told[0]["message"] == f"{problem.field}: {problem.message}"
    discard(agents_server, SERVICE.path("waits", namespace="default"))


def test_nothing_was_refused_and_no_object_of_users_was_written(agents_server):
    """What the audit log holds of all agents so far."""
    asked = agents_server.requests(USER)
    assert [one for one in asked if one.status == 403] == []
    written = {one.resource for one in asked if one.verb not in {"get", "list", "watch"}}
    assert written <= {"ciliumnodes", "ciliumendpoints", "ciliumidentities", "events"}
    assert "patch" not in {one.verb for one in asked}
