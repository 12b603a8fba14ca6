# SPDX-License-Identifier: Apache-2.0
"""
P2, P14: two nodes and a wire between them; ciliumd's tunnel beside a bare vxlan device pair and plain routes.

All three have the same hops: pod, node, the world's router, node, pod.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from bench import rounds
from bench.latency import sample as round_trip
from bench.machine import Cores
from bench.paths import (
    DEFAULT_SIZES,
    FLOOD_PORT,
    IPERF_PORT,
    NFT,
    SOCKPERF_PORT,
    Path,
    TwoPods,
    client_policy,
)
from bench.result import Figure, Goal, Section
from bench.throughput import sample as stream
from lab.cluster import Cluster
from lab.netns import Namespace, veth
from lab.traffic import Fate, Flood, Flow

VXLAN, FILTERED, PLAIN = "bare vxlan", "bare vxlan+nft", "plain routed"
MTU, OVERHEAD, ICMP_HEADERS = 1500, 50, 28
ECHO: Final = 8
STREAM_GOALS: Final[Mapping[str, Goal | None]] = {VXLAN: Goal(at_least=0.97), PLAIN: Goal(at_least=0.87)}
TRIP_GOALS: Final[Mapping[str, Goal | None]] = {
    VXLAN: Goal(at_most=1.05),
    FILTERED: Goal(at_most=0.90),
    PLAIN: None,
}
ONE_EACH: Final = Goal(at_least=0.9995, at_most=1.0005)


# What does the same work as ciliumd: each node knows the flow, and lets the client open its ports.
FIREWALL: Final = f"""
table inet firewall {{
    chain forward {{
        type filter hook forward priority 0; policy drop;
        ct state established,related accept
        ip saddr 10.93.1.2 tcp dport {{ {IPERF_PORT}, {SOCKPERF_PORT} }} accept
    }}
}}
"""


@contextlib.contextmanager
def peer(name: str, *, vxlan: bool, firewall: str = "") -> Iterator[Path]:
    """
    Pod, node, router, node, pod by hand; the nodes reach each other's pods by routes or by vxlan.

    Both nodes have the *firewall*.
    """
    with contextlib.ExitStack() as stack:
        client, left, world, right, server = (
            stack.enter_context(Namespace(label)) for label in ("client", "left", "world", "right", "server")
        )
        for side, (pod, node) in enumerate(((client, left), (server, right)), start=1):
            veth(pod, "eth0", node, "pod")
            veth(node, "eth0", world, f"node{side}")
            pod.ip("address", "add", f"10.93.{side}.2/24", "dev", "eth0")
            node.ip("address", "add", f"10.93.{side}.1/24", "dev", "pod")
            node.ip("address", "add", f"192.168.{side}.2/24", "dev", "eth0")
            world.ip("address", "add", f"192.168.{side}.1/24", "dev", f"node{side}")
            node.ip("route", "add", "default", "via", f"192.168.{side}.1")
            mtu = MTU - OVERHEAD if vxlan else MTU
            pod.ip("route", "add", "default", "via", f"10.93.{side}.1", "mtu", f"{mtu}")
            node.sysctl("net/ipv4/ip_forward", "1")
            if firewall:
                node.run([NFT, "-f", "-"], stdin=firewall)
            if not vxlan:
                world.ip("route", "add", f"10.93.{side}.0/24", "via", f"192.168.{side}.2")
                continue
            other = 3 - side
            node.ip(
                *("link", "add", "vx", "type", "vxlan", "id", "7", "dstport", "8472"),
                *("local", f"192.168.{side}.2", "remote", f"192.168.{other}.2"),
            )
            node.ip("address", "add", f"10.93.100.{side}/24", "dev", "vx")
            node.ip("link", "set", "vx", "up")
            node.ip("route", "add", f"10.93.{other}.0/24", "via", f"10.93.100.{other}")
        world.sysctl("net/ipv4/ip_forward", "1")
        yield Path(name, client, server, "10.93.2.2")


@dataclass(frozen=True, slots=True)
class TwoNodes(TwoPods):
    """Each on a node of its own, whose agents have a tunnel between them."""

    cluster: Cluster


@contextlib.contextmanager
def nodes() -> Iterator[TwoNodes]:
    """Both nodes, the policy in force at the server's."""
    with Cluster(mtu=MTU, options=DEFAULT_SIZES) as cluster:
        for node in cluster.nodes:
            node.agent.wrapper = Cores.pinned(Cores.two().server)
        cluster.start()
        near, far = cluster.nodes
        server = cluster.pod(far, "server", {"app": "server"})
        client = cluster.pod(near, "client", {"app": "client"})
        policy = client_policy()
        policy["spec"]["ingress"].append(
            {
                "fromEndpoints": [{"matchLabels": {"app": "client"}}],
                "icmps": [{"fields": [{"type": ECHO, "family": "IPv4"}]}],
            }
        )
        far.apply_policy("bench", policy)
        yield TwoNodes(client, server, cluster)


def measure(paths: Mapping[str, Path], *, streams: int, trips: int) -> Iterator[Section]:
    """One stream, request and response, and what is counted on the wire."""
    cores = Cores.one()
    for case, title, sample, pairs, reports in (
        (
            "P14", "one TCP stream", stream, streams,
            (("gbits", STREAM_GOALS, True, "Gbit/s"), ("cpu_ns_per_byte", dict.fromkeys(STREAM_GOALS), False,
             "CPU-ns per byte")),
        ),
        (
            "P2", "TCP request/response of 64 bytes", round_trip, trips,
            (("p50_us", TRIP_GOALS, False, "p50"), ("p99_us", dict.fromkeys(TRIP_GOALS), False, "p99")),
        ),
    ):  # fmt: skip
        section = Section(f"wire, {title}", f"{case}  {title} between two nodes by VXLAN, {cores}", case=case)
        # The firewall is a peer in latency only.
        chosen = {name: path for name, path in paths.items() if case == "P2" or name != FILTERED}
        take = {name: (lambda path=path, take=sample: take(path, cores)) for name, path in chosen.items()}
        taken = rounds.run(take, control_of=VXLAN, rounds=pairs, seconds=pairs * 15.0)
        for quantity, goals, higher, what in reports:
            rounds.report(
                section, taken, quantity=quantity, control_of=VXLAN, goals=goals,
                higher_is_better=higher, what=what,
            )  # fmt: skip
        section.data = {"columns": taken.columns, "discarded_rounds": taken.discarded}
        yield section


def counts(two: TwoNodes, *, packets: int) -> Section:
    """Packets on the wire for every packet of the pod, and the largest that passes in one piece."""
    section = Section("wire, counts", "P14  packets on the wire, and the largest one", case="P14")
    before = _sent(two)
    fate = _flood(two, packets)
    outer = _sent(two) - before
    section.add(
        Figure.of(
            "packets on the wire per packet of the pod", outer / packets, goal=ONE_EACH,
            note=f"{outer} of the node's device, {packets} sent, {fate.lost} lost",
        )
    )  # fmt: skip
    fits = MTU - OVERHEAD
    passed = [size for size in (fits - 1, fits, fits + 1, MTU) if _passes(two, size)]
    section.add(
        Figure.of(
            "largest packet that passes uncut", max(passed, default=0), "bytes",
            goal=Goal(at_least=fits, at_most=fits), note=f"the wire carries {MTU}, VXLAN adds {OVERHEAD}",
        )
    )  # fmt: skip
    return section


def _passes(two: TwoNodes, size: int) -> bool:
    """Whether a ping of this size is answered, with leave to be lost to a busy machine."""
    payload = size - ICMP_HEADERS
    return any(
        two.client.ping(two.server.address, size=payload, dont_fragment=True)["answered"] for _ in range(3)
    )


def _sent(two: TwoNodes) -> int:
    """Packets that the client's node put on its wire."""
    (shown,) = two.cluster.nodes[0].netns.ip_json("-statistics", "link", "show", "dev", "eth0")
    return int(shown["stats64"]["tx"]["packets"])


def _flood(two: TwoNodes, packets: int) -> Fate:
    """Numbered datagrams, each a packet of its own."""
    flow = Flow("counted", two.server.address, FLOOD_PORT, FLOOD_PORT, rate=5000)
    with Flood(two.client.outside, two.server.outside, [flow]).start(limit=packets) as running:
        running.wait()
        return running.stop()["counted"]
