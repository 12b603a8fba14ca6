# SPDX-License-Identifier: Apache-2.0
"""The node's end of the pod network, and which of its devices and addresses count as the node's."""

from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

import pytest

from ciliumd.net import devices, links
from ciliumd.net.errors import LinkConflict, LinkGone
from ciliumd.net.host import HostWiring, ensure_host
from ciliumd.net.routes import ROUTE_PROTOCOL
from lab.netns import Namespace, veth
from netns.netlink import inside

WIRING = HostWiring(router=IPv4Address("10.99.0.1"), pod_cidr=IPv4Network("10.99.0.0/24"), mtu=1450)


@pytest.fixture
def node() -> Iterator[Namespace]:
    """A node with a device to the world and a default route."""
    with Namespace("hostnode") as node, Namespace("hostworld") as world:
        veth(node, "uplink", world, "uplink", mtu=1480)
        node.ip("addr", "add", "192.0.2.10/24", "dev", "uplink")
        node.ip("addr", "add", "192.0.2.11/24", "dev", "uplink")
        node.ip("route", "add", "default", "via", "192.0.2.1", "dev", "uplink")
        node.sysctl("net/ipv4/conf/all/rp_filter", "0")
        yield node


def our_routes(node: Namespace) -> dict[str, tuple[str, str | None, str | None]]:
    """Device, gateway and source of our routes by destination, as iproute2 sees them."""
    shown = node.ip_json("route", "show", "protocol", str(ROUTE_PROTOCOL))
    return {route["dst"]: (route["dev"], route.get("gateway"), route.get("prefsrc")) for route in shown}


def test_pair_address_and_routes_are_made(node: Namespace) -> None:
    """Both devices up, marked, forwarding, no ARP, no IPv6; the router on cilium_host; pods routed to it."""
    made = inside(node, ensure_host, WIRING)

    shown = node.links()
    for name in ("cilium_host", "cilium_net"):
        assert {"UP", "NOARP"} <= set(shown[name]["flags"])
        assert (1450, "cilium:host") == (shown[name]["mtu"], shown[name]["ifalias"])
        assert node.sysctl(f"net/ipv4/conf/{name}/forwarding") == "1"
        assert node.sysctl(f"net/ipv4/conf/{name}/rp_filter") == "0"
        assert node.sysctl(f"net/ipv6/conf/{name}/disable_ipv6") == "1"
    assert (made.host.ifindex, made.net.ifindex) == (
        shown["cilium_host"]["ifindex"],
        shown["cilium_net"]["ifindex"],
    )
    assert {
        "10.99.0.1": ("cilium_host", None, None),
        "10.99.0.0/24": ("cilium_host", "10.99.0.1", "10.99.0.1"),
    } == our_routes(node)
    assert () == made.warnings


def test_node_sends_to_pods_out_of_cilium_net_from_the_router_address(node: Namespace) -> None:
    """The kernel agrees: a pod's address goes to cilium_host with the router's as source."""
    inside(node, ensure_host, WIRING)
    route = node.ip_json("route", "get", "10.99.0.77")[0]

    assert ("cilium_host", "10.99.0.1") == (route["dev"], route["prefsrc"])


def test_doing_it_again_changes_nothing(node: Namespace) -> None:
    """A restarted agent keeps the devices: their ifindexes are in use."""
    assert inside(node, ensure_host, WIRING) == inside(node, ensure_host, WIRING)


def test_another_pod_cidr_replaces_address_and_routes(node: Namespace) -> None:
    """What leads to the old configuration's pods is gone, what others made stays."""
    first = inside(node, ensure_host, WIRING)
    node.ip("route", "add", "203.0.113.0/24", "dev", "cilium_host")
    other = HostWiring(router=IPv4Address("10.50.0.1"), pod_cidr=IPv4Network("10.50.0.0/24"), mtu=1400)
    second = inside(node, ensure_host, other)

    assert (first.host.ifindex, 1400) == (second.host.ifindex, second.host.mtu)
    assert {"10.50.0.1", "10.50.0.0/24"} <= our_routes(node).keys()
    assert "10.99.0.0/24" not in our_routes(node)
    shown = node.ip_json("-4", "addr", "show", "dev", "cilium_host")[0]["addr_info"]
    assert ["10.50.0.1"] == [info["local"] for info in shown]
    assert "203.0.113.0/24" in node.ip("route", "show")


def test_half_a_pair_is_made_whole(node: Namespace) -> None:
    """A cilium_host whose peer is not cilium_net is replaced."""
    node.ip("link", "add", "cilium_host", "type", "veth", "peer", "name", "stray")
    made = inside(node, ensure_host, WIRING)

    assert made.host.peer == made.net.ifindex
    assert "stray" not in node.links()


def test_foreign_device_of_our_name_is_left_alone(node: Namespace) -> None:
    """A bridge somebody called cilium_net is a conflict that says what to do."""
    node.ip("link", "add", "cilium_net", "type", "veth", "peer", "name", "x")
    node.ip("link", "set", "cilium_net", "alias", "mine")
    with pytest.raises(LinkConflict, match="cilium_net exists that is not ours; delete or rename it"):
        inside(node, ensure_host, WIRING)

    assert {"cilium_net", "x"} <= node.links().keys()


def test_strict_reverse_path_check_of_the_machine_is_reported(node: Namespace) -> None:
    """The machine's own setting is not changed behind its owner's back, but said."""
    node.sysctl("net/ipv4/conf/all/rp_filter", "1")
    (warning,) = inside(node, ensure_host, WIRING).warnings

    assert "net.ipv4.conf.all.rp_filter" in warning
    assert node.sysctl("net/ipv4/conf/all/rp_filter") == "1"


def test_native_device_is_that_of_the_default_route(node: Namespace) -> None:
    """Our own devices are never native; addresses come in the kernel's order."""
    inside(node, ensure_host, WIRING)
    (device,) = inside(node, devices.native_devices)

    assert ("uplink", 1480) == (device.name, device.mtu)
    assert (IPv4Address("192.0.2.10"), IPv4Address("192.0.2.11")) == device.ipv4
    assert inside(node, links.default_mtu) == 1480


def test_addresses_of_ipv6_that_pass_are_no_native_ones(node: Namespace) -> None:
    """Temporary and tentative ones: nobody outside may count on them; the node has them all the same."""
    node.sysctl("net/ipv6/conf/uplink/disable_ipv6", "0")
    node.ip("addr", "add", "2001:db8::1/64", "dev", "uplink", "nodad")
    # The far end has it, too, but says nothing: what is being tried out stays so for a while.
    node.sysctl("net/ipv6/conf/uplink/dad_transmits", "100")
    node.ip("addr", "add", "2001:db8::2/64", "dev", "uplink")
    node.sysctl("net/ipv6/conf/uplink/use_tempaddr", "2")
    node.ip("addr", "add", "2001:db8::3/64", "dev", "uplink", "nodad", "mngtmpaddr")
    (device,) = inside(node, devices.native_devices)

    flags = {
        one["local"]: set(one)
        for link in node.ip_json("address", "show", "dev", "uplink")
        for one in link["addr_info"]
    }
    assert "tentative" in flags["2001:db8::2"]
    assert any("temporary" in one for one in flags.values())
    assert {str(one) for one in device.ipv6} == {"2001:db8::1", "2001:db8::3"}
    assert {"2001:db8::1", "2001:db8::2", "2001:db8::3"} < {
        str(one) for one in inside(node, devices.node_addresses)
    }


def test_routes_are_looked_up_for_ipv6_of_every_device(node: Namespace) -> None:
    """Where pods have IPv6: as if it came in by cilium_host, whatever the machine says of its own devices."""
    six = replace(WIRING, router6=IPv6Address("fd00:99::1"), pod_cidr6=IPv6Network("fd00:99::/112"))
    inside(node, ensure_host, six)
    assert node.sysctl("net/ipv6/conf/cilium_host/forwarding") == "1"
    assert node.sysctl("net/ipv6/conf/all/forwarding") == "0"


def test_native_devices_can_be_named(node: Namespace) -> None:
    """Named devices are taken as they are; one that does not exist is an error, not a surprise."""
    node.ip("link", "add", "second", "type", "veth", "peer", "name", "x")

    assert ["second"] == [device.name for device in inside(node, devices.native_devices, ["second"])]
    with pytest.raises(LinkGone, match="no device nosuch"):
        inside(node, devices.native_devices, ["nosuch"])


def test_multipath_default_route_has_two_native_devices(node: Namespace) -> None:
    """Every next hop's device counts."""
    node.ip("link", "add", "second", "type", "veth", "peer", "name", "x")
    node.ip("link", "set", "second", "up")
    node.ip("link", "set", "x", "up")
    node.ip("addr", "add", "198.51.100.10/24", "dev", "second")
    node.ip("route", "del", "default")
    node.ip(
        *("route", "add", "default"),
        *("nexthop", "via", "192.0.2.1", "dev", "uplink"),
        *("nexthop", "via", "198.51.100.1", "dev", "second"),
    )

    assert ["second", "uplink"] == [device.name for device in inside(node, devices.native_devices)]


def test_node_without_default_route_has_no_native_device(node: Namespace) -> None:
    """No guess is made; the MTU falls back to Ethernet's."""
    node.ip("route", "del", "default")

    assert () == inside(node, devices.native_devices)
    assert inside(node, links.default_mtu) == 1500


def test_node_addresses_are_all_but_loopback_and_pods(node: Namespace) -> None:
    """The router's address is the node's too."""
    inside(node, ensure_host, WIRING)

    assert {ip_address(text) for text in ("192.0.2.10", "192.0.2.11", "10.99.0.1")} == inside(
        node, devices.node_addresses
    )


def test_a_node_without_ipv4_loses_what_an_agent_before_had(node: Namespace) -> None:
    """Its router address and its routes of IPv4 go, those of IPv6 are there; nothing is said about IPv4."""
    inside(
        node,
        ensure_host,
        replace(WIRING, router6=IPv6Address("fd00::1"), pod_cidr6=IPv6Network("fd00::/112")),
    )
    node.sysctl("net/ipv4/conf/all/rp_filter", "1")
    six = HostWiring(
        router=None,
        pod_cidr=None,
        mtu=1450,
        router6=IPv6Address("fd00::1"),
        pod_cidr6=IPv6Network("fd00::/112"),
    )
    made = inside(node, ensure_host, six)

    assert made.warnings == ()
    assert our_routes(node) == {}
    (host,) = [link for link in node.ip_json("address", "show", "dev", "cilium_host") if link]
    assert [one["local"] for one in host["addr_info"]] == ["fd00::1"]
    shown = node.ip_json("-6", "route", "show", "protocol", str(ROUTE_PROTOCOL))
    assert [route["dst"] for route in shown] == ["fd00::/112"]


def test_the_mtu_is_of_the_default_route_whichever_family(node: Namespace) -> None:
    """That of IPv4 counts where there are both."""
    node.ip("link", "add", "second", "mtu", "1400", "type", "veth", "peer", "name", "x")
    node.ip("link", "set", "second", "up")
    node.ip("link", "set", "x", "up")
    assert inside(node, links.uplink_mtu) == 1480
    node.ip("address", "add", "2001:db8::2/64", "dev", "second", "nodad")
    node.ip("route", "add", "default", "via", "2001:db8::1", "dev", "second")
    assert inside(node, links.uplink_mtu) == 1480
    node.ip("-4", "route", "del", "default")
    assert inside(node, links.uplink_mtu) == 1400
    node.ip("-6", "route", "del", "default")
    assert inside(node, links.uplink_mtu) is None
