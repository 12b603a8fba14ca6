# SPDX-License-Identifier: Apache-2.0
"""
The network that ciliumd is compared with: Kubernetes' reference plugins and kube-proxy.

Bridge, host-local and portmap, static routes between the nodes, no masquerading and no policy.
"""

import json
from pathlib import Path
from typing import Any, Final

from lab.k8s.kubectl import Kubectl
from lab.k8s.node import ClusterNode
from lab.k8s.pki import Pki
from lab.k8s.plan import POD_CIDR
from lab.netns import IP
from lab.process import run

CONFLIST: Final = "etc/cni/net.d/10-baseline.conflist"
PROXY_MODES: Final = ("iptables", "nftables")


def configure(kubectl: Kubectl, nodes: list[ClusterNode]) -> None:
    """Give every node its CNI configuration and the routes to the others' pods."""
    kubectl.until(lambda: all(_cidrs(kubectl).values()), "nodes have pod CIDRs")
    cidrs = _cidrs(kubectl)
    for node in nodes:
        for other in nodes:
            if other is not node:
                run([IP, "-n", node.netns.name, "route", "replace", cidrs[other.name], "via", other.address])
        # Same-bridge traffic to a service passes kube-proxy's rules only so.
        node.run(["/bin/sh", "-c", "echo 1 > /proc/sys/net/bridge/bridge-nf-call-iptables"])
        path = node.directory / CONFLIST
        aside = path.with_suffix(".new")
        aside.write_text(json.dumps(_conflist(cidrs[node.name]), indent=1))
        aside.rename(path)


def start_proxy(nodes: list[ClusterNode], pki: Pki, programs: Path, mode: str) -> None:
    """Start kube-proxy on every node."""
    for node in nodes:
        config = node.directory / "kube-proxy.json"
        written = proxy_configuration(node.name, mode, pki.kubeconfig("proxy"), POD_CIDR)
        config.write_text(json.dumps(written, indent=1))
        node.spawn("kube-proxy", [programs / "kube-proxy", f"--config={config}", "--v=2"])


def _cidrs(kubectl: Kubectl) -> dict[str, str]:
    nodes = kubectl.list("nodes")
    return {node["metadata"]["name"]: node["spec"].get("podCIDR", "") for node in nodes}


def _conflist(cidr: str) -> dict[str, Any]:
    bridge = {
        "type": "bridge",
        "bridge": "cni0",
        "isGateway": True,
        "ipMasq": False,
        "hairpinMode": True,
        "ipam": {"type": "host-local", "ranges": [[{"subnet": cidr}]], "routes": [{"dst": "0.0.0.0/0"}]},
    }
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
    return {"cniVersion": "0.4.0", "name": "baseline", "plugins": [bridge, portmap]}


def proxy_configuration(node: str, mode: str, kubeconfig: Path, pod_cidr: str) -> dict[str, Any]:
    """kube-proxy's KubeProxyConfiguration on a node that is a network namespace."""
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": mode,
        "clusterCIDR": pod_cidr,
        "hostnameOverride": node,
        "clientConnection": {"kubeconfig": str(kubeconfig)},
        # Limits of connection tracking belong to the machine: a node's namespace cannot write them.
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
    }
