# SPDX-License-Identifier: Apache-2.0
"""
F15: the node's own network changes under the agent: the uplink goes down and up, its address changes, another
device becomes the uplink, somebody else's filters hang on it.

Pods of the node talk all the while; the way to the world is back as soon as the node's own is.
"""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab import manifests, maps
from lab.figures import Figures
from lab.netns import Namespace, veth
from lab.node import Node
from lab.probers import Probers
from lab.process import run
from lab.waiting import eventually
from lab.world import World

OTHER_ADDRESS = "192.168.101.77"
SECOND, SECOND_GATEWAY = "192.168.201.2", "192.168.201.1"
TC, NFT, CLANG = "/usr/sbin/tc", "/usr/sbin/nft", "/usr/bin/clang-19"
VIP_OF_ALL = "10.96.0.45"


@pytest.fixture(scope="module")
def node(world: World) -> Iterator[Node]:
    """A node with a tunnel, though there is no other node."""
    with Node(world, options={"routing-mode": "tunnel"}) as node:
        yield node.start()


@pytest.fixture(scope="module")
def probers(node: Node, world: World) -> Probers:
    """Pods of the node that talk all the while, and a server far away."""
    world.actor.call("serve_tcp", name="far", port=80, address=world.far)
    probers = Probers(node)
    node.apply("all", manifests.service("all", VIP_OF_ALL, {"app": "receiver"}))
    node.wait_service(f"{VIP_OF_ALL}:80", 1)
    assert seen_as(probers, world) == node.address
    return probers


def seen_as(probers: Probers, world: World) -> str:
    """The address the world sees a pod as; empty when it does not get there."""
    reply = probers.sender.tcp(world.far, 80, timeout=0.5)
    return str(reply["answer"]["client"][0]) if reply["outcome"] == "answered" else ""


def finish(
    name: str,
    probers: Probers,
    injected: int,
    record_property: Callable[[str, object], None],
    **more: int,
) -> None:
    """Report: everything injected was survived, and pods of the node noticed nothing."""
    figures = Figures(f"F15-{name}", injected=injected, survived=injected)
    figures.more |= {name.replace("_", " "): number for name, number in more.items()}
    probers.stop(figures)
    figures.record(record_property)
    figures.assert_harmless()


def test_uplink_goes_down_and_up(
    node: Node, world: World, probers: Probers, is_long: bool, record_property: Callable[[str, object], None]
) -> None:
    """The kernel takes the routes away with it; when they are back, so is the world."""
    times = 50 if is_long else 3
    with probers:
        for _ in range(times):
            node.netns.ip("link", "set", "eth0", "down")
            assert seen_as(probers, world) == ""
            node.netns.ip("link", "set", "eth0", "up")
            node.netns.ip("route", "replace", "default", "via", node.gateway, "src", node.address)
            eventually(lambda: seen_as(probers, world) == node.address, "the world is back")
        finish("uplink down and up", probers, times, record_property)


def test_address_of_the_uplink_changes(
    node: Node, world: World, probers: Probers, record_property: Callable[[str, object], None]
) -> None:
    """Pods are masqueraded as what the node is called now, there and back."""
    with probers:
        for new, old in ((OTHER_ADDRESS, node.address), (node.address, OTHER_ADDRESS)):
            node.netns.ip("address", "add", f"{new}/24", "dev", "eth0")
            node.netns.ip("address", "del", f"{old}/24", "dev", "eth0")
            # The kernel promotes or drops what hung on the old one.
            node.netns.ip("address", "replace", f"{new}/24", "dev", "eth0")
            node.netns.ip("route", "replace", "default", "via", node.gateway, "src", new)
            eventually(lambda new=new: seen_as(probers, world) == new, f"pods are seen as {new}")
        finish("address of the uplink changed", probers, 2, record_property)


def test_another_device_becomes_the_uplink(
    node: Node, world: World, probers: Probers, record_property: Callable[[str, object], None]
) -> None:
    """A new device with the default route is found and given programs; then the old one is it again."""
    with probers:
        veth(node.netns, "eth1", world.netns, "node-second", mtu=1500)
        node.netns.ip("address", "add", f"{SECOND}/24", "dev", "eth1")
        world.netns.ip("address", "add", f"{SECOND_GATEWAY}/24", "dev", "node-second")
        began = time.monotonic()
        node.netns.ip("route", "replace", "default", "via", SECOND_GATEWAY, "src", SECOND)
        eventually(lambda: seen_as(probers, world) == SECOND, "pods leave by the new device")
        took = int((time.monotonic() - began) * 1000)
        node.netns.ip("link", "del", "eth1")
        node.netns.ip("route", "replace", "default", "via", node.gateway, "src", node.address)
        eventually(lambda: seen_as(probers, world) == node.address, "pods leave by the old device again")
        eventually(node.agent.healthy, "all is well again", seconds=20.0)
        finish("another device is the uplink", probers, 2, record_property, ms_until_programs_hang=took)


def test_filters_of_others_are_kept(
    node: Node, world: World, probers: Probers, record_property: Callable[[str, object], None]
) -> None:
    """A filter that somebody hung on the uplink and on a pod's device is there after a restart."""
    pod = probers.sender.endpoint["status"]["networking"]
    devices = ("eth0", pod["interface-name"])

    def filters(device: str) -> str:
        return node.netns.run([TC, "filter", "show", "dev", device, "ingress"]).stdout

    with probers:
        for device in devices:
            # A new pod's programs hang by filters first, whose qdisc stays.
            eventually(lambda device=device: not filters(device), "links hang")
            node.netns.run([TC, "qdisc", "replace", "dev", device, "clsact"])
            # A program of classic BPF that matches nothing; action is left to those behind it.
            add = [TC, "filter", "add", "dev", device, "ingress", "pref", "9", "bpf", "bytecode", "1,6 0 0 0"]
            node.netns.run(add)
        kept = {device: filters(device) for device in devices}
        node.agent.restart()
        after_restart = {device: filters(device) for device in devices}
        assert seen_as(probers, world) == node.address
        for device in devices:
            node.netns.run([TC, "qdisc", "del", "dev", device, "clsact"])
        eventually(node.agent.healthy, "all is well")
        finish("filters of others", probers, len(devices), record_property)

    assert all("pref 9" in shown for shown in kept.values())
    assert after_restart == kept


def mtu_of(space: Namespace, device: str) -> int:
    """MTU of a device."""
    (link,) = json.loads(space.run(["/usr/sbin/ip", "-j", "link", "show", "dev", device]).stdout)
    return int(link["mtu"])


def default_route(space: Namespace) -> str:
    """The default route as ip prints it."""
    return space.run(["/usr/sbin/ip", "route", "show", "default"]).stdout


def test_mtu_of_the_uplink_is_followed(
    node: Node, world: World, probers: Probers, record_property: Callable[[str, object], None]
) -> None:
    """The node's devices follow without a restart, and pods made after it have it; those of before stay."""
    times = (1400, 1500)
    with probers:
        for mtu in times:
            node.netns.ip("link", "set", "eth0", "mtu", str(mtu))
            eventually(lambda mtu=mtu: mtu_of(node.netns, "cilium_host") == mtu, "cilium_host follows")
            eventually(lambda mtu=mtu: mtu_of(node.netns, "cilium_vxlan") == mtu - 50, "the tunnel follows")
            pod = node.pod(f"mtu-{mtu}").serve(tcp=(80,))
            assert mtu_of(pod.netns, "eth0") == mtu
            assert f"mtu {mtu - 50}" in default_route(pod.netns)
            assert mtu_of(probers.sender.netns, "eth0") == 1500
            assert seen_as(probers, world) == node.address
            node.remove_pod(pod)
        eventually(node.agent.healthy, "all is well")
        finish("MTU of the uplink changed", probers, len(times), record_property)


def test_uplink_is_renamed(
    node: Node, world: World, probers: Probers, record_property: Callable[[str, object], None]
) -> None:
    """It is the same device under another name, there and back; its programs stay where they are."""
    pins = maps.link_pins(node.bpf_root)
    with probers:
        for old, new in (("eth0", "uplink0"), ("uplink0", "eth0")):
            # A device that is up may be renamed since Linux 6.1 or so; one that is down always could.
            node.netns.ip("link", "set", old, "down")
            node.netns.ip("link", "set", old, "name", new)
            node.netns.ip("link", "set", new, "up")
            node.netns.ip("route", "replace", "default", "via", node.gateway, "src", node.address)
            eventually(lambda: seen_as(probers, world) == node.address, "the world is back")
        eventually(node.agent.healthy, "all is well")
        finish("uplink renamed", probers, 2, record_property)

    assert maps.link_pins(node.bpf_root) == pins


def test_new_devices_that_lead_nowhere_change_nothing(
    node: Node, world: World, probers: Probers, is_long: bool, record_property: Callable[[str, object], None]
) -> None:
    """Somebody else's interfaces come and go: no program is hung on them."""
    times = 20 if is_long else 2
    pins = maps.link_pins(node.bpf_root)
    with probers:
        for number in range(times):
            veth(node.netns, "other0", world.netns, "other1", mtu=1500)
            node.netns.ip("address", "add", f"192.168.{210 + number % 5}.2/24", "dev", "other0")
            assert seen_as(probers, world) == node.address
            assert maps.link_pins(node.bpf_root) == pins
            node.netns.ip("link", "del", "other0")
        finish("foreign devices come and go", probers, times, record_property)


def test_foreign_xdp_program_stays(
    node: Node, world: World, probers: Probers, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Somebody's XDP program on the uplink runs before ours, and a restart leaves it there."""
    source, program = tmp_path / "pass.bpf.c", tmp_path / "pass.bpf.o"
    source.write_text('__attribute__((section("xdp"), used)) int pass(void *ctx) { return 2; }\n')
    run([CLANG, "-O2", "-g", "-target", "bpf", "-c", source, "-o", program])

    def shown() -> str:
        return node.netns.run(["/usr/sbin/ip", "-d", "link", "show", "dev", "eth0"]).stdout

    with probers:
        node.netns.ip("link", "set", "eth0", "xdpgeneric", "obj", str(program), "sec", "xdp")
        kept = shown().count("prog/xdp")
        node.agent.restart()
        after_restart = shown().count("prog/xdp")
        assert seen_as(probers, world) == node.address
        node.netns.ip("link", "set", "eth0", "xdpgeneric", "off")
        finish("foreign XDP program", probers, 1, record_property)

    assert kept == after_restart == 1


def test_flushed_nft_rules_are_nobody_of_ours(
    node: Node, world: World, probers: Probers, is_long: bool, record_property: Callable[[str, object], None]
) -> None:
    """Somebody fills and flushes all tables of nftables: services and masquerading are not in them."""
    times = 50 if is_long else 3
    table = (
        "add table ip others; add chain ip others c { type filter hook forward priority 0; policy accept; }"
    )
    with probers:
        for _ in range(times):
            node.netns.run([NFT, table])
            assert seen_as(probers, world) == node.address
            node.netns.run([NFT, "flush ruleset"])
            assert seen_as(probers, world) == node.address
            assert probers.sender.inside.call("tcp_connect", address=VIP_OF_ALL, port=80)["outcome"] == (
                "answered"
            )
        finish("nft rules flushed", probers, times, record_property)
