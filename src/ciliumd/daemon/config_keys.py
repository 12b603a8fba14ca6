# SPDX-License-Identifier: Apache-2.0
"""
The keys of the ConfigMap ``cilium-config``: whose each is, and what it is called here.

Names are Cilium's (its ``cmdref`` and the ``cilium-config`` its chart writes).  A key is an option of the
agent under its own or another name, or belongs to the operator, an init container or a client, or stands
for a feature this version has in one way only.
"""

from collections.abc import Mapping
from typing import Final

RENAMED: Final[Mapping[str, str]] = {
    "bpf-nat-global-max": "bpf_nat_max",
    "ipv4-service-loopback-address": "loopback_ipv4",
    "ipv6-service-loopback-address": "loopback_ipv6",
    "k8s-kubeconfig-path": "kubeconfig",
    "native-routing-cidr": "ipv4_native_routing_cidr",
    "prometheus-serve-addr": "metrics_address",
    "socket-path": "api_socket",
}
"""Field of the settings by the key Cilium has for it, where that is not the field's own name."""

CONNTRACK_SIZES: Final = ("bpf-ct-global-tcp-max", "bpf-ct-global-any-max")
"""Sizes of Cilium's two tables; here one table holds what both hold."""

_OFF: Final = frozenset({"false", "disabled", "off", "none", "0", ""})


def _off(feature: str) -> tuple[frozenset[str], str]:
    return _OFF, f"{feature} is not in this version"


FIXED: Final[Mapping[str, tuple[frozenset[str], str]]] = {
    "auto-direct-node-routes": _off("installing routes to other nodes' pods"),
    "bpf-lb-acceleration": _off("XDP acceleration"),
    "bpf-lb-algorithm": (frozenset({"random"}), "backends are chosen at random in this version"),
    "bpf-lb-mode": (frozenset({"snat"}), "services are forwarded by SNAT only in this version"),
    "clustermesh-enable-endpoint-sync": _off("ClusterMesh"),
    "clustermesh-enable-mcs-api": _off("ClusterMesh"),
    "custom-cni-conf": _off("a CNI configuration written by somebody else"),
    "datapath-mode": (frozenset({"veth"}), "pods have veth devices in this version"),
    "enable-bandwidth-manager": _off("the bandwidth manager"),
    "enable-bgp-control-plane": _off("BGP"),
    "enable-bpf-masquerade": (frozenset({"true"}), "masquerading is done by BPF, never by iptables"),
    "enable-cilium-endpoint-slice": _off("CiliumEndpointSlice"),
    "enable-encryption-strict-mode": _off("encryption"),
    "enable-endpoint-routes": _off("a route per endpoint"),
    "enable-envoy-config": _off("Envoy"),
    "enable-gateway-api": _off("Gateway API"),
    "enable-host-firewall": _off("the host firewall"),
    "enable-hubble": _off("Hubble's API"),
    "enable-ingress-controller": _off("the Ingress controller"),
    "enable-ip-masq-agent": _off("the IP masquerade agent"),
    "enable-ipsec": _off("IPsec"),
    "enable-ipv4-egress-gateway": _off("the egress gateway"),
    "enable-ipv6-egress-gateway": _off("the egress gateway"),
    "enable-k8s-networkpolicy": (frozenset({"true"}), "NetworkPolicy is always enforced"),
    "enable-l2-announcements": _off("announcing addresses on layer 2"),
    "enable-l7-proxy": _off("L7 policy"),
    "enable-local-redirect-policy": _off("CiliumLocalRedirectPolicy"),
    "enable-node-ipam": _off("node IPAM"),
    "enable-policy-secrets-sync": _off("L7 policy"),
    "enable-srv6": _off("SRv6"),
    "enable-wireguard": _off("WireGuard"),
    "enable-xt-socket-fallback": _off("iptables"),
    "install-no-conntrack-iptables-rules": _off("skipping netfilter's conntrack by iptables"),
    "mesh-auth-enabled": _off("mutual authentication"),
    "mesh-auth-mutual-enabled": _off("mutual authentication"),
    "multicast-enabled": _off("multicast"),
    "policy-cidr-match-mode": _off("matching nodes by CIDR"),
    "wireguard-encapsulate": _off("WireGuard"),
}
"""Values a key may have, and why it may have no other; empty always means that nothing is said."""

FOREIGN: Final = frozenset(
    {
        # The operator's.
        "agent-not-ready-taint-key",
        "cilium-pod-labels",
        "pod-restart-selector",
        "resync-interval",
        "unmanaged-pod-grace",
        "annotate-k8s-node",
        "cilium-endpoint-gc-interval",
        "cilium-node-gc-interval",
        "identity-gc-interval",
        "identity-gc-rate-interval",
        "identity-gc-rate-limit",
        "identity-heartbeat-timeout",
        "leader-election-lease-duration",
        "leader-election-renew-deadline",
        "leader-election-retry-period",
        "nodes-gc-interval",
        "operator-api-serve-addr",
        "operator-prometheus-serve-addr",
        "remove-cilium-node-taints",
        "set-cilium-is-up-condition",
        "set-cilium-node-taints",
        "skip-crd-creation",
        "synchronize-k8s-nodes",
        "taint-sync-workers",
        "unmanaged-pod-watcher-interval",
        # The init containers'.
        "clean-cilium-bpf-state",
        "clean-cilium-state",
        "cni-uninstall",
        # What clients read, and what has no effect on what this version does.
        "cgroup-hostroot",
        "cni-log-file",
        "identity-management-mode",
        "ipam-cilium-node-update-rate",
        "monitor-aggregation",
        "preallocate-bpf-maps",
    }
)
"""Keys that are right where they are and not the agent's."""
