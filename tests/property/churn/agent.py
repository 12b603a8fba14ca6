# SPDX-License-Identifier: Apache-2.0
"""
One agent without a kernel: the watch's events through the real source, tables, plan and reconciler.

Maps are dictionaries that are written row by row.  Only the runtime (who wires pods) and the writes to the
API server (numbers asked for and claimed) are played.
"""

import asyncio
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from functools import cache
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any, cast

import structlog
from lightkube.config.kubeconfig import KubeConfig, SingleConfig

from ciliumd import abi
from ciliumd.bpf.policy_maps import CLASSES, RULES, split_key
from ciliumd.daemon import stages as names
from ciliumd.daemon.node_facts import NodeFacts
from ciliumd.daemon.plan import NodePlan
from ciliumd.daemon.policy_versions import RETIRE_AFTER
from ciliumd.daemon.release import IDENTITY_REST, Release
from ciliumd.daemon.stages import judged_as_written, prefixes_written, stages
from ciliumd.kubernetes.client import Api, Listing, ObjectName
from ciliumd.kubernetes.kinds import TABLES_OF, Kind
from ciliumd.kubernetes.lastgood import LastGoodPolicies
from ciliumd.kubernetes.pace import Pace
from ciliumd.kubernetes.read import read_event
from ciliumd.kubernetes.source import KubernetesSource
from ciliumd.model.label_filter import EVERY_LABEL
from ciliumd.model.labels import Labels, labels_text
from ciliumd.model.policy import Enforcement
from ciliumd.model.service import EVERY_KIND
from ciliumd.reconcile.fake import FakeMap
from ciliumd.reconcile.loop import Reconciler
from ciliumd.reconcile.target import Stage
from ciliumd.resources import parser
from ciliumd.tables import Tables
from lab.maps import Dump
from lab.meaning import Meaning, meaning
from property.churn.cluster import Cluster, Document, Told, Wired
from stories.replay import wired

NODE = "node-one"
HOST = "10.0.0.254"
POD_NETWORK = "10.0.0."
TARGETS = (
    *(names.IDENTITY_FILE, names.PREFIX_FILE, names.PART_FILE, names.ENDPOINT_FILE),
    *(names.DEVICES, names.NODES, names.POLICY),
    *(names.STATES, names.FACTS, names.IPCACHE, names.IPCACHE_LPM, names.ROUTES, names.LXC, names.IFINDEX),
    *(names.NETNS, names.BACKENDS, names.REVNAT, names.AFFINITY_MATCH, names.SOURCES, names.BIND),
    *(names.SERVICE_SLOTS, names.SERVICES),
)
_ROUNDS = 6


class Inline(Executor):
    """Does the work at once, in the caller's thread."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """As the writer thread, without the thread."""
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # noqa: BLE001  the caller of result() gets it
            future.set_exception(error)
        return future


class Watched(FakeMap):
    """A map that is written row by row; *wrote* is told of each."""

    def __init__(self, name: str, wrote: Callable[[str, bytes, bytes | None], None]) -> None:
        super().__init__(name)
        self._wrote = wrote

    def update(self, items: Mapping[bytes, bytes]) -> dict[bytes, Exception]:
        """Write *items* in order."""
        for key, value in items.items():
            self.rows[key] = value
            self._wrote(self.name, key, value)
        return {}

    def delete(self, keys: Collection[bytes]) -> dict[bytes, Exception]:
        """Delete *keys* in order."""
        for key in keys:
            if self.rows.pop(key, None) is not None:
                self._wrote(self.name, key, None)
        return {}


@cache
def _config() -> SingleConfig:
    """Of a server nobody talks to."""
    config = KubeConfig.from_server("http://127.0.0.1:1").get()
    assert config is not None
    return config


def nobody(_name: str, _key: bytes, _value: bytes | None) -> None:
    """Is told of no row."""


class Agent:
    """An agent that knows nothing yet; *wrote* is told of every row that is written or deleted (None)."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        wrote: Callable[[str, bytes, bytes | None], None] = nobody,
        enforcement: str = "default",
    ) -> None:
        self.now = 1000.0
        self.run = 0
        self.tables = Tables()
        self._loop = loop
        self.plan = NodePlan(
            self.tables,
            NodeFacts(
                NODE,
                "default",
                (ip_address(HOST),),
                (ip_address(HOST),),
                tunnel=True,
                pod_cidrs=(ip_network(f"{POD_NETWORK}0/24"),),
                serves6=EVERY_KIND,
                allocates=False,
                enforcement=Enforcement(enforcement),
                node_labels=EVERY_LABEL,
            ),
            reserve_version=lambda _number: None,
            next_version=1,
            clock=self._clock,
        )
        self.wrote = wrote
        self.maps = {name: Watched(name, wrote) for name in TARGETS}
        self.reconciler = Reconciler(
            self.stages(),
            executor=Inline(),
            may_delete=lambda: self.tables.in_sync,
            unfinished=self.plan.unfinished,
            clock=self._clock,
        )
        self.plan.prefixes.identity_at = prefixes_written(self.reconciler)
        self.plan.parts.restore(judged_as_written(self.reconciler), ())
        self._release = Release(
            self.tables,
            self.plan,
            rows=lambda stage: self.reconciler.tracker(stage).realized,
            settled=lambda: self.reconciler.status().in_sync,
            readers={},
            clock=self._clock,
        )
        self.source = KubernetesSource(
            _config(),
            cast("Api", _NoApi()),
            self.tables,
            node=NODE,
            pace=Pace(),
            observe=lambda *_: None,
            last_good=LastGoodPolicies(Path(tempfile.gettempdir()) / "nothing-is-written-here"),
            node_changed=lambda _node: None,
            parse=parser(node_selectors=True),
            clock=self._clock,
        )
        self.tables.endpoints.mark_initialized()

    def _clock(self) -> float:
        return self.now

    def stages(self) -> list[Stage]:
        """What it writes, in order."""
        return stages(self.plan, self.tables, self.maps, devices=dict, route_mtu=lambda: 1450)

    # ---- what it is told ---------------------------------------------------------------------

    def tell(self, told: Told) -> None:
        """An event of the watch of this run."""
        raw = {"type": told.type, "object": told.document}
        event = read_event(told.kind, raw, parse=parser(node_selectors=True))
        self.source.deliver([event])

    def show(self, kind: Kind, version: int, documents: Iterable[Document]) -> None:
        """A listing of *kind*: names, uids and versions."""
        objects = [
            ObjectName(
                one["metadata"]["name"],
                one["metadata"].get("namespace", ""),
                one["metadata"]["uid"],
                one["metadata"]["resourceVersion"],
            )
            for one in documents
        ]
        asked_at = self.source._kinds[kind].store.highest
        self.source._compare(kind, Listing(str(version), objects), asked_at=asked_at)

    def wire(self, change: Wired) -> None:
        """The runtime makes a pod, or takes one away."""
        if change.pod is None:
            self.tables.endpoints.delete(change.number)
        else:
            spec = wired(change.number, *change.pod, ip_address(change.address))
            self.tables.endpoints.set(change.number, spec)

    # ---- what it does ------------------------------------------------------------------------

    def settle(self) -> None:
        """Rounds, with numbers claimed at once, until nothing is left to do."""
        for _ in range(_ROUNDS):
            self.round()
            if self.plan.prefixes.awaited or self.plan.parts.awaited:
                continue
            if not self.plan.unclaimed:
                return
            for labels, number in list(self.plan.unclaimed.items()):
                if self.tables.cluster_identities.get(number) == labels:
                    self.tables.identities.set(labels, number)
        raise AssertionError(f"still unclaimed after {_ROUNDS} rounds: {self.plan.unclaimed}")

    def round(self) -> None:
        """One round."""
        self.reconciler.trigger()
        self._loop.run_until_complete(self.reconciler.round())

    def rest(self) -> None:
        """Time passes until every number nobody wants is let go."""
        for seconds in (0.0, RETIRE_AFTER, RETIRE_AFTER, IDENTITY_REST, RETIRE_AFTER):
            self.now += seconds
            self.settle()
            self._release.look()
        self.settle()

    @property
    def unallocated(self) -> list[Labels]:
        """Label sets that wait for a number."""
        return sorted(self.plan.unallocated, key=labels_text)

    # ---- what came of it ---------------------------------------------------------------------

    def dump(self) -> Dump:
        """Every map as ``lab.maps.dump`` reads it from a kernel."""
        found: Dump = {name: dict(one.rows) for name, one in self.maps.items() if name.startswith("cilium_")}
        found[names.SERVICES].update(found.pop(names.SERVICE_SLOTS))
        classes: dict[bytes, Any] = {}
        rules: dict[bytes, Any] = {}
        for key, value in self.maps[names.POLICY].rows.items():
            version, which, inner = split_key(key)
            wanted = {CLASSES: classes, RULES: rules}[which]
            wanted.setdefault(version.to_bytes(4, "little"), {})[inner] = value
        for one in classes.keys() | rules.keys():
            classes.setdefault(one, {})
            rules.setdefault(one, {})
        found["cilium_policy_classes_v1"], found["cilium_policy_rules_v1"] = classes, rules
        return found

    def said(self) -> Meaning:
        """What the maps say, with identities by what they stand for."""
        found = meaning(self.dump())
        known = self.plan.known_identities
        parts = {number: part for part, number in self.plan.parts.numbers.items()}

        def name(number: int) -> Any:
            if number in parts:
                # Pods without labels, whose number was taken away, have theirs in each part.
                return f"{name(parts[number].identity)} in {parts[number].prefix}"
            return " ".join(labels_text(known[number])) if number in known else number

        found.identities |= self._judged()
        found.identities = {key: name(number) for key, number in found.identities.items()}
        found.policies = {
            address: {(name(number), direction): rules for (number, direction), rules in policy.items()}
            for address, policy in found.policies.items()
        }
        return found

    def _judged(self) -> dict[str, int]:
        """What policies judge addresses by where that is not their identity, by both rows of those here."""
        rows = self.maps[names.IPCACHE].rows.items()
        found = {f"judged {key.hex()}": abi.IpcacheEntry.unpack(row).judged for key, row in rows}
        for one in map(abi.Endpoint.unpack, self.maps[names.FACTS].rows.values()):
            found[f"judged endpoint {ip_address(one.ipv4)}"] = one.judged_ipv4
        return {key: number for key, number in found.items() if number}


class _NoApi:
    """Listings are shown, nothing is asked."""

    server = "http://127.0.0.1:1"


def complete(agent: Agent, version: int, documents: Mapping[Any, Document]) -> None:
    """Show a listing of every kind."""
    for kind in TABLES_OF:
        agent.show(kind, version, [one for key, one in documents.items() if key[0] == kind])


def begin(agent: Agent, cluster: Cluster) -> None:
    """Complete and settle an agent that was told of all, numbers included."""
    complete(agent, cluster.version, cluster.objects)
    agent.settle()
    for labels in agent.unallocated:
        for one in cluster.number(labels):
            assert isinstance(one, Told)
            agent.tell(one)


@contextmanager
def quiet_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """A loop of one's own; agents say nothing meanwhile."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    loop = asyncio.new_event_loop()
    try:
        yield loop
    finally:
        loop.close()
        structlog.reset_defaults()
