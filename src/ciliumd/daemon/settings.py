# SPDX-License-Identifier: Apache-2.0
"""
Options of the agent: command line, then ``CILIUMD_*`` environment, then defaults.

Validation only; nothing is looked up on the machine here.
"""

from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict, SettingsError

LOOPBACK = IPv4Address("169.254.42.1")


class SettingsInvalid(Exception):
    """The options make no sense; the text names each option and what is wrong with it."""


class Settings(BaseSettings):
    """What can be told to ``ciliumd agent``."""

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

    manifests: Path = Field(description="directory of Kubernetes YAML to serve")
    node_name: str = Field(default="", description="name of this node; default: the host name")
    cluster_name: str = Field(default="default", description="name of the cluster, part of every identity")

    bpf_root: Path = Field(
        default=Path("/sys/fs/bpf/ciliumd"), description="where maps, links and programs are pinned"
    )
    cgroup_root: Path | None = Field(
        default=None,
        description="cgroup v2 directory whose sockets get service translation; none: no socket LB",
    )
    state_dir: Path = Field(
        default=Path("/var/run/cilium/state"), description="endpoints, identities, last good manifests"
    )
    api_socket: Path = Field(
        default=Path("/var/run/cilium/cilium.sock"), description="where the CLI connects"
    )

    pod_cidr: IPv4Network = Field(
        default=IPv4Network("10.0.0.0/24"),
        description="addresses of this node's pods; the first is cilium_host's",
    )
    devices: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="native devices, with commas between; default: those with a default route"
    )
    mtu: int = Field(default=0, ge=0, le=65535, description="MTU of pods; 0: that of the native device")
    enable_ipv4_masquerade: bool = Field(
        default=True, description="pods leave the node with its native device's address"
    )
    ipv4_native_routing_cidr: IPv4Network | None = Field(
        default=None, description="network that pods reach with their own address"
    )
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
    conntrack_gc_interval: float = Field(
        default=30.0, gt=0, allow_inf_nan=False, description="seconds between garbage collections"
    )
    drift_interval: float = Field(
        default=30.0, gt=0, allow_inf_nan=False, description="seconds between full comparisons of maps"
    )

    metrics_address: str = Field(
        default="127.0.0.1:9962", description="address of the Prometheus endpoint; empty: none"
    )
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["logfmt", "json"] = "logfmt"

    loopback_ipv4: Annotated[IPv4Address, Field(description="source of a pod that reaches itself")] = LOOPBACK

    @field_validator("devices", mode="before")
    @classmethod
    def _names(cls, value: object) -> object:
        """A list is written with commas, in the environment too."""
        return tuple(filter(None, value.split(","))) if isinstance(value, str) else value

    @field_validator("metrics_address")
    @classmethod
    def _listenable(cls, value: str) -> str:
        host, colon, port = value.rpartition(":")
        if value and not (host and colon and port.isdecimal() and int(port) < 1 << 16):
            raise ValueError(f"{value!r} is no address; write 127.0.0.1:9962, or nothing for no metrics")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.pod_cidr.prefixlen > 30:
            raise ValueError(f"pod-cidr {self.pod_cidr} has no room for a router and a pod")
        if self.bpf_events_size & (self.bpf_events_size - 1):
            raise ValueError(f"bpf-events-size {self.bpf_events_size} is not a power of two")
        return self


def read_settings(argv: list[str]) -> Settings:
    """Options from *argv* and the environment.  Raises :class:`SettingsInvalid`; ``--help`` exits."""
    try:
        return Settings(_cli_parse_args=list(map(_plain, argv)))  # type: ignore[call-arg]  # filled from argv and environment
    except SettingsError as error:
        raise SettingsInvalid(str(error)) from error
    except ValidationError as error:
        lines = []
        for one in error.errors():
            option = ".".join(str(part) for part in one["loc"]).replace("_", "-")
            lines.append(f"--{option}: {one['msg']}" if option else one["msg"])
        raise SettingsInvalid("; ".join(lines)) from error


def _plain(word: str) -> str:
    """``--switch=false`` as the parser knows it: ``--no-switch``."""
    option, equals, value = word.removeprefix("--").partition("=")
    field = Settings.model_fields.get(option.replace("-", "_"))
    if not (word.startswith("--") and equals and field is not None and field.annotation is bool):
        return word
    if value.lower() not in {"true", "false"}:
        raise SettingsInvalid(f"--{option}: {value!r} is neither true nor false")
    return f"--{option}" if value.lower() == "true" else f"--no-{option}"
