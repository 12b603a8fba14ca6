# SPDX-License-Identifier: Apache-2.0
"""Objects as large as somebody may write them and an API server takes them: ten thousand of each thing."""

from collections.abc import Callable, Mapping
from typing import Any

MANY = 10_000
Document = dict[str, Any]


def _cilium(**spec: Any) -> Document:
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": {"name": "large", "namespace": "blue"},
        "spec": {"endpointSelector": {}, **spec},
    }


def _kubernetes(**spec: Any) -> Document:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "large", "namespace": "blue"},
        "spec": {"podSelector": {}, **spec},
    }


def _ports(number: int) -> list[Document]:
    return [{"ports": [{"port": str(number % 65535 + 1), "protocol": "TCP"}]}]


def _prefix(number: int) -> str:
    return f"20.{number >> 8}.{number & 255}.0/24"


def _core(kind: str, **rest: Any) -> Document:
    metadata = {"name": "large", "namespace": "blue"} | rest.pop("metadata", {})
    return {"apiVersion": "v1", "kind": kind, "metadata": metadata, **rest}


LARGE: Mapping[str, Callable[[int], Document]] = {
    "rules with a selector and a port each": lambda many: _cilium(
        ingress=[
            {"fromEndpoints": [{"matchLabels": {"app": f"app-{i}"}}], "toPorts": _ports(i)}
            for i in range(many)
        ]
    ),
    "rules for one peer with a port each": lambda many: _cilium(
        ingress=[{"fromEntities": ["cluster"], "toPorts": _ports(i)} for i in range(many)]
    ),
    "deny rules with a prefix each": lambda many: _cilium(
        egressDeny=[{"toCIDR": [_prefix(i)]} for i in range(many)]
    ),
    "prefixes in one rule": lambda many: _cilium(egress=[{"toCIDR": [_prefix(i) for i in range(many)]}]),
    "exceptions of one prefix": lambda many: _cilium(
        egress=[{"toCIDRSet": [{"cidr": "20.0.0.0/8", "except": [_prefix(i) for i in range(many)]}]}]
    ),
    "prefixes nested in each other": lambda many: _cilium(
        egress=[{"toCIDRSet": [{"cidr": f"20.0.0.0/{8 + i % 24}"} for i in range(many)]}]
    ),
    "terms of one selector": lambda many: _cilium(
        ingress=[
            {
                "fromEndpoints": [
                    {"matchExpressions": [{"key": f"k{i}", "operator": "Exists"} for i in range(many)]}
                ]
            }
        ]
    ),
    "values of one term": lambda many: _cilium(
        ingress=[
            {
                "fromEndpoints": [
                    {
                        "matchExpressions": [
                            {"key": "app", "operator": "NotIn", "values": [f"v{i}" for i in range(many)]}
                        ]
                    }
                ]
            }
        ]
    ),
    "specs of one policy": lambda many: {
        **_cilium(),
        "spec": None,
        "specs": [{"endpointSelector": {}, "ingress": [{"toPorts": _ports(i)}]} for i in range(many)],
    },
    "rules of a NetworkPolicy": lambda many: _kubernetes(
        ingress=[
            {
                "from": [{"podSelector": {"matchLabels": {"app": f"app-{i}"}}}],
                "ports": [{"port": i % 65535 + 1}],
            }
            for i in range(many)
        ]
    ),
    "ipBlocks of a NetworkPolicy": lambda many: _kubernetes(
        egress=[{"to": [{"ipBlock": {"cidr": _prefix(i)}}]} for i in range(many)], policyTypes=["Egress"]
    ),
    "ports of a Service": lambda many: _core(
        "Service",
        spec={
            "clusterIP": "10.96.0.9",
            "ports": [{"name": f"p{i}", "port": i + 1, "targetPort": 80} for i in range(many)],
        },
    ),
    "endpoints of a slice": lambda many: {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": "large",
            "namespace": "default",
            "labels": {"kubernetes.io/service-name": "web"},
        },
        "addressType": "IPv4",
        "endpoints": [{"addresses": [f"20.0.{i >> 8}.{i & 255}"]} for i in range(many)],
        "ports": [{"name": "http", "port": 8080}],
    },
    "labels of a Pod": lambda many: _core(
        "Pod", metadata={"labels": {f"k{i}": "v" for i in range(many)}}, spec={}
    ),
    "ports of a Pod": lambda many: _core(
        "Pod",
        spec={
            "containers": [
                {"ports": [{"name": f"p{i}", "containerPort": i % 65535 + 1} for i in range(many)]}
            ]
        },
    ),
    "labels of a CiliumIdentity": lambda many: {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumIdentity",
        "metadata": {"name": "61000"},
        "security-labels": {f"k8s:k{i}": "v" for i in range(many)},
    },
    "pod CIDRs of a CiliumNode": lambda many: {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNode",
        "metadata": {"name": "large"},
        "spec": {
            "addresses": [{"type": "InternalIP", "ip": "192.168.0.9"}],
            "ipam": {"podCIDRs": [_prefix(i) for i in range(many)]},
        },
    },
}
"""By what there is much of."""
