# SPDX-License-Identifier: Apache-2.0
"""Pod CIDRs written to CiliumNodes: what ``podcidrs.plan`` says, and an event on the Node if it cannot be."""

import asyncio
from dataclasses import replace

import structlog

from ciliumd.kubernetes.client import Api, Json
from ciliumd.kubernetes.errors import NotFound
from ciliumd.kubernetes.kinds import CILIUM_NODE, NODE, Kind
from ciliumd.model.net import Prefix
from ciliumd.operator.events import warn
from ciliumd.operator.metrics import Metrics
from ciliumd.operator.objects import SERVICE_CIDR, Key, change
from ciliumd.operator.podcidrs import Assignment, Plan, Pool, addresses_of, cidrs_of, error_of, plan
from ciliumd.operator.store import Store
from ciliumd.resources.fields import parse_prefix

REASON = "PodCIDRConflict"
_GATHER_SECONDS = 0.1

log = structlog.get_logger("ipam")


class PodCidrs:
    """Keeps the pod CIDRs of all CiliumNodes right; one round for whatever changed."""

    def __init__(
        self, api: Api, store: Store, metrics: Metrics, *, pool: Pool | None, pool6: Pool | None = None
    ) -> None:
        self._api = api
        self._store = store
        self._metrics = metrics
        self._pool = pool
        self._pool6 = pool6
        self._after: Prefix | None = None
        self._after6: Prefix | None = None
        self._ranges: list[Prefix] | None = None
        self._facts: dict[tuple[Kind, Key], object] = {}

    def changed(self, kind: Kind, key: Key) -> bool:
        """Whether a node or CiliumNode differs in what counts here; heartbeats do not."""
        row = self._store.get(kind, key)
        facts = row and (addresses_of(row) if kind == NODE else (cidrs_of(row), error_of(row)))
        known = self._facts.pop((kind, key), None)
        if facts is not None:
            self._facts[kind, key] = facts
        return facts != known

    def resync(self) -> None:
        """Ask anew for what is not followed."""
        self._ranges = None

    async def reconcile(self, _: str) -> None:
        """Look at all CiliumNodes."""
        # A thousand nodes that come at once are one round and not a thousand.
        await asyncio.sleep(_GATHER_SECONDS)
        wanted = await self._plan()
        for assignment in wanted.assignments:
            await self._write(assignment)
        self._metrics.pod_cidrs(wanted)

    async def _plan(self) -> Plan:
        pool = self._pool and replace(self._pool, after=self._after)
        pool6 = self._pool6 and replace(self._pool6, after=self._after6)
        if self._ranges is None:
            self._ranges = await self._service_ranges()
        wanted = plan(
            {name: row for (_, name), row in self._store.rows(NODE).items()},
            {name: row for (_, name), row in self._store.rows(CILIUM_NODE).items()},
            pool=pool,
            pool6=pool6,
            service_ranges=self._ranges,
        )
        self._after, self._after6 = wanted.after, wanted.after6
        return wanted

    async def _service_ranges(self) -> list[Prefix]:
        """Where services get their addresses from; servers before 1.33 do not say."""
        try:
            found, _ = await self._api.list(SERVICE_CIDR)
        except NotFound:
            return []
        return [parse_prefix(text) for item in found for text in item.get("spec", {}).get("cidrs") or ()]

    async def _write(self, assignment: Assignment) -> None:
        row = self._store.get(CILIUM_NODE, ("", assignment.node))
        if row is None:
            return
        if assignment.cidrs != cidrs_of(row) and not assignment.error:
            podcidrs: Json = {"spec": {"ipam": {"podCIDRs": list(assignment.cidrs)}}}
            row = await self._patch(row, podcidrs)
            log.info("ipam.assigned", node=assignment.node, cidrs=",".join(assignment.cidrs))
        if assignment.error != error_of(row):
            status = {"status": {"ipam": {"operator-status": {"error": assignment.error or None}}}}
            await self._patch(row, status, subresource="status")
        if assignment.error:
            about = self._store.get(NODE, ("", assignment.node)) or row
            await warn(self._api, about, REASON, f"pod CIDRs of {assignment.node}: {assignment.error}")

    async def _patch(self, row: Json, changes: Json, *, subresource: str = "") -> Json:
        document = await change(self._api, CILIUM_NODE, row, changes, subresource=subresource)
        # Known at once: the next round must not give the same block to another node.
        self._store.put(CILIUM_NODE, document)
        return document
