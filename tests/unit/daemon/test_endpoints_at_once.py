# SPDX-License-Identifier: Apache-2.0
"""Requests that meet, devices that vanish, clients that leave, an agent that ends."""

import asyncio

import pytest
from structlog.testing import capture_logs

from ciliumd.daemon import endpoints as module
from ciliumd.daemon.api import RequestRefused
from ciliumd.net.links import Link, endpoint_alias
from unit.daemon.endpoint_node import BROKEN, NOTHING, run


def test_two_requests_for_one_pod_make_one():
    """At the same moment."""

    async def scenario(node):
        request = node.request()
        one, two = await asyncio.gather(node.endpoints.add(request), node.endpoints.add(request))
        assert one == two
        assert node.left()[0] == {one.id}

    run(scenario)


def test_requests_for_many_pods_share_nothing():
    """Ids, slots, addresses and devices are each one's own."""

    async def scenario(node):
        made = await asyncio.gather(*(node.add(f"pod-{number}") for number in range(20)))
        for values in zip(
            *((one.id, one.slot, one.slot_gen, one.ipv4, one.ifindex) for one in made), strict=True
        ):
            assert len(set(values)) == 20

    run(scenario)


def test_a_deletion_during_the_addition_comes_after_it():
    """The pod is whole, then gone: no half of it survives either."""

    async def scenario(node):
        gate = node.hold("rows")
        adding = await node.begin()
        assert set(node.tables.endpoints) == {1}
        deleting = asyncio.ensure_future(node.delete(1))
        await asyncio.sleep(0)
        gate.set()
        assert (await adding).id == 1
        await deleting
        assert node.left() == NOTHING
        assert node.names[-4:] == ["rows gone", "retire", "delete device", "detach"]

    run(scenario)


def test_a_device_that_vanishes_during_the_addition_takes_the_pod_with_it():
    """Whether connecting notices it or the event does."""

    async def scenario(node):
        gate = node.hold("rows")
        adding = await node.begin()
        assert set(node.tables.endpoints) == {1}
        (ifindex,) = node.netlink.links
        node.netlink.delete_link(ifindex)
        noticing = asyncio.ensure_future(node.endpoints.device_gone(ifindex))
        await asyncio.sleep(0)
        gate.set()
        with pytest.raises(RequestRefused, match="disappeared"):
            await adding
        await noticing
        assert node.left() == NOTHING

    run(scenario)


def test_a_vanished_device_takes_its_pod_with_it():
    """And no other."""

    async def scenario(node):
        one, two = await node.add("one"), await node.add("two")
        node.netlink.delete_link(one.ifindex)
        await node.endpoints.device_gone(one.ifindex)
        await node.endpoints.device_gone(4711)
        assert node.left() == ({two.id}, {two.ifindex}, {two.ifindex}, {two.ipv4}, {two.id})

    run(scenario)


def test_devices_that_vanished_unseen_are_noticed():
    """Events can be lost; a device of the same number may even be another's."""

    async def scenario(node):
        one, two, three = [await node.add(name) for name in ("one", "two", "three")]
        node.netlink.delete_link(one.ifindex)
        link = node.netlink.links[two.ifindex]
        node.netlink.links[two.ifindex] = Link(
            link.ifindex, "x", "", 1, True, False, endpoint_alias(9, "a/b"), "", 0
        )
        await node.endpoints.check_devices()
        assert node.left()[0] == {three.id}
        assert two.ifindex in node.netlink.links

    run(scenario)


def test_a_pod_made_while_devices_are_checked_is_none_of_the_lost():
    """The list of devices is read between changes, not across one."""

    async def scenario(node):
        gate = node.hold("all_links")
        checking = asyncio.ensure_future(node.endpoints.check_devices())
        adding = await node.begin()
        gate.set()
        made = await adding
        await checking
        assert node.left()[0] == {made.id}

    run(scenario)


@pytest.mark.parametrize("step", ["prepare_endpoint", "connect_endpoint", "rows"])
def test_a_client_that_leaves_does_not_leave_half_a_pod(step):
    """The addition runs to its end; asking again finds the pod."""

    async def scenario(node):
        gate = node.hold(step)
        adding = await node.begin()
        adding.cancel()
        with pytest.raises(asyncio.CancelledError):
            await adding
        gate.set()
        made = await node.add()
        assert node.left() == ({made.id}, {made.ifindex}, {made.ifindex}, {made.ipv4}, {made.id})
        assert node.generations == 1

    run(scenario)


def test_a_failure_nobody_waits_for_is_logged():
    """The client has gone; what went wrong is not lost with it."""

    async def scenario(node):
        gate = node.hold("connect_endpoint")
        node.netlink.fail["connect_endpoint"] = BROKEN
        adding = await node.begin()
        adding.cancel()
        with pytest.raises(asyncio.CancelledError):
            await adding
        with capture_logs() as logs:
            gate.set()
            await asyncio.sleep(0.01)
        assert [one["event"] for one in logs] == ["endpoint.abandoned_change_failed"]
        assert node.left() == NOTHING

    run(scenario)


def test_the_end_waits_for_what_is_under_way():
    """SIGTERM during an addition: the pod is made whole and its client told; nothing new begins."""

    async def scenario(node):
        gate = node.hold("rows")
        adding = await node.begin()
        stopping = asyncio.ensure_future(node.endpoints.stop())
        await asyncio.sleep(0)
        with pytest.raises(RequestRefused, match="ending") as caught:
            await node.add("late")
        assert caught.value.status == 503
        await node.endpoints.device_gone(101)
        gate.set()
        made = await adding
        await stopping
        assert node.left()[0] == {made.id}

    run(scenario)


@pytest.mark.parametrize("step", ["prepare_endpoint", "connect_endpoint", "rows"])
def test_the_end_undoes_what_cannot_be_finished_in_time(step, monkeypatch):
    """Also a device the kernel makes after everybody has stopped waiting for it."""

    async def scenario(node):
        monkeypatch.setattr(module, "END_SECONDS", 0.05)
        gate = node.hold(step)
        adding = await node.begin()
        asyncio.get_running_loop().call_later(0.07, gate.set)
        await node.endpoints.stop()
        with pytest.raises(RequestRefused, match="is undone") as caught:
            await adding
        assert caught.value.status == 503
        assert node.left() == NOTHING

    run(scenario)
