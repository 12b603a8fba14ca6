# SPDX-License-Identifier: Apache-2.0
"""What the next agent takes over."""

from ipaddress import ip_address

from structlog.testing import capture_logs

from ciliumd.net.links import Link, endpoint_alias
from unit.daemon import nodes
from unit.daemon.endpoint_node import NOTHING, REFUSED, Node, run


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
