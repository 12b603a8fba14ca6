# SPDX-License-Identifier: Apache-2.0
"""Services of every kind, and the slices behind them, as the laboratory writes them."""

from collections.abc import Mapping, Sequence
from typing import Any

from lab import manifests
from lab.manifests import Object

Ports = Sequence[tuple[str, int, int]]
"""(protocol, port, target port)."""
SOURCES_POLICY = "service.cilium.io/src-ranges-policy"


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
        "addressType": "IPv6" if any(":" in one["addresses"][0] for one in found) else "IPv4",
        "ports": [
            {"name": f"{protocol.lower()}-{port}", "protocol": protocol, "port": target}
            for protocol, port, target in ports
        ],
        "endpoints": list(found),
    }


def endpoint(address: str, node: str, *, conditions: Object | None = None, **fields: Any) -> Object:
    """An endpoint that is ready unless *conditions* say otherwise."""
    return {"addresses": [address], "nodeName": node, "conditions": conditions or {"ready": True}, **fields}


def every_kind(selector: Mapping[str, str], *, denies: bool = False, exchanged: bool = False) -> list[Object]:
    """
    One service with every kind of frontend and source ranges, one with local policies and node ports.

    The first has affinity and the second is local, or the other way round.
    """
    ranges = ["198.51.100.0/25"] if denies else ["203.0.113.0/24", "198.51.100.0/24"]
    front = manifests.service("front", "10.96.0.31", selector, affinity_seconds=0 if exchanged else 60)
    front["metadata"]["annotations"] = {SOURCES_POLICY: "deny" if denies else "allow"}
    front["spec"] |= {
        "type": "LoadBalancer",
        "externalIPs": ["198.51.100.7"],
        "loadBalancerSourceRanges": ranges,
        "externalTrafficPolicy": "Local" if exchanged else "Cluster",
    }
    front["spec"]["ports"][0]["nodePort"] = 30080
    front["status"] = {"loadBalancer": {"ingress": [{"ip": "198.51.100.8"}]}}
    near = manifests.service("near", "10.96.0.32", selector, affinity_seconds=60 if exchanged else 0)
    local = "Cluster" if exchanged else "Local"
    near["spec"] |= {"type": "NodePort", "internalTrafficPolicy": local, "externalTrafficPolicy": local}
    near["spec"]["ports"][0]["nodePort"] = 30081
    return [front, near]


def add_host_port(pod: Object, port: int, target: int) -> None:
    """Make *target* of a pod's manifest a port of its node."""
    ports = pod["spec"]["containers"][0]["ports"]
    ports.append({"containerPort": target, "hostPort": port, "protocol": "TCP"})
