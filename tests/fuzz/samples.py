# SPDX-License-Identifier: Apache-2.0
"""One valid object of every kind an agent follows, with the fields that are read: mutations start there."""

from collections.abc import Mapping
from typing import Any

Document = Mapping[str, Any]

_SELECTOR = {
    "matchLabels": {"app": "web", "k8s:tier": "front"},
    "matchExpressions": [
        {"key": "any:app", "operator": "In", "values": ["web", "db"]},
        {"key": "tier", "operator": "DoesNotExist"},
    ],
}
_NODES = {
    "matchLabels": {"role": "edge"},
    "matchExpressions": [{"key": "node:zone", "operator": "In", "values": ["a"]}],
}
_PORTS = [
    {
        "ports": [
            {"port": "80", "protocol": "TCP"},
            {"port": "1024", "endPort": 2048, "protocol": "UDP"},
            {"port": "http", "protocol": "ANY"},
        ]
    }
]
_CIDR_SET = [
    {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16", "10.2.3.4/32"]},
    {"cidr": "fd00::/8"},
    {"cidrGroupRef": "offices", "except": ["198.51.100.128/25"]},
    {"cidrGroupSelector": {"matchLabels": {"site": "north"}}},
]
_SERVICES = [
    {"k8sService": {"serviceName": "sample", "namespace": "red"}},
    {"k8sServiceSelector": {"selector": {"matchLabels": {"app": "web"}}}},
]
_RULES = {
    "ingress": [
        {"fromEndpoints": [_SELECTOR, {}], "toPorts": _PORTS},
        {"fromCIDR": ["192.0.2.0/24", "2001:db8::1"], "fromCIDRSet": _CIDR_SET},
        {"fromRequires": [{"matchLabels": {"team": "a"}}]},
        {"fromEntities": ["world", "remote-node"], "icmps": [{"fields": [{"type": "EchoRequest"}]}]},
    ],
    "ingressDeny": [{"fromEntities": ["world-ipv6"], "toPorts": _PORTS}, {"fromNodes": [_NODES]}],
    "egress": [
        {"toEndpoints": [_SELECTOR], "toPorts": _PORTS},
        {"toCIDRSet": _CIDR_SET, "icmps": [{"fields": [{"family": "IPv6", "type": 128}]}]},
        {"toEntities": ["kube-apiserver"]},
        {"toServices": _SERVICES},
        {"toNodes": [_NODES], "toRequires": [_SELECTOR]},
    ],
    "egressDeny": [{"toCIDR": ["203.0.113.7"]}],
    "enableDefaultDeny": {"ingress": True, "egress": False},
    "description": "sample",
    "labels": [{"key": "sample", "value": "yes"}],
}


def _cilium(kind: str, **rest: Any) -> Document:
    return {"apiVersion": "cilium.io/v2", "kind": kind, **rest}


SAMPLES: tuple[Document, ...] = (
    {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "red", "labels": {"team": "a"}}},
    {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": "node-one", "labels": {"kubernetes.io/os": "linux"}, "annotations": {"a": "b"}},
        "spec": {
            "podCIDR": "10.0.0.0/24",
            "podCIDRs": ["10.0.0.0/24", "fd00::/64"],
            "taints": [{"key": "node.cilium.io/agent-not-ready", "effect": "NoExecute", "value": "true"}],
        },
        "status": {
            "addresses": [
                {"type": "InternalIP", "address": "192.0.2.1"},
                {"type": "Hostname", "address": "node-one"},
            ],
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    },
    {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "sample",
            "namespace": "red",
            "labels": {"app": "web", "example.com/tier": "front"},
            "creationTimestamp": "2026-01-01T00:00:00Z",
        },
        "spec": {
            "nodeName": "node-one",
            "serviceAccountName": "robot",
            "hostNetwork": False,
            "initContainers": [
                {"restartPolicy": "Always", "ports": [{"name": "side", "containerPort": 9000}]}
            ],
            "containers": [
                {
                    "name": "main",
                    "ports": [
                        {"name": "http", "containerPort": 8080, "protocol": "TCP", "hostPort": 8080},
                        {"containerPort": 53, "protocol": "UDP", "hostIP": "192.0.2.1"},
                    ],
                }
            ],
        },
        "status": {
            "phase": "Running",
            "podIP": "10.0.0.9",
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    },
    {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "sample", "namespace": "red", "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {
            "type": "NodePort",
            "clusterIP": "10.96.0.7",
            "clusterIPs": ["10.96.0.7", "fd00::7"],
            "ports": [
                {"name": "http", "port": 80, "targetPort": "http", "nodePort": 30080},
                {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": 5353},
            ],
            "selector": {"app": "web"},
            "internalTrafficPolicy": "Local",
            "externalTrafficPolicy": "Local",
            "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}},
            "publishNotReadyAddresses": True,
        },
    },
    {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "outside", "namespace": "red"},
        "spec": {
            "type": "LoadBalancer",
            "clusterIP": "10.96.0.8",
            "externalIPs": ["198.51.100.7", "198.51.100.8"],
            "ports": [{"name": "tcp", "port": 53}, {"name": "udp", "port": 53, "protocol": "UDP"}],
            "selector": {"app": "web"},
        },
        "status": {
            "loadBalancer": {
                "ingress": [{"ip": "192.0.2.10", "ipMode": "VIP"}, {"hostname": "lb.example.org"}]
            }
        },
    },
    {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": "sample-1",
            "namespace": "red",
            "labels": {"kubernetes.io/service-name": "sample"},
        },
        "addressType": "IPv4",
        "endpoints": [
            {
                "addresses": ["10.0.0.9"],
                "nodeName": "node-one",
                "conditions": {"ready": True, "serving": True, "terminating": False},
            },
            {"addresses": ["10.1.0.9"], "conditions": {"ready": False, "serving": True, "terminating": True}},
        ],
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}, {"name": "dns", "port": 5353}],
    },
    {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "sample", "namespace": "red"},
        "spec": {
            "podSelector": {"matchLabels": {"app": "web"}},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [
                {
                    "from": [
                        {"podSelector": {}, "namespaceSelector": {"matchLabels": {"team": "a"}}},
                        {"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}},
                    ],
                    "ports": [{"port": 80, "endPort": 90, "protocol": "TCP"}, {"port": "http"}],
                }
            ],
            "egress": [{"to": [{"podSelector": {"matchExpressions": [{"key": "a", "operator": "Exists"}]}}]}],
        },
    },
    _cilium(
        "CiliumNetworkPolicy",
        metadata={"name": "sample", "namespace": "red"},
        spec={
            "endpointSelector": {"matchLabels": {"app": "web"}},
            **_RULES,
        },
    ),
    _cilium(
        "CiliumClusterwideNetworkPolicy",
        metadata={"name": "sample", "uid": "4"},
        specs=[
            {"endpointSelector": {"matchLabels": {"k8s:io.kubernetes.pod.namespace": "red"}}, **_RULES},
            {"endpointSelector": {"matchLabels": {"reserved:health": ""}}, "ingress": [{}]},
        ],
    ),
    _cilium(
        "CiliumCIDRGroup",
        metadata={"name": "offices", "labels": {"site": "north"}},
        spec={"externalCIDRs": ["198.51.100.0/24", "2001:db8:7::/48", "203.0.113.9"]},
    ),
    _cilium(
        "CiliumNode",
        metadata={"name": "node-nine", "labels": {"zone": "a"}, "creationTimestamp": "2026-01-01T00:00:00Z"},
        spec={
            "addresses": [
                {"type": "InternalIP", "ip": "192.168.0.9"},
                {"type": "CiliumInternalIP", "ip": "10.9.0.1"},
            ],
            "ipam": {"podCIDRs": ["10.9.0.0/24"]},
            "health": {"ipv4": "10.9.0.2", "ipv6": ""},
        },
    ),
    _cilium(
        "CiliumIdentity",
        metadata={"name": "61000", "labels": {"app": "web"}},
        **{"security-labels": {"k8s:app": "web", "k8s:io.kubernetes.pod.namespace": "red"}},
    ),
    _cilium(
        "CiliumEndpoint",
        metadata={"name": "far", "namespace": "red", "creationTimestamp": "2026-01-01T00:00:00Z"},
        status={
            "identity": {"id": 61000, "labels": ["k8s:app=web"]},
            "networking": {"addressing": [{"ipv4": "10.9.0.9", "ipv6": "fd00::9"}], "node": "192.168.0.9"},
            "named-ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        },
    ),
)
