# SPDX-License-Identifier: Apache-2.0
"""
Two nodes that know each other: what agents publish in a cluster is written as manifests here.

Every pod's identity is published to both nodes before the pod exists, its endpoint once it does.  The
nodes reach each other through the world's router, which knows no route to pods.
"""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from ipaddress import IPv4Network, IPv6Network
from typing import Any, Self

from lab import manifests
from lab.node import Node
from lab.pod import Pod
from lab.world import World

_FIRST_IDENTITY = 1000
TUNNEL = {"routing-mode": "tunnel"}
ROUTED = {"routing-mode": "native", "ipv4-native-routing-cidr": "10.11.0.0/16"}


class Cluster:
    """Nodes ``node1`` and ``node2``; :meth:`start` starts their agents.  A context manager."""

    def __init__(
        self,
        *,
        mtu: int = 1500,
        options: Mapping[str, str] | None = None,
        ipv6: bool = False,
        ipv4: bool = True,
    ) -> None:
        """*ipv6*: pods have both families; without *ipv4* they and their nodes have that one alone."""
        self.world = World(mtu=mtu)
        self._ipv4, self._ipv6 = ipv4, ipv6 or not ipv4
        self.nodes = tuple(
            Node(
                self.world,
                name=f"node{number}",
                pod_cidr=f"10.11.{number}.0/24" if ipv4 else f"fd00:11:{number}::/112",
                six=not ipv4,
                options={"routing-mode": "tunnel", **self._families(number), **(options or {})},
            )
            for number in (1, 2)
        )
        self.also: dict[str, str] = {}
        """A second InternalIP by a node's name, to be told before :meth:`start`."""
        self._numbers: dict[tuple[tuple[str, str], ...], int] = {}

    def start(self) -> Self:
        """Publish the nodes and start their agents."""
        for node in self.nodes:
            self._publish(f"node-{node.name}", self._node(node))
        for node in self.nodes:
            node.start()
        return self

    def label(self, node: Node, labels: Mapping[str, str]) -> None:
        """Publish these labels of a node."""
        made = self._node(node)
        made["metadata"]["labels"] = dict(labels)
        self._publish(f"node-{node.name}", made)

    def router(self, node: Node) -> str:
        """The address of a node's cilium_host."""
        return str(IPv4Network(node.pod_cidr)[1])

    def router6(self, node: Node) -> str:
        """The same of IPv6."""
        return str(IPv6Network(self._cidr6(node))[1])

    def _cidr6(self, node: Node) -> str:
        return f"fd00:11:{node.name.removeprefix('node')}::/112"

    def _cidrs(self, node: Node) -> list[str]:
        return [
            *([node.pod_cidr] if self._ipv4 else ()),
            *([self._cidr6(node)] if self._ipv6 else ()),
        ]

    def _families(self, number: int) -> dict[str, str]:
        both = self._ipv4 and self._ipv6
        return {"enable-ipv6": "true", "pod-cidr-ipv6": f"fd00:11:{number}::/112"} if both else {}

    def pod(
        self,
        node: Node,
        name: str,
        labels: Mapping[str, str] | None = None,
        *,
        namespace: str = "default",
        published: bool = True,
        **more: Any,
    ) -> Pod:
        """A pod on *node* that both nodes know, the other one by what is published if it is."""
        number = self._identity(labels or {}, namespace)
        pod = node.pod(name, labels, namespace=namespace, **more)
        assert pod.endpoint["status"]["identity"]["id"] == number
        if published:
            self._publish(f"cep-{namespace}-{name}", self._endpoint(node, pod, number))
        return pod

    def apply(self, name: str, *objects: manifests.Object) -> None:
        """Objects for both nodes."""
        self._publish(name, *objects)

    def _publish(self, name: str, *objects: manifests.Object) -> None:
        for node in self.nodes:
            node.apply(name, *objects)

    def _identity(self, labels: Mapping[str, str], namespace: str) -> int:
        texts = {f"k8s:{key}": value for key, value in labels.items()} | {
            "k8s:io.kubernetes.pod.namespace": namespace,
            "k8s:io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name": namespace,
            "k8s:io.cilium.k8s.policy.serviceaccount": "default",
            "k8s:io.cilium.k8s.policy.cluster": "default",
        }
        key = tuple(sorted(texts.items()))
        if key not in self._numbers:
            number = self._numbers[key] = _FIRST_IDENTITY + len(self._numbers)
            body = {
                "apiVersion": "cilium.io/v2",
                "kind": "CiliumIdentity",
                "metadata": {"name": str(number)},
                "security-labels": texts,
            }
            self._publish(f"identity-{number}", body)
        return self._numbers[key]

    def _node(self, node: Node) -> manifests.Object:
        return {
            "apiVersion": "cilium.io/v2",
            "kind": "CiliumNode",
            "metadata": {"name": node.name},
            "spec": {
                "addresses": [
                    {"type": "InternalIP", "ip": node.address},
                    *([{"type": "InternalIP", "ip": self.also[node.name]}] if node.name in self.also else ()),
                    *([{"type": "CiliumInternalIP", "ip": self.router(node)}] if self._ipv4 else ()),
                    *([{"type": "CiliumInternalIP", "ip": self.router6(node)}] if self._ipv6 else ()),
                ],
                "ipam": {"podCIDRs": self._cidrs(node)},
            },
        }

    def _endpoint(self, node: Node, pod: Pod, number: int) -> manifests.Object:
        return {
            "apiVersion": "cilium.io/v2",
            "kind": "CiliumEndpoint",
            "metadata": {"name": pod.name, "namespace": pod.namespace},
            "status": {
                "id": pod.id,
                "identity": {"id": number, "labels": []},
                "networking": {
                    "addressing": [
                        ({"ipv4": pod.address} if pod.address else {})
                        | ({"ipv6": pod.address6} if self._ipv6 else {})
                    ],
                    "node": node.address,
                },
                "state": "ready",
            },
        }

    def remove(self) -> None:
        """Take everything down."""
        for node in self.nodes:
            node.remove()
        self.world.remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            for node in self.nodes:
                print(f"--- {node.name}\n{node.agent.log_tail()}", file=sys.stderr)
        self.remove()


@contextmanager
def joined(way: str, *, options: Mapping[str, str] | None = None) -> Iterator[Cluster]:
    """
    Two nodes whose pods reach each other, agents running: by ``tunnel``, in both families, or ``routed``.

    Routed, the network between the nodes knows the way to pods, which have IPv4 alone.
    """
    tunnel = way == "tunnel"
    with Cluster(ipv6=tunnel, options=(TUNNEL if tunnel else ROUTED) | dict(options or {})) as cluster:
        if not tunnel:
            for node in cluster.nodes:
                cluster.world.netns.ip("route", "add", node.pod_cidr, "via", node.address)
        yield cluster.start()
