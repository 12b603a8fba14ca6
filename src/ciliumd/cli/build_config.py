# SPDX-License-Identifier: Apache-2.0
"""
``cilium-dbg build-config``: the options of one node, out of the cluster's, one file per key.

The ConfigMap first, then every CiliumNodeConfig (cilium.io/v2) whose ``spec.nodeSelector`` selects the
node, in the order of their names: what is later wins, key by key.  The directory is the agent's
``--config-dir``.
"""

import argparse
import asyncio
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ciliumd.cli.arguments import Commands, command
from ciliumd.cli.errors import OK, UNREACHABLE, CommandError
from ciliumd.cli.output import note
from ciliumd.kubernetes.kinds import NODE, Kind

if TYPE_CHECKING:
    from ciliumd.kubernetes.client import Api

Json = Mapping[str, Any]

CONFIG_MAP: Final = Kind("", "v1", "ConfigMap", "configmaps", namespaced=True)
NODE_CONFIG: Final = Kind("cilium.io", "v2", "CiliumNodeConfig", "ciliumnodeconfigs", namespaced=True)

DEFAULT_NAMESPACE: Final = "kube-system"
DEFAULT_CONFIG_MAP: Final = "cilium-config"
DEFAULT_DESTINATION: Final = Path("/tmp/cilium/config-map")  # noqa: S108  an empty volume, as in Cilium's chart


@dataclass(slots=True)
class Merged:
    """Values by key, and which object each that is not the ConfigMap's is from."""

    values: dict[str, str] = field(default_factory=dict)
    overridden: dict[str, str] = field(default_factory=dict)


def register(commands: Commands) -> None:
    """Add ``build-config``."""
    parser = command(commands, "build-config", "Resolve the configuration of this node", run, output=False)
    parser.add_argument(
        "--node-name",
        default=os.environ.get("K8S_NODE_NAME", ""),
        metavar="NAME",
        help="default: $K8S_NODE_NAME",
    )
    parser.add_argument(
        "--namespace",
        default=os.environ.get("CILIUM_K8S_NAMESPACE", DEFAULT_NAMESPACE),
        help="default: $CILIUM_K8S_NAMESPACE or kube-system",
    )
    parser.add_argument("--config-map", default=DEFAULT_CONFIG_MAP, metavar="NAME")
    parser.add_argument("--dest", type=Path, default=DEFAULT_DESTINATION, metavar="DIR")
    parser.add_argument("--kubeconfig", type=Path, metavar="FILE", help="default: the pod's service account")


def run(arguments: argparse.Namespace) -> int:
    """Write the node's options."""
    if not arguments.node_name:
        raise CommandError("no node is named", hint="set --node-name, or K8S_NODE_NAME from spec.nodeName")
    merged = asyncio.run(_collected(arguments))
    write(arguments.dest, merged.values)
    for key, source in sorted(merged.overridden.items()):
        note(f"{key}={merged.values[key]} by {source}")
    print(f"wrote {len(merged.values)} options to {arguments.dest}")
    return OK


async def _collected(arguments: argparse.Namespace) -> Merged:
    from ciliumd.kubernetes import config
    from ciliumd.kubernetes.client import Api
    from ciliumd.kubernetes.errors import ApiError

    try:
        async with Api(config.load(arguments.kubeconfig)) as api:
            return await collect(
                api, namespace=arguments.namespace, config_map=arguments.config_map, node=arguments.node_name
            )
    except (config.ConfigInvalid, ApiError) as error:
        raise CommandError(
            str(error),
            hint="without kube-proxy the service of the API server does not work yet: set k8sServiceHost and "
            "k8sServicePort in the chart",
            code=UNREACHABLE,
        ) from error


async def collect(api: "Api", *, namespace: str, config_map: str, node: str) -> Merged:
    """What the cluster says for *node*.  Raises ApiError."""
    from ciliumd.kubernetes.errors import NotFound

    document = await api.get(CONFIG_MAP, config_map, namespace=namespace)
    merged = Merged(dict(document.get("data") or {}))
    try:
        found, _ = await api.list(NODE_CONFIG, namespace=namespace)
    except NotFound:
        # The operator defines the kind and waits for no agent; nor does an agent for it.
        return merged
    if found:
        metadata = (await api.get(NODE, node))["metadata"]
        override(merged, found, metadata.get("labels") or {})
    return merged


def override(merged: Merged, configs: Iterable[Json], labels: Mapping[str, str]) -> None:
    """Let those of *configs* that select a node with *labels* have their say, in the order of their names."""
    for config in sorted(configs, key=lambda one: str(one["metadata"]["name"])):
        spec = config.get("spec") or {}
        if selects(spec.get("nodeSelector") or {}, labels):
            name = f"CiliumNodeConfig {config['metadata']['name']}"
            for key, value in (spec.get("defaults") or {}).items():
                merged.values[key] = str(value)
                merged.overridden[key] = name


def selects(selector: Json, labels: Mapping[str, str]) -> bool:
    """Whether a ``metav1.LabelSelector`` selects *labels*; an empty one selects everything."""
    exact = selector.get("matchLabels") or {}
    if any(labels.get(key) != value for key, value in exact.items()):
        return False
    return all(_meets(one, labels) for one in selector.get("matchExpressions") or ())


def _meets(requirement: Json, labels: Mapping[str, str]) -> bool:
    key, operator = requirement["key"], requirement["operator"]
    values = requirement.get("values") or ()
    match operator:
        case "In":
            return labels.get(key) in values
        case "NotIn":
            return labels.get(key) not in values
        case "Exists":
            return key in labels
        case "DoesNotExist":
            return key not in labels
        case _:
            raise CommandError(
                f"CiliumNodeConfig: nodeSelector has the operator {operator!r} for {key}",
                hint="use In, NotIn, Exists or DoesNotExist",
            )


def write(directory: Path, values: Mapping[str, str]) -> None:
    """A file per key in *directory*, and no other file.  Raises CommandError."""
    if bad := sorted(key for key in values if "/" in key or key.startswith(".")):
        raise CommandError(
            f"{', '.join(bad)}: no names of options", hint="kubectl -n kube-system edit cm cilium-config"
        )
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for path in directory.iterdir():
            if path.is_file() and path.name not in values:
                path.unlink()
        for key, value in values.items():
            (directory / key).write_text(value, "utf-8")
    except OSError as error:
        raise CommandError(f"cannot write {error.filename}: {error.strerror}") from error
