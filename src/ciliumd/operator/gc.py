# SPDX-License-Identifier: Apache-2.0
"""
Garbage: identities nobody has, endpoints whose pod is gone, CiliumNodes whose Node is gone.

Only names are kept of long lists.  Nothing is deleted because something else was not seen: what is to be
deleted is asked for once more, and is deleted only if it is still the object that was judged.
"""

import contextlib
import time
from collections.abc import Callable
from typing import Final

import structlog

from ciliumd.kubernetes.claims import CONDEMNED, claims_of
from ciliumd.kubernetes.client import Api, Json, ObjectName
from ciliumd.kubernetes.errors import ApiError, Conflict, NotFound
from ciliumd.kubernetes.kinds import (
    CILIUM_ENDPOINT,
    CILIUM_IDENTITY,
    CILIUM_NODE,
    NAMESPACE,
    NODE,
    POD,
)
from ciliumd.operator.metrics import Metrics
from ciliumd.operator.objects import delete, identity_of

KEEP_ANNOTATION: Final = "cilium.io/do-not-gc"
"""On a CiliumNode that stands for a machine which is no Node of this cluster."""
_FINISHED: Final = frozenset({"Succeeded", "Failed"})
_UNFINISHED_FIELDS: Final = ",".join(f"status.phase!={phase}" for phase in sorted(_FINISHED))

log = structlog.get_logger("gc")


class IdentityGc:
    """
    Deletes identities that no node has claimed and no endpoint has had for *timeout* seconds.

    Such an identity is condemned first; a later look deletes it, if nobody claims it by then, as it was
    condemned.  An agent uses no number before it has claimed it and then seen it not condemned: either
    its claim is read here, or it sees the sentence (docs/decisions/0011).

    What was unused is remembered in memory only: a new leader begins to wait anew, which errs on the
    side of keeping.  At most *limit* are deleted in one look.
    """

    def __init__(
        self,
        api: Api,
        metrics: Metrics,
        *,
        timeout: float,
        limit: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api = api
        self._metrics = metrics
        self._timeout = timeout
        self._limit = limit
        self._clock = clock
        self._unused: dict[tuple[str, str], float] = {}

    async def collect(self) -> None:
        """One look at all identities."""
        started = self._clock()
        try:
            alive, deleted = await self._collect()
        except ApiError:
            self._finish("fail", started)
            raise
        self._metrics.identity_gc_entries.set("alive", to=alive)
        self._metrics.identity_gc_entries.set("deleted", to=deleted)
        self._finish("success", started)

    def _finish(self, outcome: str, started: float) -> None:
        self._metrics.identity_gc_runs.add(outcome)
        self._metrics.identity_gc_latency.set(outcome, to=self._clock() - started)

    async def _collect(self) -> tuple[int, int]:
        # In this order: a claim that is made later is made by somebody who sees what is condemned here.
        condemned = (await self._api.names(CILIUM_IDENTITY, labels=CONDEMNED)).objects
        identities = (await self._api.names(CILIUM_IDENTITY)).objects
        used = await self._used()
        now = self._clock()
        sentenced = {one.uid for one in condemned}
        # A version that was written since is another one: somebody wants it.
        unused = {
            (one.uid, one.resource_version): one
            for one in identities
            if one.name not in used and one.uid not in sentenced
        }
        due = [
            one
            for version, one in unused.items()
            if version in self._unused and now - self._unused[version] >= self._timeout
        ]
        self._unused = {version: self._unused.get(version, now) for version in unused}
        deleted = 0
        for one in condemned[: self._limit]:
            if one.name in used:
                await self._condemn(one, condemned=False)
            else:
                deleted += await self._delete(one)
        for one in due[: self._limit]:
            await self._condemn(one, condemned=True)
        return len(identities) - deleted, deleted

    async def _used(self) -> set[str]:
        """
        Every number that a node claims or an endpoint names, as text.

        Endpoints one namespace at a time, to hold little at once; agents of other versions claim nothing.
        """
        nodes, _ = await self._api.list(CILIUM_NODE)
        found = {str(number) for node in nodes for number in claims_of(node)}
        for namespace in (await self._api.names(NAMESPACE)).objects:
            endpoints, _ = await self._api.list(CILIUM_ENDPOINT, namespace=namespace.name)
            for endpoint in endpoints:
                number = ((endpoint.get("status") or {}).get("identity") or {}).get("id")
                if number is not None:
                    found.add(str(number))
        return found

    async def _condemn(self, identity: ObjectName, *, condemned: bool) -> None:
        metadata = {
            "resourceVersion": identity.resource_version,
            "labels": {CONDEMNED: "true" if condemned else None},
        }
        try:
            await self._api.patch(CILIUM_IDENTITY, identity.name, {"metadata": metadata})
        except (Conflict, NotFound) as error:
            log.info("identity.kept", identity=identity.name, reason=str(error))
        else:
            log.info("identity.condemned" if condemned else "identity.reprieved", identity=identity.name)

    async def _delete(self, identity: ObjectName) -> int:
        try:
            await delete(self._api, CILIUM_IDENTITY, identity, unchanged=True)
        except (Conflict, NotFound) as error:
            log.info("identity.kept", identity=identity.name, reason=str(error))
            return 0
        log.info("identity.deleted", identity=identity.name)
        return 1


class EndpointGc:
    """Deletes CiliumEndpoints whose pod is gone or has run to its end."""

    def __init__(self, api: Api, metrics: Metrics) -> None:
        self._api = api
        self._metrics = metrics

    async def collect(self) -> None:
        """One look at all endpoints."""
        seen = (await self._api.names(CILIUM_ENDPOINT)).objects
        endpoints = {(one.namespace, one.name): one for one in seen}
        for pod in (await self._api.names(POD, fields=_UNFINISHED_FIELDS)).objects:
            endpoints.pop((pod.namespace, pod.name), None)
        for endpoint in endpoints.values():
            if not await self._runs(endpoint):
                await self._delete(endpoint)

    async def _runs(self, endpoint: ObjectName) -> bool:
        try:
            pod = await self._api.get(POD, endpoint.name, namespace=endpoint.namespace)
        except NotFound:
            return False
        return (pod.get("status") or {}).get("phase") not in _FINISHED

    async def _delete(self, endpoint: ObjectName) -> None:
        outcome = "success"
        try:
            await delete(self._api, CILIUM_ENDPOINT, endpoint)
        except (Conflict, NotFound):
            outcome = "failed"
        self._metrics.endpoint_gc_objects.add(outcome)
        log.info("endpoint.collected", endpoint=f"{endpoint.namespace}/{endpoint.name}", outcome=outcome)


class NodeGc:
    """Deletes CiliumNodes whose Node is gone; their pod CIDRs are free again with that."""

    def __init__(self, api: Api) -> None:
        self._api = api

    async def collect(self) -> None:
        """One look at all CiliumNodes."""
        found, _ = await self._api.list(CILIUM_NODE)
        nodes = {one.name for one in (await self._api.names(NODE)).objects}
        for one in found:
            if one["metadata"]["name"] not in nodes:
                await self.check(one)

    async def check(self, cilium_node: Json) -> None:
        """Delete *cilium_node* if there is no Node of its name."""
        metadata = cilium_node["metadata"]
        if KEEP_ANNOTATION in (metadata.get("annotations") or {}):
            return
        try:
            await self._api.get(NODE, metadata["name"])
        except NotFound:
            with contextlib.suppress(NotFound, Conflict):
                await delete(self._api, CILIUM_NODE, identity_of(cilium_node))
                log.info("node.collected", node=metadata["name"])
