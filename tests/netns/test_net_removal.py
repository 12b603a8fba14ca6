# SPDX-License-Identifier: Apache-2.0
"""Everything of ours in a node's network is found and goes; what is others' stays."""

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network

import pytest

from ciliumd.net import removal
from ciliumd.net.host import HostWiring, ensure_host
from ciliumd.net.links import create_veth, endpoint_alias, link_by_name, mark
from ciliumd.net.overlay import ensure_overlay
from ciliumd.net.routes import Route, add_routes
from lab.netns import Namespace, veth
from netns.netlink import inside

WIRING = HostWiring(router=IPv4Address("10.99.0.1"), pod_cidr=IPv4Network("10.99.0.0/24"), mtu=1450)


@pytest.fixture
def node() -> Iterator[Namespace]:
    """A node with a device to the world, and a veth of somebody else."""
    with Namespace("cleannode") as node, Namespace("cleanworld") as world:
        veth(node, "uplink", world, "uplink", mtu=1500)
        node.ip("addr", "add", "192.0.2.10/24", "dev", "uplink")
        node.ip("link", "add", "lxcother", "type", "veth", "peer", "name", "othereth")
        node.ip("route", "add", "198.51.100.0/24", "via", "192.0.2.1", "dev", "uplink")
        node.sysctl("net/ipv4/conf/all/rp_filter", "0")
        yield node


def furnish(ipr, ifindex: int) -> None:
    """All kinds of things an agent makes."""
    ensure_host(ipr, WIRING)
    ensure_overlay(ipr, port=8472, mtu=1450)
    pod = create_veth(ipr, "lxc0123456789ab", peer="tmp0123456789ab", mtu=1450)
    mark(ipr, pod.ifindex, endpoint_alias(7, "default/web"))
    add_routes(ipr, ifindex, [Route(destination=IPv4Network("10.99.1.0/24"), via=IPv4Address("192.0.2.1"))])


def test_devices_that_were_not_marked_yet_go_too(node: Namespace) -> None:
    """An agent that died between making and marking them; a device of another kind is somebody else's."""
    node.ip("link", "add", "cilium_host", "type", "veth", "peer", "name", "cilium_net")
    node.ip("link", "add", "cilium_vxlan", "type", "bridge")
    found = inside(node, lambda _: removal.network_items())
    assert [item.text for item in found] == ["device cilium_host", "device cilium_net"]


def test_everything_of_ours_goes_and_nothing_else(node: Namespace) -> None:
    """Found without memory; the second time there is nothing."""
    uplink = inside(node, link_by_name, "uplink")
    before = (set(node.links()), node.ip_json("route", "show"))
    inside(node, furnish, uplink.ifindex)

    found = inside(node, lambda _: removal.network_items())
    assert [item.text for item in found] == [
        "route 10.99.1.0/24 over uplink",
        "device lxc0123456789ab",
        "device cilium_host",
        "device cilium_net",
        "device cilium_vxlan",
    ]
    for item in found:
        inside(node, lambda _, item=item: removal.remove(item))

    assert (set(node.links()), node.ip_json("route", "show")) == before
    assert inside(node, lambda _: removal.network_items()) == ()
