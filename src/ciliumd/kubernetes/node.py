# SPDX-License-Identifier: Apache-2.0
"""
The node's own CiliumNode: how other nodes reach it, and where its pod CIDR is told.

It also tells which identities this node uses, or is about to use: nobody deletes those (see ``claims``).
The agent writes everything but ``spec.ipam``, which is the operator's; where Kubernetes gives the pod CIDR
(mode ``kubernetes``) the agent copies it from the Node.  The object belongs to the Node and goes with it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import structlog

from ciliumd.kubernetes.claims import CLAIMS, Claimed, claims_of, claims_text
from ciliumd.kubernetes.client import Api, Json
from ciliumd.kubernetes.errors import AlreadyExists, Conflict, NotFound
from ciliumd.kubernetes.kinds import CILIUM_NODE
from ciliumd.kubernetes.publisher import PERIOD, Publisher
from ciliumd.model.identity import NumericIdentity
from ciliumd.model.net import Addr, Prefix
from ciliumd.model.objects import CILIUM_INTERNAL_IP, INTERNAL_IP
from ciliumd.resources.node import KubernetesNode
from ciliumd.tables import Problem, Tables

Mode = Literal["cluster-pool", "kubernetes"]
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

log = structlog.get_logger("k8s-node")


@dataclass(frozen=True, slots=True)
class Reachable:
    """What the agent adds to what Kubernetes knows: its router addresses and those of its health endpoint."""

    router: tuple[Addr, ...] = ()
    health: tuple[Addr, ...] = ()


def document(
    existing: Mapping[str, Any] | None,
    node: KubernetesNode,
    reachable: Reachable,
    *,
    boot_id: str,
    pod_cidrs: tuple[Prefix, ...] = (),
    claims: frozenset[NumericIdentity] | None = None,
) -> Json:
    """
    The CiliumNode of *node*: *existing* with our fields as they must be and all others as they are.

    *pod_cidrs* are written if there are any, *claims* unless they are None.
    """
    metadata = dict((existing or {}).get("metadata") or {})
    spec = dict((existing or {}).get("spec") or {})
    metadata["name"] = node.name
    metadata["ownerReferences"] = [{"apiVersion": "v1", "kind": "Node", "name": node.name, "uid": node.uid}]
    addresses = [*node.addresses, *((CILIUM_INTERNAL_IP, addr) for addr in reachable.router)]
    spec["addresses"] = [{"type": kind, "ip": str(addr)} for kind, addr in addresses]
    spec["bootid"] = boot_id
    # The API server keeps no empty maps.
    _put(metadata, "labels", dict(node.labels))
    if claims is not None:
        annotations = {**(metadata.get("annotations") or {}), CLAIMS: claims_text(claims)}
        _put(
            metadata, "annotations", {key: text for key, text in annotations.items() if text or key != CLAIMS}
        )
    _put(spec, "health", {f"ipv{addr.version}": str(addr) for addr in reachable.health})
    if pod_cidrs:
        spec["ipam"] = {**(spec.get("ipam") or {}), "podCIDRs": [str(prefix) for prefix in pod_cidrs]}
    return {
        **(existing or {}),
        "apiVersion": CILIUM_NODE.api_version,
        "kind": CILIUM_NODE.kind,
        "metadata": metadata,
        "spec": spec,
    }


def _put(mapping: Json, key: str, value: dict[str, str]) -> None:
    mapping.pop(key, None)
    if value:
        mapping[key] = value


def pod_cidrs_of(cilium_node: Mapping[str, Any]) -> list[str]:
    """``spec.ipam.podCIDRs`` as written."""
    ipam = (cilium_node.get("spec") or {}).get("ipam") or {}
    return list(ipam.get("podCIDRs") or ())


class NodePublisher(Publisher):
    """
    Keeps the CiliumNode of *name* as it must be.

    *pod_cidrs* are those this agent serves: what the object says instead is reported, for pods cannot
    change their addresses.  Call :meth:`node_changed` with the Node as it is.

    :attr:`wanted_claims` tells which identities this node uses or is about to use, None while that is not
    known; :attr:`claimed` which of them the API server has; :attr:`claims_changed` is called when it has.
    """

    def __init__(
        self,
        api: Api,
        tables: Tables,
        *,
        name: str,
        mode: Mode,
        pod_cidrs: Callable[[], tuple[Prefix, ...]],
        boot_id: str | None = None,
    ) -> None:
        super().__init__("CiliumNode", pause=0.05)
        self.wanted_claims: Callable[[], frozenset[NumericIdentity] | None] = _not_known
        self.claims_changed: Callable[[], None] = _nobody
        self.claimed: Claimed = {}
        self._writes = 0
        self._api = api
        self._tables = tables
        self._name = name
        self._mode = mode
        self._pod_cidrs = pod_cidrs
        self._boot_id = boot_id or BOOT_ID.read_text().strip()
        self._node: KubernetesNode | None = None
        self._reachable = Reachable()
        self._published = False
        tables.nodes.subscribe(self._nodes_changed)
        self._own_row: object = None

    def node_changed(self, node: KubernetesNode | None) -> None:
        """The Node is now *node*; None: it is gone, and its CiliumNode will go with it."""
        if node != self._node:
            self._node = node
            self.wake()

    def reachable(self, reachable: Reachable) -> None:
        """These are the addresses of the agent."""
        if reachable != self._reachable:
            self._reachable = reachable
            self.wake()

    async def work(self) -> float:
        """Create the object, or correct it."""
        if self._node is None:
            self.failed(f"there is no Node {self._name}")
            return PERIOD
        await self.ensure(self._node)
        self.succeeded()
        return PERIOD

    async def ensure(self, node: KubernetesNode) -> Json:
        """The CiliumNode of *node* as it must be and now is.  Raises ApiError."""
        while True:
            try:
                existing: Json | None = await self._api.get(CILIUM_NODE, self._name)
            except NotFound:
                existing = None
            self._report(existing)
            cidrs = node.pod_cidrs if self._mode == "kubernetes" else ()
            claims = self.wanted_claims()
            wanted = document(
                existing, node, self._reachable, boot_id=self._boot_id, pod_cidrs=cidrs, claims=claims
            )
            if wanted == existing:
                self._claims_are(existing, claims)
                return wanted
            if claims is not None:
                # From here on the others may be gone, whatever the answer is, and if there is none.
                self.claimed = {number: at for number, at in self.claimed.items() if number in claims}
            try:
                if existing is None:
                    written = await self._api.create(CILIUM_NODE, wanted)
                else:
                    written = await self._api.replace(CILIUM_NODE, wanted)
            except (AlreadyExists, Conflict, NotFound) as error:
                if isinstance(error, NotFound) and existing is None:
                    raise  # not the object, but the kind is missing
                continue
            self._published = True
            self._claims_are(written, claims)
            log.info("node.published", node=self._name, addresses=len(wanted["spec"]["addresses"]))
            return written

    def _claims_are(self, present: Mapping[str, Any], wanted: frozenset[NumericIdentity] | None) -> None:
        """The API server has *present*; what is in it and not *wanted* is no claim: it goes at any time."""
        self._writes += 1
        there = claims_of(present) & (wanted or frozenset())
        claimed = {number: self.claimed.get(number, self._writes) for number in there}
        if claimed != self.claimed:
            self.claimed = claimed
            self.claims_changed()

    def _nodes_changed(self) -> None:
        row = self._tables.nodes.get(self._name)
        if row != self._own_row:
            self._own_row = row
            self.wake()

    def _report(self, existing: Mapping[str, Any] | None) -> None:
        """Say what contradicts this agent; whatever it is, the agent goes on with what it has."""
        key = (CILIUM_NODE.kind, "", self._name)
        problem = self._problem(existing)
        if problem is not None:
            if self._tables.problems.set(key, problem):
                log.warning("node.conflict", field=problem.field, error=problem.message)
        else:
            self._tables.problems.delete(key)

    def _problem(self, existing: Mapping[str, Any] | None) -> Problem | None:
        served = self._pod_cidrs()
        if existing is not None:
            boot_id = existing.get("spec", {}).get("bootid")
            if self._published and boot_id not in {None, self._boot_id}:
                return Problem("spec.bootid", "is that of another machine, whose agent has this node's name")
            told = pod_cidrs_of(existing)
            if served and told and told != [str(prefix) for prefix in served]:
                shown = ", ".join(map(str, served))
                message = f"must be {shown}, which this agent serves; delete its pods and restart it"
                return Problem("spec.ipam.podCIDRs", message)
        for other in self._tables.nodes.values():
            if other.name == self._name:
                continue
            for prefix in served:
                for theirs in other.pod_cidrs:
                    if prefix.overlaps(theirs):
                        return Problem("spec.ipam.podCIDRs", f"overlaps with {theirs} of node {other.name}")
            ours = {
                addr for kind, addr in (self._node.addresses if self._node else ()) if kind == INTERNAL_IP
            }
            if ours & set(other.addresses_of(INTERNAL_IP)):
                return Problem("spec.addresses", f"has an address of node {other.name}")
        return None


def _not_known() -> None:
    """Before the plan is made."""


def _nobody() -> None:
    """Nobody is told."""
