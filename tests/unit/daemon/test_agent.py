# SPDX-License-Identifier: Apache-2.0
"""What the agent says about endpoints and traffic, and how it hears of the network, over parts in memory."""

import asyncio
import time
from ipaddress import ip_address
from types import SimpleNamespace

import pytest
from structlog.testing import capture_logs

from ciliumd import abi
from ciliumd.daemon import agent as module
from ciliumd.daemon import stages
from ciliumd.model.identity import Reserved
from ciliumd.model.net import addr16
from ciliumd.net.devices import NativeDevice
from ciliumd.net.watch import AddressEvent, EventsLost, LinkEvent
from ciliumd.tables import Problem
from unit.daemon import nodes


@pytest.mark.parametrize("name", [stages.FACTS, stages.STATES, stages.IFINDEX, stages.LXC, stages.IPCACHE])
def test_an_endpoint_is_ready_when_every_row_of_it_is_written(kernel, agent, name):
    """Its own three, and those that lead from its address to it and to its identity."""
    endpoint = kernel.tables.endpoints.get(1)
    assert agent.endpoint_ready(endpoint)
    key = {
        stages.IFINDEX: endpoint.ifindex.to_bytes(4, "little"),
        stages.LXC: abi.LxcKey(addr16(endpoint.ipv4)).pack(),
        stages.IPCACHE: abi.IpcacheKey(addr16(endpoint.ipv4), 0).pack(),
    }.get(name, endpoint.slot.to_bytes(4, "little"))
    kernel.reconciler.tracker(name).record_deleted([key])
    assert not agent.endpoint_ready(endpoint)
    assert agent.endpoint_ready(kernel.tables.endpoints.get(2))


def test_an_endpoint_nobody_has_planned_is_not_ready(kernel, agent):
    """Nothing is desired of it yet."""
    assert not agent.endpoint_ready(nodes.endpoint(9))


def test_waiting_for_rows_ends_with_them_or_with_a_reason(kernel, agent, monkeypatch):
    """Written, gone, or why not."""
    monkeypatch.setattr(module, "REALIZE_SECONDS", 0.1)

    async def scenario():
        running = asyncio.ensure_future(kernel.reconciler.run())
        try:
            assert await agent.endpoint_realized(1) == ""
            assert await agent.endpoint_realized(99) == ""
            kernel.maps[stages.IFINDEX].fail = lambda _: OSError(7, "map is full")
            nodes.add_pod(kernel.tables, 3, {"app": "db"})
            return await agent.endpoint_realized(3)
        finally:
            running.cancel()

    kernel.reconciler._clock = time.monotonic
    problem = asyncio.run(scenario())
    assert "cilium_ifindex_v1" in problem
    assert "map is full" in problem


def test_a_slot_generation_is_stored_before_it_is_used(agent):
    """It is never handed out twice, whatever happens in between."""
    assert [agent.next_slot_gen() for _ in range(3)] == [1, 2, 3]
    assert agent.datapath.word(abi.NodeState.NODE_STATE_NEXT_SLOT_GEN) == 4


def test_names_for_events_follow_the_endpoints(kernel, agent):
    """Address and device, gathered once per change."""
    one = kernel.tables.endpoints.get(1)
    assert agent.pod_at(one.ipv4).pod_name == "pod-1"
    assert agent._device_name(one.ifindex) == one.ifname
    first = agent._names()
    assert agent._names() is first
    kernel.tables.endpoints.delete(1)
    assert agent.pod_at(one.ipv4) is None
    assert agent._device_name(one.ifindex) is None
    agent.attachments.devices[one.ifindex] = SimpleNamespace(owner="eth0")
    assert agent._device_name(one.ifindex) == "eth0"


def test_problems_are_counted_once(agent):
    """By kind and field."""
    agent.tables.problems.subscribe(agent.count_problems)
    agent.tables.problems.set(("Pod", "shop", "a"), Problem("spec.x", "bad"))
    agent.tables.problems.set(("Pod", "shop", "b"), Problem("", "bad"))
    agent.tables.problems.delete(("Pod", "shop", "a"))
    assert agent.tallies.resource_errors.value("Pod", "spec.x") == 1
    assert agent.tallies.resource_errors.value("Pod", "object") == 1
    assert agent.problems_seen() == agent.tables.problems.revision


class FakeOwner:
    """Hears of devices."""

    def __init__(self):
        self.heard = []

    async def device_gone(self, ifindex):
        """One is gone."""
        self.heard.append(ifindex)
        if ifindex == 13:
            raise ZeroDivisionError("bug")

    async def check_devices(self):
        """Any may be gone."""
        self.heard.append("all")


def test_events_of_the_network_reach_those_they_concern(agent):
    """A vanished device its pod; lost events all pods; every event the node's network."""

    async def scenario():
        agent.endpoints_owner = owner = FakeOwner()
        noticed = []
        agent.network = SimpleNamespace(notice=lambda: noticed.append(1))
        agent.network_changed(LinkEvent(7, "lxc7", False, True))
        agent.network_changed(LinkEvent(8, "lxc8", True, False))
        agent.network_changed(AddressEvent(1, ip_address("10.0.0.1"), True))
        agent.network_changed(EventsLost())
        agent.network_changed(LinkEvent(13, "lxc13", False, True))
        await asyncio.sleep(0.01)
        return owner.heard, len(noticed), agent._background

    with capture_logs() as logs:
        heard, noticed, left = asyncio.run(scenario())
    assert heard == [7, "all", 13]
    assert noticed == 5
    assert left == set()
    assert [one["error"] for one in logs] == ["ZeroDivisionError: bug"]


def test_a_changed_network_is_planned(kernel, agent):
    """The node's own addresses are the node's, and node ports are served on those of its devices."""
    address = ip_address("192.0.2.1")
    device = NativeDevice(2, "eth0", "02:00:00:00:00:01", 1500, (address,), ())
    agent.network_is((address,), (device,))
    kernel.round()
    assert agent.native == (device,)
    assert agent.plan.node.node_port_addresses == (address,)
    row = kernel.maps[stages.IPCACHE].rows[abi.IpcacheKey(addr16(address), 0).pack()]
    assert abi.IpcacheEntry.unpack(row).identity == Reserved.HOST
