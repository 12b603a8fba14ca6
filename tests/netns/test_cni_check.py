# SPDX-License-Identifier: Apache-2.0
"""CHECK is content with a pod as it was made, and names each thing somebody changed."""

import re
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from ciliumd import abi
from ciliumd.bpf.map import Map
from ciliumd.model.net import addr16
from lab.cni import CniRefused, Json, Runtime, runtime_of
from lab.maps import detach, link_pins
from lab.netns import Namespace
from lab.node import Node
from lab.waiting import eventually
from lab.world import World
from netns.cni_state import known

pytestmark = pytest.mark.netns

Tamper = Callable[[Node, Namespace, Json], object]


@pytest.fixture(scope="module")
def runtime(world: World) -> Iterator[tuple[Node, Runtime]]:
    """A node whose agent repairs no map meanwhile, and its container runtime."""
    with Node(world, options={"drift-interval": "3600"}) as node:
        made = runtime_of(node)
        node.start()
        yield node, made


@pytest.fixture
def pod() -> Iterator[Namespace]:
    """A pod's namespace."""
    with Namespace("checked") as pod:
        yield pod


def host_name(result: Json) -> str:
    """The node's device."""
    return str(result["interfaces"][0]["name"])


def address(result: Json) -> str:
    """The pod's address with its length."""
    return str(result["ips"][0]["address"])


def other_route(_: Node, pod: Namespace, result: Json) -> None:
    """The default route with another MTU."""
    gateway = result["ips"][0]["gateway"]
    pod.ip("route", "del", "default")
    pod.ip("route", "add", "default", "via", gateway, "dev", "eth0", "mtu", "1280")


def delete_row(node: Node, _: Namespace, result: Json) -> None:
    """The row that leads packets to the pod."""
    with Map.from_pin(node.bpf_root / "maps" / "cilium_lxc_v1") as opened:
        assert opened.delete(abi.LxcKey(addr16(IPv4Address(address(result).partition("/")[0]))).pack())


def attached(node: Node, result: Json) -> list[Path]:
    """Pins of the programs on the pod's device."""
    return link_pins(node.bpf_root, node.netns.links()[host_name(result)]["ifindex"])


def detach_one(node: Node, result: Json) -> None:
    """Take off the program that judges what the pod receives."""
    detach([pin for pin in attached(node, result) if "egress" in pin.name])


def other_address(_: Node, pod: Namespace, result: Json) -> None:
    """Another address instead of the pod's."""
    pod.ip("addr", "add", "10.11.0.99/32", "dev", "eth0")
    pod.ip("addr", "del", address(result), "dev", "eth0")


def node_down(node: Node, _: Namespace, result: Json) -> None:
    """The node's device."""
    node.netns.ip("link", "set", host_name(result), "down")


def in_pod(*words: str) -> Tamper:
    """What ``ip`` does in the pod."""
    return lambda _node, pod, _result: pod.ip(*words)


TAMPERINGS: dict[str, tuple[Tamper, str]] = {
    "pod's device": (in_pod("link", "del", "eth0"), "no pod has container|eth0 is gone"),
    "pod's device down": (in_pod("link", "set", "eth0", "down"), "device eth0 is down"),
    "address": (other_address, "has address 10.11.0.99/32, not"),
    "route": (in_pod("route", "del", "default"), "route to 0.0.0.0/0 is gone"),
    "route's MTU": (other_route, "route to 0.0.0.0/0 is gone or changed"),
    "node's device down": (node_down, "the node's device lxc[0-9a-f]{12} is down"),
    "MAC address": (
        in_pod("link", "set", "eth0", "address", "02:00:00:00:00:77"),
        "has MAC address 02:.*:77",
    ),
    "map rows": (delete_row, "of cilium_lxc_v1 is missing"),
}


@pytest.mark.parametrize("what", TAMPERINGS)
def test_check_finds_what_was_changed(runtime: tuple[Node, Runtime], pod: Namespace, what: str) -> None:
    """Content before, an error that names it after."""
    node, cni = runtime
    tamper, text = TAMPERINGS[what]
    sandbox = known(node, cni, pod)
    result = cni.add(sandbox)
    cni.check(sandbox)
    tamper(node, pod, result)
    with pytest.raises(CniRefused, match=text) as caught:
        cni.check(sandbox)
    assert caught.value.code == 102
    cni.delete(sandbox)


def test_check_finds_programs_that_were_taken_off(runtime: tuple[Node, Runtime], pod: Namespace) -> None:
    """They are attached again within two seconds, so they are taken off until a CHECK comes in between."""
    node, cni = runtime
    sandbox = known(node, cni, pod)
    result = cni.add(sandbox)

    def refused() -> str:
        detach_one(node, result)
        try:
            cni.check(sandbox)
        except CniRefused as found:
            return f"{found.code}: {found.message}"
        return ""

    said = eventually(refused, "CHECK comes before the repair")
    assert re.search("102: .*entry_.*container on default/web .* is detached", said), said
    eventually(lambda: len(attached(node, result)) == 2, "both programs hang again")
    cni.check(sandbox)
    cni.delete(sandbox)


def test_what_plugins_behind_us_did_is_no_fault(runtime: tuple[Node, Runtime], pod: Namespace) -> None:
    """Another address, another route, another device, and their part of the result."""
    node, cni = runtime
    sandbox = known(node, cni, pod)
    result = cni.add(sandbox)
    pod.ip("link", "add", "tap0", "type", "veth", "peer", "name", "tap1")
    pod.ip("addr", "add", "192.0.2.1/32", "dev", "eth0")
    pod.ip("route", "add", "198.51.100.0/24", "via", result["ips"][0]["gateway"])
    changed = {**result, "interfaces": [*result["interfaces"], {"name": "tap0"}]}
    cni.check(sandbox, prevResult=changed)
    cni.delete(sandbox)


def test_check_needs_the_result_of_the_add(runtime: tuple[Node, Runtime], pod: Namespace) -> None:
    """None is a bad configuration, another pod's is a fault."""
    node, cni = runtime
    sandbox = known(node, cni, pod)
    result = cni.add(sandbox)
    with pytest.raises(CniRefused, match="needs prevResult") as caught:
        cni.call("CHECK", sandbox)
    assert caught.value.code == 7
    other = {**result, "ips": [{"address": "10.11.0.200/32"}]}
    with pytest.raises(CniRefused, match=r"prevResult has address 10\.11\.0\.200/32"):
        cni.check(sandbox, prevResult=other)
    cni.delete(sandbox)
