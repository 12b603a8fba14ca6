# SPDX-License-Identifier: Apache-2.0
"""
The ways between two namespaces that are compared: a cable, a router, a router that filters, ciliumd.

All have the same MTU and the offloads of a fresh veth.  ciliumd runs with its default options, conntrack
and a CiliumNetworkPolicy that allows the client and nobody else.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from bench.machine import Cores
from lab import manifests
from lab.netns import Namespace, veth
from lab.node import Node
from lab.pod import Pod
from lab.waiting import eventually
from lab.world import World

NFT: Final = "/usr/sbin/nft"
IPERF: Final = "/usr/bin/iperf3"
SOCKPERF: Final = "/usr/bin/sockperf"
IPERF_PORT: Final = 5201
SOCKPERF_PORT: Final = 11111
FLOOD_PORT: Final = 9000
VIP: Final = "10.96.0.50"
BARE, ROUTED, FILTERED, BRIDGED, CILIUMD = "bare veth", "routed", "routed+nft", "kernel bridge", "ciliumd"
# What the map sizes of a real node are; the laboratory's own are small.
DEFAULT_SIZES: Final = {
    "bpf-ct-max": "262144",
    "bpf-nat-max": "131072",
    "bpf-ipcache-max": "512000",
    "bpf-lb-map-max": "65536",
}
# The usual stateful firewall: known flows first, then one rule that lets the client open its ports.
FIREWALL: Final = f"""
table inet firewall {{
    chain forward {{
        type filter hook forward priority 0; policy drop;
        ct state established,related accept
        ip saddr 10.91.1.2 tcp dport {{ {IPERF_PORT}, {SOCKPERF_PORT} }} accept
        ip saddr 10.91.1.2 udp dport {FLOOD_PORT} accept
    }}
}}
"""


@dataclass(frozen=True, slots=True)
class Path:
    """A client, a server, and the server's address as the client knows it."""

    name: str
    client: Namespace
    server: Namespace
    address: str

    @contextlib.contextmanager
    def served(self, cores: Cores) -> Iterator[None]:
        """The servers of both measurements run."""
        pinned = cores.preferred(cores.server)
        servers = [
            self.server.start([*pinned, IPERF, "--server", "--port", str(IPERF_PORT)]),
            self.server.start(
                [*pinned, SOCKPERF, "server", "--tcp", "--ip", self.address, "--port", str(SOCKPERF_PORT)]
            ),
        ]
        try:
            eventually(self._listening, f"{self.name}: servers listen")
            yield
        finally:
            for server in servers:
                server.end()

    def _listening(self) -> bool:
        listening = self.server.run(["/usr/bin/ss", "-Hltn"]).stdout
        return all(f":{port} " in listening for port in (IPERF_PORT, SOCKPERF_PORT))


@contextlib.contextmanager
def bare() -> Iterator[Path]:
    """One cable."""
    with Namespace("bare-client") as client, Namespace("bare-server") as server:
        veth(client, "eth0", server, "eth0")
        client.ip("address", "add", "10.90.0.1/24", "dev", "eth0")
        server.ip("address", "add", "10.90.0.2/24", "dev", "eth0")
        yield Path(BARE, client, server, "10.90.0.2")


@contextlib.contextmanager
def bridged() -> Iterator[Path]:
    """Two cables and a bridge between them, as the reference plugin makes it."""
    with Namespace("client") as client, Namespace("bridge") as bridge, Namespace("server") as server:
        bridge.ip("link", "add", "cni0", "type", "bridge")
        bridge.ip("link", "set", "cni0", "up")
        for number, (end, device) in enumerate(((client, "left"), (server, "right")), start=2):
            veth(end, "eth0", bridge, device)
            bridge.ip("link", "set", device, "master", "cni0")
            end.ip("address", "add", f"10.92.0.{number}/24", "dev", "eth0")
        yield Path(BRIDGED, client, server, "10.92.0.3")


@contextlib.contextmanager
def routed(
    name: str = ROUTED, firewall: str = "", *, by: tuple[list[str], str] | None = None
) -> Iterator[Path]:
    """
    Two cables and a router between them, with or without a firewall.

    *firewall* is for nft; *by* is another command and what it reads.
    """
    with Namespace("client") as client, Namespace("router") as router, Namespace("server") as server:
        for side, (end, device) in enumerate(((client, "left"), (server, "right")), start=1):
            veth(end, "eth0", router, device)
            end.ip("address", "add", f"10.91.{side}.2/24", "dev", "eth0")
            router.ip("address", "add", f"10.91.{side}.1/24", "dev", device)
            end.ip("route", "add", "default", "via", f"10.91.{side}.1")
        router.sysctl("net/ipv4/ip_forward", "1")
        if firewall:
            router.run([NFT, "-f", "-"], stdin=firewall)
        if by is not None:
            command, rules = by
            router.run(command, stdin=rules)
        yield Path(name, client, server, "10.91.2.2")


def client_policy() -> manifests.Object:
    """The server takes its measured ports from the client only."""
    ports = manifests.to_ports((IPERF_PORT, "TCP"), (SOCKPERF_PORT, "TCP"), (FLOOD_PORT, "UDP"))
    return manifests.cilium_policy(
        "bench",
        {
            "endpointSelector": {"matchLabels": {"app": "server"}},
            "ingress": [{"fromEndpoints": [{"matchLabels": {"app": "client"}}], "toPorts": ports}],
        },
    )


@dataclass(frozen=True, slots=True)
class TwoPods:
    """A client and a server pod of ours."""

    client: Pod
    server: Pod

    @property
    def path(self) -> Path:
        """From one pod to the other."""
        return Path(CILIUMD, self.client.netns, self.server.netns, self.server.address)


@dataclass(frozen=True, slots=True)
class Cluster(TwoPods):
    """Both on a node with its agent."""

    node: Node


@contextlib.contextmanager
def cluster() -> Iterator[Cluster]:
    """A node as it comes, the policy in force, and a service in front of the server."""
    with World() as world, Node(world, options=DEFAULT_SIZES) as node:
        # Not where client and server share a core.
        node.agent.wrapper = Cores.pinned(Cores.two().server)
        node.start()
        server = node.pod("server", {"app": "server"})
        client = node.pod("client", {"app": "client"})
        node.apply(
            "service", manifests.service("server", VIP, {"app": "server"}, ports=[("UDP", 90, FLOOD_PORT)])
        )
        node.wait_service(f"{VIP}:90", 1)
        node.apply_policy("bench", client_policy())
        yield Cluster(client, server, node)
