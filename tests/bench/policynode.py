# SPDX-License-Identifier: Apache-2.0
"""
A node of many endpoints and policies without a kernel: the agent's own plan, stages and reconciler over maps
in memory, and what a change costs there, counted map by map.

Every pod is under policies of its own, so each endpoint has a policy version that no other one shares: what
is counted is the most a change can cost.  Of a thousand policies 900 select one pod each, 90 a namespace of
ten pods and nine all of them; of these one lets in whom a label of pods names, one whom a label of namespaces
does.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, fields
from ipaddress import IPv4Address
from typing import Any, Final

from ciliumd.bpf.policy_maps import RULES, split_key
from ciliumd.daemon import stages
from ciliumd.desired.ipcache import address_key
from ciliumd.model.labels import K8S, Labels, pod_labels
from ciliumd.model.objects import RemoteEndpointRow
from ciliumd.model.policy import PeerSelector, Selector
from ciliumd.tables import NamespaceRow
from unit.daemon import nodes
from unit.daemon.kernel import Kernel

PODS_EACH: Final = 10
# Of so many policies one selects all pods, and nine times as many the pods of a namespace.
NODE_WIDE: Final = 100
NAMESPACE_WIDE: Final = 9
# Identities of other nodes' pods; policies name as many of them as there are.
STRANGERS: Final = 1000
FIRST_STRANGER: Final = 30_000
FIRST_PORT: Final = 8000
# Pods of other nodes, ten of each of those identities, and where their addresses begin.
OTHERS_PODS: Final = 10 * STRANGERS
FIRST_REMOTE: Final = IPv4Address("10.64.0.0")
ELSEWHERE: Final = IPv4Address("192.0.2.7")
# Between two rounds, and until versions nobody uses are taken down.
ROUND_SECONDS: Final = 0.02
RETIRED_SECONDS: Final = 3.0
MOST_ROUNDS: Final = 5
NAMESPACE_LABEL: Final = "io.cilium.k8s.namespace.labels."
CLASSES_MAP, RULES_MAP = "policy classes", "policy rules"
# Rows of no endpoint: what an identity or a prefix is.
NOBODYS: Final = frozenset({stages.IDENTITY_FILE, stages.PREFIX_FILE, stages.PART_FILE, stages.IPCACHE_LPM})


@dataclass(slots=True)
class Cost:
    """
    What one change cost.

    *milliseconds* of processor time, *rounds* and *computed* rows, made anew whether they say something else
    or not, are those until the last row is written.  The others count what is deleted when versions are
    retired, too; *strays* are rows written or deleted of endpoints that the change does not concern.
    """

    milliseconds: float = 0.0
    rounds: int = 0
    calls: int = 0
    versions: int = 0
    strays: int = 0
    computed: Counter[str] = field(default_factory=Counter)
    written: Counter[str] = field(default_factory=Counter)
    deleted: Counter[str] = field(default_factory=Counter)

    def plain(self) -> dict[str, Any]:
        """As JSON has it; a Counter is no dictionary to those who copy one pair by pair."""
        found = {one.name: getattr(self, one.name) for one in fields(self)}
        return {name: dict(value) if isinstance(value, Counter) else value for name, value in found.items()}


class PolicyNode:
    """Endpoints 1 to *endpoints*, ten to a namespace, under *policies*; everything planned and written."""

    def __init__(self, *, endpoints: int, policies: int) -> None:
        self._kernel: Any = Kernel()
        self._runner = asyncio.Runner()
        self.tables = self._kernel.tables
        self.endpoints = range(1, endpoints + 1)
        self._addresses: dict[bytes, int] = {}
        for number in range(-(-endpoints // PODS_EACH)):
            self.label_namespace(f"ns{number}")
        for number in self.endpoints:
            address = IPv4Address(int(IPv4Address("10.0.1.0")) + number)
            made = nodes.endpoint(number, namespace=self.namespace_of(number), address=address)
            self.tables.endpoints.set(number, made)
            self._addresses[address_key(address)] = number
            self.label_pod(number)
        for number in range(STRANGERS):
            self.add_identity(FIRST_STRANGER + number, {"app": f"peer{number}"})
        for number in range(OTHERS_PODS):
            self.publish(number)
        for one in crowd(endpoints, policies):
            self.add_policy(one)
        self.start = self.settle(self.endpoints)

    def close(self) -> None:
        """Give the loop back."""
        self._runner.close()

    # ---- what there is ---------------------------------------------------------------------------

    def namespace_of(self, number: int) -> str:
        """Where a pod is."""
        return f"ns{(number - 1) // PODS_EACH}"

    def namespace(self, name: str) -> list[int]:
        """The endpoints of a namespace."""
        return [number for number in self.endpoints if self.namespace_of(number) == name]

    def label_namespace(self, name: str, **labels: str) -> None:
        """A namespace has its name and these *labels*."""
        self.tables.namespaces.set(name, NamespaceRow(name, {"kubernetes.io/metadata.name": name, **labels}))

    def label_pod(self, number: int, **labels: str) -> None:
        """A pod has an app of its own and these *labels*."""
        made = self.tables.endpoints.get(number)
        row = nodes.pod(made.pod, {"app": f"app{number}", **labels}, namespace=made.namespace)
        self.tables.pods.set(made.pod_key, row)

    def add_policy(self, one: Any) -> None:
        """Put a policy in force, or another one in its place."""
        nodes.add_policy(self.tables, one)

    def delete_policy(self, one: Any) -> None:
        """It is no more."""
        self.tables.policies.delete((one.kind, one.namespace, one.name))

    def add_identity(self, number: int, labels: Mapping[str, str]) -> None:
        """Pods of other nodes have these labels."""
        self.tables.cluster_identities.set(number, stranger(labels))

    def publish(self, number: int) -> None:
        """Another node has this pod."""
        identity, address = FIRST_STRANGER + number % STRANGERS, FIRST_REMOTE + number
        row = RemoteEndpointRow("far", f"p{number}", identity, (address,), ELSEWHERE, {})
        self.tables.remote_endpoints.set(row.key, row)

    def withdraw(self, number: int) -> None:
        """It is gone."""
        self.tables.remote_endpoints.delete(("far", f"p{number}"))

    def delete_identity(self, number: int) -> None:
        """They are gone."""
        self.tables.cluster_identities.delete(number)

    def forget_identities(self) -> None:
        """Label sets that no pod has any more lose their numbers, as when they are collected."""
        used = set(self._kernel.node.plan.labels.values())
        for labels in [labels for labels, _ in self.tables.identities.items() if labels not in used]:
            self.tables.identities.delete(labels)

    # ---- rounds ----------------------------------------------------------------------------------

    def settle(self, concerned: Collection[int]) -> Cost:
        """Rounds until all is written and nothing is left to take away; *concerned* are endpoints."""
        kernel, plan, cost = self._kernel, self._kernel.node.plan, Cost()
        before, states = dict(plan.policy.versions), set(plan.policy.states)
        calls = sum(one.calls - one.loads for one in kernel.maps.values())
        del kernel.journal[:]
        while cost.rounds == 0 or plan.prefixes.awaited:
            self._round(cost)
        cost.versions = len(set(plan.policy.states) - states)
        under: dict[int, set[int]] = {}
        for versions in (before, plan.policy.versions):
            for number, version in versions.items():
                under.setdefault(version, set()).add(number)
        for _ in range(MOST_ROUNDS):
            seen = len(kernel.journal)
            kernel.node.clock.now += RETIRED_SECONDS
            self._round(Cost())
            if len(kernel.journal) == seen:
                break
        status = kernel.reconciler.status()
        assert status.in_sync, [one.name for one in status.stages if not one.in_sync]
        cost.calls = sum(one.calls - one.loads for one in kernel.maps.values()) - calls
        for write in kernel.journal:
            counted = cost.deleted if write.value is None else cost.written
            counted[map_of(write.target, write.key)] += 1
            users = self._users(write.target, write.key, under)
            cost.strays += users is not None and users.isdisjoint(concerned)
        return cost

    def _round(self, cost: Cost) -> None:
        """One round; what it took and which rows are other objects than before."""
        kernel = self._kernel
        before = {name: dict(self._desired(name)) for name in kernel.maps}
        kernel.node.clock.now += ROUND_SECONDS
        kernel.reconciler.trigger()
        began = time.process_time()
        self._runner.run(kernel.reconciler.round())
        cost.milliseconds += 1000 * (time.process_time() - began)
        cost.rounds += 1
        for name, rows in before.items():
            after = self._desired(name)
            made = sum(rows.get(key) is not value for key, value in after.items())
            cost.computed[name] += made + len(rows.keys() - after.keys())

    def _desired(self, name: str) -> Mapping[bytes, bytes]:
        desired: Mapping[bytes, bytes] = self._kernel.reconciler.tracker(name).desired
        return desired

    def _users(self, target: str, key: bytes, under: Mapping[int, set[int]]) -> set[int] | None:
        """The endpoints whose row it is; None for rows that are no endpoint's."""
        if target == stages.POLICY:
            return under.get(split_key(key)[0], set())
        if target in (stages.STATES, stages.FACTS):
            return {int.from_bytes(key, "little") + 1}
        if target == stages.IPCACHE:
            return {self._addresses[key]} if key in self._addresses else None
        return None if target in NOBODYS else set()


def map_of(target: str, key: bytes) -> str:
    """The map a row is in: of policies there are two."""
    if target == stages.POLICY:
        return RULES_MAP if split_key(key)[1] == RULES else CLASSES_MAP
    return target


def stranger(labels: Mapping[str, str]) -> Labels:
    """The labels of a pod of another node."""
    return pod_labels("elsewhere", labels, {"kubernetes.io/metadata.name": "elsewhere"}, "default", "default")


def labelled(**labels: str) -> PeerSelector:
    """Whoever has these labels, wherever."""
    return PeerSelector(Selector(frozenset((K8S, key, value) for key, value in labels.items())))


def in_namespaces(**labels: str) -> PeerSelector:
    """Pods of the namespaces with these labels."""
    return labelled(**{NAMESPACE_LABEL + key: value for key, value in labels.items()})


def lets_in(name: str, subject: Selector, *peers: object, port: int, namespace: str = "ns0") -> Any:
    """A policy that lets each of *peers* in to one port, the next ones to the next."""
    rules = (nodes.rule(peer, ports=(nodes.port(port + at),)) for at, peer in enumerate(peers))
    return nodes.policy(name, *rules, subject=subject, namespace=namespace)


def crowd(endpoints: int, policies: int) -> Iterator[Any]:
    """So many *policies* about so many *endpoints*."""
    namespaces = -(-endpoints // PODS_EACH)
    everybody = [
        lets_in("role", Selector(), labelled(role="client"), port=443),
        lets_in("team", Selector(), in_namespaces(team="blue"), port=444),
        # Nobody has that label yet.
        lets_in("extra", nodes.subject(namespace="ns0", tier="extra"), labelled(app="peer1"), port=445),
    ]
    everybody += [
        lets_in(f"all{at}", Selector(), labelled(app=f"common{at}"), port=500 + at)
        for at in range(policies // NODE_WIDE - len(everybody))
    ]
    wide = [
        lets_in(
            f"wide{at}",
            nodes.subject(namespace=home),
            labelled(app=f"wide{at}"),
            port=600 + at,
            namespace=home,
        )
        for home in (f"ns{number}" for number in range(namespaces))
        for at in range(policies // NODE_WIDE * NAMESPACE_WIDE // namespaces)
    ]
    yield from (*everybody, *wide)
    for at in range(policies - len(everybody) - len(wide)):
        number = at % endpoints + 1
        home = f"ns{(number - 1) // PODS_EACH}"
        subject = nodes.subject(namespace=home, app=f"app{number}")
        yield lets_in(f"only{at}", subject, labelled(app=f"peer{at}"), port=FIRST_PORT + at, namespace=home)
