# SPDX-License-Identifier: Apache-2.0
"""
Who allows what, twice: the rows as packets meet them, and the objects as an agent was told of them.

:class:`Rows` follows single rows from addresses to a verdict, as the programs do.  :class:`Known` keeps what
was told, by the plain rule that of an object the newest version counts, and asks the oracle of the policy
tests.  Where several changes arrive at once every mixture of old and new objects may be seen for a moment.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from ipaddress import ip_address, ip_network
from itertools import product
from typing import Any

from ciliumd import abi
from ciliumd.bpf.policy_maps import CLASSES, split_key
from ciliumd.daemon import stages as names
from ciliumd.desired.policy.rules import PROTOCOL_NUMBERS
from ciliumd.kubernetes import kinds
from ciliumd.kubernetes.kinds import Kind
from ciliumd.model.identity import Reserved
from ciliumd.model.net import addr16
from property.churn.agent import HOST, NODE, POD_NETWORK
from property.churn.cluster import NAMESPACE_KEY, POLICY_KINDS, Document, Key, Told, Wired
from property.reference import oracle
from property.reference.matching import own_labels
from property.reference.oracle import ALLOW

_PREFIX = "k8s:io.cilium.k8s.namespace.labels."
_ACCOUNT = "k8s:io.cilium.k8s.policy.serviceaccount"
_FULL = int(abi.PolicyPrefix.POLICY_PREFIX_PORT)
_CLUSTER_BITS = 32

NamedPorts = dict[str, frozenset[tuple[str, int]]]


@dataclass(frozen=True, slots=True)
class Flow:
    """The first packet of a flow between a pod of the node (*subject*) and *peer*, by address."""

    subject: str
    direction: str
    peer: str
    protocol: str
    port: int


# ---- rows ---------------------------------------------------------------------------------------

_lxc = lru_cache(4096)(abi.LxcValue.unpack)
_facts = lru_cache(4096)(abi.Endpoint.unpack)
_entry = lru_cache(4096)(abi.IpcacheEntry.unpack)
_prefix = lru_cache(4096)(abi.IpcacheLpmKey.unpack)
_class_key = lru_cache(4096)(abi.PolicyClassKey.unpack)
_class = lru_cache(4096)(abi.PolicyClass.unpack)
_rule = lru_cache(4096)(abi.PolicyKey.unpack)
_verdict = lru_cache(4096)(abi.PolicyEntry.unpack)


@lru_cache(256)
def _packed(address: str) -> bytes:
    return addr16(ip_address(address))


class Rows:
    """The maps as they are between two writes."""

    def __init__(self) -> None:
        self.maps: dict[str, dict[bytes, bytes]] = {}
        self._classes: dict[tuple[int, int, int], int] = {}
        self._rules: dict[tuple[int, int, int], dict[bytes, tuple[int, int, int]]] = {}

    def wrote(self, name: str, key: bytes, value: bytes | None) -> None:
        """A row was written, or deleted."""
        if name == names.POLICY:
            self._wrote_policy(key, value)
            return
        rows = self.maps.setdefault(name, {})
        if value is None:
            rows.pop(key, None)
        else:
            rows[key] = value

    def _wrote_policy(self, flat: bytes, value: bytes | None) -> None:
        version, which, inner = split_key(flat)
        if which == CLASSES:
            who = _class_key(inner)
            place = (version, who.identity, who.direction)
            if value is None:
                self._classes.pop(place, None)
            else:
                self._classes[place] = _class(value).class_id
            return
        rule = _rule(inner)
        held = self._rules.setdefault((version, rule.class_id, rule.direction), {})
        if value is None:
            held.pop(inner, None)
        else:
            held[inner] = (rule.prefixlen, rule.protocol << 16 | rule.dport, _verdict(value).verdict)

    def allow(self, flow: Flow) -> bool:
        """Whether the programs let it pass."""
        own = self._endpoint(flow.subject)
        if own is None:
            return False
        if flow.peer.startswith(POD_NETWORK) and flow.peer != HOST:
            other = self._endpoint(flow.peer)
            if other is None:
                return False  # nobody is there to send or to receive
            identity = other[1].judged_ipv4 or other[1].identity
        else:
            identity = self._judged_as(flow.peer)
        direction = abi.Direction[f"DIR_{flow.direction.upper()}"]
        return self._decide(own[0], identity, int(direction), PROTOCOL_NUMBERS[flow.protocol], flow.port)

    def _endpoint(self, address: str) -> tuple[int, abi.Endpoint] | None:
        """Policy version and facts of the endpoint with *address*, if it is whole."""
        raw = self.maps.get(names.LXC, {}).get(abi.LxcKey(_packed(address)).pack())
        if raw is None:
            return None
        slot = _lxc(raw).slot.to_bytes(4, "little")
        word = int.from_bytes(self.maps.get(names.STATES, {}).get(slot, bytes(8)), "little")
        facts = self.maps.get(names.FACTS, {}).get(slot)
        if not word or facts is None or _facts(facts).slot_gen != word >> 32:
            return None
        return word & 0xFFFFFFFF, _facts(facts)

    def _judged_as(self, address: str) -> int:
        packed = _packed(address)
        raw = self.maps.get(names.IPCACHE, {}).get(abi.IpcacheKey(packed, 0).pack())
        if raw is not None:
            return _entry(raw).judged or _entry(raw).identity
        number = int.from_bytes(packed, "big")
        best, found = -1, int(Reserved.WORLD)
        for key, value in self.maps.get(names.IPCACHE_LPM, {}).items():
            prefix = _prefix(key)
            bits = prefix.prefixlen - _CLUSTER_BITS
            if bits > best and not (number ^ int.from_bytes(prefix.addr, "big")) >> (128 - bits):
                best, found = bits, _entry(value).judged or _entry(value).identity
        return found

    def _decide(self, version: int, identity: int, direction: int, protocol: int, port: int) -> bool:
        number = self._classes.get((version, identity, direction), 0)
        wanted = protocol << 16 | port
        best, verdict = -1, int(abi.PolicyVerdict.POLICY_VERDICT_NONE)
        for length, bits, said in self._rules.get((version, number, direction), {}).values():
            if length > best and not ((bits ^ wanted) & 0xFFFFFF) >> (_FULL - length):
                best, verdict = length, said
        return verdict == abi.PolicyVerdict.POLICY_VERDICT_ALLOW


# ---- objects ------------------------------------------------------------------------------------


@dataclass
class Known:
    """
    What an agent was told: documents, who is wired, and under which labels each pod was last judged.

    *valid* says of a document whether the agent has to understand it.
    """

    enforcement: str = "default"
    documents: dict[Key, Document] = field(default_factory=dict)
    endpoints: dict[int, Wired] = field(default_factory=dict)
    effective: dict[int, oracle.Subject] = field(default_factory=dict)
    _versions: dict[Key, tuple[int, str]] = field(default_factory=dict)
    _listed: dict[Kind, tuple[int, dict[Key, int]]] = field(default_factory=dict)

    def copy(self) -> "Known":
        """The same, to go on from."""
        return replace(
            self,
            documents=dict(self.documents),
            endpoints=dict(self.endpoints),
            effective=dict(self.effective),
            _versions=dict(self._versions),
            _listed=dict(self._listed),
        )

    def tell(self, change: Told | Wired) -> None:
        """The newest version of an object counts; an update that is not valid takes nothing away."""
        if isinstance(change, Wired):
            if change.pod is None:
                self.endpoints.pop(change.number, None)
                self.effective.pop(change.number, None)
            else:
                self.endpoints[change.number] = change
            return
        key, version, document = change.key, change.version, change.document
        if version <= self._versions.get(key, (0, ""))[0]:
            return
        if key not in self._versions and not self._is_news(key, version):
            return
        uid = document["metadata"]["uid"]
        same = self._versions.get(key, (0, ""))[1] == uid
        if change.type == "DELETED":
            self._versions[key] = (version, "")
            self.documents.pop(key, None)
            return
        self._versions[key] = (version, uid)
        if "tomorrow" in str(document.get("spec", document.get("specs", ""))):
            if not same:
                self.documents.pop(key, None)
        else:
            self.documents[key] = document

    def show(self, kind: Kind, version: int, objects: Mapping[Key, Document]) -> None:
        """What a listing does not show is gone."""
        shown = {
            key: int(one["metadata"]["resourceVersion"]) for key, one in objects.items() if key[0] == kind
        }
        self._listed[kind] = (version, shown)
        for key, (known, _) in list(self._versions.items()):
            if key[0] == kind and key not in shown and known <= version:
                self.documents.pop(key, None)
                del self._versions[key]

    def _is_news(self, key: Key, version: int) -> bool:
        listed, shown = self._listed.get(key[0], (0, {}))
        return version >= shown[key] if key in shown else version > listed

    # ---- who is who ----------------------------------------------------------------------------

    def subjects(self, address: str) -> Iterator[tuple[int, oracle.Subject]]:
        """Who may be judged behind a local address: as told, or under the labels it has a number for."""
        for number, one in self.endpoints.items():
            if one.address == address and one.pod is not None:
                told = self._told(one.pod)
                yield number, told
                before = self.effective.get(number)
                if before is not None:
                    ports = told.ports if isinstance(told, oracle.Pod) else {}
                    yield number, before
                    yield number, replace(before, ports=ports) if isinstance(before, oracle.Pod) else before

    def settled(self) -> None:
        """Whoever has a number for the labels told goes by them from now on."""
        numbered = [self._far(key[2]) for key in self.documents if key[0] == kinds.CILIUM_IDENTITY]
        for number, one in self.endpoints.items():
            told = self._told(one.pod or ("", ""))
            if not isinstance(told, oracle.Pod) or any(
                isinstance(other, oracle.Pod) and _alike(told, other) for other in numbered
            ):
                self.effective[number] = told

    def _told(self, pod: tuple[str, str]) -> oracle.Subject:
        document = self.documents.get((kinds.POD, *pod))
        if document is None:
            return oracle.Node("init")
        spec = document["spec"]
        return oracle.Pod(
            namespace=pod[0],
            name=pod[1],
            labels=document["metadata"]["labels"],
            namespace_labels=self._namespace(pod[0]),
            service_account=spec["serviceAccountName"],
            ports={
                port["name"]: frozenset({(port["protocol"], port["containerPort"])})
                for port in spec["containers"][0]["ports"]
            },
        )

    def _namespace(self, name: str) -> Mapping[str, str]:
        document = self.documents.get((kinds.NAMESPACE, "", name))
        return {} if document is None else document["metadata"].get("labels", {})

    def _far(self, number: str) -> oracle.Peer:
        document = self.documents.get((kinds.CILIUM_IDENTITY, "", number))
        if document is None:
            return oracle.Stranger()
        labels = document["security-labels"]
        own = {
            key.removeprefix("k8s:"): value
            for key, value in labels.items()
            if not key.startswith("k8s:io.cilium.k8s.") and key != NAMESPACE_KEY
        }
        of_namespace = {
            key.removeprefix(_PREFIX): value
            for key, value in labels.items()
            if key.startswith(_PREFIX) and not key.endswith("/metadata.name")
        }
        return oracle.Pod(labels[NAMESPACE_KEY], "", own, of_namespace, labels[_ACCOUNT])

    def peers(self, address: str) -> Iterator[oracle.Peer]:
        """Who may be behind an address, pods by it."""
        if address == HOST:
            yield oracle.Node("host", NODE, {})
            return
        local: list[oracle.Peer] = [subject for _, subject in self.subjects(address)]
        for peer in local or self._beyond(address):
            yield replace(peer, address=address) if isinstance(peer, oracle.Pod) else peer

    def _beyond(self, address: str) -> Iterator[oracle.Peer]:
        shared = "kube-apiserver" if address in self._api_servers() else "remote-node"
        for document in self._all(kinds.CILIUM_NODE):
            meta, spec = document["metadata"], document["spec"]
            if address in [one["ip"] for one in spec["addresses"]]:
                yield oracle.Node(shared, meta["name"], meta.get("labels") or {})
                return
        if shared == "kube-apiserver":
            yield oracle.Node(shared)
            return
        for document in self._all(kinds.CILIUM_NODE):
            spec = document["spec"]
            if address == spec["health"]["ipv4"]:
                yield oracle.Node("health")
                return
        claims = [
            str(document["status"]["identity"]["id"])
            for document in self._all(kinds.CILIUM_ENDPOINT)
            if address in [one["ipv4"] for one in document["status"]["networking"]["addressing"]]
        ]
        yield from map(self._far, claims)
        if claims:
            return
        for document in self._all(kinds.CILIUM_NODE):
            if any(ip_address(address) in ip_network(cidr) for cidr in document["spec"]["ipam"]["podCIDRs"]):
                yield oracle.Node("unmanaged")
                return
        yield oracle.Address(address)

    def _api_servers(self) -> set[str]:
        return {
            one["addresses"][0]
            for document in self._all(kinds.ENDPOINT_SLICE)
            if document["metadata"]["labels"]["kubernetes.io/service-name"] == "kubernetes"
            for one in document["endpoints"]
            if one["conditions"]["ready"]
        }

    def _all(self, *wanted: Kind) -> Iterator[Document]:
        return (document for key, document in self.documents.items() if key[0] in wanted)

    # ---- what is allowed -----------------------------------------------------------------------

    def allows(self, flow: Flow) -> bool:
        """Whether these objects allow *flow*, whoever of those it may be is behind its addresses."""
        policies = list(self._all(*POLICY_KINDS, kinds.SERVICE, kinds.ENDPOINT_SLICE))
        for (_, subject), peer in product(self.subjects(flow.subject), self.peers(flow.peer)):
            named = self._with_ports_of_the_like(peer)
            packet = oracle.Packet(flow.direction, named, flow.protocol, flow.port)
            if oracle.verdict(policies, subject, packet, enforcement=self.enforcement) == ALLOW:
                return True
        return False

    def _with_ports_of_the_like(self, peer: oracle.Peer) -> oracle.Peer:
        """Pods that no label tells apart are one destination, with the named ports of all of them."""
        if not isinstance(peer, oracle.Pod):
            return peer
        ports: NamedPorts = dict(peer.ports)
        for one in self.endpoints.values():
            told = self._told(one.pod or ("", ""))
            if isinstance(told, oracle.Pod) and _alike(told, peer):
                _add(ports, told.ports)
            # Under its former labels as long as the new ones have no number.
            for number, before in self.effective.items():
                if number == one.number and isinstance(before, oracle.Pod) and _alike(before, peer):
                    _add(ports, told.ports if isinstance(told, oracle.Pod) else {})
        for document in self._all(kinds.CILIUM_ENDPOINT):
            other = self._far(str(document["status"]["identity"]["id"]))
            if isinstance(other, oracle.Pod) and _alike(other, peer):
                for one in document["status"]["named-ports"]:
                    _add(ports, {one["name"]: frozenset({(one["protocol"], one["port"])})})
        return replace(peer, ports=ports)


def _add(
    ports: dict[str, frozenset[tuple[str, int]]], more: Mapping[str, frozenset[tuple[str, int]]]
) -> None:
    for name, numbers in more.items():
        ports[name] = ports.get(name, frozenset()) | numbers


def _alike(one: oracle.Pod, other: oracle.Pod) -> bool:
    """Whether they are one identity."""
    return (
        one.namespace == other.namespace
        and one.service_account == other.service_account
        and own_labels(one) == own_labels(other)
        and dict(one.namespace_labels) == dict(other.namespace_labels)
    )


def mixtures(before: Known, changes: list[Any]) -> Iterator[Known]:
    """What is known once any of the *changes* have been taken in: all of them first, then none, then some."""
    count = len(changes)
    for chosen in sorted(range(1 << count), key=lambda one: (one not in (0, (1 << count) - 1), -one)):
        known = before.copy()
        for i, change in enumerate(changes):
            if chosen >> i & 1:
                if isinstance(change, Told | Wired):
                    known.tell(change)
                else:
                    known.show(*change)
        yield known
