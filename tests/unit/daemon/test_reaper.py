# SPDX-License-Identifier: Apache-2.0
"""Devices of pods that are gone are deleted once, with their programs, whoever left them."""

import asyncio

import pytest
from structlog.testing import capture_logs

from ciliumd.daemon import reaper as module
from ciliumd.daemon.reaper import Reaper
from ciliumd.net.errors import NetError
from ciliumd.net.links import RETIRED_ALIAS, Link, endpoint_alias
from unit.daemon.machine import FakeAttachments, FakeNetlink

SECONDS = 5.0
BROKEN = NetError("ask the kernel", "Input/output error", errno=5)


def link(ifindex, alias=RETIRED_ALIAS):
    """A pod's device."""
    return Link(ifindex, f"lxc{ifindex}", "02:00:00:00:00:01", 1500, False, False, alias, "veth", 2)


class Node:
    """A reaper over a machine in memory."""

    def __init__(self, *present):
        self.journal = []
        self.netlink = FakeNetlink(self.journal)
        self.netlink.links = {one.ifindex: one for one in present}
        self.attachments = FakeAttachments(self.journal)
        self.reaper = Reaper(self.netlink, detach=self.attachments.detach)


def run(scenario, *present):
    """Run ``scenario(node)`` to its end."""

    async def timed():
        async with asyncio.timeout(SECONDS):
            return await scenario(Node(*present))

    return asyncio.run(timed())


def test_a_device_goes_before_its_programs():
    """While it is there its packets meet them; taken twice it goes once."""

    async def scenario(node):
        node.reaper.take(7)
        node.reaper.take(7)
        assert node.reaper.pending == {7}
        await node.reaper.stop(SECONDS)
        assert node.journal == [("delete device", 7), ("detach", 7)]
        assert node.reaper.pending == frozenset()

    run(scenario, link(7))


def test_devices_that_are_taken_one_after_the_other_go_together():
    """The first waits until no more come, though not for ever."""

    async def scenario(node):
        for ifindex in (7, 8, 9):
            node.reaper.take(ifindex)
            await asyncio.sleep(module.QUIET_SECONDS / 5)
            assert node.journal == []
        await asyncio.sleep(module.QUIET_SECONDS * 3)
        assert node.netlink.links == {}

    run(scenario, link(7), link(8), link(9))


def test_a_stream_of_devices_does_not_keep_the_first_for_ever(monkeypatch):
    """It goes after a while in any case."""
    monkeypatch.setattr(module, "LATEST_SECONDS", module.QUIET_SECONDS)

    async def scenario(node):
        ifindex = 7
        while ("delete device", 7) not in node.journal:
            ifindex += 1
            node.reaper.take(ifindex - 1)
            await asyncio.sleep(module.QUIET_SECONDS / 4)
        await node.reaper.stop(SECONDS)

    run(scenario, link(7))


def test_only_what_is_retired_is_deleted():
    """Interface numbers are used again, by a pod as well."""

    async def scenario(node):
        node.reaper.take(7)
        await node.reaper.stop(SECONDS)
        assert set(node.netlink.links) == {7}

    run(scenario, link(7, endpoint_alias(4, "shop/web")))


def test_a_namespace_is_left_when_the_device_is_gone():
    """Who waits for another namespace waits for nothing."""

    async def scenario(node):
        node.netlink.hold["delete_retired"] = asyncio.Event()
        node.reaper.take(7, netns="/run/netns/web")
        await node.reaper.leave("/run/netns/other")
        leaving = asyncio.ensure_future(node.reaper.leave("/run/netns/web"))
        await asyncio.sleep(0.01)
        assert not leaving.done()
        node.netlink.hold["delete_retired"].set()
        await leaving
        assert node.netlink.links == {}

    run(scenario, link(7))


@pytest.mark.parametrize("taken", [False, True])
def test_what_an_agent_before_left_is_swept(taken):
    """And what this one could not delete at first; pods' devices stay."""

    async def scenario(node):
        if taken:
            node.netlink.fail["delete_retired"] = BROKEN
            node.reaper.take(7)
            with capture_logs() as logs:
                await node.reaper.stop(SECONDS)
            assert [one["event"] for one in logs] == ["endpoint.device_left"]
            node.netlink.fail.clear()
        await node.reaper.sweep()
        await node.reaper.stop(SECONDS)
        assert set(node.netlink.links) == {8}

    run(scenario, link(7), link(8, endpoint_alias(4, "shop/web")))


def test_the_end_does_not_wait_for_ever():
    """What is not deleted by then is the next agent's."""

    async def scenario(node):
        node.netlink.hold["delete_retired"] = asyncio.Event()
        node.reaper.take(7)
        await node.reaper.stop(0.01)
        assert node.reaper.pending == {7}
        node.netlink.hold["delete_retired"].set()
        await node.reaper.stop(SECONDS)

    run(scenario, link(7))
