# SPDX-License-Identifier: Apache-2.0
"""
F15: the node's own network changes under the agent: the uplink goes down and up, its address changes, another
device becomes the uplink, somebody else's filters hang on it.

Pods of the node talk all the while; the way to the world is back as soon as the node's own is.  A changed
MTU of the uplink is not followed before the next start.
"""

from collections.abc import Callable

import pytest

from lab.figures import Figures
from lab.netns import veth
from lab.node import Node
from lab.probers import Probers
from lab.waiting import eventually
from lab.world import World

OTHER_ADDRESS = "192.168.101.77"
SECOND, SECOND_GATEWAY = "192.168.201.2", "192.168.201.1"
TC = "/usr/sbin/tc"


@pytest.fixture(scope="module")
def probers(node: Node, world: World) -> Probers:
    """Pods of the node that talk all the while, and a server far away."""
    world.actor.call("serve_tcp", name="far", port=80, address=world.far)
    probers = Probers(node)
    assert seen_as(probers, world) == node.address
    return probers


def seen_as(probers: Probers, world: World) -> str:
    """The address the world sees a pod as; empty when it does not get there."""
    reply = probers.sender.tcp(world.far, 80, timeout=0.5)
    return str(reply["answer"]["client"][0]) if reply["outcome"] == "answered" else ""


def finish(
    name: str, probers: Probers, injected: int, record_property: Callable[[str, object], None]
) -> None:
    """Report: everything injected was survived, and pods of the node noticed nothing."""
    figures = Figures(f"F15-{name}", injected=injected, survived=injected)
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
        node.netns.ip("route", "replace", "default", "via", SECOND_GATEWAY, "src", SECOND)
        eventually(lambda: seen_as(probers, world) == SECOND, "pods leave by the new device")
        node.netns.ip("link", "del", "eth1")
        node.netns.ip("route", "replace", "default", "via", node.gateway, "src", node.address)
        eventually(lambda: seen_as(probers, world) == node.address, "pods leave by the old device again")
        eventually(node.agent.healthy, "all is well again", seconds=20.0)
        finish("another device is the uplink", probers, 2, record_property)


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
            node.netns.run([TC, "qdisc", "add", "dev", device, "clsact"])
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
