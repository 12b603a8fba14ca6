# SPDX-License-Identifier: Apache-2.0
"""
Options of the agent: command line, then ``CILIUMD_*`` environment, then ``--config-dir``, then defaults.

Validation only; nothing is looked up on the machine here.
"""

import re
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from ciliumd.daemon import replacement
from ciliumd.daemon.config_directory import ConfigDirectory, ConfigRefused, interpret, read_texts
from ciliumd.daemon.config_keys import RENAMED
from ciliumd.daemon.replacement import Replacement
from ciliumd.model.service import ServiceKind

LOOPBACK = IPv4Address("169.254.42.1")
LOOPBACK6 = IPv6Address("100::1")
"""Of the block that nobody routes (RFC 6666); a link-local one would not be answered through the gateway."""

_SECONDS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(h|ms|m|s|us|µs|ns)")


class SettingsInvalid(Exception):
    """The options make no sense; the text names each option and what is wrong with it."""


def _seconds(value: object) -> object:
    """Go's way of writing a duration (``1m30s``) as seconds; anything else as it is."""
    if not isinstance(value, str) or not re.fullmatch(f"(?:{_DURATION.pattern})+", value):
        return value
    return sum(float(number) * _SECONDS[unit] for number, unit in _DURATION.findall(value))


def _words(value: object) -> object:
    """A list is written with commas or spaces between its elements."""
    return tuple(value.replace(",", " ").split()) if isinstance(value, str) else value


Seconds = Annotated[float, BeforeValidator(_seconds), Field(gt=0, allow_inf_nan=False)]
Port = Annotated[int, Field(ge=1, le=65535)]


class Settings(BaseSettings):
    """What can be told to ``ciliumd agent``; keys of the ConfigMap have the same names, or Cilium's."""

    model_config = SettingsConfigDict(
        env_prefix="CILIUMD_",
        cli_prog_name="ciliumd agent",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
        cli_exit_on_error=False,
        extra="forbid",
        frozen=True,
    )

    manifests: Path | None = Field(
        default=None, description="directory of Kubernetes YAML to serve; default: the Kubernetes API"
    )
    config_dir: Path | None = Field(
        default=None, description="directory with a file per option, as a ConfigMap is mounted"
    )
    node_name: str = Field(default="", description="name of this node; default: the host name")
    cluster_name: str = Field(
        default="default",
        pattern=r"^[a-z0-9]([-a-z0-9]{0,30}[a-z0-9])?$",
        description="name of the cluster, part of every identity",
    )
    cluster_id: int = Field(default=0, ge=0, le=255, description="number of the cluster; 0: it stands alone")

    kubeconfig: Path | None = Field(
        default=None, description="kubeconfig of the API server; default: the pod's service account"
    )
    k8s_api_server: str = Field(default="", description="URL of the API server instead of what is found")
    k8s_namespace: str = Field(default="kube-system", description="namespace the agent runs in")

    routing_mode: Literal["native", "tunnel"] = Field(
        default="native",
        description="how pods of other nodes are reached: by the network's routes or a tunnel",
    )
    tunnel_protocol: Literal["vxlan"] = Field(default="vxlan", description="encapsulation of the tunnel")
    underlay_protocol: Literal["auto", "ipv4", "ipv6"] = Field(
        default="auto",
        description="family of the nodes' addresses that the tunnel uses; auto: IPv4 where pods have it",
    )
    tunnel_port: Port = Field(default=8472, description="UDP port of the tunnel")
    ipam: Literal["cluster-pool", "kubernetes"] = Field(
        default="cluster-pool", description="who gives nodes their pod CIDR: the operator, or Kubernetes"
    )
    cluster_pool_ipv4_cidr: Annotated[tuple[IPv4Network, ...], NoDecode, BeforeValidator(_words)] = Field(
        default=(IPv4Network("10.0.0.0/8"),), description="networks the operator takes pod CIDRs from"
    )
    cluster_pool_ipv4_mask_size: int = Field(
        default=24, ge=1, le=30, description="prefix length of a node's pod CIDR"
    )
    pod_cidr: IPv4Network = Field(
        default=IPv4Network("10.0.0.0/24"),
        description="with --manifests: addresses of this node's pods; the first is cilium_host's",
    )
    pod_cidr_ipv6: IPv6Network = Field(
        default=IPv6Network("fd00::/112"),
        description="the same of IPv6, where it is enabled",
    )
    enable_ipv6: bool = Field(default=False, description="IPv6 for pods")
    cluster_pool_ipv6_cidr: Annotated[tuple[IPv6Network, ...], NoDecode, BeforeValidator(_words)] = Field(
        default=(IPv6Network("fd00::/104"),), description="IPv6 networks the operator takes pod CIDRs from"
    )
    cluster_pool_ipv6_mask_size: int = Field(
        default=120, ge=64, le=126, description="prefix length of a node's IPv6 pod CIDR"
    )
    enable_ipv4: bool = Field(default=True, description="IPv4 for pods; without it they need --enable-ipv6")
    devices: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_words)] = Field(
        default=(), description="native devices, with commas between; default: those with a default route"
    )
    mtu: int = Field(default=0, ge=0, le=65535, description="MTU of pods; 0: that of the native device")
    enable_ipv4_masquerade: bool = Field(
        default=True, description="pods leave the node with its native device's address"
    )
    ipv4_native_routing_cidr: IPv4Network | None = Field(
        default=None, description="network that pods reach with their own address"
    )
    enable_ipv6_masquerade: bool = Field(default=True, description="the same for IPv6, where pods have it")
    ipv6_native_routing_cidr: IPv6Network | None = Field(
        default=None, description="IPv6 network that pods reach with their own address"
    )
    kube_proxy_replacement: Replacement = Field(
        default=Replacement.TRUE,
        description="services are served here, not by kube-proxy: true, false, or partial, which is those "
        "that the next four say; strict, probe and disabled of older versions are understood",
    )
    bpf_lb_sock: bool | None = Field(
        default=None, description="with partial: translate services at connect(2), in --cgroup-root"
    )
    enable_node_port: bool | None = Field(default=None, description="with partial: serve NodePorts")
    enable_external_ips: bool | None = Field(
        default=None, description="with partial: serve external addresses of services"
    )
    enable_host_port: bool | None = Field(default=None, description="with partial: serve host ports")
    enable_host_legacy_routing: bool = Field(
        default=False,
        description="what pods send out of the node goes through its stack; always so beside kube-proxy",
    )
    allow_external_addresses: Annotated[
        tuple[IPv4Network | IPv6Network, ...], NoDecode, BeforeValidator(_words)
    ] = Field(
        default=(),
        description="networks that services may take addresses of although a node, a pod, another service, a "
        "resolver or the API server has them",
    )
    bpf_lb_external_clusterip: bool = Field(
        default=False, description="cluster addresses of services are reached from outside, too"
    )
    enable_health_check_nodeport: bool = Field(
        default=True, description="answer load balancers at the healthCheckNodePort of services"
    )
    kube_proxy_replacement_healthz_bind_address: str = Field(
        default="", description="address of kube-proxy's /healthz, 0.0.0.0:10256 for one; empty: none"
    )
    node_port_range: Annotated[tuple[Port, Port], NoDecode, BeforeValidator(_words)] = Field(
        default=(30000, 32767), description="first and last port of NodePorts"
    )
    bpf_lb_sock_hostns_only: bool = Field(
        default=False,
        description="sockets of pods are left as they are, and their packets translated one by one: for "
        "service meshes and virtual machines in pods",
    )
    node_port_bind_protection: bool = Field(
        default=True, description="no socket of the node may bind a NodePort or another port of a service"
    )
    enable_auto_protect_node_port_range: bool = Field(
        default=True,
        description="sockets of the node that name no port never get one of --node-port-range "
        "(net.ipv4.ip_local_reserved_ports)",
    )
    bpf_lb_sock_terminate_pod_connections: bool = Field(
        default=True,
        description="UDP sockets of pods, too, end when a service gives up their backend; takes "
        "CAP_SYS_ADMIN and the pods' namespaces at the paths the runtime has for them",
    )
    k8s_service_proxy_name: str = Field(
        default="",
        description="value of the label service.kubernetes.io/service-proxy-name of the services that are "
        "served; empty: those without the label",
    )
    lb_sock_terminate_all_protos: bool = Field(
        default=False, description="so do connections of TCP, once their backend is no longer listed"
    )
    enable_policy: Literal["default", "always", "never"] = Field(
        default="default",
        description="endpoints in default deny: those a policy selects, all, none",
    )
    policy_audit_mode: bool = Field(
        default=False,
        description="what policies would drop is let through and told of; `cilium endpoint config` says "
        "otherwise for one endpoint",
    )
    bpf_events_drop_enabled: Annotated[bool, Field(description="tell of dropped packets")] = True
    bpf_events_policy_verdict_enabled: Annotated[bool, Field(description="tell of allowed flows")] = True
    bpf_events_trace_enabled: Annotated[bool, Field(description="tell of forwarded packets")] = True
    policy_deny_response: Literal["none", "icmp"] = Field(
        default="none",
        description="what a pod gets when a policy drops what it sends: nothing, or an ICMP error",
    )
    labels: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_words)] = Field(
        default=(), description="prefixes of the labels that identities are made of; ! in front: not these"
    )
    enable_node_selector_labels: bool = Field(
        default=False,
        description="other nodes have identities by their labels, and policies may select them "
        "(fromNodes, toNodes)",
    )
    node_labels: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_words)] = Field(
        default=(),
        description="with --enable-node-selector-labels: prefixes of the labels that identities of nodes are "
        "made of; ! in front: not these; default: all labels",
    )
    identity_allocation_mode: Literal["crd"] = Field(default="crd", description="where identities are kept")

    bpf_root: Path = Field(
        default=Path("/sys/fs/bpf/ciliumd"), description="where maps, links and programs are pinned"
    )
    cgroup_root: Path | Literal["auto"] | None = Field(
        default=None,
        description="cgroup v2 directory whose sockets get service translation; auto: the one that holds all "
        "pods' groups; none: no socket LB",
    )
    procfs: Path = Field(
        default=Path("/proc"), description="procfs whose sys/net may be written; a container's own may not"
    )
    state_dir: Path = Field(
        default=Path("/var/run/cilium/state"), description="endpoints, identities, last good objects"
    )
    api_socket: Path = Field(
        default=Path("/var/run/cilium/cilium.sock"), description="where the CLI connects"
    )
    cni_socket: Path = Field(
        default=Path("/var/run/cilium/cni.sock"), description="where the CNI executable connects"
    )
    write_cni_conf_when_ready: Path | None = Field(
        default=None, description="file the CNI configuration is written to once pods can be made"
    )
    cni_exclusive: bool = Field(
        default=True, description="other CNI configurations beside ours are set aside (.cilium_bak)"
    )
    cni_chaining_mode: Literal["none"] = Field(default="none", description="plugin that makes pods' devices")
    attach_mode: Literal["auto", "tcx", "tc"] = Field(
        default="auto", description="how tc programs are attached; auto: tcx where the kernel has it"
    )

    bpf_ct_max: int = Field(default=262144, ge=1024, le=1 << 24, description="conntrack rows")
    bpf_nat_max: int = Field(default=131072, ge=1024, le=1 << 24, description="masquerading rows")
    bpf_lb_map_max: int = Field(default=65536, ge=256, le=1 << 24, description="rows of each service map")
    bpf_ipcache_max: int = Field(default=512000, ge=256, le=1 << 24, description="ipcache rows")
    bpf_events_size: int = Field(
        default=8 << 20, ge=4096, le=1 << 30, description="bytes of the event ring; a power of two"
    )
    conntrack_gc_interval: Seconds = Field(default=30.0, description="seconds between garbage collections")
    drift_interval: Seconds = Field(default=30.0, description="seconds between full comparisons of maps")

    enable_health_checking: bool = Field(default=True, description="probe the other nodes")
    enable_endpoint_health_checking: bool = Field(
        default=True, description="have a health endpoint on every node and probe those too"
    )
    cluster_health_port: Port = Field(default=4240, description="TCP port nodes are probed at")
    health_check_interval: Seconds = Field(default=60.0, description="seconds between probes of a node")
    agent_health_port: Port = Field(default=9879, description="TCP port of /healthz on the loopback address")
    metrics_address: str = Field(
        default="127.0.0.1:9962", description="address of the Prometheus endpoint; empty: none"
    )
    debug: bool = Field(default=False, description="the same as --log-level debug")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="least of what is logged"
    )
    log_format: Literal["logfmt", "json"] = Field(default="logfmt", description="how lines are written")

    loopback_ipv4: Annotated[IPv4Address, Field(description="source of a pod that reaches itself")] = LOOPBACK
    loopback_ipv6: Annotated[IPv6Address, Field(description="the same of IPv6")] = LOOPBACK6

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003  the signature is pydantic's
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003  the same
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The command line is put in front by pydantic."""
        return init_settings, env_settings, _DirectorySource(settings_cls)

    @field_validator("kube_proxy_replacement", mode="before")
    @classmethod
    def _replaces(cls, value: object) -> object:
        """A word, or what YAML made of one."""
        return str(value).lower() if isinstance(value, str | bool) else value

    @field_validator("metrics_address", "kube_proxy_replacement_healthz_bind_address")
    @classmethod
    def _listenable(cls, value: str, info: ValidationInfo) -> str:
        _, colon, port = value.rpartition(":")
        if value and not (colon and port.isdecimal() and int(port) < 1 << 16):
            example = "127.0.0.1:9962" if info.field_name == "metrics_address" else "0.0.0.0:10256"
            raise ValueError(f"{value!r} is no address; write {example}, or nothing to listen nowhere")
        return value

    @field_validator("loopback_ipv6")
    @classmethod
    def _answerable(cls, value: IPv6Address) -> IPv6Address:
        if value.is_link_local or value.is_multicast:
            raise ValueError(f"{value} is not answered through a pod's gateway; take an address of no link")
        return value

    @model_validator(mode="before")
    @classmethod
    def _debugging(cls, data: dict[str, Any]) -> dict[str, Any]:
        """``debug`` is a log level, unless one is given."""
        if str(data.get("debug", "")).lower() in {"true", "1", "yes", "on"}:
            return {"log_level": "debug", **data}
        return data

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not (self.enable_ipv4 or self.enable_ipv6):
            raise ValueError("enable-ipv4 and enable-ipv6 are both false: pods need an address of one family")
        if self.pod_cidr.prefixlen > 30:
            raise ValueError(f"pod-cidr {self.pod_cidr} has no room for a router and a pod")
        if self.pod_cidr_ipv6.prefixlen > 126:
            raise ValueError(f"pod-cidr-ipv6 {self.pod_cidr_ipv6} has no room for a router and a pod")
        if self.bpf_events_size & (self.bpf_events_size - 1):
            raise ValueError(f"bpf-events-size {self.bpf_events_size} is not a power of two")
        first, last = self.node_port_range
        if first > last:
            raise ValueError(f"node-port-range {first},{last} ends before it begins")
        for family, cidrs, size in (
            (4, self.cluster_pool_ipv4_cidr, self.cluster_pool_ipv4_mask_size),
            (6, self.cluster_pool_ipv6_cidr, self.cluster_pool_ipv6_mask_size),
        ):
            for cidr in cidrs:
                if cidr.prefixlen > size:
                    raise ValueError(
                        f"cluster-pool-ipv{family}-mask-size {size} does not fit into "
                        f"cluster-pool-ipv{family}-cidr {cidr}"
                    )
        return self

    @property
    def underlay(self) -> int:
        """4 or 6: the family of the nodes' addresses, where the tunnel leads and by which nodes are known."""
        if self.underlay_protocol == "auto":
            return 4 if self.enable_ipv4 else 6
        return 6 if self.underlay_protocol == "ipv6" else 4

    @property
    def host_legacy_routing(self) -> bool:
        """
        Whether what leaves the node goes through its stack.

        Beside kube-proxy it has to: netfilter turns addresses on the way in, and back on the way out.
        """
        return self.enable_host_legacy_routing or not self.replaces_kube_proxy

    @property
    def translates_sockets(self) -> bool:
        """Whether sockets in the control group are to be translated, if there is one."""
        mode = self.kube_proxy_replacement
        # Without a replacement the control group alone says so.
        return self.bpf_lb_sock is not False if not mode.partly else mode.serves(self.bpf_lb_sock)

    @property
    def serves_node_ports(self) -> bool:
        """Whether node ports are served here."""
        return self.kube_proxy_replacement.serves(self.enable_node_port)

    @property
    def serves_external_ips(self) -> bool:
        """Whether external addresses of services are served here."""
        return self.kube_proxy_replacement.serves(self.enable_external_ips)

    @property
    def serves_host_ports(self) -> bool:
        """Whether host ports are served here."""
        return self.kube_proxy_replacement.serves(self.enable_host_port)

    @property
    def kinds_served(self) -> frozenset[ServiceKind]:
        """The kinds of frontends that are served here; load balancers come with node ports, as in Cilium."""
        kinds = {ServiceKind.CLUSTER_IP}
        if self.serves_node_ports:
            kinds |= {ServiceKind.NODE_PORT, ServiceKind.LOAD_BALANCER}
        if self.serves_external_ips:
            kinds.add(ServiceKind.EXTERNAL_IP)
        if self.serves_host_ports:
            kinds.add(ServiceKind.HOST_PORT)
        return frozenset(kinds)

    @property
    def serves_outside(self) -> bool:
        """Whether any frontend outside the cluster is served here."""
        return len(self.kinds_served) > 1

    @property
    def served_here(self) -> frozenset[str]:
        """The kinds of services that are served here, by the chart's names."""
        kinds = {
            replacement.SOCKETS: self.translates_sockets,
            replacement.NODE_PORTS: self.serves_node_ports,
            replacement.EXTERNAL_IPS: self.serves_external_ips,
            replacement.HOST_PORTS: self.serves_host_ports,
        }
        return frozenset(kind for kind, served in kinds.items() if served)

    @property
    def replaces_kube_proxy(self) -> bool:
        """Whether every kind of service is served here, so that none is needed."""
        parts = (self.serves_node_ports, self.serves_external_ips, self.serves_host_ports)
        return bool(self.kube_proxy_replacement) and all(parts)


class _DirectorySource(PydanticBaseSettingsSource):
    """The options of the directory that the sources before this one name."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Nothing by field: the directory is read as a whole."""
        raise NotImplementedError(f"{field_name}: {field}")

    def __call__(self) -> dict[str, Any]:
        directory = self.current_state.get("config_dir")
        return dict(config_directory(Path(directory)).values) if directory else {}


def config_directory(directory: Path) -> ConfigDirectory:
    """What *directory* says, and what is to be said about it.  Raises ConfigRefused."""
    return interpret(read_texts(directory), Settings.model_fields)


def read_settings(argv: list[str]) -> Settings:
    """Options from *argv*, environment and directory.  Raises :class:`SettingsInvalid`; ``--help`` exits."""
    try:
        return Settings(_cli_parse_args=[_plain(word) for word in _with_value(argv)])  # type: ignore[call-arg]  # filled by the sources
    except (SettingsError, ConfigRefused) as error:
        raise SettingsInvalid(str(error)) from error
    except ValidationError as error:
        raise SettingsInvalid("; ".join(_complaints(error))) from error


def _complaints(error: ValidationError) -> Iterator[str]:
    for one in error.errors():
        option = str(one["loc"][0]).replace("_", "-") if one["loc"] else ""
        text = one["msg"].removeprefix("Value error, ")
        yield f"--{option}: {text}" if option else text


def _with_value(argv: list[str]) -> Iterator[str]:
    """*argv*, with a value for ``--[no-]kube-proxy-replacement``: there were two words once, and a switch."""
    for word, following in zip_longest(argv, argv[1:], fillvalue="--"):
        if word == "--no-kube-proxy-replacement":
            yield "--kube-proxy-replacement=false"
        elif word == "--kube-proxy-replacement" and following.startswith("--"):
            yield f"{word}=true"
        else:
            yield word


def _plain(word: str) -> str:
    """*word* as the parser knows it: ``--no-switch`` for ``--switch=false``, our names for Cilium's."""
    option, equals, value = word.removeprefix("--").partition("=")
    if not word.startswith("--"):
        return word
    name = RENAMED.get(option, option.replace("-", "_"))
    option = name.replace("_", "-")
    field = Settings.model_fields.get(name)
    if not (equals and field is not None and field.annotation in {bool, bool | None}):
        return f"--{option}{equals}{value}"
    if value.lower() not in {"true", "false"}:
        raise SettingsInvalid(f"--{option}: {value!r} is neither true nor false")
    return f"--{option}" if value.lower() == "true" else f"--no-{option}"
