# SPDX-License-Identifier: Apache-2.0
"""Pods are made whole or not at all, in an order in which no packet goes unjudged, and leave nothing."""

import asyncio
from dataclasses import replace

import pytest
from structlog.testing import capture_logs

from ciliumd.daemon.api import RequestRefused
from ciliumd.daemon.endpoint_numbers import SLOT_QUARANTINE
from ciliumd.net.errors import NetError
from ciliumd.net.links import Link
from unit.daemon.endpoint_node import BROKEN, NOTHING, REFUSED, refused, run


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


def test_audit_is_set_when_packets_are_treated_so():
    """The row is what says so; the endpoint is otherwise the same, and stays so when asked for again."""

    async def scenario(node):
        made = await node.add()
        await node.endpoints.set_audit(made.id, True)
        assert node.tables.endpoints.get(made.id) == replace(made, audit=True)
        assert node.names[-1] == "rows"
        assert (await node.add()).audit is True
        await node.endpoints.set_audit(made.id, None)
        assert node.tables.endpoints.get(made.id) == made

    run(scenario)


def test_audit_that_is_not_in_force_in_time_is_told():
    """500 with the reason; it is wished for all the same, and the reconciler goes on."""

    async def scenario(node):
        made = await node.add()
        node.problem = "its rows are not in the maps"
        with pytest.raises(RequestRefused, match="its rows are not in the maps") as caught:
            await node.endpoints.set_audit(made.id, False)
        assert caught.value.status == 500
        assert node.tables.endpoints.get(made.id).audit is False
        with pytest.raises(RequestRefused, match="no endpoint 99") as caught:
            await node.endpoints.set_audit(99, True)
        assert caught.value.status == 404

    run(scenario)


def test_an_endpoint_that_goes_meanwhile_is_not_made_again():
    """Whoever was first is done first."""

    async def scenario(node):
        made = await node.add()
        deleting = asyncio.ensure_future(node.delete(made.id))
        await asyncio.sleep(0)
        with pytest.raises(RequestRefused, match="no endpoint"):
            await node.endpoints.set_audit(made.id, True)
        await deleting
        assert node.left() == NOTHING

    run(scenario)
