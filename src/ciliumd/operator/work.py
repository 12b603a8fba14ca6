# SPDX-License-Identifier: Apache-2.0
"""
What a leader does: follows the cluster, and keeps every part right until it is told to stop.

Each part is called with keys and looks at the store; lists at intervals mend what watches missed.
"""

import asyncio
from collections.abc import Sequence
from functools import partial

import structlog
from lightkube.config.kubeconfig import SingleConfig

from ciliumd.kubernetes.client import Api
from ciliumd.kubernetes.errors import ApiError
from ciliumd.kubernetes.kinds import CILIUM_CIDR_GROUP, CILIUM_NODE, ENDPOINT_SLICE, NODE, POD, SERVICE, Kind
from ciliumd.operator.gc import EndpointGc, IdentityGc, NodeGc
from ciliumd.operator.ipam import PodCidrs
from ciliumd.operator.metrics import Metrics
from ciliumd.operator.nodes import Marks, Nodes
from ciliumd.operator.objects import POLICIES, Key, key_of
from ciliumd.operator.podcidrs import Pool
from ciliumd.operator.policies import REFERRED, Policies
from ciliumd.operator.queue import WorkQueue, delay, repeat
from ciliumd.operator.services import FOLLOWED as SERVICES_FOLLOWED
from ciliumd.operator.services import Services
from ciliumd.operator.settings import Settings
from ciliumd.operator.store import Store
from ciliumd.operator.unmanaged import UnmanagedPods
from ciliumd.operator.watch import Change, Followed, Watch
from ciliumd.resources import parser

_ALL = "all"
_WORKERS = 8

log = structlog.get_logger("operator")


class WatchEnded(Exception):
    """The watch ended by itself."""


class Work:
    """The parts, put together for one term of leadership."""

    def __init__(self, api: Api, config: SingleConfig, settings: Settings, metrics: Metrics) -> None:
        self._api = api
        self._config = config
        self._settings = settings
        self._store = store = Store()
        self._followed = (
            Followed(NODE),
            Followed(POD, settings.cilium_pod_labels),
            Followed(CILIUM_NODE),
            *map(Followed, POLICIES),
            Followed(CILIUM_CIDR_GROUP),
            *SERVICES_FOLLOWED,
        )
        self._nodes = Nodes(
            api,
            store,
            namespace=settings.k8s_namespace,
            marks=Marks(
                taint=settings.agent_not_ready_taint_key,
                remove_taints=settings.remove_cilium_node_taints,
                set_taints=settings.set_cilium_node_taints,
                set_condition=settings.set_cilium_is_up_condition,
            ),
        )
        pooled = settings.ipam == "cluster-pool"
        pool = (
            Pool(settings.cluster_pool_ipv4_cidr, settings.cluster_pool_ipv4_mask_size)
            if pooled and settings.enable_ipv4
            else None
        )
        pool6 = (
            Pool(settings.cluster_pool_ipv6_cidr, settings.cluster_pool_ipv6_mask_size)
            if pooled and settings.enable_ipv6
            else None
        )
        self._node_gc = NodeGc(api)
        self._endpoint_gc = EndpointGc(api, metrics)
        self._identity_gc = IdentityGc(
            api,
            metrics,
            timeout=settings.identity_heartbeat_timeout,
            limit=settings.identity_gc_rate_limit,
        )
        self._unmanaged = UnmanagedPods(
            api,
            metrics,
            labels=settings.pod_restart_selector,
            grace=settings.unmanaged_pod_grace,
            agent_ready=self._nodes.agent_ready,
        )
        self._cidrs = PodCidrs(api, store, metrics, pool=pool, pool6=pool6)
        self._cidr_queue: WorkQueue[str] = WorkQueue("ipam", self._cidrs.reconcile)
        self._node_queue: WorkQueue[str] = WorkQueue("nodes", self._nodes.reconcile, workers=_WORKERS)
        self._orphan_queue: WorkQueue[str] = WorkQueue("node-gc", self._check_orphan)
        self._policies = Policies(
            api, store, parse=parser(node_selectors=settings.enable_node_selector_labels)
        )
        self._policy_queue: WorkQueue[tuple[Kind, Key]] = WorkQueue(
            "policies", self._policies.reconcile, workers=_WORKERS
        )
        self._services = Services(api, store, allowed=settings.allow_external_addresses)
        self._service_queue: WorkQueue[str] = WorkQueue("services", self._services.reconcile)
        self._connect()

    def _connect(self) -> None:
        follow = self._store.follow
        follow(NODE, self._node_changed)
        follow(POD, self._pod_changed)
        follow(CILIUM_NODE, self._cilium_node_changed)
        for kind in POLICIES:
            follow(kind, partial(self._policy_changed, kind))
        for kind in REFERRED:
            follow(kind, partial(self._referred_changed, kind))
        for kind in (CILIUM_NODE, ENDPOINT_SLICE, SERVICE):
            follow(kind, partial(self._service_changed, kind))

    async def run(self) -> None:
        """Work until cancelled.  Raises :class:`WatchEnded`."""
        await self._prime()
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()

        def failed(error: BaseException | None) -> None:
            if not ended.done():
                ended.set_exception(WatchEnded(str(error or "no reason given")))

        watch = Watch(self._config, self._followed, deliver=self._take, failed=failed)
        watch.start()
        settings = self._settings
        try:
            async with asyncio.TaskGroup() as group:
                for queue in (
                    *(self._cidr_queue, self._node_queue, self._orphan_queue),
                    *(self._policy_queue, self._service_queue),
                ):
                    group.create_task(queue.run())
                for name, interval, work in (
                    ("resync", settings.resync_interval, self._resync),
                    ("identity-gc", settings.identity_gc_interval, self._identity_gc.collect),
                    ("endpoint-gc", settings.cilium_endpoint_gc_interval, self._endpoint_gc.collect),
                    ("node-gc", settings.nodes_gc_interval, self._node_gc.collect),
                    ("unmanaged-pods", settings.unmanaged_pod_watcher_interval, self._unmanaged.look),
                ):
                    if interval:
                        group.create_task(repeat(name, interval, work))
                group.create_task(_until(ended))
        finally:
            await watch.stop()

    async def _prime(self) -> None:
        """Know everything before anything is decided: a block is free only if no CiliumNode has it."""
        for followed in self._followed:
            failures = 0
            while True:
                try:
                    found, _ = await self._api.list(followed.kind, labels=followed.labels)
                except ApiError as error:
                    failures += 1
                    log.warning("list.failed", kind=followed.kind.kind, error=str(error))
                    await asyncio.sleep(delay(failures))
                else:
                    break
            for item in found:
                # Lists leave out what the kind of their items is.
                typed = {"apiVersion": followed.kind.api_version, "kind": followed.kind.kind, **item}
                self._store.put(followed.kind, typed)
        log.info(
            "operator.synced",
            nodes=len(self._store.rows(NODE)),
            cilium_nodes=len(self._store.rows(CILIUM_NODE)),
            policies=sum(len(self._store.rows(one)) for one in POLICIES),
        )

    def _take(self, changes: Sequence[Change]) -> None:
        for change in changes:
            if change.deleted:
                self._store.drop(change.kind, change.document)
            else:
                self._store.put(change.kind, change.document)

    async def _resync(self) -> None:
        """Drop what watches did not say was deleted."""
        for followed in self._followed:
            kind = followed.kind
            before = dict(self._store.rows(kind))
            if followed.labels:
                found, _ = await self._api.list(kind, labels=followed.labels)
                present = {key_of(item) for item in found}
            else:
                present = {(one.namespace, one.name) for one in (await self._api.names(kind)).objects}
            for key in self._store.sweep(kind, before, present):
                log.info("resync.dropped", kind=kind.kind, name="/".join(filter(None, key)))
        self._cidrs.resync()
        self._cidr_queue.add(_ALL)

    def _node_changed(self, key: Key) -> None:
        self._node_queue.add(key[1])
        self._orphan_queue.add(key[1])
        if self._cidrs.changed(NODE, key):
            self._cidr_queue.add(_ALL)

    def _pod_changed(self, key: Key) -> None:
        for node in self._nodes.pod_changed(key):
            self._node_queue.add(node)

    def _policy_changed(self, kind: Kind, key: Key) -> None:
        self._policy_queue.add((kind, key))

    def _referred_changed(self, kind: Kind, key: Key) -> None:
        for policy in self._policies.naming(kind, key):
            self._policy_queue.add(policy)

    def _service_changed(self, kind: Kind, key: Key) -> None:
        if self._services.changed(kind, key):
            self._service_queue.add(_ALL)

    def _cilium_node_changed(self, key: Key) -> None:
        self._orphan_queue.add(key[1])
        if self._cidrs.changed(CILIUM_NODE, key):
            self._cidr_queue.add(_ALL)

    async def _check_orphan(self, name: str) -> None:
        """A CiliumNode goes with its Node, and its pod CIDR is free again."""
        cilium_node = self._store.get(CILIUM_NODE, ("", name))
        if cilium_node is not None and self._store.get(NODE, ("", name)) is None:
            await self._node_gc.check(cilium_node)


async def _until(ended: asyncio.Future[None]) -> None:
    await ended
