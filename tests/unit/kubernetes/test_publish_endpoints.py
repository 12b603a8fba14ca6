# SPDX-License-Identifier: Apache-2.0
"""CiliumEndpoints follow the endpoints of the node, whatever happens in between."""

import asyncio
from ipaddress import ip_address

import pytest

from ciliumd.kubernetes.endpoints import EndpointFacts, EndpointPublisher
from ciliumd.kubernetes.errors import Unreachable
from ciliumd.kubernetes.kinds import CILIUM_ENDPOINT
from ciliumd.model.endpoint import HEALTH_POD, EndpointSpec
from ciliumd.model.labels import Label
from ciliumd.model.objects import PodRow
from ciliumd.resources import parse
from ciliumd.tables import Tables
from unit.kubernetes.fake_api import FakeApi

NODE = ip_address("192.0.2.1")
LABELS = frozenset({Label("k8s", "app", "web")})
AWAY = Unreachable("create", "ciliumendpoints shop/web", 0, "connection refused")


def endpoint(number=7, *, pod=("shop", "web"), ipv4="10.0.1.7"):
    """A local endpoint."""
    return EndpointSpec(
        id=number,
        slot=1,
        slot_gen=1,
        namespace=pod[0],
        pod=pod[1],
        container_id="c0ffee",
        netns="/n",
        ifname="lxc1",
        ifindex=9,
        mac="02:00:00:00:00:01",
        node_mac="02:00:00:00:00:02",
        ipv4=ip_address(ipv4),
        ipv6=None,
    )


class Lab:
    """A publisher, its tables, and a watch that shows what was written when asked to."""

    def __init__(self):
        self.api = FakeApi()
        self.tables = Tables()
        self.tables.endpoints.mark_initialized()
        self.tables.remote_endpoints.mark_initialized()
        self.facts = EndpointFacts(300, LABELS, "ready", True, False, {"http": ("TCP", 80)})
        self.uids = {("shop", "web"): "pod-1"}
        self.now = 1000.0
        self.publisher = self.make()

    def make(self):
        """Another publisher: that of a restarted agent."""
        return EndpointPublisher(
            self.api,
            self.tables,
            facts=lambda _: self.facts,
            pod_uid=self.uids.get,
            node=lambda: NODE,
            clock=lambda: self.now,
        )

    def work(self):
        """One run; the requests other than reads it made."""
        self.api.asked.clear()
        asyncio.run(self.publisher.work())
        return [asked for asked in self.api.asked if not asked.startswith("get")]

    def echo(self):
        """The watch shows what there is."""
        shown = {}
        for one in self.api.of(CILIUM_ENDPOINT).values():
            shown |= {key: row for _, key, row in parse(one).rows()}
        for key in self.tables.remote_endpoints:
            if key not in shown:
                self.tables.remote_endpoints.delete(key)
        for key, row in shown.items():
            self.tables.remote_endpoints.set(key, row)


@pytest.fixture
def lab():
    """A node with one endpoint that is published and seen."""
    lab = Lab()
    lab.tables.endpoints.set(7, endpoint())
    assert lab.work() == ["create CiliumEndpoint web"]
    lab.echo()
    return lab


def test_object_says_who_has_the_address(lab):
    """Status as Cilium's tools read it; owned by the pod."""
    made = lab.api.of(CILIUM_ENDPOINT)["shop", "web"]
    owner = {"apiVersion": "v1", "kind": "Pod", "name": "web", "uid": "pod-1"}
    assert made["metadata"]["ownerReferences"] == [owner]
    assert made["status"] == {
        "id": 7,
        "identity": {"id": 300, "labels": ["k8s:app=web"]},
        "networking": {"addressing": [{"ipv4": "10.0.1.7"}], "node": "192.0.2.1"},
        "named-ports": [{"name": "http", "protocol": "TCP", "port": 80}],
        "policy": {
            "ingress": {"enforcing": True, "state": "enforcing"},
            "egress": {"enforcing": False, "state": "non-enforcing"},
        },
        "state": "ready",
        "external-identifiers": {
            "container-id": "c0ffee",
            "cni-attachment-id": "c0ffee:eth0",
            "k8s-namespace": "shop",
            "k8s-pod-name": "web",
            "pod-name": "shop/web",
        },
    }


def test_nothing_is_written_twice(lab):
    """Until facts change."""
    assert lab.work() == []
    lab.now += 100
    assert lab.work() == []
    lab.facts = EndpointFacts(301, LABELS, "ready", True, False, {})
    assert lab.work() == ["replace CiliumEndpoint web"]
    assert lab.api.of(CILIUM_ENDPOINT)["shop", "web"]["status"]["identity"]["id"] == 301


def test_object_somebody_deleted_or_changed_is_put_right(lab):
    """Other nodes depend on it."""
    lab.api.objects.clear()
    lab.echo()
    assert lab.work() == [], "the watch may only be late"
    lab.now += 100
    assert lab.work() in (["create CiliumEndpoint web"], ["replace CiliumEndpoint web"])
    lab.now += 100
    lab.work()
    assert lab.api.of(CILIUM_ENDPOINT)["shop", "web"]["status"]["identity"]["id"] == 300
    lab.echo()

    stored = lab.api.of(CILIUM_ENDPOINT)["shop", "web"]
    lab.api.put(CILIUM_ENDPOINT, {**stored, "status": {**stored["status"], "identity": {"id": 400}}})
    lab.echo()
    for _ in range(3):
        lab.now += 100
        lab.work()
    assert lab.api.of(CILIUM_ENDPOINT)["shop", "web"]["status"]["identity"]["id"] == 300


def test_restarted_agent_takes_over_what_is_there(lab):
    """One read, no write."""
    lab.publisher = lab.make()
    assert lab.work() == []
    assert lab.api.asked == ["get CiliumEndpoint web"]


def test_object_goes_with_the_endpoint(lab):
    """Also one that an earlier agent left."""
    lab.tables.endpoints.delete(7)
    assert lab.work() == ["delete CiliumEndpoint web"]
    lab.echo()
    assert lab.work() == []

    lab.tables.endpoints.set(8, endpoint(8))
    lab.work()
    lab.echo()
    lab.tables.endpoints.delete(8)
    lab.publisher = lab.make()
    assert lab.work() == ["delete CiliumEndpoint web"]


def test_object_of_a_pod_that_is_elsewhere_now_stays(lab):
    """A pod of the same name runs on another node."""
    stored = lab.api.of(CILIUM_ENDPOINT)["shop", "web"]
    networking = {**stored["status"]["networking"], "node": "192.0.2.2"}
    lab.api.put(CILIUM_ENDPOINT, {**stored, "status": {**stored["status"], "networking": networking}})
    lab.tables.endpoints.delete(7)
    assert lab.work() == []
    assert ("shop", "web") in lab.api.of(CILIUM_ENDPOINT)


def test_object_of_the_pod_before_is_taken_over(lab):
    """A pod of the same name came: the object belongs to that one now."""
    lab.tables.endpoints.delete(7)
    lab.uids["shop", "web"] = "pod-2"
    lab.tables.endpoints.set(9, endpoint(9, ipv4="10.0.1.9"))
    lab.publisher = lab.make()
    assert lab.work() == ["replace CiliumEndpoint web"]
    made = lab.api.of(CILIUM_ENDPOINT)["shop", "web"]
    assert made["metadata"]["ownerReferences"][0]["uid"] == "pod-2"
    assert made["status"]["networking"]["addressing"] == [{"ipv4": "10.0.1.9"}]


def test_nothing_happens_before_all_is_known():
    """What is absent then is not gone."""
    lab = Lab()
    lab.tables.endpoints.set(7, endpoint())
    lab.tables.remote_endpoints.initialized = False
    assert lab.work() == []


def test_endpoint_without_facts_pod_or_object_is_left_out():
    """The health endpoint is no pod; who has no identity yet is not told of."""
    lab = Lab()
    lab.tables.endpoints.set(1, endpoint(1, pod=HEALTH_POD))
    lab.tables.endpoints.set(2, endpoint(2, pod=("shop", "unknown")))
    lab.facts = None
    lab.tables.endpoints.set(7, endpoint())
    assert lab.work() == []


def test_pod_that_is_known_later_than_its_endpoint_is_told_at_once():
    """The publisher is woken by the pod: nothing else may happen on the node for a long time."""
    lab = Lab()
    uid = lab.uids.pop(("shop", "web"))
    pod = PodRow("shop", "web", {}, "default", None, False, "n1", {})

    async def scene():
        running = asyncio.create_task(lab.publisher.run())
        lab.tables.endpoints.set(7, endpoint())
        await asyncio.sleep(0.5)
        assert lab.api.asked == []
        lab.uids["shop", "web"] = uid
        lab.tables.pods.set(("shop", "web"), pod)
        await asyncio.sleep(0.5)
        running.cancel()

    asyncio.run(scene())
    assert lab.api.asked == ["create CiliumEndpoint web"]


def test_failure_is_tried_again_later_and_told(lab):
    """Each endpoint has its own patience."""
    lab.facts = EndpointFacts(301, LABELS, "ready", True, False, {})
    lab.api.failing = AWAY
    assert lab.work() == ["replace CiliumEndpoint web"]
    assert "connection refused" in lab.publisher.error
    assert lab.work() == [], "not at once"
    lab.api.failing = None
    lab.now += 1
    assert lab.work() == ["replace CiliumEndpoint web"]
    assert lab.publisher.error is None


def test_version_that_somebody_else_changed_is_read_again(lab):
    """Our version of the object is stale."""
    lab.api.put(CILIUM_ENDPOINT, lab.api.of(CILIUM_ENDPOINT)["shop", "web"])
    lab.facts = EndpointFacts(301, LABELS, "ready", True, False, {})
    lab.work()
    lab.now += 1
    assert lab.work() == ["replace CiliumEndpoint web"]
    assert lab.api.of(CILIUM_ENDPOINT)["shop", "web"]["status"]["identity"]["id"] == 301
