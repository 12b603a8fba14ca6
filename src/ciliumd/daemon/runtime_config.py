# SPDX-License-Identifier: Apache-2.0
"""``agent-runtime-config.json`` below the state directory: what clients of Cilium gate their questions by."""

import json
import os
from typing import Any, Final

from ciliumd.daemon.settings import Settings

Json = dict[str, Any]

FILE: Final = "agent-runtime-config.json"


def write_runtime_config(settings: Settings) -> None:
    """Replace the file.  Raises OSError."""
    path = settings.state_dir / FILE
    aside = path.with_name(path.name + ".new")
    # What a write that was cut short had left could have another mode.
    aside.unlink(missing_ok=True)
    # Not Path.touch: it calls utimensat(2), which the agent's profile of system calls does not have.
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640)
    with os.fdopen(descriptor, "w") as file:
        file.write(json.dumps(runtime_config(settings), indent=2) + "\n")
    aside.replace(path)


def runtime_config(settings: Settings) -> Json:
    """Keys are those of Cilium's ``DaemonConfig``: what clients ask for, and what this version has."""
    tunnel = settings.routing_mode == "tunnel"
    return {
        "ClusterName": settings.cluster_name,
        "ClusterID": settings.cluster_id,
        "EnableEndpointHealthChecking": settings.enable_endpoint_health_checking,
        "EnableHealthChecking": settings.enable_health_checking,
        "EnableICMPRules": True,
        "EnableIPv4": settings.enable_ipv4,
        "EnableIPv6": settings.enable_ipv6,
        "EnableK8sNetworkPolicy": True,
        "EncryptNode": False,
        "IPAM": settings.ipam,
        "KubeProxyReplacement": settings.kube_proxy_replacement.value,
        "MonitorAggregation": "medium",
        "NodeEncryptionOptOutLabelsString": "",
        "RoutingMode": settings.routing_mode,
        "TunnelProtocol": settings.tunnel_protocol if tunnel else "",
    }
