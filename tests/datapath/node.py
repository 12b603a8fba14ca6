# SPDX-License-Identifier: Apache-2.0
"""
The tests' node: a network namespace of their own with the devices of one, and its options.

Nothing travels between these devices; programs look them, their addresses and routes up.
"""

from __future__ import annotations

import contextlib
import ctypes
import shutil
import socket
import subprocess
from ipaddress import IPv6Network, ip_network
from pathlib import Path
from typing import TYPE_CHECKING

from ciliumd.daemon.datapath import halves6, network6
from ciliumd.model.net import mac_bytes
from ciliumd.net.namespace import own_cookie
from fixtures import packets6
from fixtures.packets import loopback, node_one, pod_one, pod_three, pod_two, router

if TYPE_CHECKING:
    from collections.abc import Iterator

CLONE_NEWNET = 0x40000000
IP_TOOL = shutil.which("ip", path="/usr/sbin:/sbin:/usr/bin:/bin") or "ip"
POD_CIDR = ip_network("10.0.1.0/24")
POD_CIDR6 = IPv6Network("fd00:1::/64")
NOWHERE6 = ip_network("2001:db8:dead::/48")
NAT_PORTS = range(40000, 40064)
# Options of a node that masquerades pods of both families.
MASQUERADE6 = {"ipv6": 1, "masquerade_ipv6": 1, **network6("pod_cidr", POD_CIDR6)}

# Devices of the node; the far ends of veths stay here too, as nothing travels.
DEVICES = f"""
link set lo up
link add cilium_host address {router.mac} type veth peer name cilium_net
link add net0 address {node_one.mac} type veth peer name wire0
link add lxc1 address {pod_one.node_mac} type veth peer name eth1
link add lxc2 address {pod_two.node_mac} type veth peer name eth2
link add lxc3 address {pod_three.node_mac} type veth peer name eth3
address add {router.ip}/32 dev cilium_host
address add {node_one.ip}/24 dev net0
link set cilium_host up
link set cilium_net up
link set net0 up
link set wire0 up
link set lxc1 up
link set eth1 up
link set lxc2 up
link set lxc3 up
route add {POD_CIDR} dev cilium_host
route add default via 192.168.9.254
route add unreachable 198.51.100.0/24
neighbour add 192.168.9.254 lladdr ee:00:00:00:00:01 dev net0
"""


# IPv6, where the kernel has it: nothing is said on any device that nobody asked for.
DEVICES6 = f"""
address add {packets6.router.ip}/128 dev cilium_host nodad
address add {packets6.node_one.ip}/64 dev net0 nodad
route add {POD_CIDR6} dev cilium_host
route add default via 2001:db8:9::fe dev net0
route add unreachable {NOWHERE6}
neighbour add 2001:db8:9::fe lladdr ee:00:00:00:00:01 dev net0
"""
KNOBS6 = (
    "lo/disable_ipv6 0",
    *(f"{name}/{knob}" for name in ("cilium_host", "net0") for knob in ("addr_gen_mode 1", "disable_ipv6 0")),
    *(f"{name}/forwarding 1" for name in ("lxc1", "lxc2", "lxc3", "cilium_host", "cilium_net")),
)


def _with_ipv6() -> None:
    root = Path("/proc/sys/net/ipv6/conf")
    if not root.exists():
        return
    for knob in KNOBS6:
        name, value = knob.split()
        (root / name).write_text(value)
    _ip(DEVICES6)


def _ip(commands: str) -> None:
    subprocess.run([IP_TOOL, "-batch", "-"], input=commands, text=True, check=True, capture_output=True)


@contextlib.contextmanager
def private_node() -> Iterator[None]:
    """Put this thread into a network namespace of its own, with a node's devices."""
    libc = ctypes.CDLL(None, use_errno=True)
    with Path("/proc/thread-self/ns/net").open() as home:
        if libc.unshare(CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "unshare")
        try:
            for knob in ("ipv6/conf/all/disable_ipv6", "ipv6/conf/default/disable_ipv6", "ipv4/ip_forward"):
                path = Path("/proc/sys/net") / knob
                if path.exists():
                    path.write_text("1")
            _ip(DEVICES)
            _with_ipv6()
            yield
        finally:
            if libc.setns(home.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")


def node_config() -> dict[str, bool | int]:
    """Options of the tests' node; only valid inside private_node()."""
    return {
        "node_netns_cookie": own_cookie(),
        "cilium_host_ifindex": socket.if_nametoindex("cilium_host"),
        "cilium_host_mac": int.from_bytes(mac_bytes(router.mac), "little"),
        "router_ipv4": int(router.address),
        **halves6("router_ipv6", packets6.router.address),
        "loopback_ipv4": int(loopback.address),
        **halves6("loopback_ipv6", packets6.loopback.address),
        "pod_cidr_ipv4": int(POD_CIDR.network_address),
        "pod_cidr_mask": int(POD_CIDR.netmask),
        "nat_port_min": NAT_PORTS.start,
        "nat_port_max": NAT_PORTS.stop - 1,
    }
