# SPDX-License-Identifier: Apache-2.0
"""Kubernetes objects as the laboratory writes them; plain dictionaries, the full object each."""

from collections.abc import Mapping, Sequence
from typing import Any

Object = dict[str, Any]


def namespace(name: str, labels: Mapping[str, str] | None = None) -> Object:
    """A Namespace."""
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": dict(labels or {})}}


def pod(
    name: str,
    labels: Mapping[str, str],
    *,
    namespace: str = "default",
    ports: Sequence[tuple[str, int, str]] = (),
) -> Object:
    """A Pod; *ports* are (name, number, protocol)."""
    container = {
        "name": "main",
        "image": "none",
        "ports": [
            {"name": port_name, "containerPort": number, "protocol": protocol}
            for port_name, number, protocol in ports
        ],
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": dict(labels)},
        "spec": {"containers": [container]},
    }


def service(
    name: str,
    cluster_ip: str,
    selector: Mapping[str, str],
    *,
    ports: Sequence[tuple[str, int, int | str]] = (("TCP", 80, 80),),
    namespace: str = "default",
    affinity_seconds: int = 0,
) -> Object:
    """A ClusterIP Service; *ports* are (protocol, port, target port)."""
    affinity = {
        "sessionAffinity": "ClientIP",
        "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": affinity_seconds}},
    }
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "type": "ClusterIP",
            "clusterIP": cluster_ip,
            "selector": dict(selector),
            "ports": [
                {
                    "name": f"{protocol.lower()}-{port}",
                    "protocol": protocol,
                    "port": port,
                    "targetPort": target,
                }
                for protocol, port, target in ports
            ],
            **(affinity if affinity_seconds else {}),
        },
    }


def endpoint_slice(
    service: str,
    endpoints: Mapping[str, Mapping[str, bool]],
    *,
    ports: Sequence[tuple[str, int, int]],
    namespace: str = "default",
) -> Object:
    """
    An EndpointSlice of a :func:`service` without selector: conditions by address.

    *ports* are (protocol, port, target port) as the service has them.
    """
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"{service}-1",
            "namespace": namespace,
            "labels": {"kubernetes.io/service-name": service},
        },
        "addressType": "IPv4",
        "ports": [
            {"name": f"{protocol.lower()}-{port}", "port": target, "protocol": protocol}
            for protocol, port, target in ports
        ],
        "endpoints": [
            {"addresses": [address], "conditions": dict(conditions)}
            for address, conditions in endpoints.items()
        ],
    }


def network_policy(name: str, spec: Object, *, namespace: str = "default") -> Object:
    """A Kubernetes NetworkPolicy."""
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    }


def cilium_policy(name: str, spec: Object, *, namespace: str = "default") -> Object:
    """A CiliumNetworkPolicy."""
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    }


def to_ports(*ports: tuple[int, str]) -> list[Object]:
    """``toPorts`` of a CiliumNetworkPolicy."""
    return [{"ports": [{"port": str(number), "protocol": protocol} for number, protocol in ports]}]
