# SPDX-License-Identifier: Apache-2.0
"""Endpoints as runtimes know them: by container and device, across replaced sandboxes and lost memories."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from ciliumd.cni.errors import CniError, Code
from ciliumd.cni.request import Attachment, PodName
from ciliumd.daemon.attachments import Missing
from ciliumd.daemon.cni import SETTLE_ROUNDS, LiveRows, RuntimeEndpoints, endpoint_keys
from ciliumd.model.endpoint import HEALTH_POD
from ciliumd.net.errors import NetError
from ciliumd.net.links import Link, endpoint_alias, lxc_name
from unit.daemon import nodes
from unit.daemon.endpoint_node import NOTHING, Node

SECONDS = 5.0
WEB = PodName("shop", "web")


class RuntimeNode(Node):
    """A node, and its runtime's view of it."""

    def __init__(self):
        super().__init__()
        self.missing_rows = []
        self.runtime = RuntimeEndpoints(self.tables, self.endpoints, self.attachments, self.rows_missing)

    async def rows_missing(self, _):
        """Rows the test took away."""
        return self.missing_rows

    def sandbox(self, container):
        """The namespace of a container, opened."""
        path = f"/run/netns/{container}"
        if path not in self.netlink.namespaces:
            self.netlink.namespace(path)
        return self.netlink.sandbox(path)

    async def attach(self, container, pod=WEB, ifname="eth0"):
        """ADD."""
        return await self.runtime.attach(Attachment(container, ifname), pod, self.sandbox(container))

    async def faults(self, container, ifname="eth0"):
        """CHECK."""
        return await self.runtime.faults(Attachment(container, ifname), self.sandbox(container))

    async def detach(self, container, ifname="eth0"):
        """DEL, and what is done behind its answer."""
        await self.runtime.detach(Attachment(container, ifname))
        await self.reaper.stop(1.0)

    def only(self):
        """The one endpoint there is."""
        (endpoint,) = self.tables.endpoints.values()
        return endpoint


def run(scenario):
    """Run ``scenario(node)``; every sandbox that was passed is closed at the end."""

    async def timed():
        node = RuntimeNode()
        async with asyncio.timeout(SECONDS):
            await scenario(node)
        assert all(sandbox.closed for sandbox in node.netlink.sandboxes)

    asyncio.run(timed())


def test_what_was_made_is_told():
    """As the result needs it; asked again from memory it is the same."""

    async def scenario(node):
        made = await node.attach("c1")
        endpoint = node.only()
        assert (made.address, made.mac, made.host_mac) == (endpoint.ipv4, endpoint.mac, endpoint.node_mac)
        assert (made.ifname, made.host_ifname, made.sandbox) == ("eth0", lxc_name("c1"), "/run/netns/c1")
        assert (made.router, made.mtu, made.route_mtu) == (node.ipam.router, 1500, 1500)
        assert node.runtime.attached(Attachment("c1", "eth0")) == made
        assert node.runtime.attached(Attachment("c1", "net1")) is None

    run(scenario)


def test_the_same_container_again_is_the_same_pod():
    """And a device of another name is refused."""

    async def scenario(node):
        assert await node.attach("c1") == await node.attach("c1")
        with pytest.raises(CniError, match="at device eth0") as caught:
            await node.attach("c1", ifname="net1")
        assert caught.value.code is Code.ADD_FAILED
        assert len(node.tables.endpoints) == 1

    run(scenario)


def test_another_sandbox_replaces_the_pods_old_one():
    """Whose late DEL finds nothing."""

    async def scenario(node):
        first = await node.attach("c1")
        second = await node.attach("c2")
        assert first.address != second.address
        await node.detach("c1")
        assert node.only().container_id == "c2"
        assert set(node.netlink.links) == {node.only().ifindex}

    run(scenario)


def test_a_deletion_needs_nothing_but_the_names():
    """However often."""

    async def scenario(node):
        await node.attach("c1")
        del node.netlink.namespaces["/run/netns/c1"]
        for _ in range(3):
            await node.detach("c1")
        assert node.left() == NOTHING

    run(scenario)


@pytest.mark.parametrize("pod", [PodName("Shop", "web"), PodName("shop", "../x"), PodName("shop", "")])
def test_what_is_no_pod_is_refused(pod):
    """Before anything is done with its namespace."""

    async def scenario(node):
        with pytest.raises(CniError, match="CNI_ARGS") as caught:
            await node.attach("c1", pod)
        assert caught.value.code is Code.INVALID_ENVIRONMENT
        assert node.left() == NOTHING

    run(scenario)


def test_a_failure_is_told_and_undone():
    """With the kernel's words."""

    async def scenario(node):
        node.netlink.fail["connect_endpoint"] = NetError("set link up", "Operation not permitted", errno=1)
        with pytest.raises(CniError, match="not permitted") as caught:
            await node.attach("c1")
        assert caught.value.code is Code.ADD_FAILED
        assert node.left() == NOTHING

    run(scenario)


def test_an_agent_that_ends_is_to_be_asked_again():
    """Each request; what was passed is closed."""

    async def scenario(node):
        await node.attach("c1")
        await node.endpoints.stop()
        for request in (node.attach("c2", PodName("shop", "b")), node.faults("c1"), node.detach("c1")):
            with pytest.raises(CniError, match="ending") as caught:
                await request
            assert caught.value.code in {Code.TRY_AGAIN_LATER, Code.CHECK_FAILED}

    run(scenario)


def test_many_at_once_overlap():
    """Their programs are attached side by side, not one pod after the other."""

    async def scenario(node):
        node.realizing = asyncio.Event()
        adding = [
            asyncio.ensure_future(node.attach(f"c{number}", PodName("shop", f"pod-{number}")))
            for number in range(16)
        ]
        while len(node.tables.endpoints) < 16:  # noqa: ASYNC110  what is waited for is in other tasks
            await asyncio.sleep(0)
        node.realizing.set()
        made = await asyncio.gather(*adding)
        assert len({one.address for one in made}) == 16
        assert len({one.slot for one in node.tables.endpoints.values()}) == 16

    run(scenario)


# ---- CHECK -----------------------------------------------------------------------------------


def test_a_pod_as_it_was_made_has_no_fault():
    """Not even one."""

    async def scenario(node):
        await node.attach("c1")
        assert await node.faults("c1") == []

    run(scenario)


def test_faults_come_from_every_part():
    """Devices, reservation, programs, rows."""

    async def scenario(node):
        made = await node.attach("c1")
        node.netlink.faulty = ("a route is gone",)
        node.ipam.release(made.address)
        node.attachments.missing = [Missing(node.only().ifindex, "entry_from_container on shop/web")]
        node.missing_rows = ["a row is gone"]
        assert await node.faults("c1") == [
            "a route is gone",
            f"address {made.address} is reserved for nobody",
            "entry_from_container on shop/web is detached",
            "a row is gone",
        ]

    run(scenario)


def test_a_reservation_of_somebody_else_is_a_fault():
    """It names who has the address."""

    async def scenario(node):
        made = await node.attach("c1")
        node.ipam.release(made.address)
        node.ipam.reserve(made.address, "shop/thief")
        assert await node.faults("c1") == [f"address {made.address} is reserved for shop/thief"]

    run(scenario)


def test_a_deleted_pod_has_one_fault():
    """It was there a moment ago."""

    async def scenario(node):
        assert await node.faults("c1") == ["the pod was deleted"]

    run(scenario)


# ---- orphans and lost memories ---------------------------------------------------------------


def lost(node):
    """What an agent knows of its one endpoint when the file is lost: what the kernel has."""
    known = replace(node.only(), netns="", container_id="")
    node.tables.endpoints.set(known.id, known)


def test_a_recovered_pod_is_known_by_the_name_of_its_device():
    """To DEL, CHECK and GC; the next ADD of its container tells the rest."""

    async def scenario(node):
        await node.attach("c1")
        lost(node)
        await node.runtime.keep_only(frozenset({Attachment("c1", "eth0")}))
        assert await node.faults("c1") == []
        await node.attach("c1")
        assert node.only().container_id == "c1"
        lost(node)
        await node.detach("c1")
        assert node.left() == NOTHING

    run(scenario)


def test_a_recovered_pod_in_a_new_sandbox_is_replaced():
    """The name of its device says that it is another."""

    async def scenario(node):
        await node.attach("c1")
        lost(node)
        await node.attach("c2")
        assert node.only().container_id == "c2"

    run(scenario)


def test_only_what_runtimes_made_is_collected():
    """Not the node's health endpoint, and not what was made by hand, recovered or not."""

    async def scenario(node):
        await node.attach("c1", PodName("shop", "valid"))
        await node.attach("c2", PodName("shop", "orphan"))
        by_hand = await node.add("by-hand")
        recovered = await node.add("recovered")
        node.tables.endpoints.set(recovered.id, replace(recovered, netns=""))
        health = replace(nodes.endpoint(77), namespace=HEALTH_POD[0], pod=HEALTH_POD[1], netns="")
        node.tables.endpoints.set(77, health)
        await node.runtime.keep_only(frozenset({Attachment("c1", "eth0")}))
        left = {endpoint.pod for endpoint in node.tables.endpoints.values()}
        assert left == {"valid", "by-hand", "recovered", "cilium-health"}
        assert by_hand.ifindex in node.netlink.links
        await node.runtime.keep_only(frozenset())
        assert "valid" not in {endpoint.pod for endpoint in node.tables.endpoints.values()}

    run(scenario)


def leftover(node, number, name, alias):
    """A device nobody has an endpoint for."""
    node.netlink.links[number] = Link(number, name, "", 1500, False, False, alias, "veth", 2)


def test_devices_an_agent_left_when_it_died_are_taken_away():
    """By the DEL of their container, also before they were marked; the rest by the next GC."""

    async def scenario(node):
        await node.attach("c1")
        leftover(node, 901, lxc_name("c2"), "")
        leftover(node, 902, lxc_name("c3"), endpoint_alias(9, "shop/c3"))
        leftover(node, 903, lxc_name("valid"), endpoint_alias(8, "shop/valid"))
        leftover(node, 904, lxc_name("shop/hand"), endpoint_alias(7, "shop/hand"))
        leftover(node, 905, lxc_name("stranger"), "")
        leftover(node, 906, lxc_name("c4"), "somebody's")
        for container in ("c2", "c4"):
            await node.detach(container)
        assert set(node.netlink.links) == {node.only().ifindex, 902, 903, 904, 905, 906}
        await node.runtime.keep_only(frozenset({Attachment("c1", "eth0"), Attachment("valid", "eth0")}))
        assert set(node.netlink.links) == {node.only().ifindex, 903, 904, 905, 906}

    run(scenario)


# ---- rows as the kernel has them -------------------------------------------------------------


class FakeMap(dict):
    """A map that is read."""

    def lookup(self, key):
        """As ``bpf.map.Map.lookup``."""
        return self.get(key)


class Kernel:
    """What is wanted of an endpoint, and what maps have; *settles* counts the rounds waited for."""

    def __init__(self, endpoint):
        self.wanted = {}
        self.maps = {}
        self.settles = 0
        self.changes = []
        for name, key in endpoint_keys(endpoint):
            self.wanted.setdefault(name, {})[key] = b"row"
            self.maps.setdefault(name, FakeMap())[key] = b"row"

    async def settle(self):
        """A round of the reconciler."""
        self.settles += 1
        if self.changes:
            self.changes.pop(0)()

    def missing(self, endpoint):
        """What ``LiveRows`` finds."""

        async def ask():
            with ThreadPoolExecutor(1) as executor:
                rows = LiveRows(self.wanted.__getitem__, self.maps, settle=self.settle, executor=executor)
                return await rows.missing(endpoint)

        return asyncio.run(ask())


def test_rows_that_are_as_wanted_are_read_once():
    """Every one an endpoint has."""
    endpoint = nodes.endpoint(1)
    kernel = Kernel(endpoint)
    assert kernel.missing(endpoint) == []
    assert kernel.settles == 1


def test_each_missing_or_changed_row_is_named():
    """Of every map; a row nobody wants yet too."""
    endpoint = nodes.endpoint(1)
    for name, key in endpoint_keys(endpoint):
        for spoil, word in (
            (lambda kernel: kernel.maps[name].pop(key), "missing"),  # noqa: B023  called in this turn
            (lambda kernel: kernel.maps[name].update({key: b"other"}), "another"),  # noqa: B023
            (lambda kernel: kernel.wanted[name].pop(key), "another"),  # noqa: B023
        ):
            kernel = Kernel(endpoint)
            spoil(kernel)
            (found,) = kernel.missing(endpoint)
            assert found == f"row {key.hex()} of {name} is {word}"
            assert kernel.settles == SETTLE_ROUNDS


def test_a_row_that_is_being_changed_is_no_fault():
    """A policy came between the question and the answer."""
    endpoint = nodes.endpoint(1)
    kernel = Kernel(endpoint)
    name, key = endpoint_keys(endpoint)[0]
    kernel.wanted[name][key] = b"new"
    kernel.changes = [lambda: None, lambda: kernel.maps[name].update({key: b"new"})]
    assert kernel.missing(endpoint) == []
