# SPDX-License-Identifier: Apache-2.0
"""What the API server knows of Cilium's workloads, for ``outer_status``."""

import base64
import binascii
import gzip
import json
from typing import Any, Final

from lightkube import Client
from lightkube.core.exceptions import ApiError
from lightkube.generic_resource import GenericNamespacedResource, create_namespaced_resource
from lightkube.models.core_v1 import ContainerStatus
from lightkube.resources.apps_v1 import DaemonSet, Deployment
from lightkube.resources.core_v1 import Pod, Secret

from ciliumd.cli.outer_status import (
    COMPONENTS,
    DAEMON_SET,
    ClusterStatus,
    Component,
    ComponentState,
    Counts,
    PodState,
    judge,
)

EVERYWHERE: Final = "*"
_NOT_FOUND: Final = 404
_FORBIDDEN: Final = 403
_ENDED: Final = frozenset({"Succeeded", "Failed"})
_FINE_WAITING: Final = frozenset({"ContainerCreating", "PodInitializing"})
_ENDPOINT: Final[type[GenericNamespacedResource]] = create_namespaced_resource(
    "cilium.io", "v2", "CiliumEndpoint", "ciliumendpoints"
)


def gather(client: Client, namespace: str) -> ClusterStatus:
    """Everything, asked now.  Raises ApiError and httpx2.TransportError."""
    components = tuple(_component(client, component, namespace) for component in COMPONENTS)
    errors, warnings = judge(components)
    pods = {
        (pod.metadata.namespace, pod.metadata.name)
        for pod in client.list(Pod, namespace=EVERYWHERE)
        if pod.metadata and _needs_endpoint(pod)
    }
    managed = pods & set(_endpoints(client))
    return ClusterStatus(
        components=components,
        managed=len(managed),
        pods=len(pods),
        chart=_chart(client, namespace),
        errors=errors,
        warnings=warnings,
    )


def _component(client: Client, component: Component, namespace: str) -> ComponentState:
    try:
        counts = _counts(client, component, namespace)
    except ApiError as error:
        if error.status.code != _NOT_FOUND:
            raise
        return ComponentState(component)
    key, _, value = component.selector.partition("=")
    pods = client.list(Pod, namespace=namespace, labels={key: value})
    return ComponentState(component, counts, tuple(map(_pod, pods)))


def _counts(client: Client, component: Component, namespace: str) -> Counts:
    if component.kind == DAEMON_SET:
        status = client.get(DaemonSet, component.name, namespace=namespace).status
        if status is None:
            return Counts(0, 0, 0, 0)
        return Counts(
            status.desiredNumberScheduled,
            status.numberReady,
            status.numberAvailable or 0,
            status.numberUnavailable or 0,
        )
    deployment = client.get(Deployment, component.name, namespace=namespace)
    replicas = deployment.spec.replicas
    desired = 1 if replicas is None else replicas
    now = deployment.status
    if now is None:
        return Counts(desired, 0, 0, desired)
    return Counts(desired, now.readyReplicas or 0, now.availableReplicas or 0, now.unavailableReplicas or 0)


def _pod(pod: Pod) -> PodState:
    spec, status, metadata = pod.spec, pod.status, pod.metadata
    found: list[ContainerStatus] = []
    if status is not None:
        found = [*(status.initContainerStatuses or ()), *(status.containerStatuses or ())]
    return PodState(
        name=metadata.name if metadata and metadata.name else "",
        phase=(status.phase if status else None) or "Unknown",
        images=tuple(one.image for one in (spec.containers if spec else ()) if one.image),
        errors=tuple(filter(None, map(_container_error, found))),
    )


def _container_error(status: ContainerStatus) -> str:
    waiting = status.state.waiting if status.state else None
    if waiting is None or waiting.reason in _FINE_WAITING:
        return ""
    text = f"container {status.name} is in {waiting.reason or 'waiting'}"
    return f"{text}: {waiting.message}" if waiting.message else text


def _needs_endpoint(pod: Pod) -> bool:
    on_host = bool(pod.spec and pod.spec.hostNetwork)
    return not on_host and (pod.status.phase if pod.status else None) not in _ENDED


def _endpoints(client: Client) -> list[tuple[str | None, str | None]]:
    try:
        found = list(client.list(_ENDPOINT, namespace=EVERYWHERE))
    except ApiError as error:
        if error.status.code != _NOT_FOUND:
            raise
        return []  # the definition itself is not installed yet
    return [(one.metadata.namespace, one.metadata.name) for one in found if one.metadata]


def _chart(client: Client, namespace: str) -> str:
    """The chart's version of the newest Helm release; empty without one, or without the right to know."""
    try:
        secrets = list(client.list(Secret, namespace=namespace, labels={"owner": "helm", "name": "cilium"}))
    except ApiError as error:
        if error.status.code != _FORBIDDEN:
            raise
        return ""
    if not secrets:
        return ""
    return chart_version(max(secrets, key=_release_number).data or {})


def _release_number(secret: Secret) -> int:
    labels = (secret.metadata.labels if secret.metadata else None) or {}
    return int(labels.get("version", "0"))


def chart_version(data: dict[str, str]) -> str:
    """The version in Helm's record of a release: JSON, gzipped, base64 twice; empty if it is none."""
    try:
        release: Any = json.loads(gzip.decompress(base64.b64decode(base64.b64decode(data["release"]))))
        return str(release["chart"]["metadata"]["version"])
    except (KeyError, TypeError, ValueError, EOFError, OSError, binascii.Error):
        return ""
