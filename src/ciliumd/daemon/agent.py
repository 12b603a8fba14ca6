# SPDX-License-Identifier: Apache-2.0
"""
The running agent: its parts, and what it answers when asked (see ``api``).

Every value of a status is read from the component it speaks of at the time of the question.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any, TypeVar

import structlog

from ciliumd import __version__, abi
from ciliumd.bpf.features import Features
from ciliumd.bpf.map import Map
from ciliumd.bpf.ringbuf import RingBuffer
from ciliumd.daemon import stages, status, views
from ciliumd.daemon.api import EndpointRequest, RequestRefused
from ciliumd.daemon.attachments import Attachments
from ciliumd.daemon.controllers import Controllers
from ciliumd.daemon.datapath import Datapath
from ciliumd.daemon.endpoints import Endpoints
from ciliumd.daemon.gc import ConntrackGc
from ciliumd.daemon.network import NodeNetwork
from ciliumd.daemon.plan import NodePlan
from ciliumd.daemon.release import Release
from ciliumd.daemon.settings import Settings
from ciliumd.desired.lbrows import backends_in_rows, service_model
from ciliumd.desired.policy import NamedPorts, Party, explain
from ciliumd.flows import maprows
from ciliumd.flows.enrich import Lookups, PodName
from ciliumd.flows.ring import FlowRing
from ciliumd.ipam.hostscope import HostScope
from ciliumd.metrics.collectors import MapUsage, Providers, TrafficRow
from ciliumd.metrics.registry import build_registry, exposition, samples
from ciliumd.metrics.tally import Tallies
from ciliumd.model.endpoint import EndpointSpec
from ciliumd.model.identity import Reserved
from ciliumd.model.labels import labels_text
from ciliumd.model.net import Addr, addr16
from ciliumd.net.devices import NativeDevice
from ciliumd.net.host import HostLinks
from ciliumd.net.thread import NetlinkThread
from ciliumd.net.watch import Event, EventsLost, LinkEvent, LinkWatch
from ciliumd.reconcile.loop import Reconciler
from ciliumd.sources.directory import DirectorySource
from ciliumd.tables.schema import Tables

T = TypeVar("T")
Json = dict[str, Any]

REALIZE_SECONDS = 30.0
# Maps whose fill is looked at for status and metrics; the others cannot fill up.
PRESSURE_MAPS = (
    "cilium_ct_v1",
    "cilium_snat_v1",
    "cilium_ipcache_v1",
    "cilium_ipcache_lpm_v1",
    "cilium_lb_services_v1",
    "cilium_lb_backends_v1",
    "cilium_lb_revnat_v1",
    "cilium_lxc_v1",
    "cilium_ifindex_v1",
)

log = structlog.get_logger("agent")


class MapOperations:
    """Counts what the reconciler writes (``reconcile.loop.Observer``)."""

    def __init__(self, tallies: Tallies) -> None:
        self._tallies = tallies
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
        """Rounds are counted by the reconciler itself."""


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
    kernel: Features
    tables: Tables
    plan: NodePlan
    datapath: Datapath
    attachments: Attachments
    ipam: HostScope
    netlink: NetlinkThread
    tallies: Tallies
    controllers: Controllers
    host: HostLinks
    native: tuple[NativeDevice, ...]
    reconciler: Reconciler = field(init=False)
    endpoints_owner: Endpoints = field(init=False)
    ring: FlowRing = field(init=False)
    source: DirectorySource = field(init=False)
    gc: ConntrackGc = field(init=False)
    watch: LinkWatch = field(init=False)
    network: NodeNetwork = field(init=False)
    release: Release = field(init=False)
    observer: MapOperations = field(init=False)
    synced: bool = field(init=False, default=False)
    _registry: Any = field(init=False, default=None)
    _named: _Names = field(init=False, default=_Names())
    _usage: tuple[float, list[MapUsage]] = field(init=False, default=(0.0, []))
    _problems_seen: int = field(init=False, default=0)
    _background: set[asyncio.Task[None]] = field(init=False, default_factory=set)

    def __post_init__(self) -> None:
        self.observer = MapOperations(self.tallies)

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
        """Whether packets of the endpoint find all their rows, as they are wanted now."""
        slot = endpoint.slot.to_bytes(4, "little")
        ifindex = endpoint.ifindex.to_bytes(4, "little")
        if endpoint.id not in self.plan.policy.versions:
            return False
        addresses = [addr16(address) for address in endpoint.addresses]
        rows = [(stages.FACTS, slot), (stages.STATES, slot), (stages.IFINDEX, ifindex)]
        rows += [(stages.LXC, abi.LxcKey(address).pack()) for address in addresses]
        rows += [(stages.IPCACHE, abi.IpcacheKey(address, 0).pack()) for address in addresses]
        for name, key in rows:
            tracker = self.reconciler.tracker(name)
            wanted = tracker.desired.get(key)
            if wanted is None or tracker.realized.get(key) != wanted:
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
                detail = "; ".join(f"{one.name}: {one.last_error}" for one in failing)
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
        if addresses != self.plan.node.addresses:
            self.plan.set_addresses(addresses)
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

    async def first_round(self) -> None:
        """Note when all that the sources had at the start is in the maps: only then is all well."""
        read = asyncio.Event()

        def look() -> None:
            if self.tables.in_sync:
                read.set()

        tables = self.tables
        for table in (tables.namespaces, tables.pods, tables.services, tables.slices, tables.policies):
            table.subscribe(look)
        look()
        await read.wait()
        await self.reconciler.flush()
        self.synced = True

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
                pod=self._pod_at,
                origins=lambda cookie: self.plan.policy.cookies.get(cookie, ()),
                interface=self._device_name,
                node_name=self.plan.node.name,
            ),
            losses=lambda: sum(self.map("cilium_event_losses_v1").lookup_sums(bytes(4))),
        )

    def _labels_of(self, identity: int) -> list[str] | None:
        labels = self.plan.known_identities.get(identity)
        return None if labels is None else list(labels_text(labels))

    def _pod_at(self, address: Addr) -> PodName | None:
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
        rules = self.plan.policy
        self._registry = build_registry(
            Providers(
                version=__version__,
                traffic=self._traffic,
                map_usage=lambda: self._usage[1],
                endpoint_states=self._endpoint_states,
                enforcement=lambda: _counts(views.enforcement(one) for one in rules.rules.values()),
                identities=lambda: {
                    "reserved": len(Reserved) - 1,
                    "cluster_local": len(self.tables.identities),
                    "node_local": len(self.tables.prefixes),
                },
                services=lambda: len(self.plan.served),
                ipcache_entries=lambda: sum(
                    len(self.reconciler.tracker(one).realized) for one in (stages.IPCACHE, stages.IPCACHE_LPM)
                ),
                policies=lambda: len(self.tables.policies),
                policy_revision=lambda: self.tables.policies.revision + 1,
                controllers_failing=lambda: sum(one.failures > 0 for one in self.controllers.all()),
                addresses=lambda: {"ipv4": self.ipam.usage.used},
                ring=self.ring.stats,
            ),
            self.tallies,
        )

    def exposition(self) -> bytes:
        """Prometheus text."""
        return exposition(self._registry)

    def metrics(self) -> list[Json]:
        """Every sample as JSON."""
        return samples(self._registry)

    def _traffic(self) -> list[TrafficRow]:
        rows = []
        for key, sums in self.map("cilium_metrics_v1").items_sums():
            if any(sums):
                reason, direction = divmod(int.from_bytes(key, "little"), int(abi.Direction.DIR_MAX))
                rows.append(TrafficRow(reason, direction, *sums))
        return rows

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

    # ---- answers ---------------------------------------------------------------------------

    def endpoint_state(self, endpoint: EndpointSpec) -> str:
        """Cilium's word for how an endpoint is doing."""
        if self.endpoint_ready(endpoint):
            return "ready"
        return "regenerating" if self.tables.in_sync else "restoring"

    def endpoints(self) -> list[Json]:
        """Every endpoint."""
        return [
            self._endpoint_model(one) for one in sorted(self.tables.endpoints.values(), key=lambda e: e.id)
        ]

    def _endpoint_model(self, endpoint: EndpointSpec) -> Json:
        policy = self.plan.policy
        current = self.plan.policy_revision if self.endpoint_ready(endpoint) else 0
        return views.endpoint_model(
            endpoint,
            state=self.endpoint_state(endpoint),
            identity=self.plan.identities.get(endpoint.id),
            labels=self.plan.labels.get(endpoint.id, frozenset()),
            rules=policy.rules.get(endpoint.id),
            version=policy.versions.get(endpoint.id),
            revision=current,
        )

    async def add_endpoint(self, request: EndpointRequest) -> Json:
        """Make a pod."""
        return self._endpoint_model(await self.endpoints_owner.add(request))

    async def delete_endpoint(self, number: int) -> None:
        """Take a pod away."""
        await self.endpoints_owner.delete(number)

    def endpoint_number(self, key: str) -> int | None:
        """Endpoint id by number or ``pod:namespace/name``."""
        if key.startswith("pod:"):
            namespace, _, pod = key.removeprefix("pod:").partition("/")
            numbers = self.tables.endpoints_of_pod.get((namespace, pod))
            return numbers[0] if numbers else None
        if key.isdecimal() and int(key) in self.tables.endpoints:
            return int(key)
        return None

    def identities(self) -> list[Json]:
        """Every identity."""
        return views.identity_models(self.plan.known_identities)

    async def services(self) -> list[Json]:
        """Every service, its realized side read from the live maps."""

        def read() -> tuple[dict[bytes, bytes], dict[bytes, bytes]]:
            return dict(self.map(stages.SERVICES).items()), dict(self.map(stages.BACKENDS).items())

        services, backends = await self.in_writer(read)
        ids = self.tables.service_ids
        return [
            service_model(
                one,
                ids.get(one.frontend.key) or 0,
                realized=backends_in_rows(one.frontend.key, services, backends),
            )
            for one in self.plan.served
        ]

    def policy(self) -> Json:
        """Policies in force and refused."""
        return views.policy_answer(
            self.tables.policies.values(),
            self.tables.problems.view(),
            revision=self.plan.policy_revision,
            cookies=self.plan.policy.cookies,
        )

    def explain(self, source: str, destination: str, dport: str) -> Json:
        """Whether traffic passes, and why."""
        number, _, protocol = dport.partition("/")
        protocol = (protocol or "TCP").upper()
        is_port = number.isdecimal() and int(number) < 1 << 16
        if not is_port or protocol not in {"TCP", "UDP", "SCTP", "ICMP"}:
            raise RequestRefused(400, f"{dport!r} is no port; write 80/TCP")
        policy = self.plan.policy
        found = explain(
            self.tables.policies.values(),
            source=self._party(source),
            destination=self._party(destination),
            protocol=protocol,
            port=int(number),
            states={
                rules: policy.states[policy.versions[one]]
                for one, rules in policy.rules.items()
                if one in policy.versions
            },
        )
        return views.explanation(found, source=source, destination=destination)

    def _party(self, text: str) -> Party:
        """A side of traffic: ``namespace/pod``, an address, or an entity."""
        known = self.plan.known_identities
        for one in Reserved:
            if one and one.label == text.lower():
                return Party(int(one), known[int(one)], is_endpoint=False)
        number = self.endpoint_number(f"pod:{text}")
        if number is None:
            try:
                address = ip_address(text)
            except ValueError:
                raise RequestRefused(
                    404, f"{text} is no pod of this node, no address and no entity"
                ) from None
            pod = self._pod_at(address)
            if pod is None:
                identity = status.identity_of_address(self.reconciler, address)
                return Party(identity, known.get(identity, frozenset()), is_endpoint=False)
            number = pod.id
        endpoint = self.tables.endpoints.get(number)
        identity = self.plan.identities.get(number, int(Reserved.INIT))
        named: NamedPorts = frozenset()
        if endpoint is not None:
            named = self.plan.named_ports_of(endpoint)
        return Party(identity, self.plan.labels.get(number, frozenset()), named_ports=named)

    async def map_rows(self, name: str) -> list[Json]:
        """Decoded rows of a live map."""
        full = name if name.startswith("cilium_") else f"cilium_{name}"
        if not maprows.readable(full) and maprows.readable(f"{full}_v1"):
            full = f"{full}_v1"
        if not maprows.readable(full):
            known = ", ".join(sorted(one for one in abi.MAPS if maprows.readable(one)))
            raise RequestRefused(404, f"no map {name}; there are {known}")
        rows = await self.in_writer(lambda: self.datapath.rows(full))
        return list(maprows.decode_rows(full, rows))

    async def maps(self) -> Json:
        """Every map and how full it was when last counted."""
        await self.read_usage()
        return {
            "maps": [
                {
                    "path": str(self.settings.bpf_root / "maps" / one.map_name),
                    "entries": one.entries,
                    "max-entries": one.max_entries,
                    "errors": 0,
                }
                for one in self._usage[1]
            ]
        }

    def config(self) -> Json:
        """Settings in force."""
        return {
            "spec": {"options": {}},
            "status": {
                "version": __version__,
                "daemonConfigurationMap": {
                    name.replace("_", "-"): _text(value) for name, value in self.settings.model_dump().items()
                },
            },
        }

    async def health(self) -> Json:
        """``models.StatusResponse``."""
        return await status.status(self)


def _counts(words: Any) -> dict[str, int]:
    found: dict[str, int] = {}
    for word in words:
        found[word] = found.get(word, 0) + 1
    return found


def _text(value: object) -> Any:
    return value if isinstance(value, bool | int | float) or value is None else str(value)
