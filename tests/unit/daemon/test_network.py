# SPDX-License-Identifier: Apache-2.0
"""The node's devices and addresses: one look per burst, new devices get programs, old ones keep theirs."""

import asyncio
from ipaddress import ip_address

import pytest
from structlog.testing import capture_logs

from ciliumd.daemon import network as module
from ciliumd.daemon.network import NodeNetwork
from ciliumd.net.devices import NativeDevice
from ciliumd.net.errors import NetError
from unit.daemon.machine import FakeAttachments

SECONDS = 5.0
ADDRESS = ip_address("192.0.2.1")


def device(ifindex):
    """A native device."""
    return NativeDevice(ifindex, f"eth{ifindex}", "02:00:00:00:00:01", 1500, (ADDRESS,), ())


class Machine:
    """Answers of the kernel."""

    def __init__(self):
        self.native = (device(1),)
        self.addresses = frozenset({ADDRESS})
        self.links = {1, 2, 3}
        self.error = None
        self.asked = 0
        self.mtu_looks = 0

    async def call(self, function, *args):
        """As ``NetlinkThread.call``."""
        self.asked += 1
        await asyncio.sleep(0)
        if self.error:
            raise self.error
        match function.__name__:
            case "node_addresses":
                return self.addresses
            case "native_devices":
                return self.native
            case "link_by_index":
                return object() if args[0] in self.links else None


@pytest.fixture
def follow(monkeypatch):
    """Run ``scenario(network, machine, attachments, told)`` beside the network's own task."""
    monkeypatch.setattr(module, "BURST_SECONDS", 0.01)
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.01)

    def run(scenario):
        async def body():
            machine, attachments, told = Machine(), FakeAttachments([]), []

            async def follow_mtu():
                machine.mtu_looks += 1

            network = NodeNetwork(
                (),
                native=machine.native,
                netlink=machine,
                attachments=attachments,
                told=lambda addresses, native: told.append((addresses, native)),
                follow_mtu=follow_mtu,
            )
            task = asyncio.ensure_future(network.run())
            try:
                async with asyncio.timeout(SECONDS):
                    await scenario(network, machine, attachments, told)
            finally:
                task.cancel()

        asyncio.run(body())

    return run


async def until(condition):
    """Wait for it, as long as the machine takes; the scenario as a whole is bounded."""
    while not condition():  # noqa: ASYNC110  the task under test tells nobody
        await asyncio.sleep(0.005)


async def quiet():
    """Several rounds of the network's task, in which nothing more may happen."""
    await asyncio.sleep(0.05)


def test_a_burst_of_events_is_one_look(follow):
    """Making a pod alone is worth five events, and each look lists every device of the node."""

    async def scenario(network, machine, attachments, told):
        for _ in range(100):
            network.notice()
            await asyncio.sleep(0)
        await until(lambda: told)
        await quiet()
        assert network.reads == 1
        assert told == [((ADDRESS,), (device(1),))]
        network.notice()
        await until(lambda: network.reads == 2)

    follow(scenario)


def test_what_changes_during_a_look_is_looked_at_again(follow):
    """No event is lost between reading and telling."""

    async def scenario(network, machine, attachments, told):
        network.notice()
        while not machine.asked:  # noqa: ASYNC110  the moment the first question is asked
            await asyncio.sleep(0)
        machine.addresses = frozenset()
        network.notice()
        await until(lambda: network.reads == 2 and told[-1:] == [((), (device(1),))])

    follow(scenario)


def test_a_new_native_device_gets_programs(follow):
    """The first one keeps its own, untouched."""

    async def scenario(network, machine, attachments, told):
        machine.native = (device(1), device(2))
        network.notice()
        await until(lambda: told)
        assert set(attachments.devices) == {2}
        assert attachments.devices[2].hooks
        network.notice()
        await until(lambda: network.reads == 2)
        await quiet()
        assert attachments.journal == [("attach", 2)]

    follow(scenario)


def test_a_device_without_a_default_route_keeps_its_programs_until_it_is_gone(follow):
    """A route that flaps breaks no connection."""

    async def scenario(network, machine, attachments, told):
        machine.native = ()
        network.notice()
        await until(lambda: told and told[-1] == ((ADDRESS,), ()))
        assert attachments.journal == []
        machine.links.clear()
        network.notice()
        await until(lambda: attachments.journal)
        assert attachments.journal == [("detach", 1)]

    follow(scenario)


def test_what_cannot_be_read_is_told_and_read_again(follow):
    """What was known stays."""

    async def scenario(network, machine, attachments, told):
        machine.error = NetError("list links", "no buffer space")
        with capture_logs() as logs:
            network.notice()
            await until(lambda: logs)
        assert logs[0]["event"] == "network.unreadable"
        assert told == []
        machine.error = None
        await until(lambda: told)
        assert told == [((ADDRESS,), (device(1),))]

    follow(scenario)


def test_a_device_that_refuses_programs_is_tried_again(follow):
    """Addresses are told all the same."""

    async def scenario(network, machine, attachments, told):
        machine.native = (device(1), device(2))
        attachments.fail["attach"] = NetError("attach", "busy")
        with capture_logs():
            network.notice()
            await until(lambda: told)
        attachments.fail.clear()
        await until(lambda: ("attach", 2) in attachments.journal)

    follow(scenario)


def test_every_look_asks_for_the_mtu(follow):
    """Before anybody is told, so that rows are computed with what it is now."""

    async def scenario(network, machine, attachments, told):
        network.notice()
        await until(lambda: told)
        assert machine.mtu_looks == network.reads > 0

    follow(scenario)
