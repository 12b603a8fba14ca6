# SPDX-License-Identifier: Apache-2.0
"""The tunnel device, and routes to other nodes' pods as rows that a reconciler writes."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest

from ciliumd.net.errors import LinkConflict
from ciliumd.net.host import HostWiring, ensure_host
from ciliumd.net.overlay import RemoteRoutes, ensure_overlay, remove_overlay, route_rows
from lab.netns import Namespace
from netns.netlink import inside

pytestmark = pytest.mark.netns

WIRING = HostWiring(router=IPv4Address("10.99.0.1"), pod_cidr=IPv4Network("10.99.0.0/24"), mtu=1500)
REMOTE = (IPv4Network("10.99.1.0/24"), IPv4Network("10.99.2.0/24"))


@pytest.fixture
def node() -> Iterator[Namespace]:
    """An empty node."""
    with Namespace("overlaynode") as node:
        yield node


def overlay(node: Namespace, **options: int) -> object:
    """Make cilium_vxlan."""
    return inside(node, partial(ensure_overlay, **{"port": 8472, "mtu": 1450, **options}))


def test_tunnel_device_is_made_once(node: Namespace) -> None:
    """Up, without peers of its own, ours; doing it again changes nothing, another MTU is corrected."""
    first = overlay(node)
    shown = node.ip_json("-details", "link", "show", "cilium_vxlan")[0]

    assert shown["linkinfo"]["info_data"]["external"] is True
    assert shown["linkinfo"]["info_data"]["port"] == 8472
    assert shown["linkinfo"]["info_data"]["learning"] is False
    assert (shown["mtu"], shown["ifalias"], "UP" in shown["flags"]) == (1450, "cilium:overlay", True)
    assert node.sysctl("net/ipv4/conf/cilium_vxlan/rp_filter") == "0"
    assert node.sysctl("net/ipv6/conf/cilium_vxlan/disable_ipv6") == "1"
    assert overlay(node) == first
    assert node.links()["cilium_vxlan"]["ifindex"] == shown["ifindex"]
    overlay(node, mtu=8950)
    assert node.links()["cilium_vxlan"]["mtu"] == 8950


def test_another_port_is_another_device(node: Namespace) -> None:
    """A tunnel cannot change its port."""
    overlay(node)
    overlay(node, port=8473)
    shown = node.ip_json("-details", "link", "show", "cilium_vxlan")[0]

    assert shown["linkinfo"]["info_data"]["port"] == 8473


def test_foreign_device_of_its_name_is_left_alone(node: Namespace) -> None:
    """Somebody else's is a conflict, and is not removed."""
    node.ip("link", "add", "cilium_vxlan", "type", "veth", "peer", "name", "x")
    with pytest.raises(LinkConflict, match="cilium_vxlan exists that is not ours; delete or rename it"):
        overlay(node)
    assert inside(node, remove_overlay) is False
    assert "cilium_vxlan" in node.links()


def test_it_is_removed_once(node: Namespace) -> None:
    """And tells whether it was there."""
    overlay(node)

    assert inside(node, remove_overlay) is True
    assert inside(node, remove_overlay) is False
    assert "cilium_vxlan" not in node.links()


def test_remote_routes_are_rows(node: Namespace) -> None:
    """Written, read back with their MTU, corrected and removed; the node's own are not among them."""
    made = inside(node, ensure_host, WIRING)
    target = RemoteRoutes(made.host.ifindex, router=WIRING.router, own=WIRING.pod_cidr)
    rows = route_rows(REMOTE, 1450)

    def at(call: object, *arguments: object) -> object:
        return inside(node, lambda _: call(*arguments))

    assert at(target.load) == {}
    assert at(target.update, rows) == {}
    assert at(target.load) == rows
    route = node.ip_json("route", "get", "10.99.2.7")[0]
    assert (route["dev"], route["prefsrc"]) == ("cilium_host", "10.99.0.1")
    assert at(target.update, route_rows(REMOTE[:1], 1400)) == {}
    assert at(target.load) == route_rows(REMOTE[:1], 1400) | route_rows(REMOTE[1:], 1450)
    assert at(target.delete, list(rows)) == {}
    assert at(target.delete, list(rows)) == {}
    assert at(target.load) == {}
    inside(node, ensure_host, WIRING)
    assert "10.99.0.0/24" in node.ip("route", "show")


def test_remote_routes_of_both_families(node: Namespace) -> None:
    """Those of IPv6 beside those of IPv4, and the pair made right again takes none of them."""
    both = replace(WIRING, router6=IPv6Address("fd99::1"), pod_cidr6=IPv6Network("fd99::/112"))
    made = inside(node, ensure_host, both)
    target = RemoteRoutes(
        made.host.ifindex,
        router=both.router,
        own=both.pod_cidr,
        router6=both.router6,
        own6=both.pod_cidr6,
    )
    rows = route_rows([*REMOTE, IPv6Network("fd99:1::/112")], 1450)

    def at(call: object, *arguments: object) -> object:
        return inside(node, lambda _: call(*arguments))

    assert at(target.load) == {}
    assert at(target.update, rows) == {}
    inside(node, ensure_host, both)
    assert at(target.load) == rows
    route = node.ip_json("-6", "route", "get", "fd99:1::7")[0]
    assert (route["dev"], route["prefsrc"]) == ("cilium_host", "fd99::1")
    assert at(target.delete, list(rows)) == {}
    assert at(target.load) == {}


def test_a_route_that_cannot_be_is_told_and_harms_no_other(node: Namespace) -> None:
    """The row fails, the others are written."""
    made = inside(node, ensure_host, WIRING)
    target = RemoteRoutes(made.host.ifindex, router=IPv4Address("10.1.1.1"), own=WIRING.pod_cidr)
    node.ip("route", "add", "10.1.1.1/32", "dev", "lo")
    failed = inside(node, lambda _: target.update(route_rows(REMOTE, 1450)))

    assert set(failed) == set(route_rows(REMOTE, 1450))
    assert inside(node, lambda _: target.load()).keys().isdisjoint(failed)
