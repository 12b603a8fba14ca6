# SPDX-License-Identifier: Apache-2.0
"""
A CiliumEndpoint for each pod of this node: that is how the other nodes learn which identity an address has.

The object has the pod's name and belongs to it, so it goes with the pod even if this node is dead.  It is
written when the endpoint differs from what was written last, or from what the cluster shows of it; it is
deleted when the endpoint is gone and the object still tells of this node (the pod may be elsewhere by now).
"""

import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import structlog

from ciliumd.kubernetes.client import Api, Json
from ciliumd.kubernetes.errors import AlreadyExists, ApiError, Conflict, NotFound
from ciliumd.kubernetes.kinds import CILIUM_ENDPOINT
from ciliumd.kubernetes.pace import Backoff
from ciliumd.kubernetes.publisher import PERIOD, Publisher
from ciliumd.model.endpoint import HEALTH_POD, EndpointSpec
from ciliumd.model.identity import NumericIdentity
from ciliumd.model.labels import Labels, labels_text
from ciliumd.model.net import Addr
from ciliumd.model.objects import NamespacedName, RemoteEndpointRow
from ciliumd.tables import Tables

# Seconds the watch is given to show what was written.
ECHO: Final = 10.0

log = structlog.get_logger("k8s-endpoint")


@dataclass(frozen=True, slots=True)
class EndpointFacts:
    """
    What an endpoint is beside its wiring.

    *state* is Cilium's word (``ready``, ``waiting-for-identity``); *ingress* and *egress* tell whether
    policy is enforced; *named_ports* gives (protocol, port) by name.
    """

    identity: NumericIdentity
    labels: Labels
    state: str
    ingress: bool
    egress: bool
    named_ports: Mapping[str, tuple[str, int]]


def document(endpoint: EndpointSpec, facts: EndpointFacts, *, node: Addr | None, pod_uid: str) -> Json:
    """The CiliumEndpoint of *endpoint*, whose pod has *pod_uid* and whose node the address *node*."""
    pair = {f"ipv{addr.version}": str(addr) for addr in endpoint.addresses}
    return {
        "apiVersion": CILIUM_ENDPOINT.api_version,
        "kind": CILIUM_ENDPOINT.kind,
        "metadata": {
            "name": endpoint.pod,
            "namespace": endpoint.namespace,
            "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": endpoint.pod, "uid": pod_uid}],
        },
        "status": {
            "id": endpoint.id,
            "identity": {"id": facts.identity, "labels": list(labels_text(facts.labels))},
            "networking": {"addressing": [pair], "node": "" if node is None else str(node)},
            "named-ports": [
                {"name": name, "protocol": protocol, "port": port}
                for name, (protocol, port) in sorted(facts.named_ports.items())
            ],
            "policy": {"ingress": _enforcement(facts.ingress), "egress": _enforcement(facts.egress)},
            "state": facts.state,
            "external-identifiers": {
                "container-id": endpoint.container_id,
                "cni-attachment-id": f"{endpoint.container_id}:eth0",
                "k8s-namespace": endpoint.namespace,
                "k8s-pod-name": endpoint.pod,
                "pod-name": f"{endpoint.namespace}/{endpoint.pod}",
            },
        },
    }


def _enforcement(enforcing: bool) -> Json:
    return {"enforcing": enforcing, "state": "enforcing" if enforcing else "non-enforcing"}


@dataclass(slots=True)
class _Published:
    """What was written for a pod: a digest, the row others make of it, its version, when; and how it goes."""

    digest: int = 0
    row: RemoteEndpointRow | None = None
    version: str = ""
    at: float = 0.0
    not_before: float = 0.0
    backoff: Iterator[float] = field(default_factory=lambda: iter(Backoff(last=30.0)))
    error: str = ""


class EndpointPublisher(Publisher):
    """
    Keeps the CiliumEndpoints of this node equal to ``tables.endpoints``.

    *facts* tells of an endpoint (None: nothing to say yet), *pod_uid* of a pod, *node* an address of this
    node that other nodes reach.  Call :meth:`wake` when facts may have changed.
    """

    def __init__(
        self,
        api: Api,
        tables: Tables,
        *,
        facts: Callable[[EndpointSpec], EndpointFacts | None],
        pod_uid: Callable[[NamespacedName], str | None],
        node: Callable[[], Addr | None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__("CiliumEndpoint", pause=0.25)
        self._api = api
        self._tables = tables
        self._facts = facts
        self._pod_uid = pod_uid
        self._node = node
        self._clock = clock
        self._published: dict[NamespacedName, _Published] = {}
        tables.endpoints.subscribe(self.wake)
        tables.remote_endpoints.subscribe(self.wake)
        # A pod may be known later than its endpoint: before that there is no uid to write.
        tables.pods.subscribe(self.wake)

    async def work(self) -> float:
        """Write and delete what is due."""
        if not (self._tables.endpoints.initialized and self._tables.remote_endpoints.initialized):
            return PERIOD
        for key, wanted in self._wanted().items():
            await self._attempt(key, self._write(key, wanted))
        for key in self._stale():
            await self._attempt(key, self._delete(key))
        errors = [one.error for one in self._published.values() if one.error]
        if errors:
            self.failed(errors[0])
        else:
            self.succeeded()
        now = self._clock()
        return min((one.not_before - now for one in self._published.values() if one.error), default=PERIOD)

    # ---- what is due ------------------------------------------------------------------------

    def _wanted(self) -> dict[NamespacedName, Json]:
        """The documents that have to be written, by pod."""
        now, node, due = self._clock(), self._node(), {}
        for endpoint in self._tables.endpoints.values():
            key = endpoint.pod_key
            uid = self._pod_uid(key)
            facts = None if key == HEALTH_POD or uid is None else self._facts(endpoint)
            if facts is None or uid is None:
                continue
            row = RemoteEndpointRow(*key, facts.identity, endpoint.addresses, node, dict(facts.named_ports))
            wanted = document(endpoint, facts, node=node, pod_uid=uid)
            digest = hash(repr(wanted))
            done = self._published.setdefault(key, _Published())
            echoed = now - done.at < ECHO or done.row == self._tables.remote_endpoints.get(key)
            if (done.digest != digest or not echoed) and done.not_before <= now:
                done.row = row
                due[key] = wanted
        return due

    def _stale(self) -> list[NamespacedName]:
        """Pods whose object tells of this node, where they have no endpoint any more."""
        now, node = self._clock(), self._node()
        local = {endpoint.pod_key for endpoint in self._tables.endpoints.values()}
        stale = {key for key in self._published if key not in local}
        if node is not None:
            rows = self._tables.remote_endpoints.items()
            stale |= {key for key, row in rows if row.node == node and key not in local}
        return [key for key in stale if key not in self._published or self._published[key].not_before <= now]

    async def _attempt(self, key: NamespacedName, work: Coroutine[Any, Any, None]) -> None:
        """Do *work* for a pod; a failure is its own and is tried again later."""
        try:
            await work
        except ApiError as error:
            one = self._published.setdefault(key, _Published())
            one.error = str(error)
            one.not_before = self._clock() + next(one.backoff)

    # ---- requests ---------------------------------------------------------------------------

    async def _write(self, key: NamespacedName, wanted: Json) -> None:
        done = self._published[key]
        namespace, name = key
        version = done.version
        if not version and key in self._tables.remote_endpoints:
            existing = await self._existing(key)
            if existing is not None and _says(existing, wanted):
                self._note(done, wanted, existing)
                return
            version = _version(existing)
        try:
            if version:
                body = {**wanted, "metadata": {**wanted["metadata"], "resourceVersion": version}}
                written = await self._api.replace(CILIUM_ENDPOINT, body)
            else:
                written = await self._api.create(CILIUM_ENDPOINT, wanted)
        except (AlreadyExists, Conflict, NotFound):
            done.version = _version(await self._existing(key))
            raise
        self._note(done, wanted, written)
        log.debug("endpoint.published", pod=f"{namespace}/{name}")

    def _note(self, done: _Published, wanted: Json, written: Json) -> None:
        done.digest = hash(repr(wanted))
        done.version = _version(written)
        done.at = self._clock()
        done.error, done.not_before, done.backoff = "", 0.0, iter(Backoff(last=30.0))

    async def _delete(self, key: NamespacedName) -> None:
        existing = await self._existing(key)
        node = self._node()
        if existing is not None and node is not None and _node_of(existing) == str(node):
            metadata = existing["metadata"]
            try:
                await self._api.delete(
                    CILIUM_ENDPOINT,
                    key[1],
                    namespace=key[0],
                    uid=metadata["uid"],
                    version=metadata["resourceVersion"],
                )
            except NotFound:
                pass
            else:
                log.debug("endpoint.withdrawn", pod="/".join(key))
        self._published.pop(key, None)

    async def _existing(self, key: NamespacedName) -> Json | None:
        try:
            return await self._api.get(CILIUM_ENDPOINT, key[1], namespace=key[0])
        except NotFound:
            return None


def _version(existing: Mapping[str, Any] | None) -> str:
    return str(existing["metadata"]["resourceVersion"]) if existing else ""


def _node_of(existing: Mapping[str, Any]) -> str:
    networking = (existing.get("status") or {}).get("networking") or {}
    return str(networking.get("node") or "")


def _says(existing: Mapping[str, Any], wanted: Json) -> bool:
    """Whether *existing* is what is *wanted* already."""
    owners = existing["metadata"].get("ownerReferences")
    return bool(
        existing.get("status") == wanted["status"] and owners == wanted["metadata"]["ownerReferences"]
    )
