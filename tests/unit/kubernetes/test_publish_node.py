# SPDX-License-Identifier: Apache-2.0
"""The node's own CiliumNode, and how an agent learns its pod CIDR."""

import asyncio
from ipaddress import ip_address, ip_network

import pytest

from ciliumd.kubernetes.bootstrap import OwnNode, own_node, recall, remember
from ciliumd.kubernetes.claims import CLAIMS
from ciliumd.kubernetes.errors import Unreachable
from ciliumd.kubernetes.kinds import CILIUM_NODE, NODE
from ciliumd.kubernetes.node import NodePublisher, Reachable, document
from ciliumd.model.objects import NodeRow
from ciliumd.resources.node import KubernetesNode
from ciliumd.tables import Tables
from unit.kubernetes.fake_api import FakeApi

CIDR = ip_network("10.0.1.0/24")
INTERNAL = ("InternalIP", ip_address("192.0.2.1"))
NODE_OBJECT = KubernetesNode("n1", "u1", {"zone": "a"}, (INTERNAL,), ())
REACHABLE = Reachable((ip_address("10.0.1.1"),), (ip_address("10.0.1.9"),))
AWAY = Unreachable("get", "nodes n1", 0, "connection refused")


def node_document(*, cidrs=(), uid="u1"):
    """The Node as the API server has it."""
    return {
        "metadata": {"name": "n1", "uid": uid, "labels": {"zone": "a"}},
        "spec": {"podCIDRs": list(cidrs)} if cidrs else {},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]},
    }


@pytest.fixture
def api():
    """An API server that knows the Node."""
    api = FakeApi()
    api.put(NODE, node_document())
    return api


@pytest.fixture
def tables():
    """Empty tables."""
    return Tables()


def publisher(api, tables, *, mode="cluster-pool", cidrs=(CIDR,)):
    """A publisher of n1."""
    return NodePublisher(api, tables, name="n1", mode=mode, pod_cidrs=lambda: cidrs, boot_id="boot-1")


def test_document_has_what_other_nodes_need():
    """And belongs to the Node, with which it goes."""
    made = document(None, NODE_OBJECT, REACHABLE, boot_id="boot-1", pod_cidrs=(CIDR,))
    assert made == {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNode",
        "metadata": {
            "name": "n1",
            "labels": {"zone": "a"},
            "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "u1"}],
        },
        "spec": {
            "addresses": [
                {"type": "InternalIP", "ip": "192.0.2.1"},
                {"type": "CiliumInternalIP", "ip": "10.0.1.1"},
            ],
            "bootid": "boot-1",
            "health": {"ipv4": "10.0.1.9"},
            "ipam": {"podCIDRs": ["10.0.1.0/24"]},
        },
    }


def test_document_leaves_fields_of_others_alone():
    """The operator's pod CIDRs, annotations, fields we do not know; stale labels and addresses go."""
    existing = {
        "metadata": {"name": "n1", "resourceVersion": "5", "annotations": {"a": "b"}, "labels": {"old": "x"}},
        "spec": {"ipam": {"podCIDRs": ["10.0.7.0/24"]}, "health": {"ipv4": "10.0.0.1"}, "instance-id": "i"},
        "status": {"ipam": {}},
    }
    made = document(existing, NODE_OBJECT, Reachable(), boot_id="b")
    assert made["metadata"]["annotations"] == {"a": "b"}
    assert made["metadata"]["resourceVersion"] == "5"
    assert made["metadata"]["labels"] == {"zone": "a"}
    assert made["spec"]["ipam"] == {"podCIDRs": ["10.0.7.0/24"]}
    assert made["spec"]["instance-id"] == "i"
    assert "health" not in made["spec"]
    assert made["status"] == {"ipam": {}}


def test_published_once_and_again_only_when_it_differs(api, tables):
    """Somebody who changes it is corrected; nobody is asked to write what is there."""
    one = publisher(api, tables)
    one.node_changed(NODE_OBJECT)
    one.reachable(REACHABLE)
    for _ in range(3):
        asyncio.run(one.work())
    assert [asked for asked in api.asked if "get" not in asked] == ["create CiliumNode n1"]

    stored = api.of(CILIUM_NODE)["", "n1"]
    stored["spec"]["addresses"] = []
    asyncio.run(one.work())
    assert [asked for asked in api.asked if "get" not in asked][1:] == ["replace CiliumNode n1"]
    assert len(api.of(CILIUM_NODE)["", "n1"]["spec"]["addresses"]) == 2


def test_contradictions_are_problems_and_change_nothing(api, tables):
    """Another pod CIDR than the one served; another machine; another node with our addresses."""
    one = publisher(api, tables)
    one.node_changed(NODE_OBJECT)
    api.put(CILIUM_NODE, {"metadata": {"name": "n1"}, "spec": {"ipam": {"podCIDRs": ["10.0.2.0/24"]}}})
    asyncio.run(one.work())
    key = ("CiliumNode", "", "n1")
    assert tables.problems.get(key).field == "spec.ipam.podCIDRs"
    assert "10.0.1.0/24" in tables.problems.get(key).message

    stored = api.of(CILIUM_NODE)["", "n1"]["spec"]
    stored["ipam"] = {"podCIDRs": ["10.0.1.0/24"]}
    stored["bootid"] = "boot-2"
    asyncio.run(one.work())
    assert tables.problems.get(key).field == "spec.bootid"

    tables.nodes.set("n2", NodeRow("n2", pod_cidrs=(ip_network("10.0.0.0/16"),)))
    asyncio.run(one.work())
    assert "node n2" in tables.problems.get(key).message

    tables.nodes.set("n2", NodeRow("n2", addresses=(INTERNAL,)))
    asyncio.run(one.work())
    assert tables.problems.get(key).field == "spec.addresses"

    tables.nodes.delete("n2")
    asyncio.run(one.work())
    assert key not in tables.problems


def ask(api, tables, path, *, mode="cluster-pool", patience=0.3):
    """What an agent that starts now serves."""

    async def asked():
        return await own_node(
            api,
            publisher(api, tables, mode=mode, cidrs=()),
            name="n1",
            mode=mode,
            memory=path,
            waiting=lambda _: None,
            patience=patience,
        )

    return asyncio.run(asked())


def test_mode_kubernetes_takes_the_cidr_of_the_node(api, tables, tmp_path):
    """And copies it to where other nodes look."""
    api.put(NODE, node_document(cidrs=["10.0.1.0/24"]))
    expected = OwnNode("n1", (CIDR,), (INTERNAL,))
    assert expected == ask(api, tables, tmp_path / "node", mode="kubernetes")
    assert api.of(CILIUM_NODE)["", "n1"]["spec"]["ipam"] == {"podCIDRs": ["10.0.1.0/24"]}
    assert expected == recall(tmp_path / "node", "n1")


def test_mode_cluster_pool_waits_for_the_operator(api, tables, tmp_path):
    """It gives pod CIDRs to CiliumNodes, so there must be one."""

    async def started():
        said = asyncio.Queue()
        one = publisher(api, tables, cidrs=())
        work = own_node(
            api, one, name="n1", mode="cluster-pool", memory=tmp_path / "node", waiting=said.put_nowait
        )
        task = asyncio.create_task(work)
        reason = await asyncio.wait_for(said.get(), 5)
        api.of(CILIUM_NODE)["", "n1"]["spec"]["ipam"] = {"podCIDRs": ["10.0.1.0/24"]}
        return reason, await asyncio.wait_for(task, 5)

    said, node = asyncio.run(started())
    assert "the operator gives them" in said
    assert node.pod_cidrs == (CIDR,)


def test_agent_whose_pods_have_ipv6_waits_for_a_cidr_of_it(api, tables, tmp_path):
    """What is remembered from before it was enabled does not do, nor does IPv4's alone."""
    remember(tmp_path / "node", OwnNode("n1", (CIDR,), (INTERNAL,)))
    api.put(NODE, node_document())

    async def started():
        said = asyncio.Queue()
        one = publisher(api, tables, cidrs=())
        work = own_node(
            api,
            one,
            name="n1",
            mode="cluster-pool",
            memory=tmp_path / "node",
            waiting=said.put_nowait,
            ipv6=True,
        )
        task = asyncio.create_task(work)
        await asyncio.wait_for(said.get(), 5)
        spec = api.of(CILIUM_NODE)["", "n1"]["spec"]
        spec["ipam"] = {"podCIDRs": ["10.0.1.0/24"]}
        while "no IPv6 pod CIDR" not in (reason := await asyncio.wait_for(said.get(), 5)):
            pass
        spec["ipam"] = {"podCIDRs": ["10.0.1.0/24", "fd00::/120"]}
        return reason, await asyncio.wait_for(task, 5)

    reason, node = asyncio.run(started())
    assert "only 10.0.1.0/24" in reason
    assert node.pod_cidrs == (CIDR, ip_network("fd00::/120"))


def test_api_away_at_restart_starts_with_what_was_known(api, tables, tmp_path):
    """Pods keep their network; without memory the agent has to wait."""
    known = OwnNode("n1", (CIDR,), (INTERNAL,))
    remember(tmp_path / "node", known)
    api.failing = AWAY
    assert known == ask(api, tables, tmp_path / "node")
    with pytest.raises(TimeoutError):
        asyncio.run(
            asyncio.wait_for(
                own_node(
                    api,
                    publisher(api, tables),
                    name="n1",
                    mode="kubernetes",
                    memory=tmp_path / "none",
                    waiting=lambda _: None,
                ),
                0.5,
            )
        )


@pytest.mark.parametrize("spoil", [b"", b"{}", b"\xff"])
def test_memory_that_is_damaged_or_of_another_node_is_none(tmp_path, spoil):
    """Better to wait than to serve another node's pods."""
    path = tmp_path / "node"
    remember(path, OwnNode("n1", (CIDR,), (INTERNAL,)))
    assert recall(path, "n2") is None
    path.write_bytes(spoil)
    assert recall(path, "n1") is None
    assert recall(tmp_path / "missing", "n1") is None


# ---- claims ----------------------------------------------------------------------------------


def claimed_of(api):
    """The annotation of the object."""
    return api.of(CILIUM_NODE)["", "n1"]["metadata"].get("annotations", {}).get(CLAIMS)


def test_identities_in_use_are_claimed_and_known_to_be(api, tables):
    """The annotation is the agent's; those of others stay."""
    wanted, told = {300}, []
    one = publisher(api, tables)
    one.wanted_claims = lambda: frozenset(wanted)
    one.claims_changed = lambda: told.append(dict(one.claimed))
    api.put(CILIUM_NODE, {"metadata": {"name": "n1", "annotations": {"a": "b", CLAIMS: "9 299 nonsense"}}})
    asyncio.run(one.ensure(NODE_OBJECT))
    assert (claimed_of(api), list(one.claimed)) == ("300", [300])
    wanted.add(4711)
    asyncio.run(one.ensure(NODE_OBJECT))
    assert (claimed_of(api), sorted(one.claimed)) == ("300 4711", [300, 4711])
    wanted.clear()
    asyncio.run(one.ensure(NODE_OBJECT))
    assert (claimed_of(api), one.claimed) == (None, {})
    assert api.of(CILIUM_NODE)["", "n1"]["metadata"]["annotations"] == {"a": "b"}
    assert [sorted(claims) for claims in told] == [[300], [300, 4711]]


def test_claims_stay_until_it_is_known_what_is_used(api, tables):
    """An agent that starts takes nothing back, and counts on nothing."""
    api.put(CILIUM_NODE, {"metadata": {"name": "n1", "annotations": {CLAIMS: "300"}}})
    one = publisher(api, tables)
    asyncio.run(one.ensure(NODE_OBJECT))
    assert (claimed_of(api), one.claimed) == ("300", {})


def test_claim_that_may_be_gone_is_none(api, tables):
    """A write of which nobody knows whether it arrived takes claims back, and never makes them."""
    wanted = {300, 301}
    one = publisher(api, tables)
    one.wanted_claims = lambda: frozenset(wanted)
    asyncio.run(one.ensure(NODE_OBJECT))
    before = dict(one.claimed)
    wanted ^= {301, 302}
    replace, api.replace = api.replace, refused
    with pytest.raises(Unreachable):
        asyncio.run(one.ensure(NODE_OBJECT))
    assert one.claimed == {300: before[300]}
    wanted ^= {301, 302}
    api.replace = replace
    asyncio.run(one.ensure(NODE_OBJECT))
    assert one.claimed.keys() == {300, 301}
    assert one.claimed[300] == before[300]
    assert one.claimed[301] != before[301], "it was away for a while"


async def refused(*_):
    """No answer."""
    raise AWAY
