# SPDX-License-Identifier: Apache-2.0
"""
``cilium node``: the nodes of the cluster.

Consumed from ``GET /v1/cluster/nodes``, Cilium's ``models.ClusterNodeStatus``: ``{nodes-added: [{name,
primary-address: {ipv4: {ip, alloc-range}}, source}]}``.
"""

import argparse
from typing import Any

from ciliumd.cli.arguments import Commands, client, command, group
from ciliumd.cli.errors import OK
from ciliumd.cli.output import emit, table

Json = dict[str, Any]

_TITLES = ("Name", "IPv4 Address", "Endpoint CIDR", "IPv6 Address", "Endpoint CIDR", "Source")


def register(commands: Commands) -> None:
    """Add ``node``."""
    verbs = group(commands, "node", "Manage cluster nodes")
    command(verbs, "list", "List nodes", run_list, aliases=("ls",))


def run_list(arguments: argparse.Namespace) -> int:
    """Print the table of nodes."""
    nodes: list[Json] = client(arguments).get("cluster/nodes")["nodes-added"]
    emit(nodes, arguments.output, table([_TITLES, *map(_row, nodes)]))
    return OK


def _row(node: Json) -> tuple[str, ...]:
    primary = node.get("primary-address") or {}
    ipv4, ipv6 = primary.get("ipv4") or {}, primary.get("ipv6") or {}
    return (
        node["name"],
        ipv4.get("ip", ""),
        ipv4.get("alloc-range", ""),
        ipv6.get("ip", ""),
        ipv6.get("alloc-range", ""),
        node.get("source", ""),
    )
