# SPDX-License-Identifier: Apache-2.0
"""Parts of Cilium's ``models.StatusResponse``, of settings and of what was read from their owners."""

from collections.abc import Iterable, Sequence
from typing import Any, Final

from ciliumd.daemon.settings import Settings
from ciliumd.health.model import Summary, timestamp
from ciliumd.kubernetes.source import KubernetesStatus
from ciliumd.model.net import Addr, Prefix, first_of
from ciliumd.model.objects import CILIUM_INTERNAL_IP, EXTERNAL_IP, INTERNAL_IP, NodeRow
from ciliumd.net.devices import NativeDevice
from ciliumd.reconcile.nat_ports import PORTS, NatPorts, PortUse

Json = dict[str, Any]

DISABLED: Final = "Disabled"
_SHOWN_UNREACHABLE: Final = 3


def kubernetes(source: KubernetesStatus | None) -> Json:
    """``models.K8sStatus``; None: no API server is spoken to."""
    if source is None:
        return {"state": DISABLED, "msg": ""}
    well = source.connected and not source.error
    return {
        "state": "Ok" if well else "Failure",
        "msg": _version(source.server_version)
        if well
        else source.error or f"no connection to {source.server}",
        "k8s-api-versions": list(source.apis),
    }


def _version(text: str) -> str:
    """``1.34 (v1.34.4)`` of ``v1.34.4``."""
    major, _, rest = text.removeprefix("v").partition(".")
    return f"{major}.{rest.partition('.')[0]} ({text})"


def cni_file(settings: Settings) -> Json | None:
    """``models.Status`` of the CNI configuration; None when this agent writes none."""
    wanted = settings.write_cni_conf_when_ready
    if wanted is None:
        return None
    if wanted.is_file():
        return {"state": "Ok", "msg": f"successfully wrote CNI configuration file to {wanted}"}
    return {"state": "Warning", "msg": f"{wanted} is not written yet"}


def kube_proxy_replacement(
    settings: Settings, native: Sequence[NativeDevice], *, active: bool, sockets: bool
) -> Json:
    """``models.KubeProxyReplacement``: what packets meet, not what was asked for."""
    outside = settings.serves_node_ports and active
    served = settings.kube_proxy_replacement
    first, last = settings.node_port_range
    node_port: Json = {"enabled": outside}
    if outside:
        node_port |= {
            "mode": "SNAT",
            "algorithm": "Random",
            "acceleration": DISABLED,
            "portMin": first,
            "portMax": last,
        }
    model: Json = {
        "mode": served.shown if active or not served else "False",
        "deviceList": [
            {"name": one.name, "ip": [str(address) for address in one.addresses]} for one in native
        ],
        "devices": [one.name for one in native],
        "features": {
            "socketLB": {"enabled": sockets},
            "socketLBTracing": {"enabled": False},
            "nat46X64": {"enabled": False},
            "nodePort": node_port,
            "externalIPs": {"enabled": settings.serves_external_ips and active},
            "hostPort": {"enabled": settings.serves_host_ports and active},
            "sessionAffinity": {"enabled": active},
            "gracefulTermination": {"enabled": active},
            "bpfSocketLBHostnsOnly": sockets and settings.bpf_lb_sock_hostns_only,
        },
    }
    if outside and native:
        model["directRoutingDevice"] = native[0].name
    return model


def nat_ports(ports: NatPorts) -> Json:
    """Masquerading's ports as they were last counted: who uses most, and where there are none left."""

    def shown(one: PortUse) -> Json:
        return {"used": one.used, "of": PORTS, **one.target.shown()}

    return {
        "most": {f"ipv{version}": shown(one) for version, one in sorted(ports.most.items())},
        "exhausted": [shown(one) for one in ports.full],
    }


def host_routing(settings: Settings, *, active: bool) -> str:
    """How what pods send leaves the node: by programs alone, or through the stack."""
    return "BPF" if active and not settings.host_legacy_routing else "Legacy"


def routing(settings: Settings, *, active: bool) -> Json:
    """``models.Routing``."""
    model = {"intra-host-routing-mode": host_routing(settings, active=active)}
    if settings.routing_mode == "tunnel":
        return {"inter-host-routing-mode": "Tunnel", "tunnel-protocol": settings.tunnel_protocol, **model}
    return {"inter-host-routing-mode": "Native", **model}


def cluster_health(problem: str, counted: Summary | None, *, endpoints: bool) -> Json:
    """``models.Status`` of the health daemon; None counted: nodes are not probed."""
    if counted is None and not endpoints:
        return {"state": DISABLED, "msg": ""}
    return {"state": "Warning" if problem else "Ok", "msg": problem}


def reachability(counted: Summary | None) -> Json | None:
    """The line ``Cluster health`` of the CLI."""
    if counted is None:
        return None
    return {
        "reachable": counted.reachable,
        "total": counted.total,
        "time": timestamp(counted.at) if counted.at else "never",
        "unreachable": list(counted.unreachable[:_SHOWN_UNREACHABLE]),
    }


def node_elements(nodes: Iterable[NodeRow]) -> list[Json]:
    """``models.NodeElement`` of every node, by name."""
    return [_node_element(node) for node in sorted(nodes, key=lambda node: node.full_name)]


def _node_element(node: NodeRow) -> Json:
    primary = {family: first_of(family, node.addresses_of(INTERNAL_IP)) for family in (4, 6)}
    others = [
        _address(address, kind)
        for kind, address in node.addresses
        if kind in {INTERNAL_IP, EXTERNAL_IP, CILIUM_INTERNAL_IP} and address not in primary.values()
    ]
    return {
        "name": node.full_name,
        "primary-address": {
            f"ipv{family}": _primary(address, first_of(family, node.pod_cidrs))
            for family, address in primary.items()
        },
        "secondary-addresses": others,
        "health-endpoint-address": {
            f"ipv{family}": _health(first_of(family, node.health)) for family in (4, 6)
        },
        "source": "custom-resource",
    }


def _primary(address: Addr | None, cidr: Prefix | None) -> Json:
    """Of a family that the node has itself, or its pods."""
    if address is None and cidr is None:
        return {"enabled": False}
    return _address(address, INTERNAL_IP) | {"alloc-range": "" if cidr is None else str(cidr)}


def _health(address: Addr | None) -> Json:
    return {"enabled": False} if address is None else _address(address, "")


def _address(address: Addr | None, kind: str) -> Json:
    return {
        "address-type": kind,
        "enabled": address is not None,
        "ip": "" if address is None else str(address),
    }
