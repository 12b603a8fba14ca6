# SPDX-License-Identifier: Apache-2.0
"""
Kubernetes events: what ``kubectl describe`` shows of an object.

The name of an event is made of what it says, so saying it again, after a restart or on another node, is no
new event.
"""

import hashlib
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from itertools import islice
from typing import Final

import structlog

from ciliumd.kubernetes.client import Api, Json
from ciliumd.kubernetes.errors import AlreadyExists, NotFound
from ciliumd.kubernetes.kinds import EVENT, POD, SERVICE
from ciliumd.kubernetes.publisher import PERIOD, Publisher
from ciliumd.tables.schema import ObjectKey, Problem

AGENT: Final = "cilium-agent"
REASON_PENDING: Final = "FrontendPending"
REASON_UNREALIZED: Final = "PolicyNotRealized"
_MESSAGE_MAX: Final = 1024
_CLUSTER_SCOPED_NAMESPACE: Final = "default"
_KINDS: Final = {
    "Service": (SERVICE, REASON_PENDING),
    "Pod": (POD, REASON_PENDING),
    # Nobody describes an endpoint: its pod is told of.
    "Endpoint": (POD, REASON_UNREALIZED),
}
"""By the kind of a problem's object the kind that is told of, and the reason."""
# Thousands of services may wait for one map, on every node: what else the agent has to write goes on.
_AT_ONCE, _PAUSE_SECONDS = 5, 5.0

log = structlog.get_logger("events")


def warning(about: Json, reason: str, message: str, *, component: str, host: str = "") -> Json:
    """
    The Warning event (v1) that *message* is about *about*, an object with apiVersion and kind.

    *component* says it, on the node *host*.
    """
    metadata = about["metadata"]
    namespace = metadata.get("namespace") or _CLUSTER_SCOPED_NAMESPACE
    version = str(metadata.get("generation", ""))
    said = "\0".join((metadata["uid"], version, reason, message)).encode()
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {
            "name": f"{metadata['name'][:200]}.{hashlib.sha256(said).hexdigest()[:16]}",
            "namespace": namespace,
        },
        "involvedObject": {
            "apiVersion": about["apiVersion"],
            "kind": about["kind"],
            "name": metadata["name"],
            "namespace": metadata.get("namespace", ""),
            "uid": metadata["uid"],
            "resourceVersion": metadata["resourceVersion"],
        },
        "type": "Warning",
        "reason": reason,
        "message": message if len(message) <= _MESSAGE_MAX else message[: _MESSAGE_MAX - 3] + "...",
        "source": {"component": component, **({"host": host} if host else {})},
        "reportingComponent": component,
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }


async def warn(api: Api, about: Json, reason: str, message: str, *, component: str, host: str = "") -> None:
    """Tell whoever looks at *about*, once."""
    event = warning(about, reason, message, component=component, host=host)
    try:
        await api.create(EVENT, event)
    except AlreadyExists:
        return  # said before
    log.info("event", reason=reason, object=_name(about), problem=message)


def _name(about: Json) -> str:
    metadata = about["metadata"]
    name = f"{metadata['namespace']}/{metadata['name']}" if metadata.get("namespace") else metadata["name"]
    return f"{about['kind']} {name}"


class ProblemEvents(Publisher):
    """
    What only this *node* knows to be wrong with Services and Pods, told to their authors.

    Call :meth:`wake` when the *problems* are others.  What is over is not told: the object is served.
    """

    def __init__(self, api: Api, problems: Callable[[], Mapping[ObjectKey, Problem]], *, node: str) -> None:
        super().__init__("Event", pause=0.25)
        self._api = api
        self._problems = problems
        self._node = node
        self._said: dict[ObjectKey, Problem] = {}

    async def work(self) -> float:
        """Tell a few of those that were not told yet."""
        wrong = {key: one for key, one in self._problems().items() if key[0] in _KINDS and key[1]}
        self._said = {key: said for key, said in self._said.items() if wrong.get(key) == said}
        untold = {key: one for key, one in wrong.items() if key not in self._said}
        for key, problem in islice(untold.items(), _AT_ONCE):
            await self._tell(key, problem)
            self._said[key] = problem
        self.succeeded()
        return _PAUSE_SECONDS if len(untold) > _AT_ONCE else PERIOD

    async def _tell(self, key: ObjectKey, problem: Problem) -> None:
        problem_of, namespace, name = key
        kind, reason = _KINDS[problem_of]
        try:
            about = await self._api.get(kind, name, namespace=namespace)
        except NotFound:
            return  # nobody looks at it any more
        message = f"{problem.field}: {problem.message}"
        await warn(self._api, about, reason, message, component=AGENT, host=self._node)
