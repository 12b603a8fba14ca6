# SPDX-License-Identifier: Apache-2.0
"""What a node's kernel and directories hold, as text: to be compared before and after."""

from dataclasses import dataclass

from lab.k8s.ciliumd import Ciliumd
from lab.k8s.cluster import Cluster


@dataclass(frozen=True, slots=True)
class Installed:
    """ciliumd as it was installed: what the nodes were before, and how long it took, in seconds."""

    ciliumd: Ciliumd
    before: dict[str, dict[str, str]]
    seconds: float


def fingerprint(cluster: Cluster) -> dict[str, dict[str, str]]:
    """What a node's kernel and directories hold, by node and kind; the same before and after ciliumd."""
    commands = {
        "links": "ip -br link | awk '{print $1}' | sort",
        "addresses": "ip -br address | sort",
        "rules": "ip rule; ip route show table all | grep -v 'table local' | sort",
        "filters": "for link in $(ls /sys/class/net); do tc filter show dev $link ingress; "
        "tc filter show dev $link egress; done; bpftool net show | tail -n +2",
        "firewall": "nft --stateless list ruleset",
        "pins": "find /sys/fs/bpf -mindepth 1 | sort",
        "cni": "cd /etc/cni/net.d && ls -A",
        "executables": "cd /opt/cni/bin && ls -A",
        "sysctl files": "ls -A /etc/sysctl.d",
        "run": "ls -A /run/cilium 2>/dev/null || true",
    }
    return {
        node.name: {what: node.run(["/bin/sh", "-c", command]).stdout for what, command in commands.items()}
        for node in cluster.nodes
    }
