# SPDX-License-Identifier: Apache-2.0
"""
Options of the operator: command line, then ``CILIUMD_OPERATOR_*`` environment, then the directory of a
ConfigMap, then defaults.

Names are those of Cilium's operator.  The ConfigMap is the agents' too, so keys that are none of ours
are no mistake; on the command line they are.
"""

import re
from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from ciliumd.daemon.config_directory import ConfigRefused, read_texts
from ciliumd.model.net import Prefix

_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?")
_RENAMED = {"k8s_kubeconfig_path": "kubeconfig"}


class SettingsInvalid(Exception):
    """The options make no sense; the text names each option and what is wrong with it."""


def seconds(text: object) -> object:
    """``15m0s`` and ``1h30m`` in seconds; numbers are seconds already."""
    if not isinstance(text, str) or not text:
        return text
    match = _DURATION.fullmatch(text)
    if match is None:
        return text
    hours, minutes, rest = (float(part or 0) for part in match.groups())
    return hours * 3600 + minutes * 60 + rest


Duration = Annotated[float, BeforeValidator(seconds), Field(ge=0, allow_inf_nan=False)]
Interval = Annotated[float, BeforeValidator(seconds), Field(gt=0, allow_inf_nan=False)]


class Settings(BaseSettings):
    """What can be told to ``ciliumd operator``."""

    model_config = SettingsConfigDict(
        env_prefix="CILIUMD_OPERATOR_",
        cli_prog_name="ciliumd operator",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
        cli_exit_on_error=False,
        extra="forbid",
        frozen=True,
    )

    config_dir: Path | None = Field(default=None, description="mounted ConfigMap: one file for each option")
    kubeconfig: Path | None = Field(
        default=None, description="default: the service account of the pod (k8s-kubeconfig-path)"
    )
    k8s_api_server: str = Field(default="", description="address of the API server, https://...")
    k8s_namespace: str = Field(default="kube-system", description="namespace of agents and operator")
    cilium_pod_labels: str = Field(default="k8s-app=cilium", description="labels of the agents' pods")

    ipam: Literal["cluster-pool", "kubernetes"] = Field(
        default="cluster-pool", description="where nodes get pod CIDRs from: our pool, or the Node objects"
    )
    cluster_pool_ipv4_cidr: Annotated[tuple[IPv4Network, ...], NoDecode] = Field(
        default=(IPv4Network("10.0.0.0/8"),), description="the pool, with spaces or commas between"
    )
    cluster_pool_ipv4_mask_size: int = Field(
        default=24, ge=1, le=30, description="prefix length of a node's pod CIDR"
    )
    enable_ipv4: bool = Field(default=True, description="nodes get a pod CIDR of IPv4")
    enable_ipv6: bool = Field(default=False, description="nodes get a pod CIDR of IPv6, too")
    cluster_pool_ipv6_cidr: Annotated[tuple[IPv6Network, ...], NoDecode] = Field(
        default=(IPv6Network("fd00::/104"),), description="the pool of IPv6, written alike"
    )
    cluster_pool_ipv6_mask_size: int = Field(
        default=120, ge=64, le=126, description="prefix length of a node's IPv6 pod CIDR"
    )

    allow_external_addresses: Annotated[tuple[IPv4Network | IPv6Network, ...], NoDecode] = Field(
        default=(), description="networks that services may take addresses of whoever has them"
    )
    enable_node_selector_labels: bool = Field(
        default=False, description="policies may select nodes by their labels (fromNodes, toNodes)"
    )
    skip_crd_creation: bool = Field(default=False, description="leave the CustomResourceDefinitions alone")
    identity_gc_interval: Interval = Field(default=900.0, description="time between looks at identities")
    identity_heartbeat_timeout: Duration = Field(
        default=1800.0, description="how long an identity may be unused before it is deleted"
    )
    identity_gc_rate_limit: int = Field(
        default=2500, ge=1, description="identities deleted at most in one look"
    )
    cilium_endpoint_gc_interval: Interval = Field(
        default=300.0, description="time between looks at endpoints"
    )
    nodes_gc_interval: Interval = Field(default=300.0, description="time between looks at CiliumNodes")
    unmanaged_pod_watcher_interval: Duration = Field(
        default=15.0, description="time between looks for pods without an endpoint; 0: never"
    )
    pod_restart_selector: str = Field(
        default="k8s-app=kube-dns", description="labels of pods that are restarted to become endpoints"
    )
    unmanaged_pod_grace: Duration = Field(
        default=30.0, description="how long a pod may run without an endpoint"
    )
    remove_cilium_node_taints: bool = Field(
        default=True, description="remove the taint when the node's agent is ready"
    )
    set_cilium_node_taints: bool = Field(
        default=False, description="set the taint while the node's agent is not ready"
    )
    set_cilium_is_up_condition: bool = Field(
        default=True, description="set the condition NetworkUnavailable=False when the agent is ready"
    )
    agent_not_ready_taint_key: str = "node.cilium.io/agent-not-ready"

    leader_election_lease_duration: Interval = Field(
        default=15.0, description="how long others wait for a leader that is silent"
    )
    leader_election_renew_deadline: Interval = Field(
        default=10.0, description="how long a leader may fail to renew before it gives up"
    )
    leader_election_retry_period: Interval = Field(default=5.0, description="time between attempts")
    resync_interval: Interval = Field(default=300.0, description="time between comparisons with full lists")

    operator_api_serve_addr: str = Field(default="localhost:9234", description="address of /healthz")
    operator_prometheus_serve_addr: str = Field(
        default=":9963",
        description="address of /metrics, without a host all of both families; empty: none",
    )
    debug: bool = False
    log_format: Literal["logfmt", "json"] = "logfmt"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Behind the command line: the environment, then what is handed over, the directory's."""
        return env_settings, init_settings

    @field_validator(
        "cluster_pool_ipv4_cidr", "cluster_pool_ipv6_cidr", "allow_external_addresses", mode="before"
    )
    @classmethod
    def _listed(cls, value: object) -> object:
        """A ConfigMap separates by spaces, a command line by commas."""
        return tuple(filter(None, re.split(r"[\s,]+", value))) if isinstance(value, str) else value

    @field_validator("operator_api_serve_addr", "operator_prometheus_serve_addr")
    @classmethod
    def _listenable(cls, value: str) -> str:
        _, colon, port = value.rpartition(":")
        if value and not (colon and port.isdecimal() and int(port) < 1 << 16):
            raise ValueError(f"{value!r} is no address; write localhost:9234, or nothing for none")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not (self.enable_ipv4 or self.enable_ipv6):
            raise ValueError("enable-ipv4 and enable-ipv6 are both false: pods need an address of one family")
        _check_pool(4, self.cluster_pool_ipv4_cidr, self.cluster_pool_ipv4_mask_size)
        _check_pool(6, self.cluster_pool_ipv6_cidr, self.cluster_pool_ipv6_mask_size)
        if self.leader_election_renew_deadline >= self.leader_election_lease_duration:
            raise ValueError("leader-election-renew-deadline must be shorter than the lease-duration")
        if self.leader_election_retry_period >= self.leader_election_renew_deadline:
            raise ValueError("leader-election-retry-period must be shorter than the renew-deadline")
        return self


def _check_pool(family: int, cidrs: Sequence[Prefix], size: int) -> None:
    """ValueError when blocks do not fit into the pool, or it names one network twice."""
    for i, cidr in enumerate(cidrs):
        if cidr.prefixlen > size:
            raise ValueError(f"cluster-pool-ipv{family}-mask-size {size} does not fit into {cidr}")
        for other in cidrs[:i]:
            if cidr.overlaps(other):
                raise ValueError(f"cluster-pool-ipv{family}-cidr: {cidr} overlaps {other}")


def read_settings(argv: list[str]) -> Settings:
    """Options from everywhere.  Raises :class:`SettingsInvalid`; ``--help`` exits."""
    words = [_plain(word) for word in argv]
    try:
        given: dict[str, Any] = {"_cli_parse_args": words, **_texts(words)}
        return Settings(**given)
    except (SettingsError, ConfigRefused) as error:
        raise SettingsInvalid(str(error)) from error
    except ValidationError as error:
        lines = []
        for one in error.errors():
            option = ".".join(str(part) for part in one["loc"]).replace("_", "-")
            lines.append(f"--{option}: {one['msg']}" if option else one["msg"])
        raise SettingsInvalid("; ".join(lines)) from error


def _texts(words: list[str]) -> dict[str, str]:
    """What the directory says of our options; an empty value says nothing."""
    directory = _directory(words)
    if directory is None:
        return {}
    texts = {key.replace("-", "_"): text for key, text in read_texts(directory).items()}
    ours = {_RENAMED.get(name, name): text for name, text in texts.items() if text}
    return {name: text for name, text in ours.items() if name in Settings.model_fields}


def _directory(words: list[str]) -> Path | None:
    for i, word in enumerate(words):
        option, equals, value = word.partition("=")
        if option == "--config-dir":
            if equals:
                return Path(value)
            return Path(words[i + 1]) if i + 1 < len(words) else None
    return None


def _plain(word: str) -> str:
    """Cilium's spellings as the parser knows them: ``--switch=false``, ``--k8s-kubeconfig-path``."""
    option, equals, value = word.removeprefix("--").partition("=")
    name = option.replace("-", "_")
    if not word.startswith("--"):
        return word
    if name in _RENAMED:
        return f"--{_RENAMED[name]}{equals}{value}"
    field = Settings.model_fields.get(name)
    if not equals or field is None or field.annotation is not bool:
        return word
    if value.lower() not in {"true", "false"}:
        raise SettingsInvalid(f"--{option}: {value!r} is neither true nor false")
    return f"--{option}" if value.lower() == "true" else f"--no-{option}"
