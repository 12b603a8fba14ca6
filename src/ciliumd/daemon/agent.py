# SPDX-License-Identifier: Apache-2.0
"""
The running agent: its parts, and what it answers when asked (see ``api``).

Every value of a status is read from the component it speaks of at the time of the question.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import structlog

from ciliumd import __version__, abi
from ciliumd.bpf.errors import BpfError
from ciliumd.bpf.features import Features
from ciliumd.bpf.map import Map
from ciliumd.bpf.ringbuf import RingBuffer
from ciliumd.cni.server import CniServer
from ciliumd.daemon import limits, memory, stages, views
from ciliumd.daemon.attachments import Attachments
from ciliumd.daemon.cni import endpoint_keys
from ciliumd.daemon.controllers import Controllers
from ciliumd.daemon.datapath import Datapath
from ciliumd.daemon.endpoints import Endpoints
from ciliumd.daemon.gc import ConntrackGc
from ciliumd.daemon.limits import Limits
from ciliumd.daemon.network import NodeNetwork
from ciliumd.daemon.origin import Origin, Source
from ciliumd.daemon.plan import NodePlan
from ciliumd.daemon.reaper import Reaper
from ciliumd.daemon.release import Release
from ciliumd.daemon.settings import Settings
from ciliumd.daemon.terminate import Terminator
from ciliumd.daemon.unserved import Unserved
from ciliumd.daemon.wiring import NodeWiring
from ciliumd.flows.enrich import Lookups, PodName
from ciliumd.flows.ring import FlowRing
from ciliumd.health.daemon import HealthDaemon
from ciliumd.ipam.hostscope import HostScope
from ciliumd.metrics.collectors import MapUsage, Providers, TrafficRow
from ciliumd.metrics.registry import build_registry, exposition, samples
from ciliumd.metrics.tally import Tallies
from ciliumd.model.endpoint import EndpointSpec
from ciliumd.model.identity import Reserved
from ciliumd.model.labels import labels_text
from ciliumd.model.net import Addr
from ciliumd.net.devices import NativeDevice, node_port_addresses
from ciliumd.net.host import HostLinks
from ciliumd.net.thread import NetlinkThread
from ciliumd.net.watch import Event, EventsLost, LinkEvent, LinkWatch
from ciliumd.reconcile.loop import Reconciler
from ciliumd.tables.schema import Tables

T = TypeVar("T")
Json = dict[str, Any]

REALIZE_SECONDS = 30.0
READY_SECONDS = 0.2
# Maps whose fill is looked at for status and metrics; the others cannot fill up.
PRESSURE_MAPS = (
    "cilium_ct_v1",
    "cilium_snat_v1",
    "cilium_ipcache_v1",
    "cilium_ipcache_lpm_v1",
    "cilium_lb_services_v1",
    "cilium_lb_backends_v1",
    "cilium_lb_revnat_v1",
    "cilium_lb_affinity_v1",
    "cilium_lb_affinity_match_v1",
    "cilium_lb_source_range_v1",
    "cilium_lb_bind_v1",
    "cilium_lxc_v1",
    "cilium_ifindex_v1",
    "cilium_netns_v1",
    "cilium_nodes_v1",
)

log = structlog.get_logger("agent")


class MapOperations:
    """Counts what the reconciler writes (``reconcile.loop.Observer``)."""

    def __init__(self, tallies: Tallies, after_round: list[Callable[[], None]]) -> None:
        self._tallies = tallies
        self._after_round = after_round
        self.drifted_rows = 0

    def wrote(self, stage: str, operation: str, *, rows: int, failed: int, seconds: float) -> None:
        """Rows by outcome."""
        del seconds
        if rows:
            self._tallies.map_ops.add(stage, operation, "success", by=rows)
        if failed:
            self._tallies.map_ops.add(stage, operation, "fail", by=failed)

    def drifted(self, stage: str, *, rows: int) -> None:
        """Rows somebody else had changed."""
        self.drifted_rows += rows
        self._tallies.map_ops.add(stage, "drift", "repaired", by=rows)

    def round_done(self, *, seconds: float) -> None:
        """Tell who waits for it; rounds are counted by the reconciler itself."""
        del seconds
        for call in self._after_round:
            call()


@dataclass(frozen=True, slots=True)
class _Names:
    """Whose an address is, and what a device is called, at one revision of the endpoints."""

    revision: int = -1
    pods: Mapping[Addr, PodName] = field(default_factory=dict)
    devices: Mapping[int, str] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class Agent:
    """Everything that runs; the late fields are set by ``app.build``."""

    settings: Settings
    started: float
    origin: Origin
    kernel: Features
    tables: Tables
    plan: NodePlan
    datapath: Datapath
    attachments: Attachments
    pools: tuple[HostScope, ...]
    """Where pods' addresses come from: of IPv4 and of IPv6, or of one of them."""
    netlink: NetlinkThread
    tallies: Tallies
    controllers: Controllers
    writer: Executor
    wiring: NodeWiring
    native: tuple[NativeDevice, ...]
    reconciler: Reconciler = field(init=False)
    endpoints_owner: Endpoints = field(init=False)
    reaper: Reaper = field(init=False)
    ring: FlowRing = field(init=False)
    source: Source = field(init=False)
    gc: ConntrackGc = field(init=False)
    watch: LinkWatch = field(init=False)
    network: NodeNetwork = field(init=False)
    release: Release = field(init=False)
    observer: MapOperations = field(init=False)
    health: HealthDaemon = field(init=False)
    cni: CniServer = field(init=False)
    terminator: Terminator = field(init=False)
    unserved: Unserved = field(init=False)
    limits: Limits = field(init=False)
    after_round: list[Callable[[], None]] = field(init=False, default_factory=list)
    """Called when a round has written what had changed."""
    synced: bool = field(init=False, default=False)
    _registry: Any = field(init=False, default=None)
    _named: _Names = field(init=False, default=_Names())
    _usage: tuple[float, list[MapUsage]] = field(init=False, default=(0.0, []))
    _problems_seen: int = field(init=False, default=0)
    _losses: int = field(init=False, default=0)
    _background: set[asyncio.Task[None]] = field(init=False, default_factory=set)

    @property
    def host(self) -> HostLinks:
        """cilium_host and cilium_net as they were made."""
        return self.wiring.host

    def __post_init__(self) -> None:
        self.observer = MapOperations(self.tallies, self.after_round)

    async def in_writer(self, call: Callable[[], T]) -> T:
        """Run a blocking call where all map writes are made."""
        return await self.attachments.in_writer(call)

    def map(self, name: str) -> Map:
        """An open pinned map."""
        return self.datapath.generation.maps[name]

    # ---- glue between parts ----------------------------------------------------------------

    def next_slot_gen(self) -> int:
        """A slot generation nobody had; stored before it is used."""
        row = abi.NodeState.NODE_STATE_NEXT_SLOT_GEN
        number = max(1, self.datapath.word(row))
        self.datapath.set_word(row, number + 1)
        return number

    def endpoint_ready(self, endpoint: EndpointSpec) -> bool:
        """Whether packets of the endpoint find all their rows, as they are wanted now, and rules in force."""
        policy = self.plan.policy
        if endpoint.id not in policy.versions or endpoint.id in policy.waiting:
            return False
        for name, key in endpoint_keys(endpoint):
            tracker = self.reconciler.tracker(name)
            wanted = tracker.desired.get(key)
            if wanted is None or tracker.held(key) != wanted:
                return False
        return True

    async def endpoint_realized(self, number: int) -> str:
        """Wait until an endpoint's rows are in the maps, or are gone; why not, if not in time."""
        deadline = time.monotonic() + REALIZE_SECONDS
        while True:
            await self.reconciler.flush()
            endpoint = self.tables.endpoints.get(number)
            if endpoint is None or self.endpoint_ready(endpoint):
                return ""
            if time.monotonic() > deadline:
                failing = [one for one in self.reconciler.status().stages if one.last_error]
                said = [f"{one.name}: {one.last_error}" for one in failing]
                if lacking := self.plan.unrealized.get(("Endpoint", *endpoint.pod_key)):
                    said.append(lacking.message)
                detail = "; ".join(said)
                waiting = "" if self.tables.in_sync else "manifests are not read yet"
                return f"its rows are not in the maps after {REALIZE_SECONDS:g} s ({detail or waiting})"
            await asyncio.sleep(0.05)

    def network_changed(self, event: Event) -> None:
        """Devices, addresses or routes changed."""
        match event:
            case LinkEvent(gone=True):
                self._start(self.endpoints_owner.device_gone(event.ifindex))
            case EventsLost():
                self._start(self.endpoints_owner.check_devices())
            case _:
                pass
        self.network.notice()

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._background.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("agent.background_failed", error=f"{type(error).__name__}: {error}")

    def network_is(self, addresses: tuple[Addr, ...], native: tuple[NativeDevice, ...]) -> None:
        """What the node's addresses and native devices are now."""
        self.native = native
        self.plan.set_addresses(addresses, node_port_addresses(native))
        self.health.nodes_changed()
        self.reconciler.trigger()

    def count_problems(self) -> None:
        """Count objects that were refused since the last look."""
        keys, self._problems_seen = self.tables.problems.changes_since(self._problems_seen)
        for key in keys:
            problem = self.tables.problems.get(key)
            if problem is not None:
                self.tallies.resource_errors.add(key[0], problem.field or "object")

    async def repair_attachments(self) -> None:
        """Hang again what somebody took away."""
        repaired = await self.attachments.repair()
        if repaired:
            raise RuntimeError(
                f"was detached and is attached again: {', '.join(one.text for one in repaired)}"
            )

    async def repair_pins(self) -> None:
        """Pin again what somebody unpinned, before a restart would miss it."""
        repaired = await self.in_writer(self.datapath.repin)
        if repaired:
            raise RuntimeError(
                f"was not pinned and is pinned again: {', '.join(one.name for one in repaired)}"
            )

    async def first_round(self) -> None:
        """Note when all that the sources had at the start is in the maps: only then is all well."""
        read = asyncio.Event()

        def look() -> None:
            if self.tables.in_sync:
                read.set()

        for table in self.tables.sources:
            table.subscribe(look)
        look()
        await read.wait()
        await self.reconciler.flush()
        while self.plan.policy.waiting:
            await self.reconciler.flush()
        self.synced = True
        memory.settle()

    async def pod_known(self, namespace: str, pod: str) -> None:
        """Wait until the labels of a pod can be told; without a cluster nobody may ever tell them."""
        tables = self.tables
        if self.origin.numbers_identities:
            return
        known = asyncio.Event()

        def look() -> None:
            if (namespace, pod) in tables.pods and namespace in tables.namespaces:
                known.set()

        stops = [table.subscribe(look) for table in (tables.pods, tables.namespaces)]
        try:
            look()
            await known.wait()
        finally:
            for stop in stops:
                stop()

    def unready(self) -> str:
        """Why pods cannot rely on the agent yet; empty once they can."""
        if not self.tables.in_sync:
            return "not every object is known yet"
        return "maps are not written yet" if not self.synced else self.health.unready

    async def ready(self) -> None:
        """Wait until pods can rely on the agent: its tables, its maps, and a packet that went through."""
        while reason := self.unready():
            log.debug("agent.not_ready", reason=reason)
            await asyncio.sleep(READY_SECONDS)

    async def release_numbers(self) -> None:
        """Let go of numbers nobody wants any more."""
        if self.release.look():
            self.reconciler.trigger()

    def problems_seen(self) -> int:
        """How far the problems have been counted."""
        return self._problems_seen

    async def retire_versions(self) -> None:
        """Let go of policy versions no endpoint uses any more."""
        due = self.plan.next_retirement()
        if due is not None and due <= time.monotonic():
            self.reconciler.trigger()

    # ---- flows and metrics -----------------------------------------------------------------

    def follow_flows(self, records: RingBuffer) -> None:
        """Read the event ring from now on (its tasks start with ``ring.start``)."""
        self.ring = FlowRing(
            records,
            Lookups(
                labels=self._labels_of,
                pod=self.pod_at,
                origins=lambda cookie: self.plan.policy.cookies.get(cookie, ()),
                interface=self._device_name,
                node_name=self.plan.node.name,
            ),
            losses=self._event_losses,
        )

    def _event_losses(self) -> int:
        """Events that did not fit into the ring; what was known last while the kernel refuses to tell."""
        try:
            self._losses = sum(self.map("cilium_event_losses_v1").lookup_sums(bytes(4)))
        except BpfError as error:
            log.debug("agent.event_losses_unknown", error=str(error))
        return self._losses

    def _labels_of(self, identity: int) -> list[str] | None:
        labels = self.plan.known_identities.get(identity)
        return None if labels is None else list(labels_text(labels))

    def pod_at(self, address: Addr) -> PodName | None:
        """The pod of this node that has *address*."""
        return self._names().pods.get(address)

    def _device_name(self, ifindex: int) -> str | None:
        device = self.attachments.devices.get(ifindex)
        return self._names().devices.get(ifindex) or (device.owner if device else None)

    def _names(self) -> _Names:
        """Names of endpoints, gathered once per change: every event asks for some."""
        endpoints = self.tables.endpoints
        if self._named.revision != endpoints.revision:
            self._named = _Names(
                endpoints.revision,
                {
                    address: PodName(one.id, one.namespace, one.pod)
                    for one in endpoints.values()
                    for address in one.addresses
                },
                {one.ifindex: one.ifname for one in endpoints.values()},
            )
        return self._named

    def expose_metrics(self) -> None:
        """Build the registry over live parts."""
        self._registry = build_registry(
            Providers(
                version=__version__,
                traffic=self._traffic,
                map_usage=self.map_usage,
                endpoint_states=self._endpoint_states,
                enforcement=self._enforcement,
                identities=lambda: {
                    "reserved": len(Reserved) - 1,
                    "cluster_local": len(self.tables.identities),
                    "node_local": len(self.tables.prefixes),
                    "remote_node": len(self.tables.node_identities),
                },
                identity_shares=lambda: {one.name: one.share for one in limits.identities(self.tables)},
                unrealized=lambda: limits.unrealized(self.plan.unrealized),
                services=lambda: self.plan.services.count,
                ipcache_entries=lambda: sum(
                    len(self.reconciler.tracker(one).realized) for one in (stages.IPCACHE, stages.IPCACHE_LPM)
                ),
                policies=lambda: len(self.tables.policies),
                policy_revision=lambda: self.tables.policies.revision + 1,
                controllers_failing=lambda: sum(one.failures > 0 for one in self.controllers.all()),
                addresses=lambda: {f"ipv{pool.cidr.version}": pool.usage.used for pool in self.pools},
                nat_saturation=lambda: {
                    f"ipv{version}": one.saturation for version, one in self.gc.ports.most.items()
                },
                ring=self.ring.stats,
            ),
            self.tallies,
        )
        self._registry.register(self.health.metrics)

    def exposition(self) -> bytes:
        """Prometheus text."""
        return exposition(self._registry)

    def metrics(self) -> list[Json]:
        """Every sample as JSON."""
        return samples(self._registry)

    @property
    def usage(self) -> list[MapUsage]:
        """How full maps were when they were last counted."""
        return self._usage[1]

    def map_usage(self) -> list[MapUsage]:
        """The same, and of policies the version that is fullest."""
        return [*self._usage[1], *limits.policy_maps(self.plan)]

    def _traffic(self) -> list[TrafficRow]:
        rows = []
        for key, sums in self.map("cilium_metrics_v1").items_sums():
            if any(sums):
                reason, direction = divmod(int.from_bytes(key, "little"), int(abi.Direction.DIR_MAX))
                rows.append(TrafficRow(reason, direction, *sums))
        return rows

    def _enforcement(self) -> dict[str, int]:
        audited = self.plan.audited()
        return _counts(
            views.enforcement(rules, audit=number in audited)
            for number, rules in self.plan.policy.rules.items()
        )

    def _endpoint_states(self) -> dict[str, int]:
        return _counts(self.endpoint_state(one) for one in self.tables.endpoints.values())

    async def read_usage(self) -> None:
        """Count the rows of maps that can fill up; the LRU maps are the expensive ones."""

        def read() -> list[MapUsage]:
            return [
                MapUsage(name, sum(1 for _ in self.map(name).keys()), self.map(name).info.max_entries)  # noqa: SIM118
                for name in PRESSURE_MAPS
            ]

        self._usage = (time.monotonic(), await self.in_writer(read))
        self.limits.look()

    def endpoint_state(self, endpoint: EndpointSpec) -> str:
        """Cilium's word for how an endpoint is doing."""
        if self.endpoint_ready(endpoint):
            return "ready"
        return "regenerating" if self.tables.in_sync else "restoring"


def _counts(words: Any) -> dict[str, int]:
    found: dict[str, int] = {}
    for word in words:
        found[word] = found.get(word, 0) + 1
    return found
