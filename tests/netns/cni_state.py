# SPDX-License-Identifier: Apache-2.0
"""What the tests of CNI look at: pods Kubernetes knows, and all that one may leave behind on its node."""

from collections.abc import Collection
from ipaddress import IPv4Address, IPv4Network

from ciliumd import abi
from ciliumd.bpf.map import Map
from ciliumd.net.links import RETIRED_ALIAS
from lab import manifests
from lab.cni import Runtime, Sandbox
from lab.maps import link_pins
from lab.netns import Namespace
from lab.node import Node
from lab.waiting import eventually


def known(node: Node, cni: Runtime, netns: Namespace, name: str = "web", **more: str) -> Sandbox:
    """A sandbox of a pod that Kubernetes knows."""
    node.apply(f"pod-default-{name}", manifests.pod(name, {"app": name}))
    return cni.sandbox(name, netns.path, **more)


def leftovers(node: Node, alive: Collection[str] = ()) -> list[str]:
    """
    Endpoints, devices, rows and pinned links of pods other than those with the addresses *alive*.

    Devices that are retired and their links are waited for: a pod is gone before its device is.
    """
    eventually(lambda: not _retired(node), "every retired device is deleted, and no link is left of any")
    endpoints = node.agent.get("endpoint")
    networking = [one["status"]["networking"] for one in endpoints]
    known_addresses = [one["addressing"][0]["ipv4"] for one in networking]
    left = [f"endpoint with {address}" for address in known_addresses if address not in alive]
    devices = {name: link["ifindex"] for name, link in node.netns.links().items() if name.startswith("lxc")}
    living = {one["interface-name"] for one in networking if one["addressing"][0]["ipv4"] in alive}
    left += [f"device {name}" for name in devices if name not in living]
    left += [f"row of {address}" for address in _addresses(node) if address not in alive]
    indexes = {devices[name] for name in living & devices.keys()}
    with Map.from_pin(node.bpf_root / "maps" / "cilium_ifindex_v1") as opened:
        rows = [int.from_bytes(key, "little") for key, _ in opened.items()]
    left += [f"row of device {index}" for index in rows if index not in indexes]
    return left


def assert_empty(node: Node) -> None:
    """No pod, and nothing of any."""
    assert leftovers(node) == []


def _retired(node: Node) -> list[str]:
    """Devices of pods that are gone, and links that hung on such."""
    pins = [pin.name for pin in link_pins(node.bpf_root) if pin.name.startswith("tcx_")]
    links = node.netns.links()
    present = {link["ifindex"] for link in links.values()}
    return [
        *(name for name, link in links.items() if link.get("ifalias") == RETIRED_ALIAS),
        *(pin for pin in pins if int(pin.split("_")[1]) not in present),
    ]


def _addresses(node: Node) -> list[str]:
    """Addresses of pods in the map that leads packets to them; the node's own are there too."""
    with Map.from_pin(node.bpf_root / "maps" / "cilium_lxc_v1") as opened:
        found = [IPv4Address(abi.LxcKey.unpack(key).addr[-4:]) for key, _ in opened.items()]
    pods = IPv4Network(node.pod_cidr)
    return [str(one) for one in found if one in pods and one != pods[1]]
