# SPDX-License-Identifier: Apache-2.0
"""
Traffic that notices everything: what runs over a cluster while its agents are restarted.

Numbered datagrams, a connection that is spoken over all the time, fresh connections, on every path a
packet can take; and as many that no policy allows.  One client sends, on one node; a server is on
each of two nodes.
"""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Self

from lab.actor import Actor
from lab.k8s.kubectl import Kubectl, Object
from lab.k8s.people import pod
from lab.k8s.pod import ClusterPod
from lab.manifests import network_policy
from lab.traffic import Fate, Flood, Flow
from lab.waiting import eventually

ANSWERED: Final = "answered"
PAUSE_SECONDS: Final = 0.05
# How long an answer on an open connection may take.
PATIENCE_SECONDS: Final = 5.0
# A server takes these; each path of datagrams lands on a port of its own.
TCP_PORT: Final = 7000
DIRECT, BY_SERVICE, BY_NODE_PORT = 9000, 9001, 9002
DENIED_PORT: Final = 9999
NODE_PORT_TCP, NODE_PORT_UDP = 30700, 30900
HOST_PORT_TCP, HOST_PORT_UDP = 8700, 8900
CLUSTER_IP, NODE_PORT, OUTSIDE, KEPT, NEAR = (
    *("load-by-address", "load-by-node", "load-from-outside"),
    *("load-kept", "load-near"),
)
SERVICES: Final = (CLUSTER_IP, NODE_PORT, OUTSIDE, KEPT, NEAR)
EXTERNAL, BALANCER = "198.51.100.70", "198.51.100.71"
# Where the chart has pods take their addresses from, unless it is told otherwise.
POOL: Final = "10.0.0.0/8"
HOSTED: Final = "load-hosted"
DENIED: Final = "denied"
# Said over an open connection all the time: several segments at once, echoed whole.
WORDS: Final = "still there? " * 300
FAR_LABEL: Final = {"load": "far"}
NEAR_LABEL: Final = {"load": "near"}
# Datagrams per second: on each of the first four paths, on each of the others, and to each server against the
# policy.  What one client can send is shared.
UDP_RATE: Final = 2500
KIND_RATE: Final = 500
DENIED_RATE: Final = 1000


@dataclass(frozen=True, slots=True)
class Path:
    """A way to a server: where TCP goes, where datagrams go and on which port they land."""

    name: str
    server: ClusterPod
    tcp: tuple[str, int]
    udp: tuple[str, int]
    lands_on: int
    rate: int = UDP_RATE


@dataclass(slots=True)
class Report:
    """What became of it all."""

    fates: list[Fate] = field(default_factory=list)
    # Path -> outcome -> count; `answered` is the good one.
    fresh: dict[str, Counter[str]] = field(default_factory=dict)
    spoken: dict[str, Counter[str]] = field(default_factory=dict)
    denied_sent: int = 0
    denied_received: int = 0
    denied_connects: Counter[str] = field(default_factory=Counter)

    @property
    def sent(self) -> int:
        """Datagrams sent."""
        return sum(fate.sent for fate in self.fates)

    @property
    def lost(self) -> int:
        """Datagrams that never arrived."""
        return sum(fate.lost for fate in self.fates)

    @property
    def refused(self) -> int:
        """Fresh connections that came to nothing."""
        return _bad(self.fresh)

    @property
    def reset(self) -> int:
        """Words over an open connection that were not echoed."""
        return _bad(self.spoken)

    @property
    def wrongly_allowed(self) -> int:
        """Datagrams and connections that came through against the policy."""
        return self.denied_received + self.denied_connects[ANSWERED]

    def data(self) -> dict[str, Any]:
        """The sums, for a file."""
        names = ("sent", "lost", "reset", "refused", "denied_sent", "wrongly_allowed")
        sums: dict[str, Any] = {name: getattr(self, name) for name in names}
        sums["denied_connects"] = self.denied_connects.total()
        sums["fresh_connections"] = sum(tally.total() for tally in self.fresh.values())
        sums["words_over_open_connections"] = sum(tally.total() for tally in self.spoken.values())
        sums["datagrams_per_second"] = {
            fate.name: round(fate.sent / max(fate.seconds, 1e-9)) for fate in self.fates
        }
        return sums

    def __str__(self) -> str:
        lines = [str(fate) for fate in self.fates]
        for what, tallies in (("fresh connections", self.fresh), ("open connection", self.spoken)):
            lines += [f"{name}, {what}: {_tally(tally)}" for name, tally in tallies.items()]
        lines.append(
            f"against the policy: sent={self.denied_sent} connects={self.denied_connects.total()} "
            f"wrongly_allowed={self.wrongly_allowed}"
        )
        lines.append(f"sent={self.sent} lost={self.lost}")
        return "\n".join(lines)


def _bad(tallies: dict[str, Counter[str]]) -> int:
    return sum(tally.total() - tally[ANSWERED] for tally in tallies.values())


def _tally(tally: Counter[str]) -> str:
    return " ".join(f"{outcome}={count}" for outcome, count in sorted(tally.items()))


class _Loop:
    """Somebody who does one thing over and over, and counts what comes of it."""

    def __init__(self, once: Callable[[], dict[str, Any]]) -> None:
        self.tally: Counter[str] = Counter()
        self._once = once
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self.tally[str(self._once()["outcome"])] += 1
                time.sleep(PAUSE_SECONDS)
        except BaseException as failure:  # noqa: BLE001 - told by end(): a loop that broke has counted nothing
            self._failure = failure

    def end(self) -> Counter[str]:
        """Stop and sum up."""
        self._stop.set()
        self._thread.join()
        if self._failure is not None:
            raise self._failure
        return self.tally


def objects(server: dict[str, str], client: dict[str, str], namespace: str) -> list[Object]:
    """
    What the load needs beside its pods: services of the far server, and a policy.

    *server* and *client* are labels; the far server bears ``load: far``, the near one ``load: near`` too.
    The policy lets the client reach all servers on all ports of the load but the denied one.
    """

    def service(
        name: str, kind: str, ports: list[Object], *, where: dict[str, str] = FAR_LABEL, **more: Any
    ) -> Object:
        spec = {"type": kind, "selector": {**server, **where}, "ports": ports, **more}
        metadata = {"name": name, "namespace": namespace}
        return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}

    tcp = {"name": "tcp", "protocol": "TCP", "port": TCP_PORT}
    udp = {"name": "udp", "protocol": "UDP", "port": DIRECT}
    allowed = [{"protocol": "TCP", "port": TCP_PORT}]
    allowed += [{"protocol": "UDP", "port": port} for port in (DIRECT, BY_SERVICE, BY_NODE_PORT)]
    rule = {"from": [{"podSelector": {"matchLabels": client}}], "ports": allowed}
    spec = {"podSelector": {"matchLabels": server}, "policyTypes": ["Ingress"], "ingress": [rule]}
    by_service = [tcp, {**udp, "targetPort": BY_SERVICE}]
    node_ports = [
        {**tcp, "nodePort": NODE_PORT_TCP},
        {**udp, "targetPort": BY_NODE_PORT, "nodePort": NODE_PORT_UDP},
    ]
    return [
        service(CLUSTER_IP, "ClusterIP", by_service),
        service(NODE_PORT, "NodePort", node_ports),
        # Its address is in paths(): that is a balancer's to write.
        service(
            OUTSIDE,
            "LoadBalancer",
            by_service,
            externalIPs=[EXTERNAL],
            externalTrafficPolicy="Local",
            loadBalancerSourceRanges=[POOL],
        ),
        service(KEPT, "ClusterIP", by_service, sessionAffinity="ClientIP"),
        service(NEAR, "ClusterIP", by_service, where=NEAR_LABEL, internalTrafficPolicy="Local"),
        network_policy("load", spec, namespace=namespace),
    ]


def hosted(node: str, server: dict[str, str]) -> Object:
    """A server on *node* whose ports are ports of the node."""
    one = pod(HOSTED, node, {**server, "load": "hosted"})
    one["spec"]["containers"][0]["ports"] = [
        {"containerPort": TCP_PORT, "hostPort": HOST_PORT_TCP, "protocol": "TCP"},
        {"containerPort": BY_SERVICE, "hostPort": HOST_PORT_UDP, "protocol": "UDP"},
    ]
    return one


def _addresses(kubectl: Kubectl, namespace: str) -> dict[str, str]:
    """Addresses of the services by name, when a balancer has given the one its own."""
    status = {"status": {"loadBalancer": {"ingress": [{"ip": BALANCER}]}}}
    words = ("--subresource=status", "--type=merge", "-p", json.dumps(status))
    kubectl("patch", "service", OUTSIDE, "-n", namespace, *words)
    return {name: str(kubectl.get("service", name, namespace)["spec"]["clusterIP"]) for name in SERVICES}


def paths(
    kubectl: Kubectl, client: Actor, near: ClusterPod, far: ClusterPod, on_host: ClusterPod | None = None
) -> list[Path]:
    """
    From a client on *near*'s node: same node, other node, and every kind of service.

    *on_host* is the :func:`hosted` pod of that node; without it only pods, ClusterIP and NodePort.
    The policy is in force.
    """
    address = _addresses(kubectl, far.namespace)
    service, node = address[CLUSTER_IP], near.node.address

    def of_kind(name: str, server: ClusterPod, where: str) -> Path:
        return Path(name, server, (where, TCP_PORT), (where, DIRECT), BY_SERVICE, KIND_RATE)

    found = [
        Path("same node", near, (near.address, TCP_PORT), (near.address, DIRECT), DIRECT),
        Path("other node", far, (far.address, TCP_PORT), (far.address, DIRECT), DIRECT),
        Path("ClusterIP", far, (service, TCP_PORT), (service, DIRECT), BY_SERVICE),
        Path("NodePort", far, (node, NODE_PORT_TCP), (node, NODE_PORT_UDP), BY_NODE_PORT),
    ]
    if on_host is not None:
        found += [
            of_kind("external address", far, EXTERNAL),
            of_kind("load balancer with source ranges", far, BALANCER),
            of_kind("ClusterIP with affinity", far, address[KEPT]),
            of_kind("ClusterIP with a local policy", near, address[NEAR]),
            Path("host port", on_host, (node, HOST_PORT_TCP), (node, HOST_PORT_UDP), BY_SERVICE, KIND_RATE),
        ]
    servers = [near, far, *([on_host] if on_host else [])]

    def outcome(address: str, port: int) -> str:
        return str(client.call("tcp_connect", address=address, port=port, timeout=0.5)["outcome"])

    for server in servers:
        for port in (TCP_PORT, DENIED_PORT):
            server.actor.call("serve_tcp", name=server.name, port=port)
    for path in found:
        eventually(partial(_equal, outcome, path.tcp, ANSWERED), f"{path.name} is open", seconds=30.0)
    for server in servers:
        denied = server.address, DENIED_PORT
        eventually(
            partial(_equal, outcome, denied, "timeout"), f"the policy holds at {server.name}", seconds=30.0
        )
        for port in (TCP_PORT, DENIED_PORT):
            server.actor.call("stop_server", kind="tcp", port=port)
    assert {path.server.name for path in found} == {server.name for server in servers}
    return found


def _equal(outcome: Callable[[str, int], str], target: tuple[str, int], wanted: str) -> bool:
    return outcome(*target) == wanted


class Load:
    """The whole of it, running from ``start`` to ``stop``.  A context manager that stops it."""

    def __init__(self, client: Actor, paths: Sequence[Path]) -> None:
        self._client = client
        self._paths = list(paths)
        self._servers = list({id(path.server): path.server for path in paths}.values())
        self._floods: list[Flood] = []
        self._fresh: dict[str, _Loop] = {}
        self._spoken: dict[str, _Loop] = {}
        self._denied: list[_Loop] = []
        self._handles: list[int] = []
        self._running = False

    def start(self) -> Self:
        """Serve, connect and send."""
        self._running = True
        for server in self._servers:
            for port in (TCP_PORT, DENIED_PORT):
                server.actor.call("serve_tcp", name=server.name, port=port)
            server.actor.call("flood_receive", port=DENIED_PORT)
            self._denied.append(_Loop(self._connect((server.address, DENIED_PORT), timeout=0.5)))
        for path in self._paths:
            opened = self._client.call("tcp_open", address=path.tcp[0], port=path.tcp[1])
            assert opened["outcome"] == ANSWERED, f"{path.name}: {opened}"
            self._handles.append(opened["handle"])
            self._spoken[path.name] = _Loop(self._say(opened["handle"]))
            self._fresh[path.name] = _Loop(self._connect(path.tcp, timeout=2.0))
        for server in self._servers:
            flows = [
                Flow(path.name, *path.udp, lands_on=path.lands_on, rate=path.rate)
                for path in self._paths
                if path.server is server
            ]
            self._floods.append(Flood(self._client, server.actor, flows).start())
        denied = [
            {
                "flow": number,
                "address": server.address,
                "port": DENIED_PORT,
                "rate": DENIED_RATE,
                "source_port": 0,
            }
            for number, server in enumerate(self._servers)
        ]
        self._client.call("flood_send", name=DENIED, flows=denied)
        return self

    def _connect(self, target: tuple[str, int], *, timeout: float) -> Callable[[], dict[str, Any]]:
        return lambda: self._client.call("tcp_connect", address=target[0], port=target[1], timeout=timeout)

    def _say(self, handle: int) -> Callable[[], dict[str, Any]]:
        return lambda: self._client.call("tcp_say", handle=handle, text=WORDS, timeout=PATIENCE_SECONDS)

    def wait_sent(self, more: int) -> None:
        """Wait until every path has sent this many more datagrams."""
        for flood in self._floods:
            flood.wait_sent(more)

    def denied_sent(self) -> int:
        """Datagrams sent against the policy so far."""
        return sum(self._client.call("flood_progress", name=DENIED).values())

    def stop(self) -> Report:
        """Stop everything and sum up."""
        report = Report()
        for flood in self._floods:
            report.fates += flood.stop().values()
        report.fresh = {name: loop.end() for name, loop in self._fresh.items()}
        report.spoken = {name: loop.end() for name, loop in self._spoken.items()}
        for loop in self._denied:
            report.denied_connects += loop.end()
        ended = self._client.call("flood_end", name=DENIED)["flows"].values()
        report.denied_sent = sum(flow["sent"] for flow in ended)
        report.denied_received = sum(
            server.actor.call("flood_received", port=DENIED_PORT) for server in self._servers
        )
        self._close()
        return report

    def _close(self) -> None:
        self._running = False
        for handle in self._handles:
            self._client.call("tcp_stop", handle=handle)
        for server in self._servers:
            server.actor.call("flood_close", port=DENIED_PORT)
            for port in (TCP_PORT, DENIED_PORT):
                server.actor.call("stop_server", kind="tcp", port=port)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._running:
            for loop in (*self._fresh.values(), *self._spoken.values(), *self._denied):
                loop.end()
            for flood in self._floods:
                flood.close()
            self._client.call("flood_end", name=DENIED)
            self._close()
