# SPDX-License-Identifier: Apache-2.0
"""Pods are made whole or not at all, in an order in which no packet goes unjudged, and leave nothing."""

import asyncio
from ipaddress import IPv4Network, ip_address

import pytest
from structlog.testing import capture_logs

from ciliumd.bpf.errors import BpfError
from ciliumd.daemon import endpoints as module
from ciliumd.daemon.api import EndpointRequest, RequestRefused
from ciliumd.daemon.endpoint_numbers import SLOT_QUARANTINE
from ciliumd.daemon.endpoints import Endpoints, PodNetwork
from ciliumd.daemon.reaper import Reaper
from ciliumd.ipam.hostscope import HostScope
from ciliumd.net.errors import NetError
from ciliumd.net.links import Link, endpoint_alias
from ciliumd.tables import Tables
from unit.daemon import nodes
from unit.daemon.machine import FakeAttachments, FakeNetlink

SECONDS = 5.0
BROKEN = NetError("ask the kernel", "Input/output error", errno=5)
REFUSED = BpfError("attach", "veth", 22)


class Node:
    """Endpoints over a machine in memory."""

    def __init__(self, *, slots=4096, cidr="10.0.0.0/24"):
        self.journal = []
        self.tables = Tables()
        self.ipam = HostScope(IPv4Network(cidr))
        self.netlink = FakeNetlink(self.journal)
        self.attachments = FakeAttachments(self.journal)
        self.clock = nodes.Clock()
        self.problem = ""
        self.realizing = None
        self.generations = 0
        self.rows = set()
        self.reaper = Reaper(self.netlink, detach=self.attachments.detach)
        self.endpoints = Endpoints(
            self.tables,
            network=PodNetwork(self.ipam.router, 1500, slots),
            ipam=self.ipam,
            netlink=self.netlink,
            attachments=self.attachments,
            reaper=self.reaper,
            next_slot_gen=self.next_slot_gen,
            realized=self.realized,
            clock=self.clock,
        )

    def next_slot_gen(self):
        """The next one."""
        self.generations += 1
        return self.generations

    async def realized(self, number):
        """The rows follow the table, unless a problem is programmed."""
        if self.realizing is not None:
            await self.realizing.wait()
        await asyncio.sleep(0)
        wanted = number in self.tables.endpoints
        if wanted and self.problem:
            return self.problem
        self.journal.append(("rows" if wanted else "rows gone", number))
        (self.rows.add if wanted else self.rows.discard)(number)
        return ""

    async def add(self, name="web", **changes):
        """Ask for the pod shop/*name* in a namespace of that name."""
        return await self.endpoints.add(self.request(name, **changes))

    def request(self, name="web", **changes):
        """The request for it."""
        path = changes.pop("netns", f"/run/netns/{name}")
        if path not in self.netlink.namespaces and not changes.pop("dead", False):
            self.netlink.namespace(path)
        return EndpointRequest.model_validate({"netns": path, "pod": f"shop/{name}", **changes})

    async def delete(self, number):
        """Take it away, and see its device go."""
        await self.endpoints.delete(number)
        await self.reaper.stop(SECONDS)

    def left(self):
        """Everything that exists: endpoints, devices, programs, addresses, rows."""
        return (
            set(self.tables.endpoints),
            set(self.netlink.links),
            set(self.attachments.devices),
            set(self.ipam.owners()) - {self.ipam.router},
            self.rows,
        )

    @property
    def names(self):
        """What was done, by name."""
        return [entry[0] for entry in self.journal]


NOTHING = (set(), set(), set(), set(), set())


def run(scenario, **settings):
    """Run ``scenario(node)`` to its end."""

    async def timed():
        node = Node(**settings)
        async with asyncio.timeout(SECONDS):
            return await scenario(node)

    return asyncio.run(timed())


def refused(status, text, **settings):
    """The refusal of a scenario."""

    def judge(scenario):
        with pytest.raises(RequestRefused, match=text) as caught:
            run(scenario, **settings)
        assert caught.value.status == status

    return judge


def test_a_pod_comes_up_only_behind_its_programs_and_rows():
    """Device (down), programs, rows, and only then a packet can pass."""

    async def scenario(node):
        made = await node.add()
        assert node.names == ["prepare", "rows", "attach", "connect"]
        assert node.tables.endpoints.get(made.id) == made
        assert node.ipam.owner(made.ipv4) == "shop/web"
        assert node.netlink.links[made.ifindex].up
        assert (made.namespace, made.pod, made.slot, made.slot_gen) == ("shop", "web", 0, 1)

    run(scenario)


def test_a_pod_is_taken_away_rows_first_and_programs_last():
    """While the device is there its packets meet the programs, which know no endpoint any more."""

    async def scenario(node):
        made = await node.add()
        del node.journal[:]
        await node.delete(made.id)
        assert node.names == ["rows gone", "retire", "delete device", "detach"]
        assert node.left() == NOTHING
        await node.delete(made.id)

    run(scenario)


@pytest.mark.parametrize(
    ("step", "error", "status"),
    [
        ("prepare_endpoint", BROKEN, 500),
        ("attach", REFUSED, 500),
        ("rows", None, 500),
        ("connect_endpoint", BROKEN, 500),
    ],
)
def test_whatever_fails_undoes_everything(step, error, status):
    """Address, device, programs, row; asking again afterwards works."""

    async def scenario(node):
        if step == "attach":
            node.attachments.fail["attach"] = error
        elif step == "rows":
            node.problem = "the map is full"
        else:
            node.netlink.fail[step] = error
        with pytest.raises(RequestRefused) as caught:
            await node.add()
        assert caught.value.status == status
        assert ("the map is full" if step == "rows" else str(error)) in str(caught.value)
        assert node.left() == NOTHING

        node.attachments.fail.clear()
        node.netlink.fail.clear()
        node.problem = ""
        made = await node.add()
        assert node.left()[0] == {made.id}

    run(scenario)


@pytest.mark.parametrize(
    "broken", [{"detach": REFUSED}, {"retire_endpoint_link": BROKEN}], ids=["detach", "retire"]
)
def test_an_undo_that_fails_goes_as_far_as_it_can(broken):
    """The first error is the answer; the address and the row are free whatever becomes of the device."""

    async def scenario(node):
        node.netlink.fail = {"connect_endpoint": BROKEN, **broken}
        node.attachments.fail = broken
        with capture_logs() as logs, pytest.raises(RequestRefused, match="Input/output error"):
            await node.add()
        assert [one["log_level"] for one in logs] == ["warning"]
        endpoints, _, _, addresses, rows = node.left()
        assert (endpoints, addresses, rows) == (set(), set(), set())

    run(scenario)


@pytest.mark.parametrize(
    "broken", [{"detach": REFUSED}, {"retire_endpoint_link": BROKEN}], ids=["detach", "retire"]
)
def test_a_removal_that_fails_goes_as_far_as_it_can(broken):
    """The endpoint is gone, its address free; a device that stays keeps its programs, which drop all."""

    async def scenario(node):
        made = await node.add()
        node.netlink.fail = node.attachments.fail = broken
        with capture_logs() as logs:
            await node.delete(made.id)
        assert "warning" in [one["log_level"] for one in logs]
        endpoints, devices, programs, addresses, rows = node.left()
        assert (endpoints, addresses, rows) == (set(), set(), set())
        assert devices == programs if "detach" not in broken else devices == set()

    run(scenario)


def test_a_device_that_is_somebody_elses_by_now_is_left_alone():
    """Interface numbers are used again."""

    async def scenario(node):
        made = await node.add()
        other = Link(made.ifindex, "eth7", "02:00:00:00:00:09", 1500, True, False, "", "dummy", 0)
        node.netlink.links[made.ifindex] = other
        with capture_logs() as logs:
            await node.delete(made.id)
        assert [one["event"] for one in logs] == ["endpoint.device_left", "endpoint.deleted"]
        assert node.left() == (set(), {made.ifindex}, set(), set(), set())

    run(scenario)


def test_asking_twice_gives_the_same_pod():
    """The second time corrects its wiring, programs and rows, and makes nothing new."""

    async def scenario(node):
        first = await node.add(**{"container-id": "abc"})
        del node.journal[:]
        assert await node.add(**{"container-id": "abc"}) == first
        assert await node.add(ip=str(first.ipv4)) == first
        assert node.names == ["prepare", "rows", "attach", "connect"] * 2
        assert node.left()[0] == {first.id}
        assert node.generations == 1

    run(scenario)


def test_asking_again_waits_for_rows_like_the_first_time():
    """A runtime that is told yes sends packets."""

    async def scenario(node):
        await node.add()
        node.problem = "not yet"
        await node.add()

    refused(500, "not yet")(scenario)


@pytest.mark.parametrize("change", [{"netns": "/run/netns/other"}, {"ip": "10.0.0.77"}], ids=["netns", "ip"])
def test_a_pod_has_one_namespace_and_one_address(change):
    """Another one is refused, with what to do; nothing is touched."""

    async def scenario(node):
        first = await node.add()
        before = node.left()
        with pytest.raises(RequestRefused, match=f"endpoint del {first.id}") as caught:
            await node.add(**change)
        assert caught.value.status == 409
        assert node.left() == before

    run(scenario)


def test_a_pod_whose_device_broke_gets_a_new_one_with_its_old_address():
    """Somebody deleted the pod's end and made room: asked again, the pod is made again."""

    async def scenario(node):
        first = await node.add()
        node.netlink.namespaces["/run/netns/web"].peer = 0
        again = await node.add()
        assert again.ipv4 == first.ipv4
        assert again.ifindex != first.ifindex
        assert again.slot != first.slot
        assert node.left() == ({again.id}, {again.ifindex}, {again.ifindex}, {again.ipv4}, {again.id})
        assert node.netlink.links[again.ifindex].up

    run(scenario)


def test_a_dead_namespace_is_refused():
    """422, with a question the reader can answer."""

    async def scenario(node):
        try:
            await node.add(dead=True)
        finally:
            assert node.left() == NOTHING

    refused(422, "is the pod still running")(scenario)


def test_a_device_of_somebody_else_in_the_namespace_is_refused():
    """409; it is left alone."""

    async def scenario(node):
        node.netlink.namespace("/run/netns/web")
        node.netlink.namespaces["/run/netns/web"].peer = 99
        try:
            await node.add()
        finally:
            assert node.left() == NOTHING

    refused(409, "has a device eth0")(scenario)


def test_an_address_in_use_is_refused():
    """409, with its owner."""

    async def scenario(node):
        first = await node.add("one")
        await node.add("two", ip=str(first.ipv4))

    refused(409, "in use by shop/one")(scenario)


@pytest.mark.parametrize("address", ["10.9.0.1", "10.0.0.255", "10.0.0.0"])
def test_an_address_outside_the_pool_is_refused(address):
    """422, with the pool."""

    async def scenario(node):
        await node.add(ip=address)

    refused(422, "10.0.0.0/24")(scenario)


def test_the_routers_address_is_refused():
    """It has an owner like any other."""

    async def scenario(node):
        await node.add(ip="10.0.0.1")

    refused(409, "in use by router")(scenario)


def test_when_addresses_run_out_it_says_so():
    """And the pods there are stay."""

    async def scenario(node):
        first = await node.add("one")
        try:
            await node.add("two")
        finally:
            assert node.left()[0] == {first.id}

    refused(422, "no free address", cidr="10.0.0.0/30")(scenario)


def test_when_slots_run_out_no_address_is_lost():
    """507; the pool is as it was."""

    async def scenario(node):
        await node.add("one")
        used = node.ipam.usage.used
        try:
            await node.add("two")
        finally:
            assert node.ipam.usage.used == used

    refused(507, "all 1 endpoint slots", slots=1)(scenario)


def test_a_freed_slot_rests():
    """Nothing that still knows it meets a successor; ids and addresses have rules of their own."""

    async def scenario(node):
        first = await node.add("one")
        await node.delete(first.id)
        second = await node.add("two")
        assert (first.slot, second.slot) == (0, 1)
        assert first.ipv4 != second.ipv4
        node.clock.now += SLOT_QUARANTINE
        assert (await node.add("three")).slot == 0

    run(scenario)


def test_a_failure_with_nothing_made_is_only_told():
    """Not even the look for leftovers may hide what went wrong."""

    async def scenario(node):
        node.netlink.fail = {"prepare_endpoint": BROKEN, "link_by_name": NetError("look", "no")}
        try:
            await node.add()
        finally:
            assert node.left() == NOTHING

    refused(500, "Input/output error")(scenario)


def test_the_slot_of_a_pod_that_failed_rests_too():
    """Its rows were there for a moment."""

    async def scenario(node):
        node.netlink.fail["connect_endpoint"] = BROKEN
        with pytest.raises(RequestRefused):
            await node.add("one")
        node.netlink.fail.clear()
        assert (await node.add("two")).slot == 1

    run(scenario)


# ---- who else is at work ---------------------------------------------------------------------


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
        node.realizing = asyncio.Event()
        adding = asyncio.ensure_future(node.add())
        await asyncio.sleep(0.01)
        assert set(node.tables.endpoints) == {1}
        deleting = asyncio.ensure_future(node.delete(1))
        await asyncio.sleep(0)
        node.realizing.set()
        assert (await adding).id == 1
        await deleting
        assert node.left() == NOTHING
        assert node.names[-4:] == ["rows gone", "retire", "delete device", "detach"]

    run(scenario)


def test_a_device_that_vanishes_during_the_addition_takes_the_pod_with_it():
    """Whether connecting notices it or the event does."""

    async def scenario(node):
        node.realizing = asyncio.Event()
        adding = asyncio.ensure_future(node.add())
        await asyncio.sleep(0.01)
        assert set(node.tables.endpoints) == {1}
        (ifindex,) = node.netlink.links
        node.netlink.delete_link(ifindex)
        noticing = asyncio.ensure_future(node.endpoints.device_gone(ifindex))
        await asyncio.sleep(0)
        node.realizing.set()
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
        node.netlink.hold["all_links"] = asyncio.Event()
        checking = asyncio.ensure_future(node.endpoints.check_devices())
        adding = asyncio.ensure_future(node.add())
        await asyncio.sleep(0.01)
        node.netlink.hold.pop("all_links").set()
        made = await adding
        await checking
        assert node.left()[0] == {made.id}

    run(scenario)


@pytest.mark.parametrize("step", ["prepare_endpoint", "connect_endpoint", "rows"])
def test_a_client_that_leaves_does_not_leave_half_a_pod(step):
    """The addition runs to its end; asking again finds the pod."""

    async def scenario(node):
        gate = asyncio.Event()
        if step == "rows":
            node.realizing = gate
        else:
            node.netlink.hold[step] = gate
        adding = asyncio.ensure_future(node.add())
        await asyncio.sleep(0.01)
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
        node.netlink.hold["connect_endpoint"] = gate = asyncio.Event()
        node.netlink.fail["connect_endpoint"] = BROKEN
        adding = asyncio.ensure_future(node.add())
        await asyncio.sleep(0.01)
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
        node.realizing = asyncio.Event()
        adding = asyncio.ensure_future(node.add())
        await asyncio.sleep(0.01)
        stopping = asyncio.ensure_future(node.endpoints.stop())
        await asyncio.sleep(0)
        with pytest.raises(RequestRefused, match="ending") as caught:
            await node.add("late")
        assert caught.value.status == 503
        await node.endpoints.device_gone(101)
        node.realizing.set()
        made = await adding
        await stopping
        assert node.left()[0] == {made.id}

    run(scenario)


@pytest.mark.parametrize("step", ["prepare_endpoint", "connect_endpoint", "rows"])
def test_the_end_undoes_what_cannot_be_finished_in_time(step, monkeypatch):
    """Also a device the kernel makes after everybody has stopped waiting for it."""

    async def scenario(node):
        monkeypatch.setattr(module, "END_SECONDS", 0.05)
        gate = asyncio.Event()
        if step == "rows":
            node.realizing = gate
        else:
            node.netlink.hold[step] = gate
        adding = asyncio.ensure_future(node.add())
        await asyncio.sleep(0.01)
        asyncio.get_running_loop().call_later(0.07, gate.set)
        await node.endpoints.stop()
        with pytest.raises(RequestRefused, match="is undone") as caught:
            await adding
        assert caught.value.status == 503
        assert node.left() == NOTHING

    run(scenario)


# ---- the next agent --------------------------------------------------------------------------


def restored(node, *, drop=()):
    """The next agent's endpoints on the same machine."""
    after = Node()
    after.netlink.links = {number: link for number, link in node.netlink.links.items() if number not in drop}
    after.netlink.namespaces = node.netlink.namespaces
    return after


def test_endpoints_are_taken_over_with_their_addresses():
    """Nothing is made or connected; programs are attached again."""

    async def scenario(node):
        made = [await node.add(name) for name in ("one", "two")]
        after = restored(node)
        await after.endpoints.restore(made)
        assert after.names == ["attach", "attach"]
        assert after.left()[:4] == node.left()[:4]
        third = await after.add("three")
        assert third.id == 3
        assert third.ipv4 not in {one.ipv4 for one in made}

    run(scenario)


def test_an_endpoint_whose_device_is_gone_is_not_taken_over():
    """Nor one whose device is another's."""

    async def scenario(node):
        made = [await node.add(name) for name in ("one", "two", "three")]
        after = restored(node, drop={made[0].ifindex})
        strange = endpoint_alias(77, "a/b")
        link = after.netlink.links[made[1].ifindex]
        after.netlink.links[made[1].ifindex] = Link(
            link.ifindex, link.name, link.mac, 1500, True, False, strange, "veth", 2
        )
        with capture_logs() as logs:
            await after.endpoints.restore(made)
        assert set(after.tables.endpoints) == {made[2].id}
        assert [one["event"] for one in logs].count("endpoint.lost") == 2

    run(scenario)


def test_another_pod_cidr_cuts_no_running_pod_off():
    """Its address is not of the pool any more; it keeps it, and the agent starts."""

    async def scenario(node):
        made = await node.add()
        after = restored(node)
        foreign = nodes.endpoint(made.id, pod="web", address=ip_address("172.16.0.9"))
        moved = made.__class__(**{**{f: getattr(made, f) for f in made.__slots__}, "ipv4": foreign.ipv4})
        with capture_logs() as logs:
            await after.endpoints.restore([moved])
        assert after.tables.endpoints.get(made.id) == moved
        assert "endpoint.foreign_address" in [one["event"] for one in logs]
        await after.delete(made.id)
        assert after.left() == NOTHING

    run(scenario)


def test_of_two_endpoints_with_one_address_one_is_taken_over():
    """Never both; the agent starts."""

    async def scenario(node):
        one, two = await node.add("one"), await node.add("two")
        twin = two.__class__(**{**{f: getattr(two, f) for f in two.__slots__}, "ipv4": one.ipv4})
        after = restored(node)
        with capture_logs() as logs:
            await after.endpoints.restore([one, twin])
        assert set(after.tables.endpoints) == {one.id}
        assert "in use by shop/one" in next(one["reason"] for one in logs if "reason" in one)

    run(scenario)


def test_programs_that_cannot_be_attached_again_stop_nobody():
    """What hangs there goes on; the endpoint is kept for the next attempt."""

    async def scenario(node):
        made = [await node.add(name) for name in ("one", "two")]
        after = restored(node)
        after.attachments.fail["attach"] = REFUSED
        with capture_logs() as logs:
            await after.endpoints.restore(made)
        assert set(after.tables.endpoints) == {1, 2}
        assert set(after.attachments.devices) == {one.ifindex for one in made}
        assert [one["event"] for one in logs].count("endpoint.not_attached") == 2

    run(scenario)
