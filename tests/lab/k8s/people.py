# SPDX-License-Identifier: Apache-2.0
"""The pods of the end-to-end tests: on each node one who asks and one who answers, with an actor in each."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Self

from lab.actor import Actor
from lab.k8s import images
from lab.k8s.cluster import Cluster
from lab.k8s.kubectl import Object
from lab.k8s.pod import ClusterPod

NAMESPACE: Final = "e2e"
HOST_PORT_POD: Final = "hostport"
HOST_PORT_TARGET: Final = 8000
CLIENT: Final = {"app": "client"}
SERVER: Final = {"app": "server"}
TRIES: Final = 20


def pod(name: str, node: str, labels: dict[str, str], **spec: object) -> Object:
    """A pod that waits; whoever is needed is sent into it."""
    container = {"name": "main", "image": images.AGNHOST, "args": ["pause"]}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": labels},
        "spec": {"nodeName": node, "terminationGracePeriodSeconds": 0, "containers": [container], **spec},
    }


def node_port_service(name: str, *, target: int, node_port: int, **spec: object) -> Object:
    """The servers' port *target*, TCP and UDP, as port 80 of a service and as *node_port* of every node."""
    ports = [
        {"name": each, "protocol": each.upper(), "port": 80, "targetPort": target, "nodePort": node_port}
        for each in ("tcp", "udp")
    ]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"type": "NodePort", "selector": SERVER, "ports": ports, **spec},
    }


def serve_host_port(people: "People", port: int, *, address: str = "0.0.0.0") -> None:
    """A pod on node1 whose ports 8000/TCP and 8000/UDP are *port* of the node; it answers at *address*."""
    ports = [
        {"containerPort": HOST_PORT_TARGET, "hostPort": port, "protocol": protocol}
        for protocol in ("TCP", "UDP")
    ]
    one = pod(HOST_PORT_POD, "node1", {"app": HOST_PORT_POD})
    one["spec"]["containers"][0]["ports"] = ports
    kubectl = people.cluster.kubectl
    kubectl.apply(one)
    kubectl.wait("--for=condition=Ready", f"pod/{HOST_PORT_POD}", namespace=NAMESPACE)
    actor = people.cluster.pod(HOST_PORT_POD, NAMESPACE).actor
    for verb in ("serve_tcp", "serve_udp"):
        actor.call(verb, name=HOST_PORT_POD, port=HOST_PORT_TARGET, address=address)


@dataclass
class People:
    """Pods by name in a namespace of their own: a client and a server on each node."""

    cluster: Cluster
    names: list[str]

    @classmethod
    def settle(cls, cluster: Cluster) -> Self:
        """client1 and server1 on node1, client2 and server2 on node2, all running."""
        kubectl = cluster.kubectl
        kubectl.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
        account = "serviceaccount", "default", NAMESPACE
        kubectl.until(lambda: kubectl.exists(*account), "the namespace has its account")
        objects = []
        for node in cluster.nodes:
            objects.append(pod(f"client{node.index}", node.name, {**CLIENT, "on": node.name}))
            objects.append(pod(f"server{node.index}", node.name, {**SERVER, "on": node.name}))
        kubectl.apply(*objects)
        names = [one["metadata"]["name"] for one in objects]
        kubectl.wait("--for=condition=Ready", *(f"pod/{name}" for name in names), namespace=NAMESPACE)
        return cls(cluster, names)

    @cached_property
    def pods(self) -> dict[str, ClusterPod]:
        """The pods."""
        return {name: self.cluster.pod(name, NAMESPACE) for name in self.names}

    def __getitem__(self, name: str) -> ClusterPod:
        return self.pods[name]

    def actor(self, name: str) -> Actor:
        """Somebody in a pod, on a node (``node1``) or outside (``world``)."""
        if name == "world":
            return self.cluster.world
        return self.cluster.node(name).actor if name.startswith("node") else self.pods[name].actor

    def tcp(self, name: str, address: str, port: int, **options: Any) -> dict[str, Any]:
        """A connection of somebody's."""
        return dict(self.actor(name).call("tcp_connect", address=address, port=port, **options))

    def servers_seen(self, name: str, address: str, port: int, verb: str = "tcp_connect") -> set[str]:
        """Which servers answer somebody in a number of tries, each of which must be answered."""
        replies = [self.actor(name).call(verb, address=address, port=port) for _ in range(TRIES)]
        assert {reply["outcome"] for reply in replies} == {"answered"}, replies
        return {reply["answer"]["server"] for reply in replies}
