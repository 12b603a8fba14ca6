# SPDX-License-Identifier: Apache-2.0
"""Wiring pods: complete, repeatable, undone on failure, and never somebody else's device."""

import os
import socket
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from ciliumd.net import links
from ciliumd.net.endpoint import EndpointWiring, add_endpoint, connect_endpoint, prepare_endpoint
from ciliumd.net.errors import LinkConflict, NamespaceGone, NetError
from ciliumd.net.namespace import Sandbox, open_namespace, run_in_namespace
from lab.netns import Namespace
from netns.netlink import inside

ROUTER = IPv4Address("10.99.0.1")


@pytest.fixture
def node() -> Iterator[Namespace]:
    """An empty node."""
    with Namespace("netnode") as node:
        yield node


@pytest.fixture
def pod() -> Iterator[Namespace]:
    """An empty pod, its loopback down as the runtime leaves it."""
    with Namespace("netpod") as pod:
        pod.ip("link", "set", "lo", "down")
        yield pod


def wiring(**changes: Any) -> EndpointWiring:
    """What the tests wire unless they say otherwise."""
    settings: dict[str, Any] = {
        "endpoint_id": 42,
        "pod": "default/web",
        "name": "lxctest",
        "address": IPv4Address("10.99.0.7"),
        "router": ROUTER,
        "mtu": 1450,
    }
    return EndpointWiring(**{**settings, **changes})


def routes(namespace: Namespace) -> set[tuple[str, str | None, int | None]]:
    """Destination, gateway and mtu of every route in the main table, as iproute2 sees them."""
    shown = namespace.ip_json("route", "show")
    return {
        (route["dst"], route.get("gateway"), next(iter(route.get("metrics", [{}]))).get("mtu"))
        for route in shown
    }


def test_pod_is_wired_completely(node: Namespace, pod: Namespace) -> None:
    """Address /32, both routes with the MTU, loopback up, the host side marked and forwarding; no IPv6."""
    made = inside(node, add_endpoint, wiring(), str(pod.path))

    inner = pod.links()["eth0"]
    assert (made.pod_ifindex, made.mac, 1450) == (inner["ifindex"], inner["address"], inner["mtu"])
    assert {"UP", "LOWER_UP"} <= set(inner["flags"])
    assert "UP" in pod.links()["lo"]["flags"]
    shown = pod.ip_json("addr", "show", "dev", "eth0")[0]["addr_info"]
    assert [("10.99.0.7", 32)] == [(info["local"], info["prefixlen"]) for info in shown]
    assert {("10.99.0.1", None, None), ("default", "10.99.0.1", 1450)} == routes(pod)
    assert pod.sysctl("net/ipv6/conf/eth0/disable_ipv6") == "1"

    outer = node.links()["lxctest"]
    assert (made.ifindex, made.node_mac) == (outer["ifindex"], outer["address"])
    assert outer["ifalias"] == "cilium:endpoint:42:default/web"
    assert node.sysctl("net/ipv4/conf/lxctest/forwarding") == "1"
    assert node.sysctl("net/ipv4/conf/lxctest/rp_filter") == "0"
    assert node.sysctl("net/ipv6/conf/lxctest/disable_ipv6") == "1"


def test_macs_can_be_chosen(node: Namespace, pod: Namespace) -> None:
    """A restored endpoint keeps the addresses its rows have."""
    mac, node_mac = "02:00:00:00:00:11", "02:00:00:00:00:22"
    made = inside(node, add_endpoint, wiring(mac=mac, node_mac=node_mac), str(pod.path))

    assert (mac, node_mac) == (made.mac, made.node_mac)
    assert mac == pod.links()["eth0"]["address"]


def test_adding_again_keeps_the_devices_and_corrects_them(node: Namespace, pod: Namespace) -> None:
    """A repeated ADD repairs what was changed and does not cut the pod's connections."""
    first = inside(node, add_endpoint, wiring(), str(pod.path))
    pod.ip("route", "del", "default")
    pod.ip("link", "set", "eth0", "mtu", "1300")
    again = inside(
        node, add_endpoint, wiring(address=IPv4Address("10.99.0.8"), route_mtu=1400), str(pod.path)
    )

    assert first == again
    assert {("10.99.0.1", None, None), ("default", "10.99.0.1", 1400)} == routes(pod)
    assert pod.links()["eth0"]["mtu"] == 1450
    shown = pod.ip_json("addr", "show", "dev", "eth0")[0]["addr_info"]
    assert ["10.99.0.8"] == [info["local"] for info in shown]


def test_veth_of_a_dead_namespace_is_replaced(node: Namespace, pod: Namespace) -> None:
    """A pod sandbox started anew under the same name gets a new veth."""
    with Namespace("netold") as old:
        first = inside(node, add_endpoint, wiring(), str(old.path))
        second = inside(node, add_endpoint, wiring(), str(pod.path))

        assert first.ifindex != second.ifindex
        assert "eth0" not in old.links()
    assert "eth0" in pod.links()


def test_veth_whose_creator_died_before_marking_it_is_replaced(node: Namespace, pod: Namespace) -> None:
    """An unmarked veth of our name is no reason to refuse the pod for ever."""
    node.ip("link", "add", "lxctest", "type", "veth", "peer", "name", "left-behind")
    inside(node, add_endpoint, wiring(), str(pod.path))

    assert node.links()["lxctest"]["ifalias"].startswith("cilium:endpoint:42:")
    assert "left-behind" not in node.links()


@pytest.mark.parametrize("kind", ["absent", "ordinary file", "removed"])
def test_dead_namespace_is_named_and_nothing_is_left(node: Namespace, tmp_path: Path, kind: str) -> None:
    """Whatever is (not) at the path, the error names it and the node is as before."""
    path = tmp_path / "gone"
    if kind == "ordinary file":
        path.touch()
    elif kind == "removed":
        with Namespace("netgone") as gone:
            path = gone.path
    before = node.links()
    with pytest.raises(NamespaceGone, match=str(path)) as raised:
        inside(node, add_endpoint, wiring(), str(path))

    assert str(path) == raised.value.path
    assert before == node.links()


@pytest.mark.parametrize(
    "step",
    [
        "links.mark",
        "sysctl.forward_through",
        "links.set_up",
        "ensure_address",
        "ensure_routes",
    ],
)
def test_failure_at_any_step_leaves_nothing(
    node: Namespace, pod: Namespace, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Whatever cannot be configured, the veth goes, and the loopback stays as it was."""

    def refuse(*_arguments: object, **_named: object) -> None:
        raise NetError(step, "refused", errno=1)

    monkeypatch.setattr(f"ciliumd.net.endpoint.{step}", refuse)
    with pytest.raises(NetError, match=f"{step}: refused"):
        inside(node, add_endpoint, wiring(), str(pod.path))

    assert {"lo"} == node.links().keys()
    assert {"lo"} == pod.links().keys()
    assert "UP" not in pod.links()["lo"]["flags"]


def test_failed_correction_keeps_the_devices(
    node: Namespace, pod: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A repeated ADD that fails undoes only what it made itself: here nothing."""
    inside(node, add_endpoint, wiring(), str(pod.path))

    def refuse(*_arguments: object) -> None:
        raise NetError("routes", "refused", errno=1)

    monkeypatch.setattr("ciliumd.net.endpoint.ensure_routes", refuse)
    with pytest.raises(NetError):
        inside(node, add_endpoint, wiring(), str(pod.path))

    assert "lxctest" in node.links()
    assert "eth0" in pod.links()


def test_device_of_somebody_else_in_the_pod_is_left_alone(node: Namespace, pod: Namespace) -> None:
    """An eth0 that is there already is a conflict; it and the node stay as they are."""
    pod.ip("link", "add", "eth0", "type", "veth", "peer", "name", "other")
    with pytest.raises(LinkConflict, match="has a device eth0 that is not ours"):
        inside(node, add_endpoint, wiring(), str(pod.path))

    assert {"lo"} == node.links().keys()
    assert {"lo", "eth0", "other"} == pod.links().keys()


def test_device_of_another_pod_is_left_alone(node: Namespace, pod: Namespace) -> None:
    """Two pods never share a host-side device."""
    with Namespace("netother") as other:
        inside(node, add_endpoint, wiring(pod="default/other"), str(other.path))
        with pytest.raises(LinkConflict, match="belongs to cilium:endpoint:42:default/other"):
            inside(node, add_endpoint, wiring(), str(pod.path))

        assert "eth0" in other.links()


def test_the_nodes_own_namespace_is_refused(node: Namespace) -> None:
    """A request naming the host's namespace must not rewire the host."""
    with pytest.raises(NetError, match="the node's own network namespace"):
        inside(node, add_endpoint, wiring(), str(node.path))

    assert {"lo"} == node.links().keys()


def test_endpoint_links_are_found_by_their_mark(node: Namespace, pod: Namespace) -> None:
    """An agent without memory finds its veths, and nobody else's."""
    made = inside(node, add_endpoint, wiring(), str(pod.path))
    node.ip("link", "add", "lxcnotours", "type", "veth", "peer", "name", "x")
    found = inside(node, links.endpoint_links)

    assert {42: made.ifindex} == {number: link.ifindex for number, link in found.items()}


def test_deletion_asks_the_mark_and_tells_what_was_there(node: Namespace, pod: Namespace) -> None:
    """Only the endpoint's own veth is retired, and only what is retired deleted; both once."""
    made = inside(node, add_endpoint, wiring(), str(pod.path))
    with pytest.raises(LinkConflict, match="endpoint 43"):
        inside(node, links.retire_endpoint_link, made.ifindex, 43)
    assert not inside(node, links.delete_retired, made.ifindex)
    assert inside(node, links.retire_endpoint_link, made.ifindex, 42)
    with pytest.raises(LinkConflict, match="endpoint 42"):
        inside(node, links.retire_endpoint_link, made.ifindex, 42)
    (retired,) = inside(node, links.retired_links)
    assert (retired.ifindex, retired.up) == (made.ifindex, False)
    assert links.is_ours(retired)
    assert inside(node, links.delete_retired, made.ifindex)
    assert not inside(node, links.delete_retired, made.ifindex)
    assert not inside(node, links.retire_endpoint_link, made.ifindex, 42)

    assert {"lo"} == pod.links().keys()


def test_no_process_is_started(node: Namespace, pod: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking for the C library by name would start ldconfig, under every pod's ADD."""

    def refuse(*arguments: object, **_: object) -> None:
        raise AssertionError(f"started {arguments}")

    monkeypatch.setattr("ctypes.util.find_library", refuse)
    monkeypatch.setattr("subprocess.Popen.__init__", refuse)
    inside(node, add_endpoint, wiring(), str(pod.path))
    monkeypatch.undo()
    assert "eth0" in pod.links()


def descriptors(pod: Namespace, socket_in: Namespace) -> tuple[int, int]:
    """What a runtime passes: a namespace, and a socket that should be inside."""
    with open_namespace(str(pod.path)) as opened:
        netns = os.dup(opened)
    return netns, run_in_namespace(
        str(socket_in.path),
        lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, socket.NETLINK_ROUTE).detach(),
    )


def test_a_pod_is_wired_through_descriptors(node: Namespace, pod: Namespace) -> None:
    """Of another process, whose path means nothing here; twice, with what is left of the first time."""
    for _ in range(2):
        with Sandbox.received("/nowhere", *descriptors(pod, pod)) as sandbox:
            prepared = inside(node, prepare_endpoint, wiring(), sandbox)
            inside(node, connect_endpoint, wiring(), sandbox, prepared)
    assert pod.ip_json("addr", "show", "dev", "eth0")[0]["addr_info"][0]["local"] == "10.99.0.7"


def test_a_socket_in_another_namespace_is_refused(node: Namespace, pod: Namespace) -> None:
    """It would configure that one; what was passed is closed."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(NamespaceGone, match="the socket that was passed is in another namespace"):
        Sandbox.received("/nowhere", *descriptors(pod, node))
    assert before == len(list(Path("/proc/self/fd").iterdir()))
