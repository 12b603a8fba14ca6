# SPDX-License-Identifier: Apache-2.0
"""
One hook against reference/forwarding.py: what it returns, why it drops, and every byte it leaves behind.

The node's policies allow everything, so that packets go as far as they can.  Frames run in batches over
maps that were empty before the first of them.
"""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Network, ip_address, ip_network
from pathlib import Path
from typing import Self

from ciliumd.abi import Event, EventType, Hook, LbServiceFlags
from ciliumd.bpf import Object
from ciliumd.model.net import mac_bytes
from datapath.compiled import compiled
from datapath.harness import HOOKS, Datapath
from datapath.malformed import runnable
from datapath.node import POD_CIDR
from datapath.rows import ALLOW_ALL, POD_ONE, POD_TWO, u32
from datapath.tunnel import AWAY, CLUSTER, TUNNEL_PORT, fill_cluster, node_two
from fixtures.packets import (
    diff,
    loopback,
    node_one,
    pod_away,
    pod_one,
    pod_two,
    router,
    svc_one,
    svc_two,
)
from reference.forwarding import NO_FIB, UNROUTABLE, Forwarding, Node, Verdict
from reference.parser import Pod

BATCH = 1000
TCP, UDP = 6, 17
WEB, DNS, FAR_WEB = 30080, 30053, 31080
TYPE_AT, REASON_AT, HOOK_AT, LINE_AT, FILE_AT = 8, 9, 10, 14, 92
# What the tests' namespace has beside its default route (datapath/node.py), and what no router sends on.
NOWHERE = tuple(
    ip_network(prefix)
    for prefix in (
        *("198.51.100.0/24", "127.0.0.0/8", "10.0.1.1/32", "192.168.9.1/32"),
        *("192.168.9.255/32", "255.255.255.255/32", "224.0.0.0/4", "0.0.0.0/8"),
    )
)
OPTIONS = {"policy_verdict_events": 0, "trace_events": 0, "nat_port_min": 32768, "nat_port_max": 65535}


def _packed(*pairs: tuple[tuple[str, int, int], tuple[str, int]]) -> dict[tuple[bytes, int, int], tuple]:
    return {
        (socket.inet_aton(ip), port, protocol): (socket.inet_aton(backend), backend_port)
        for (ip, port, protocol), (backend, backend_port) in pairs
    }


def _leads_to(address: bytes) -> int:
    number = ip_address(address)
    if any(number in network for network in NOWHERE):
        return NO_FIB
    return UNROUTABLE if number in POD_CIDR else 0


def _within(network: IPv4Network) -> Callable[[bytes], bool]:
    first, mask = int(network.network_address), int(network.netmask)
    return lambda address: int.from_bytes(address, "big") & mask == first


PODS = {
    pod.address.packed: Pod(mac_bytes(pod.mac), mac_bytes(pod.node_mac), pod.address.packed)
    for pod in (pod_one, pod_two)
}
NODE = Node(
    router=router.address.packed,
    router_mac=mac_bytes(router.mac),
    address=node_one.address.packed,
    pods=PODS,
    is_pod_address=_within(POD_CIDR),
    leads_to=_leads_to,
    sender=PODS[pod_one.address.packed],
    loopback=loopback.address.packed,
    cluster_ips=frozenset({svc_one.address.packed, svc_two.address.packed}),
    services=_packed(((svc_one.ip, 80, TCP), (pod_two.ip, 8080)), ((svc_one.ip, 53, UDP), (pod_two.ip, 5353)))
    | {(svc_two.address.packed, 80, TCP): None},
    node_ports=_packed(
        ((node_one.ip, WEB, TCP), (pod_one.ip, 80)),
        ((node_one.ip, DNS, UDP), (pod_one.ip, 53)),
        ((node_one.ip, FAR_WEB, TCP), (pod_away.ip, 80)),
    ),
    unmasked=frozenset({pod_away.address.packed}),
)


def fill(datapath: Datapath) -> None:
    """The rows of NODE."""
    datapath.policies({POD_ONE.version: ALLOW_ALL, POD_TWO.version: ALLOW_ALL})
    datapath.add_endpoint(POD_ONE)
    datapath.add_endpoint(POD_TWO)
    datapath.native_device("net0", node_one.ip)
    for address in (node_one.ip, router.ip):
        datapath.host_address(address)
    datapath.ipcache(pod_away.ip, AWAY)
    datapath.add_service(1, svc_one.ip, 80, TCP, {101: (pod_two.ip, 8080)})
    datapath.add_service(2, svc_one.ip, 53, UDP, {102: (pod_two.ip, 5353)})
    datapath.add_service(3, svc_two.ip, 80, TCP, {})
    for address in (svc_one.ip, svc_two.ip):
        datapath.cluster_ip(address)
    port = LbServiceFlags.LB_F_NODE_PORT
    datapath.add_service(4, node_one.ip, WEB, TCP, {104: (pod_one.ip, 80)}, flags=port)
    datapath.add_service(5, node_one.ip, DNS, UDP, {105: (pod_one.ip, 53)}, flags=port)
    datapath.add_service(6, node_one.ip, FAR_WEB, TCP, {106: (pod_away.ip, 80)}, flags=port)


@dataclass(frozen=True, slots=True)
class Seen:
    """What a program did with one frame; *line* and *file* say which of its drops it was."""

    verdict: Verdict
    hook: int
    file: int
    line: int


Run = Callable[[bytes], object]
Judge = Callable[[bytes, bytes], Verdict]


class Contest:
    """Frames through one hook, each compared."""

    def __init__(self, datapath: Datapath, hook: str, run: Run, reference: Forwarding) -> None:
        self.hook = hook
        self.outcomes: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._datapath = datapath
        self._run = run
        self._reference = reference
        self._judge: Judge = getattr(reference, hook)
        self._flows = [datapath.map(name) for name in ("ct", "snat", "frags")]

    def forget(self) -> None:
        """Both sides start afresh."""
        self._reference.forget()
        for rows in self._flows:
            rows.delete_batch(list(rows.keys()))

    def play(self, frames: Iterable[bytes]) -> list[Seen]:
        """These frames in order, in batches that know nothing of each other."""
        todo = [frame for frame in frames if runnable(frame)]
        seen: list[Seen] = []
        for start in range(0, len(todo), BATCH):
            self.forget()
            seen += self.batch(todo[start : start + BATCH])
        return seen

    def batch(self, frames: list[bytes]) -> list[Seen]:
        """
        At most BATCH frames over what those before them left behind.

        What differs from the reference is kept in *wrong*; the rest of its batch is not looked at.
        """
        while self._datapath.ring.drain():
            pass
        runs = [self._run(frame) for frame in frames]
        drops = self._drops()
        found = []
        for frame, run in zip(frames, runs, strict=True):
            expected = self._judge(frame, run.data)
            # A drop is told, and a packet that is answered was dropped; nobody else is.
            drop = next(drops, None) if expected.reason else None
            reason, hook, file, line = drop or (0, 0, 0, 0)
            verdict = Verdict(run.retval, reason, run.data)
            if expected != verdict:
                self.wrong.append(explained(self.hook, frame, expected, verdict))
                return found
            self.outcomes[f"{run.retval}/{reason}"] += 1
            found.append(Seen(verdict, hook, file, line))
        if next(drops, None) is not None:
            self.wrong.append(f"{self.hook}: more drops were told of than there are")
        return found

    def _drops(self) -> Iterator[tuple[int, int, int, int]]:
        told = []
        while data := self._datapath.ring.drain():
            for at in range(0, len(data), Event.SIZE):
                if data[at + TYPE_AT] == EventType.EVENT_DROP:
                    line = int.from_bytes(data[at + LINE_AT : at + LINE_AT + 2], "little")
                    told.append((data[at + REASON_AT], data[at + HOOK_AT], data[at + FILE_AT], line))
        return iter(told)


def explained(hook: str, frame: bytes, expected: Verdict, seen: Verdict) -> str:
    """All that is needed to run it again."""
    told = [f"{hook} of {frame.hex()}"]
    for name, verdict in (("expected", expected), ("seen", seen)):
        told.append(f"{name}: returns {verdict.action}, reason {verdict.reason}, {verdict.frame.hex()}")
    if expected.frame != seen.frame:
        told.append(diff(expected.frame, seen.frame))
    return "\n".join(told)


DEVICES = {
    "from_container": POD_ONE.device,
    "to_container": POD_ONE.device,
    "from_host": "cilium_net",
    "from_netdev": "net0",
    "to_netdev": "net0",
}


def contests(datapath: Datapath, node: Node) -> dict[str, Contest]:
    """Every hook that a test run can enter without a tunnel key."""
    made = {}
    for hook, device in DEVICES.items():
        entry = datapath.generation.entries[HOOKS[hook]]
        run = partial(entry.test_run, ifindex=socket.if_nametoindex(device))
        made[hook] = Contest(datapath, hook, run, Forwarding(node))
    return made


class Brought:
    """The program of from_overlay behind one that gives the packet a tunnel key; a context manager."""

    def __init__(self, datapath: Datapath, scratch: Path) -> None:
        with Object(compiled("tunnel_brings", scratch), files=scratch) as helper:
            helper.load()
            self._program = helper.program("tunnel_brings")
            self._under_test = helper.map("cilium_hooks_v1")
        self._under_test.update(
            u32(Hook.HOOK_FROM_OVERLAY), u32(datapath.generation.programs["hook_from_overlay"].fd)
        )

    def contest(self, datapath: Datapath, outer: str, identity: int) -> Contest:
        """What the node at *outer* brings as *identity*'s."""
        cb = (int(ip_address(outer)), identity)
        run = partial(self._program.test_run, ifindex=socket.if_nametoindex("cilium_net"), cb=cb)
        return Contest(datapath, "from_overlay", run, Forwarding(tunnel_node_of(outer, identity)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._program.close()
        self._under_test.close()


def _behind_tunnel(address: bytes) -> bool:
    text = socket.inet_ntoa(address)
    return any(ip_address(text) in ip_network(node.cidr) for node in CLUSTER.others)


def tunnel_node_of(outer: str, identity: int) -> Node:
    """The node with a tunnel; what comes out of that is of the node at *outer*, as *identity*'s."""
    routers = {socket.inet_aton(node.router) for node in CLUSTER.others}
    return Node(
        router=NODE.router,
        router_mac=NODE.router_mac,
        address=NODE.address,
        pods={pod_one.address.packed: NODE.sender},
        is_pod_address=NODE.is_pod_address,
        leads_to=NODE.leads_to,
        sender=NODE.sender,
        loopback=NODE.loopback,
        tunnel_port=TUNNEL_PORT,
        behind_tunnel=_behind_tunnel,
        is_other_node=routers.__contains__,
        may_send=lambda source: CLUSTER.refused(outer, identity, socket.inet_ntoa(source)),
    )


@contextlib.contextmanager
def all_contests() -> Iterator[dict[str, Contest]]:
    """Every hook; this thread is on the tests' node already, and may load programs."""
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=f"contest-{os.getpid()}-")))
        plain = stack.enter_context(Datapath.loaded(scratch, node_port=1, **OPTIONS))
        plain.reset()
        fill(plain)
        made = contests(plain, NODE)
        overlay = {"tunnel": 1, "node_port": 1, "overlay_ifindex": socket.if_nametoindex("cilium_net")}
        tunnel = stack.enter_context(Datapath.loaded(scratch, **OPTIONS, **overlay))
        tunnel.reset()
        fill_cluster(tunnel)
        node = tunnel_node_of(node_two.ip, AWAY)
        made |= {f"{hook}, tunnel": contest for hook, contest in contests(tunnel, node).items()}
        brought = stack.enter_context(Brought(tunnel, scratch))
        made["from_overlay"] = brought.contest(tunnel, node_two.ip, AWAY)
        made["to_overlay"] = Contest(
            tunnel, "to_overlay", tunnel.generation.entries[HOOKS["to_overlay"]].test_run, Forwarding(node)
        )
        yield made
