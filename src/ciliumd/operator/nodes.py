# SPDX-License-Identifier: Apache-2.0
"""
Node taints and the condition NetworkUnavailable, by whether the node's agent is ready.

An agent is ready when its datapath is attached and tried; only then may pods come.  The condition is set
once and stays: without its agent a node forwards as before, but takes no new pods while it is tainted.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import structlog

from ciliumd.kubernetes.client import Api, Json
from ciliumd.kubernetes.kinds import NODE, POD
from ciliumd.operator.objects import Key, change, condition, with_condition
from ciliumd.operator.store import Store

CONDITION: Final = "NetworkUnavailable"
REASON: Final = "CiliumIsUp"
MESSAGE: Final = "Cilium is running on this node"
_EFFECT: Final = "NoSchedule"

log = structlog.get_logger("nodes")


@dataclass(frozen=True, slots=True)
class Marks:
    """Which marks the operator puts on nodes."""

    taint: str
    remove_taints: bool
    set_taints: bool
    set_condition: bool


def ready(pod: Json) -> bool:
    """Whether a pod is ready and is not on its way out."""
    return not pod["metadata"].get("deletionTimestamp") and condition(pod, "Ready").get("status") == "True"


class Nodes:
    """Keeps the marks of nodes right."""

    def __init__(self, api: Api, store: Store, *, namespace: str, marks: Marks) -> None:
        self._api = api
        self._store = store
        self._namespace = namespace
        self._marks = marks
        self._agents: dict[str, dict[Key, bool]] = {}
        self._node_of: dict[Key, str] = {}

    def agent_ready(self, node: str) -> bool | None:
        """Whether the agent of *node* is ready; None if it has none."""
        agents = self._agents.get(node)
        return any(agents.values()) if agents else None

    def pod_changed(self, key: Key) -> set[str]:
        """Take note of an agent that came, changed or went; the nodes to look at."""
        before = self._node_of.pop(key, None)
        if before is not None:
            self._agents[before].pop(key, None)
        pod = self._store.get(POD, key)
        node = (pod.get("spec") or {}).get("nodeName") if pod else None
        if pod is None or not node or key[0] != self._namespace:
            return {before} if before else set()
        self._node_of[key] = node
        self._agents.setdefault(node, {})[key] = ready(pod)
        return {node, before} - {None}

    async def reconcile(self, name: str) -> None:
        """Look at one node."""
        node = self._store.get(NODE, ("", name))
        agent = self.agent_ready(name)
        if node is None or agent is None:
            return
        taints = (node.get("spec") or {}).get("taints") or []
        wanted = self._taints(taints, agent=agent)
        if wanted != taints:
            node = await change(self._api, NODE, node, {"spec": {"taints": wanted or None}})
            self._store.put(NODE, node)
            log.info("node.taint", node=name, agent_ready=agent, key=self._marks.taint)
        if agent and self._marks.set_condition and not _is_up(node):
            node = await change(self._api, NODE, node, with_condition(node, _up()), subresource="status")
            self._store.put(NODE, node)
            log.info("node.condition", node=name, condition=CONDITION, reason=REASON)

    def _taints(self, taints: Iterable[dict[str, Any]], *, agent: bool) -> list[dict[str, Any]]:
        present = list(taints)
        others = [taint for taint in present if taint.get("key") != self._marks.taint]
        if agent:
            return others if self._marks.remove_taints else present
        if self._marks.set_taints and len(others) == len(present):
            return [*others, {"key": self._marks.taint, "effect": _EFFECT}]
        return present


def _is_up(node: Json) -> bool:
    present = condition(node, CONDITION)
    return present.get("status") == "False" and present.get("reason") == REASON


def _up() -> dict[str, str]:
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "type": CONDITION,
        "status": "False",
        "reason": REASON,
        "message": MESSAGE,
        "lastHeartbeatTime": now,
        "lastTransitionTime": now,
    }
