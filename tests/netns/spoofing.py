# SPDX-License-Identifier: Apache-2.0
"""
Two nodes with a tunnel, raw sockets in every pod and on the wire, and what becomes of frames that lie.

What is injected carries a mark in its payload, which is looked for at every place a frame can get to: in
every pod, on both wires, at both nodes.
"""

import itertools
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Final

from ciliumd import abi
from ciliumd.abi import DropReason
from ciliumd.bpf import Map
from lab import manifests
from lab.cluster import Cluster
from lab.node import Node
from lab.pod import Pod
from lab.rawsocket import RawEnd
from lab.waiting import eventually

FRAMES, FRAMES_LONG = 100, 10_000  # of each kind, from each sender
CHUNK: Final = 500
MARK: Final = b"nobody may ever see this"
HONEST: Final = b"this one is honest ....."
WEB: Final = "10.96.0.10"
TUNNEL_PORT: Final = 8472
PROTOCOL_AT: Final = 23  # in a frame


@dataclass(frozen=True, slots=True)
class Sender:
    """A pod with a raw socket."""

    pod: Pod
    mac: str
    gateway_mac: str
    end: RawEnd


@dataclass(frozen=True, slots=True)
class Lab:
    """Two nodes, three pods on the first, one on the second, and somebody at every place."""

    cluster: Cluster
    senders: tuple[Sender, ...]
    far_pod: Pod
    world: RawEnd  # where the first node is plugged in
    wire_macs: tuple[str, str]  # of the world's end, of the node's
    places: dict[str, RawEnd]

    @property
    def near(self) -> Node:
        """The node that is tried."""
        return self.cluster.nodes[0]

    @property
    def far(self) -> Node:
        """The other one."""
        return self.cluster.nodes[1]

    @property
    def router(self) -> str:
        """The gateway of the node that is tried."""
        return self.cluster.router(self.near)

    def others(self, sender: Sender) -> list[Sender]:
        """The other pods with raw sockets."""
        return [other for other in self.senders if other is not sender]

    def arrived(self, mark: bytes, *, protocol: int | None = None) -> dict[str, int]:
        """Frames with this mark, of this IP protocol, by place; places without any are left out."""
        found = {name: end.received(mark) for name, end in self.places.items()}
        counts = {
            name: sum(protocol is None or frame[PROTOCOL_AT] == protocol for frame in frames)
            for name, frames in found.items()
        }
        return {name: count for name, count in counts.items() if count}


def _mac(link: dict[str, object]) -> str:
    return str(link["address"])


@contextmanager
def laboratory() -> Iterator[Lab]:
    """Agents run, pods are known on both nodes, and nobody has sent anything yet."""
    with Cluster() as cluster, ExitStack() as stack:
        cluster.start()
        near, far = cluster.nodes
        pods = [cluster.pod(near, name, {"app": name}) for name in ("one", "two", "three")]
        far_pod = cluster.pod(far, "far", {"app": "far"}).serve(tcp=(80,), udp=(80,))
        cluster.apply("web", manifests.service("web", WEB, {"app": "far"}))
        eventually(lambda: pods[0].reaches(far_pod.address, 80), what="the other node's pod")
        places = {f"pod {pod.name}": (pod.netns.path, "eth0") for pod in (*pods, far_pod)}
        places |= {
            "node": (near.netns.path, "cilium_host"),
            "other node": (far.netns.path, "cilium_host"),
            "wire": (cluster.world.netns.path, "node1"),
            "other wire": (cluster.world.netns.path, "node2"),
        }
        opened = {name: stack.enter_context(RawEnd(*place)) for name, place in places.items()}
        senders = []
        for pod in pods:
            # What answers a pod's ARP is the host side of its veth.
            device = near.netns.links()[str(pod.endpoint["status"]["networking"]["interface-name"])]
            senders.append(
                Sender(pod, _mac(pod.netns.links()["eth0"]), _mac(device), opened[f"pod {pod.name}"])
            )
        macs = _mac(cluster.world.netns.links()["node1"]), _mac(near.netns.links()["eth0"])
        yield Lab(cluster, tuple(senders), far_pod, opened["wire"], macs, opened)


def dropped(node: Node) -> dict[DropReason, int]:
    """Packets so far by reason, in any direction."""
    with Map.from_pin(node.bpf_root / "maps" / "cilium_metrics_v1") as metrics:
        return {
            reason: sum(
                metrics.lookup_sums((reason * abi.Direction.DIR_MAX + direction).to_bytes(4, "little"))[0]
                for direction in range(abi.Direction.DIR_MAX)
            )
            for reason in DropReason
            if reason != DropReason.FORWARDED
        }


@dataclass(frozen=True, slots=True)
class Injected:
    """What became of frames: drops of the node that is tried, arrivals at every place, kept as a row."""

    case: str
    kind: str
    count: int
    reason: DropReason
    drops: Mapping[DropReason, int]
    arrived: Mapping[str, int]

    @property
    def delivered(self) -> int:
        """Anywhere."""
        return sum(self.arrived.values())

    @property
    def wrong(self) -> int:
        """Frames that arrived, or are not counted under their reason, or are counted under another."""
        counted = dict(self.drops)
        missing = self.count - counted.pop(self.reason, 0)
        # The stacks of pods say hello in IPv6, which is refused, too.
        counted.pop(DropReason.DROP_UNKNOWN_L3, None)
        if self.reason == DropReason.DROP_UNKNOWN_L3:
            missing = max(missing, 0)
        return self.delivered + abs(missing) + sum(counted.values())

    @property
    def row(self) -> dict[str, object]:
        """For the evidence."""
        names = ("delivered", "wrong")
        row = {"case": self.case, "kind": self.kind, "reason": int(self.reason), "injected": self.count}
        return row | {name: getattr(self, name) for name in names}


def inject(
    lab: Lab, end: RawEnd, what: tuple[str, str], reason: DropReason, frames: list[bytes], count: int
) -> Injected:
    """Send *frames* in turn, *count* in all, which all must be dropped for this reason."""
    lab.arrived(MARK)
    before = dropped(lab.near)
    turn = itertools.cycle(frames)
    arrived: Counter[str] = Counter()
    for start in range(0, count, CHUNK):
        end.send(itertools.islice(turn, min(CHUNK, count - start)))
        arrived.update(lab.arrived(MARK))
    settled(lambda: sum(dropped(lab.near).values()))
    arrived.update(lab.arrived(MARK))
    drops = {name: after - before[name] for name, after in dropped(lab.near).items() if after != before[name]}
    return Injected(*what, count, reason, drops, arrived)


def report(record_property: Callable[[str, object], None], who: str, done: list[Injected]) -> None:
    """A line for people, a row for each kind; nothing may be wrong."""
    kinds = f"{len(done)} kinds" if len(done) > 1 else done[0].kind
    rows = [(one.count, one.delivered, one.wrong) for one in done]
    count, delivered, wrong = (sum(column) for column in zip(*rows, strict=True))
    line = f"{who}, {kinds}: injected {count}, delivered {delivered}, wrong {wrong}"
    record_property("figure", line)
    record_property("data", json.dumps([one.row for one in done]))
    print(line)
    assert [one for one in done if one.wrong] == []


def settled(read: Callable[[], int]) -> None:
    """Wait until a number stands still: what a device still holds is on its way."""
    last = -1
    while (now := read()) != last:
        last = now
        time.sleep(0.02)
