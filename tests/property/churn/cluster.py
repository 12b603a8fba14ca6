# SPDX-License-Identifier: Apache-2.0
"""
A cluster as its API server has it, changed at random, and what a watch would tell of each change.

Objects of every kind an agent follows, over small pools, so that addresses, names, numbers and label sets
are used again: by the next pod, under another uid, before the one who had them is gone.  Local pods are
wired and taken away as the runtime would do it.
"""

import copy
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ciliumd.kubernetes import kinds
from ciliumd.kubernetes.kinds import Kind
from ciliumd.model.labels import Labels
from lab.kinds import SOURCES_POLICY

Document = dict[str, Any]
Key = tuple[Kind, str, str]

NAMESPACES = ("blue", "green")
PODS = ("pod-0", "pod-1", "pod-2")
FAR_PODS = ("far-0", "far-1", "far-2")
ADDRESSES = ("10.0.0.1", "10.0.0.2", "10.0.0.3")
FAR_ADDRESSES = ("10.1.0.1", "10.1.0.2", "10.1.0.3")
OTHER_NODES = {"node-two": ("192.168.0.2", "10.1.0.0/24"), "node-three": ("192.168.0.3", "10.2.0.0/24")}
OUTSIDE = ("192.0.2.9", "8.8.8.8")
NUMBERS = (60001, 60002, 60003, 60004)
POLICY_NAMES = ("one", "two", "three")
POLICY_KINDS = (
    kinds.NETWORK_POLICY,
    kinds.CILIUM_NETWORK_POLICY,
    kinds.CILIUM_CLUSTERWIDE_NETWORK_POLICY,
)
SERVICES = ("web", "db", "kubernetes")
CLUSTER_ADDRESSES = ("10.96.0.1", "10.96.0.2")
EXTERNAL_ADDRESSES, BALANCERS = ("198.51.100.90", "198.51.100.91"), ("198.51.100.80", "198.51.100.81")
RANGES = ("203.0.113.0/24", "203.0.113.128/25", "198.51.100.0/24")
NAMESPACE_KEY = "k8s:io.kubernetes.pod.namespace"


@dataclass(frozen=True, slots=True)
class Told:
    """What a watch says: that *document* was ADDED, MODIFIED or DELETED."""

    kind: Kind
    type: str
    document: Document

    @property
    def key(self) -> Key:
        """Kind, namespace and name."""
        return key_of(self.kind, self.document)

    @property
    def version(self) -> int:
        """Its resourceVersion."""
        return int(self.document["metadata"]["resourceVersion"])


@dataclass(frozen=True, slots=True)
class Wired:
    """A pod's device: *number* is None when the pod is taken away."""

    number: int
    pod: tuple[str, str] | None = None
    address: str = ""


def key_of(kind: Kind, document: Document) -> Key:
    """Kind, namespace and name."""
    metadata = document["metadata"]
    return (kind, metadata.get("namespace", ""), metadata["name"])


@dataclass
class Cluster:
    """The objects there are, and every event so far; *policies* are documents to take policies from."""

    chance: random.Random
    policies: Sequence[Document]
    objects: dict[Key, Document] = field(default_factory=dict)
    endpoints: dict[int, Wired] = field(default_factory=dict)
    version: int = 100
    _uid: int = 0
    _endpoint: int = 0

    def begin(self) -> list[Told | Wired]:
        """A cluster with a little of everything."""
        said: list[Told | Wired] = [self.put(kinds.NAMESPACE, self._namespace(name)) for name in NAMESPACES]
        for _ in range(2):
            said += [*self._pod(), *self._wire(), *self._identity(), *self._far_pod(), *self._policy()]
        return [*said, *self._node(), *self._service(), *self._slice()]

    def change(self) -> list[Told | Wired]:
        """Something happens; what is told of it."""
        changes: list[Callable[[], list[Told | Wired]]] = [
            *([self._pod] * 4),
            *([self._remake_pod] * 2),
            *([self._wire] * 3),
            *([self._hand_over] * 2),
            *([self._policy] * 5),
            *([self._far_pod] * 4),
            *([self._identity] * 3),
            self._remake_identity,
            self._label_namespace,
            self._spoil_policy,
            *([self._delete] * 4),
            *([self._node, self._service, self._service, self._slice, self._slice]),
        ]
        return self.chance.choice(changes)()

    def number(self, labels: Labels) -> list[Told | Wired]:
        """Some agent asks for a number of *labels*, unless there is one."""
        wanted = {f"{label.source}:{label.key}": label.value for label in labels}
        for (kind, _, _), document in self.objects.items():
            if kind == kinds.CILIUM_IDENTITY and document["security-labels"] == wanted:
                return []
        number = self.chance.choice(range(1000, 1100))
        while (kinds.CILIUM_IDENTITY, "", str(number)) in self.objects:
            number += 1
        return [
            self.put(kinds.CILIUM_IDENTITY, self._document("", str(number), **{"security-labels": wanted}))
        ]

    # ---- the API server ----------------------------------------------------------------------

    def put(self, kind: Kind, document: Document) -> Told:
        """Create or update."""
        key = key_of(kind, document)
        old = self.objects.get(key)
        if old is None:
            self._uid += 1
        uid = f"uid-{self._uid}" if old is None else old["metadata"]["uid"]
        self.version += 1
        document = copy.deepcopy(document)
        document["apiVersion"], document["kind"] = kind.api_version, kind.kind
        document["metadata"] |= {"uid": uid, "resourceVersion": str(self.version)}
        stamp = (
            f"2026-01-01T00:00:{self._uid % 60:02}Z" if old is None else old["metadata"]["creationTimestamp"]
        )
        document["metadata"]["creationTimestamp"] = stamp
        self.objects[key] = document
        return Told(kind, "ADDED" if old is None else "MODIFIED", document)

    def remove(self, key: Key) -> Told:
        """Delete."""
        self.version += 1
        document = copy.deepcopy(self.objects.pop(key))
        document["metadata"]["resourceVersion"] = str(self.version)
        return Told(key[0], "DELETED", document)

    # ---- what happens ------------------------------------------------------------------------

    def _of(self, *wanted: Kind) -> list[Key]:
        return [key for key in self.objects if key[0] in wanted]

    def _document(self, scope: str, name: str, **rest: Any) -> Document:
        metadata = {"name": name} | ({"namespace": scope} if scope else {})
        return {"metadata": metadata, **rest}

    def _namespace(self, name: str) -> Document:
        labels = self.chance.choice(({}, {"team": "a"}, {"team": "b"}))
        return {"metadata": {"name": name, "labels": dict(labels)}}

    def _label_namespace(self) -> list[Told | Wired]:
        return [self.put(kinds.NAMESPACE, self._namespace(self.chance.choice(NAMESPACES)))]

    def _labels(self) -> dict[str, str]:
        labels = {"app": self.chance.choice(("web", "db"))}
        if self.chance.random() < 0.3:
            labels["tier"] = self.chance.choice(("front", "back", ""))
        return labels

    def _pod(self) -> list[Told | Wired]:
        name = self.chance.choice(PODS)
        existing = [key for key in self._of(kinds.POD) if key[2] == name]
        scope = existing[0][1] if existing else self.chance.choice(NAMESPACES)
        ports = [
            {"name": "http", "protocol": "TCP", "containerPort": self.chance.choice((80, 8080))},
            {"name": "dns", "protocol": self.chance.choice(("TCP", "UDP")), "containerPort": 53},
        ]
        document = self._document(
            scope,
            name,
            spec={
                "nodeName": "node-one",
                "serviceAccountName": self.chance.choice(("default", "default", "robot")),
                "containers": [{"name": "main", "ports": ports[: self.chance.randint(0, 2)]}],
            },
        )
        document["metadata"]["labels"] = self._labels()
        return [self.put(kinds.POD, document)]

    def _remake_pod(self) -> list[Told | Wired]:
        """Another object under the same name at once: a stateful set's pod."""
        known = self._of(kinds.POD)
        if not known:
            return self._pod()
        key = self.chance.choice(known)
        document = copy.deepcopy(self.objects[key])
        gone = self.remove(key)
        document["metadata"]["labels"] = self._labels()
        return [gone, self.put(kinds.POD, document)]

    def _wire(self) -> list[Told | Wired]:
        free = [one for one in ADDRESSES if one not in {wired.address for wired in self.endpoints.values()}]
        if self.endpoints and (not free or self.chance.random() < 0.4):
            number = self.chance.choice(sorted(self.endpoints))
            del self.endpoints[number]
            return [Wired(number)]
        self._endpoint += 1
        scope = self.chance.choice(NAMESPACES)
        known = [key[1:] for key in self._of(kinds.POD)]
        pod = self.chance.choice(known) if known else (scope, self.chance.choice(PODS))
        if pod in {wired.pod for wired in self.endpoints.values()}:
            return []
        self.endpoints[self._endpoint] = Wired(self._endpoint, pod, self.chance.choice(free))
        return [self.endpoints[self._endpoint]]

    def _hand_over(self) -> list[Told | Wired]:
        """The address of a pod that goes is the next pod's."""
        if not self.endpoints:
            return self._wire()
        number = self.chance.choice(sorted(self.endpoints))
        address = self.endpoints.pop(number).address
        used = {wired.pod for wired in self.endpoints.values()}
        pods = [key[1:] for key in self._of(kinds.POD) if key[1:] not in used]
        if not pods:
            return [Wired(number)]
        self._endpoint += 1
        self.endpoints[self._endpoint] = Wired(self._endpoint, self.chance.choice(pods), address)
        return [Wired(number), self.endpoints[self._endpoint]]

    def _identity(self, number: int = 0) -> list[Told | Wired]:
        """A label set of pods elsewhere gets a number."""
        key = (kinds.CILIUM_IDENTITY, "", str(number or self.chance.choice(NUMBERS)))
        if key in self.objects:
            return []
        scope = self.chance.choice(NAMESPACES)
        labels = {f"k8s:{name}": value for name, value in self._labels().items()}
        labels |= {
            NAMESPACE_KEY: scope,
            "k8s:io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name": scope,
            "k8s:io.cilium.k8s.policy.cluster": "default",
            "k8s:io.cilium.k8s.policy.serviceaccount": "far",
        }
        if any(self.objects[one]["security-labels"] == labels for one in self._of(kinds.CILIUM_IDENTITY)):
            return []
        return [self.put(kinds.CILIUM_IDENTITY, self._document("", key[2], **{"security-labels": labels}))]

    def _remake_identity(self) -> list[Told | Wired]:
        """A number changes hands faster than it should."""
        known = [key for key in self._of(kinds.CILIUM_IDENTITY) if int(key[2]) in NUMBERS]
        if not known:
            return self._identity()
        key = self.chance.choice(known)
        return [self.remove(key), *self._identity(int(key[2]))]

    def _far_pod(self) -> list[Told | Wired]:
        """A pod of another node is published; its address may still be somebody else's."""
        name, scope = self.chance.choice(FAR_PODS), self.chance.choice(NAMESPACES)
        ports = self.chance.choice(([], [{"name": "http", "protocol": "TCP", "port": 8080}]))
        status = {
            "identity": {"id": self.chance.choice(NUMBERS)},
            "networking": {
                "addressing": [{"ipv4": self.chance.choice(FAR_ADDRESSES)}],
                "node": self.chance.choice([address for address, _ in OTHER_NODES.values()]),
            },
            "named-ports": ports,
        }
        return [self.put(kinds.CILIUM_ENDPOINT, self._document(scope, name, status=status))]

    def _node(self) -> list[Told | Wired]:
        name = self.chance.choice(sorted(OTHER_NODES))
        address, cidr = OTHER_NODES[name]
        spec = {
            "addresses": [{"type": "InternalIP", "ip": address}],
            "ipam": {"podCIDRs": self.chance.choice(([cidr], [cidr], []))},
            "health": {"ipv4": cidr.replace("0/24", "250")},
        }
        document = self._document("", name, spec=spec)
        document["metadata"]["labels"] = self.chance.choice(({"role": "edge"}, {"role": "core"}, {}))
        return [self.put(kinds.CILIUM_NODE, document)]

    def _policy(self) -> list[Told | Wired]:
        document = copy.deepcopy(self.chance.choice(self.policies))
        (kind,) = (one for one in POLICY_KINDS if one.kind == document["kind"])
        document["metadata"]["name"] = self.chance.choice(POLICY_NAMES)
        return [self.put(kind, document)]

    def _spoil_policy(self) -> list[Told | Wired]:
        """A policy becomes one that cannot be understood; another agent may have written it."""
        known = self._of(*POLICY_KINDS)
        if not known:
            return self._policy()
        key = self.chance.choice(known)
        document = copy.deepcopy(self.objects[key])
        (document.get("spec") or document["specs"][0])["tomorrow"] = True
        return [self.put(key[0], document)]

    def repair(self) -> None:
        """Every spoilt policy is written anew: what it was before is known to those who were there only."""
        for key in self._of(*POLICY_KINDS):
            document = copy.deepcopy(self.objects[key])
            spec = document.get("spec") or document["specs"][0]
            if spec.pop("tomorrow", False):
                self.put(key[0], document)

    def _service(self) -> list[Told | Wired]:
        name = self.chance.choice(SERVICES)
        ports = [
            {"name": "http", "port": 80, "targetPort": 8080},
            {"name": "dns", "port": 53, "protocol": "UDP"},
        ]
        spec = {
            "clusterIP": self.chance.choice(CLUSTER_ADDRESSES),
            "ports": ports[: self.chance.randint(1, 2)],
            "type": self.chance.choice(("ClusterIP", "NodePort", "LoadBalancer", "LoadBalancer")),
        }
        if spec["type"] != "ClusterIP":
            spec["ports"][0]["nodePort"] = self.chance.choice((30080, 30081))
            spec["externalTrafficPolicy"] = self.chance.choice(("Cluster", "Local"))
        if self.chance.random() < 0.5:
            spec["sessionAffinity"] = "ClientIP"
        spec["internalTrafficPolicy"] = self.chance.choice(("Cluster", "Cluster", "Local"))
        spec["externalIPs"] = self.chance.sample(EXTERNAL_ADDRESSES, self.chance.randint(0, 1))
        document = self._document("default", name, spec=spec)
        if spec["type"] == "LoadBalancer":
            spec["loadBalancerSourceRanges"] = self.chance.sample(RANGES, self.chance.randint(0, 2))
            document["metadata"]["annotations"] = {SOURCES_POLICY: self.chance.choice(("allow", "deny"))}
            document["status"] = {"loadBalancer": {"ingress": [{"ip": self.chance.choice(BALANCERS)}]}}
        return [self.put(kinds.SERVICE, document)]

    def _slice(self) -> list[Told | Wired]:
        service = self.chance.choice(SERVICES)
        pool = (
            [OTHER_NODES["node-two"][0], OUTSIDE[0]]
            if service == "kubernetes"
            else [*ADDRESSES, *FAR_ADDRESSES]
        )
        chosen = self.chance.sample(pool, self.chance.randint(0, 2))
        document = self._document(
            "default",
            f"{service}-{self.chance.randint(0, 1)}",
            addressType="IPv4",
            endpoints=[
                {"addresses": [one], "conditions": {"ready": self.chance.random() < 0.8}} for one in chosen
            ],
            ports=[{"name": "http", "port": 8080}, {"name": "dns", "port": 53, "protocol": "UDP"}],
        )
        document["metadata"]["labels"] = {"kubernetes.io/service-name": service}
        return [self.put(kinds.ENDPOINT_SLICE, document)]

    def _delete(self) -> list[Told | Wired]:
        known = self._of(
            *POLICY_KINDS,
            *(kinds.POD, kinds.CILIUM_ENDPOINT, kinds.CILIUM_IDENTITY, kinds.CILIUM_NODE),
            *(kinds.SERVICE, kinds.ENDPOINT_SLICE, kinds.NAMESPACE),
        )
        return [self.remove(self.chance.choice(known))] if known else self._pod()
