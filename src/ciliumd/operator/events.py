# SPDX-License-Identifier: Apache-2.0
"""
Kubernetes events: what ``kubectl describe`` shows of an object.

The name of an event is made of what it says, so saying it again, after a restart too, is no new event.
"""

import hashlib
from datetime import UTC, datetime
from typing import Final

import structlog

from ciliumd.kubernetes.client import Api, Json
from ciliumd.kubernetes.errors import AlreadyExists
from ciliumd.operator.objects import EVENT

COMPONENT: Final = "cilium-operator"
_MESSAGE_MAX: Final = 1024
_CLUSTER_SCOPED_NAMESPACE: Final = "default"

log = structlog.get_logger("events")


def warning(about: Json, reason: str, message: str) -> Json:
    """The Warning event (v1) that *message* is about *about*, an object with apiVersion and kind."""
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
        "source": {"component": COMPONENT},
        "reportingComponent": COMPONENT,
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }


async def warn(api: Api, about: Json, reason: str, message: str) -> None:
    """Tell whoever looks at *about*, once."""
    event = warning(about, reason, message)
    try:
        await api.create(EVENT, event)
    except AlreadyExists:
        return  # said before
    log.info("event", reason=reason, object=_name(about), problem=message)


def _name(about: Json) -> str:
    metadata = about["metadata"]
    name = f"{metadata['namespace']}/{metadata['name']}" if metadata.get("namespace") else metadata["name"]
    return f"{about['kind']} {name}"
