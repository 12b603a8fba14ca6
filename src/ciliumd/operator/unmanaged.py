# SPDX-License-Identifier: Apache-2.0
"""
Pods that were started before their node's agent and so are no endpoints: deleted, so that they come back
as endpoints.

Only pods a controller makes again, only where the agent is ready, and one at a time: all replicas of the
cluster's DNS at once would be worse than what is repaired.
"""

import time
from collections.abc import Callable
from typing import Final

import structlog

from ciliumd.kubernetes.client import Api, Json
from ciliumd.kubernetes.errors import NotFound
from ciliumd.kubernetes.kinds import CILIUM_ENDPOINT, POD
from ciliumd.operator.metrics import Metrics
from ciliumd.operator.objects import delete, identity_of, key_of

RUNNING: Final = "status.phase=Running"

log = structlog.get_logger("unmanaged")


class UnmanagedPods:
    """
    Restarts pods that *labels* select and that have had no endpoint for *grace* seconds.

    *agent_ready* tells of a node whether its agent is ready, None if it has none.
    """

    def __init__(
        self,
        api: Api,
        metrics: Metrics,
        *,
        labels: str,
        grace: float,
        agent_ready: Callable[[str], bool | None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api = api
        self._metrics = metrics
        self._labels = labels
        self._grace = grace
        self._agent_ready = agent_ready
        self._clock = clock
        self._since: dict[str, float] = {}

    async def look(self) -> None:
        """One look at the pods."""
        found, _ = await self._api.list(POD, labels=self._labels, fields=RUNNING)
        pods = [pod for pod in found if self._ours(pod) and not await self._managed(pod)]
        now = self._clock()
        self._since = {(uid := pod["metadata"]["uid"]): self._since.get(uid, now) for pod in pods}
        self._metrics.unmanaged_pods.set(to=len(pods))
        due = [pod for pod in pods if now - self._since[pod["metadata"]["uid"]] >= self._grace]
        if due:
            await self._restart(min(due, key=lambda pod: self._since[pod["metadata"]["uid"]]))

    def _ours(self, pod: Json) -> bool:
        spec, metadata = pod["spec"], pod["metadata"]
        return (
            not spec.get("hostNetwork")
            and not metadata.get("deletionTimestamp")
            and any(owner.get("controller") for owner in metadata.get("ownerReferences") or ())
            and self._agent_ready(spec.get("nodeName") or "") is True
        )

    async def _managed(self, pod: Json) -> bool:
        namespace, name = key_of(pod)
        try:
            await self._api.get(CILIUM_ENDPOINT, name, namespace=namespace)
        except NotFound:
            return False
        return True

    async def _restart(self, pod: Json) -> None:
        await delete(self._api, POD, identity_of(pod))
        log.info(
            "pod.restarted",
            pod="/".join(key_of(pod)),
            reason=f"runs on {pod['spec'].get('nodeName')} without an endpoint",
        )
