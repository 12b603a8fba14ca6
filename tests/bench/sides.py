# SPDX-License-Identifier: Apache-2.0
"""
Who serves services: ciliumd, and kube-proxy in both modes, each on a node of its own, all behind one API
server.

The nodes are namespaces with the same addresses of pods: a client and a server that every node has at the
same place, so that one object is right for all.  Backends of the other services are addresses out in the
world, which answers at all of them.  kube-proxy's nodes route between their pods and do nothing else.
"""

import contextlib
import itertools
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, TypeVar

from bench import many
from bench.apiclient import ApiClient
from bench.machine import Cores
from bench.paths import CILIUMD
from ciliumd.resources.crd.kinds import definitions
from lab import manifests
from lab.apiserver import ADMIN, ApiServer, programs
from lab.k8s.baseline import proxy_configuration
from lab.netns import Namespace, veth
from lab.node import Node
from lab.pod import Pod
from lab.process import Process
from lab.waiting import eventually
from lab.world import World

IPTABLES, NFTABLES = "kube-proxy iptables", "kube-proxy nftables"
MODES: Final = {IPTABLES: "iptables", NFTABLES: "nftables"}
# The iptables that writes its own tables of the kernel's: the other takes many minutes for 100,000 backends.
LEGACY: Final = "/usr/sbin/xtables-legacy-multi"
POD_CIDR: Final = "10.11.0.0/24"
POD_GATEWAY: Final = "169.254.1.1"
# Addresses of services in the world's hands: what nobody translated is refused at once, not waited for.
SERVICE_CIDR, BACKEND_CIDR = "10.96.0.0/16", "10.200.0.0/14"
TARGET_PORT: Final = 8080
PORT: Final = 80
NODES: Final = "/api/v1/nodes"
PODS: Final = "/api/v1/namespaces/default/pods"
CLIENT, SERVER = "client", "server"
# A byte that comes is sent back; then, or when none comes, it hangs up.
ANSWER: Final = """
import contextlib, socket, sys
with socket.create_server((sys.argv[1], int(sys.argv[2])), backlog=4096) as server:
    while True:
        with server.accept()[0] as one, contextlib.suppress(ConnectionError):
            if said := one.recv(1):
                one.send(said)
"""


@dataclass(frozen=True, slots=True)
class Ends:
    """The two pods of a node; *cgroup* is where the client's sockets are translated."""

    client: Namespace
    server: Namespace
    address: str
    cgroup: Path | None


class Side(Protocol):
    """A node and the program that serves services on it."""

    name: str
    netns: Namespace
    cgroup: Path | None

    def launch(self) -> None:
        """Start the program and wait for nothing."""

    @property
    def pid(self) -> int:
        """The program's number."""

    def log_tail(self) -> str:
        """The end of what it logged."""

    def remove(self) -> None:
        """End the program and take the node down."""


AnySide = TypeVar("AnySide", bound=Side)


@dataclass(frozen=True, slots=True)
class Cluster:
    """A world, and an API server in it."""

    world: World
    server: ApiServer
    api: ApiClient
    # Words before the command of a program that serves services.
    wrapper: Sequence[str]

    def node(self, name: str, address: str) -> None:
        """The Node *name*, new."""
        self.api.put(
            NODES,
            {
                "apiVersion": "v1",
                "kind": "Node",
                "metadata": {"name": name},
                "spec": {"podCIDR": POD_CIDR, "podCIDRs": [POD_CIDR]},
                "status": {"addresses": [{"type": "InternalIP", "address": address}]},
            },
        )


class CiliumdSide:
    """An agent with its own options but for where things are."""

    name = CILIUMD

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.node = Node(cluster.world, name="ciliumd", pod_cidr=POD_CIDR, options=many.SIZES)
        self.netns, self.cgroup = self.node.netns, self.node.cgroup.path
        cluster.node("ciliumd", self.node.address)
        del self.node.agent.options["manifests"]
        self.node.agent.options |= {
            "kubeconfig": str(cluster.server.kubeconfig()),
            "ipam": "kubernetes",
            "ipv4-native-routing-cidr": "10.0.0.0/8",
        }
        self.node.agent.wrapper = list(cluster.wrapper)

    def launch(self) -> None:
        """Start the agent."""
        self.node.agent.launch()

    @property
    def pid(self) -> int:
        """The agent's."""
        assert self.node.agent.process is not None
        return self.node.agent.process.pid

    def ends(self) -> Ends:
        """Two pods that the agent made part of the node."""
        self.node.agent.wait_ready(300.0)
        pods = {}
        for name in (CLIENT, SERVER):
            body = manifests.pod(name, {"app": name})
            body["spec"] |= {"nodeName": "ciliumd"}
            self._cluster.api.put(PODS, body)
            pods[name] = Pod(name, "default", cgroup=self.cgroup)
            self.node.pods[pods[name].key] = pods[name]
            self.node.add_endpoint(pods[name])
        return Ends(pods[CLIENT].netns, pods[SERVER].netns, pods[SERVER].address, self.cgroup)

    def log_tail(self) -> str:
        """The end of the agent's log."""
        return self.node.agent.log_tail()

    def remove(self) -> None:
        """Take all of it down."""
        self.node.remove()
        for name in (CLIENT, SERVER):
            self._cluster.api.remove(f"{PODS}/{name}?gracePeriodSeconds=0")


class ProxySide:
    """kube-proxy on a node that routes."""

    cgroup = None

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.name = name
        self._mode = MODES[name]
        self._stack = contextlib.ExitStack()
        self._cluster = cluster
        self._process: Process | None = None
        self.netns = self._stack.enter_context(Namespace(self._mode))
        self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="kube-proxy-")))
        address, _ = cluster.world.plug(self.netns)
        cluster.node(self._mode, address)
        self.netns.sysctl("net/ipv4/ip_forward", "1")

    def launch(self) -> None:
        """Start kube-proxy; its log goes with the node."""
        config = self._folder / "config.json"
        kubeconfig = self._cluster.server.kubeconfig(ADMIN)
        config.write_text(json.dumps(proxy_configuration(self._mode, self._mode, kubeconfig, POD_CIDR)))
        command = [*self._cluster.wrapper, programs() / "kube-proxy", f"--config={config}"]
        tools = self._folder / "tools"
        tools.mkdir()
        for tool, family in itertools.product(("", "-save", "-restore"), ("ip", "ip6")):
            (tools / f"{family}tables{tool}").symlink_to(LEGACY)
        # The lock is the machine's, though tables are of a namespace: one side would wait for another.
        own = {
            "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
            "XTABLES_LOCKFILE": str(self._folder / "xtables.lock"),
        }
        with (self._folder / "log").open("ab") as log:
            self._process = self.netns.start(command, output=log, env=own)

    @property
    def pid(self) -> int:
        """kube-proxy's."""
        assert self._process is not None
        return self._process.pid

    def ends(self, address: str) -> Ends:
        """Two pods, the server with this *address*, each at the end of a cable."""
        places = {}
        for name, where in ((CLIENT, "10.11.0.250"), (SERVER, address)):
            pod = places[name] = self._stack.enter_context(Namespace(name))
            veth(pod, "eth0", self.netns, name)
            pod.ip("address", "add", f"{where}/32", "dev", "eth0")
            pod.ip("route", "add", POD_GATEWAY, "dev", "eth0", "scope", "link")
            pod.ip("route", "add", "default", "via", POD_GATEWAY)
            self.netns.ip("address", "add", f"{POD_GATEWAY}/32", "dev", name)
            self.netns.ip("route", "add", where, "dev", name, "scope", "link")
        return Ends(places[CLIENT], places[SERVER], address, None)

    def log_tail(self) -> str:
        """The end of kube-proxy's log."""
        return (self._folder / "log").read_text()[-3000:]

    def remove(self) -> None:
        """Take all of it down."""
        self._stack.close()


@contextlib.contextmanager
def prepared(side: AnySide) -> Iterator[AnySide]:
    """A side whose program nobody has started yet; what that logged last is told when this fails."""
    try:
        yield side
    except BaseException:
        print(f"{side.name}:\n{side.log_tail()}", file=sys.stderr)
        raise
    finally:
        side.remove()


@contextlib.contextmanager
def started(side: AnySide) -> Iterator[AnySide]:
    """A side with its program running."""
    with prepared(side):
        side.launch()
        yield side


@contextlib.contextmanager
def cluster(*, wrapper: Sequence[str] = ()) -> Iterator[Cluster]:
    """An API server that knows ciliumd's kinds and has no objects; *wrapper* is put before every program."""
    with contextlib.ExitStack() as stack:
        world = stack.enter_context(World())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="services-")))
        for network in (SERVICE_CIDR, BACKEND_CIDR):
            world.netns.ip("route", "add", "local", network, "dev", "lo")
        server = ApiServer(folder, netns=world.netns, address=world.far, wrapper=wrapper)
        stack.enter_context(server)
        for definition in definitions().values():
            server.define(definition)
        api = stack.enter_context(ApiClient(server))
        stack.enter_context(answering(world.netns, "0.0.0.0"))
        yield Cluster(world, server, api, wrapper)


@contextlib.contextmanager
def answering(netns: Namespace, address: str, *words: str) -> Iterator[None]:
    """Somebody answers there at the port of backends; *words* are put before the command."""
    server = netns.start([*words, sys.executable, "-S", "-c", ANSWER, address, f"{TARGET_PORT}"])
    try:
        eventually(lambda: f":{TARGET_PORT}" in netns.run(["/usr/bin/ss", "-Hltn"]).stdout, "it listens")
        yield
    finally:
        server.end()


def serve_near(api: ApiClient, services: int, address: str) -> None:
    """The first services, whose one backend is the pod that every node has at this address."""
    for number in range(services):
        near = many.slice_of(number)
        near["endpoints"] = near["endpoints"][:1]
        near["endpoints"][0]["addresses"] = [address]
        api.serve(many.service(number), near)


def vip(number: int) -> str:
    """The address of service *number*."""
    return str(many.FIRST_VIP + number)


def elsewhere() -> list[str]:
    """Words that keep a program off the core where client and server are."""
    return Cores.pinned(Cores.two().server)
