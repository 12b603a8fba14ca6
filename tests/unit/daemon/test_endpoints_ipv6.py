# SPDX-License-Identifier: Apache-2.0
"""Endpoints with an address of each family: given, kept, taken back together."""

from ipaddress import IPv6Address

import pytest

from ciliumd.daemon.api import RequestRefused
from unit.daemon.endpoint_node import Node, run

CIDR6 = "fd00::/120"


def test_pod_gets_one_of_each_and_gives_both_back():
    """The first of each pool is the router's; the sandbox is made for IPv6."""

    async def scenario(node):
        made = await node.add("web")
        assert (str(made.ipv4), str(made.ipv6)) == ("10.0.0.2", "fd00::2")
        assert node.netlink.with_ipv6["/run/netns/web"] is True
        assert set(node.ipam6.owners()) == {node.ipam6.router, made.ipv6}
        await node.delete(made.id)
        assert set(node.ipam6.owners()) == {node.ipam6.router}
        assert set(node.ipam.owners()) == {node.ipam.router}

    run(scenario, cidr6=CIDR6)


def test_node_without_ipv6_gives_none():
    """As ever."""

    async def scenario(node):
        made = await node.add("web")
        assert made.ipv6 is None
        assert node.netlink.with_ipv6["/run/netns/web"] is False

    run(scenario)


def test_address_of_one_family_alone_is_none():
    """When the second pool is empty nothing of the first is kept."""

    async def scenario(node):
        one, two = await node.add("one"), await node.add("two")
        with pytest.raises(RequestRefused, match="fd00::"):
            await node.add("three")
        assert set(node.ipam.owners()) == {node.ipam.router, one.ipv4, two.ipv4}

    run(scenario, cidr6="fd00::/126")


def test_asked_for_address_is_given_or_refused():
    """As with IPv4."""

    async def scenario(node):
        made = await node.add("one", ip6="fd00::9")
        assert made.ipv6 == IPv6Address("fd00::9")
        with pytest.raises(RequestRefused) as caught:
            await node.add("two", ip6="fd00::9")
        assert caught.value.status == 409

    run(scenario, cidr6=CIDR6)


def test_next_agent_keeps_both():
    """Nobody else gets them."""

    async def scenario(node):
        made = await node.add("one")
        after = Node(cidr6=CIDR6)
        after.netlink.links = dict(node.netlink.links)
        after.netlink.namespaces = node.netlink.namespaces
        await after.endpoints.restore([made])
        other = await after.add("two")
        assert other.ipv6 not in {made.ipv6, after.ipam6.router}
        assert after.ipam6.owner(made.ipv6) == "shop/one"

    run(scenario, cidr6=CIDR6)


def test_node_without_ipv4_gives_ipv6_alone():
    """An address, a sandbox and a wiring of one family; asked for IPv4 it says that there is none."""

    async def scenario(node):
        made = await node.add("web")
        assert (made.ipv4, str(made.ipv6)) == (None, "fd00::2")
        assert made.addresses == (made.ipv6,)
        assert node.netlink.with_ipv6["/run/netns/web"] is True
        again = await node.add("web")
        assert again == made
        with pytest.raises(RequestRefused, match="no IPv4") as caught:
            await node.add("other", ip="10.0.0.9")
        assert caught.value.status == 422
        await node.delete(made.id)
        assert set(node.ipam6.owners()) == {node.ipam6.router}

    run(scenario, cidr="", cidr6=CIDR6)


def test_pod_that_had_both_goes_on_with_ipv6_where_ipv4_was_turned_off():
    """Its IPv4 address is not wired any more, and belongs to no pool."""

    async def scenario(node):
        made = await node.add("one")
        after = Node(cidr="", cidr6=CIDR6)
        after.netlink.links = dict(node.netlink.links)
        after.netlink.namespaces = node.netlink.namespaces
        await after.endpoints.restore([made])
        assert await after.add("one") == made
        assert after.ipam6.owner(made.ipv6) == "shop/one"

    run(scenario, cidr6=CIDR6)
