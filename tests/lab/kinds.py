# SPDX-License-Identifier: Apache-2.0
"""Services of every kind, and the slices behind them, as the laboratory writes them."""

from collections.abc import Sequence
from typing import Any

from lab import manifests
from lab.manifests import Object

Ports = Sequence[tuple[str, int, int]]
"""(protocol, port, target port)."""


def service(
    name: str,
    cluster_ip: str,
    *,
    ports: Ports = (("TCP", 80, 80),),
    kind: str = "ClusterIP",
    balancer: Sequence[str] = (),
    annotations: dict[str, str] | None = None,
    **spec: Any,
) -> Object:
    """A Service without selector; *balancer* are addresses of its status, *spec* more fields of its spec."""
    made = manifests.service(name, cluster_ip, {}, ports=ports)
    del made["spec"]["selector"]
    made["spec"] |= {"type": kind, **spec}
    if annotations:
        made["metadata"]["annotations"] = annotations
    if balancer:
        made["status"] = {"loadBalancer": {"ingress": [{"ip": address} for address in balancer]}}
    return made


def endpoints(service: str, *found: Object, ports: Ports = (("TCP", 80, 80),)) -> Object:
    """Its EndpointSlice with the endpoints *found*."""
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"{service}-1",
            "namespace": "default",
            "labels": {"kubernetes.io/service-name": service},
        },
        "addressType": "IPv4",
        "ports": [
            {"name": f"{protocol.lower()}-{port}", "protocol": protocol, "port": target}
            for protocol, port, target in ports
        ],
        "endpoints": list(found),
    }


def endpoint(address: str, node: str, *, conditions: Object | None = None, **fields: Any) -> Object:
    """An endpoint that is ready unless *conditions* say otherwise."""
    return {"addresses": [address], "nodeName": node, "conditions": conditions or {"ready": True}, **fields}
