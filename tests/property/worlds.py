# SPDX-License-Identifier: Apache-2.0
"""
Worlds for the policy property tests: namespaces, pods here and on another node, nodes, addresses outside.

Everything comes from small pools, chosen so that rules and packets meet.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from ipaddress import ip_network
from itertools import product
from typing import Any

from hypothesis import strategies as st

from property.reference.oracle import DEFAULT, EGRESS, INGRESS, Address, Node, Packet, Peer, Pod, Stranger

Document = Mapping[str, Any]

MACHINES = (
    ("host", "here"),
    ("remote-node", "edge-1"),
    ("remote-node", "edge-2"),
    ("kube-apiserver", "edge-2"),
)
"""Nodes that are known by name; the last has addresses of the API server, and others."""
NAMESPACES = ("blue", "green", "default")
NODES = ("host", "remote-node", "kube-apiserver", "health", "init", "ingress", "unmanaged")
ENDPOINTS_WITHOUT_POD = ("health", "init")
ADDRESSES = (
    "10.4.0.1",
    "10.1.2.3",
    "10.1.2.4",
    "192.0.2.9",
    "8.8.8.8",
    "fd00::1",
    "fd00:1::2",
    "2001:db8::5",
)
"""Outside the cluster."""
POD_NETWORKS = {
    "here": {4: "10.0.0.0/24", 6: "fd00:1:0:1::/64"},
    "there": {4: "10.1.0.0/24", 6: "fd00:0:0:2::/64"},
}
"""Where pods of this node have their addresses, and those of the other."""
HOSTS = range(1, 7)
"""The last number of pods' addresses; few, so that blocks of a few addresses cut through them."""
FAMILIES = ((4,), (4, 6), (4, 6), (6,))
PORT_NAMES = ("http", "dns")


@dataclass(frozen=True)
class Case:
    """
    A world, the policies in it, and packets: every (subject, packet) is judged.

    The last *remote* of the *pods* are on another node: peers, never subjects.  *enforcement* is the
    node's ``enable-policy``.  *objects* are what policies refer to, *machines* the labels of the nodes that
    are known by name.
    """

    namespaces: tuple[Document, ...]
    pods: tuple[Document, ...]
    policies: tuple[Document, ...]
    traffic: tuple[tuple[str, int], ...]
    remote: int = 0
    enforcement: str = DEFAULT
    objects: tuple[Document, ...] = ()
    machines: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def with_policies(self, *policies: Document) -> "Case":
        """The same world under other policies."""
        return replace(self, policies=policies)

    @property
    def local_pods(self) -> tuple[Document, ...]:
        """The documents of the pods of this node."""
        return self.pods[: len(self.pods) - self.remote]

    @property
    def remote_pods(self) -> tuple[Document, ...]:
        """The documents of the pods of the other node."""
        return self.pods[len(self.pods) - self.remote :]

    @cached_property
    def _namespace_labels(self) -> dict[str, Mapping[str, str]]:
        return {one["metadata"]["name"]: one["metadata"].get("labels", {}) for one in self.namespaces}

    def pod(self, document: Document) -> Pod:
        """The pod of a *document*, by none of its addresses."""
        meta, spec = document["metadata"], document["spec"]
        return Pod(
            namespace=meta["namespace"],
            name=meta["name"],
            labels=meta["labels"],
            namespace_labels=self._namespace_labels[meta["namespace"]],
            service_account=spec["serviceAccountName"],
            ports={
                port["name"]: frozenset({(port["protocol"], port["containerPort"])})
                for port in spec["containers"][0]["ports"]
            },
        )

    def subjects(self) -> list[Pod | Node]:
        """Whose policy is judged: the pods of this node and, under a policy of the cluster, the rest."""
        pods: list[Pod | Node] = [self.pod(document) for document in self.local_pods]
        if any(policy["kind"] == "CiliumClusterwideNetworkPolicy" for policy in self.policies):
            pods += map(Node, ENDPOINTS_WITHOUT_POD)
        return pods

    def peers(self) -> list[Peer]:
        """Everybody who may be at the other end; a pod once by each of its addresses."""
        pods = [self.pod(document) for document in self.pods]
        peers: list[Peer] = [
            replace(_with_ports_of_the_like(pod, pods), address=address)
            for pod, document in zip(pods, self.pods, strict=True)
            for address in addresses_of(document) or ("",)
        ]
        return [*peers, *self._nodes(), *map(Address, ADDRESSES), Stranger()]

    def _nodes(self) -> list[Node]:
        named = [
            Node(reserved, name, self.machines[name]) for reserved, name in MACHINES if name in self.machines
        ]
        return [*named, *(Node(name) for name in NODES if name != "host" or not named)]

    def packets(self) -> list[Packet]:
        """All traffic with all peers, both ways."""
        return [
            Packet(direction, peer, protocol, port)
            for direction, peer, (protocol, port) in product((INGRESS, EGRESS), self.peers(), self.traffic)
        ]


def _with_ports_of_the_like(pod: Pod, pods: list[Pod]) -> Pod:
    """Pods that no label tells apart are one destination, with the named ports of all of them."""
    ports: dict[str, frozenset[tuple[str, int]]] = {}
    for other in pods:
        if other.is_like(pod):
            for name, numbers in other.ports.items():
                ports[name] = ports.get(name, frozenset()) | numbers
    return replace(pod, ports=ports)


def some(
    elements: st.SearchStrategy[Any], at_least: int = 1, at_most: int = 2
) -> st.SearchStrategy[list[Any]]:
    """Short lists."""
    return st.lists(elements, min_size=at_least, max_size=at_most)


def often(one: st.SearchStrategy[Any], times: int) -> list[st.SearchStrategy[Any]]:
    """Branches of one_of that are drawn *times* as often as others: it takes the same strategy once only."""
    return [one.map(lambda drawn: drawn) for _ in range(times)]


APPS = st.sampled_from(("web", "db"))
TIERS = st.sampled_from(("front", "back", ""))
ROLES = st.sampled_from(("edge", "core"))
ZONES = st.sampled_from(("a", "b"))
TEAMS = st.sampled_from(("a", "b"))

_POD_LABELS = st.fixed_dictionaries(
    {"app": APPS},
    optional={
        "tier": TIERS,
        # What nodes are selected by.
        "role": ROLES,
        # What a pod must not get by claiming it.
        "io.kubernetes.pod.namespace": st.sampled_from(NAMESPACES),
        "io.cilium.k8s.policy.serviceaccount": st.just("robot"),
    },
)
_POD_PORTS = st.lists(
    st.fixed_dictionaries(
        {
            "name": st.sampled_from(PORT_NAMES),
            "protocol": st.sampled_from(("TCP", "UDP")),
            "containerPort": st.sampled_from((53, 80, 8080)),
        }
    ),
    min_size=1,
    max_size=2,
    unique_by=lambda port: port["name"],
)
_POD = st.fixed_dictionaries(
    {
        "namespace": st.sampled_from(("blue", "blue", "green")),
        "labels": _POD_LABELS,
        "serviceAccountName": st.sampled_from(("default", "robot")),
        "ports": _POD_PORTS,
    }
)
_NODE_LABELS = st.fixed_dictionaries(
    {}, optional={"role": ROLES, "topology.kubernetes.io/zone": ZONES, "app": APPS}
)
LABELS_OF_NODES = st.fixed_dictionaries({name: _NODE_LABELS for _, name in MACHINES})


@st.composite
def _pods(draw: st.DrawFn) -> list[Document]:
    """Pods, some of them alike but for their ports, as replicas are while one set follows another."""
    pods = draw(st.lists(_POD, min_size=1, max_size=3))
    for first in draw(st.lists(st.sampled_from(pods), min_size=0 if len(pods) > 1 else 1, max_size=2)):
        pods.append({**first, "ports": draw(_POD_PORTS)})
    return draw(st.permutations(pods))


PODS = _pods()
LABELS_OF_NAMESPACES = st.tuples(*(st.fixed_dictionaries({}, optional={"team": TEAMS}) for _ in NAMESPACES))


def pod(number: int, drawn: Mapping[str, Any], addresses: Sequence[str] = ()) -> Document:
    """A pod's document."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"pod-{number}", "namespace": drawn["namespace"], "labels": drawn["labels"]},
        "spec": {
            "serviceAccountName": drawn["serviceAccountName"],
            "containers": [{"name": "main", "ports": drawn["ports"]}],
        },
        "status": {"podIPs": [{"ip": address} for address in addresses]},
    }


def addresses_of(pod: Document) -> tuple[str, ...]:
    """The addresses in a pod's document."""
    return tuple(one["ip"] for one in pod.get("status", {}).get("podIPs", ()))


def pod_address(where: str, family: int, host: int) -> str:
    """An address of a pod."""
    return str(ip_network(POD_NETWORKS[where][family])[host])


def namespace(name: str, labels: Mapping[str, str]) -> Document:
    """A namespace's document."""
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
