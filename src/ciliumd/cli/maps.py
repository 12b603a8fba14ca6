# SPDX-License-Identifier: Apache-2.0
"""
``cilium map``: BPF maps by name.

Consumed: ``GET /v1/map`` as ``{maps: [{path, entries, max-entries, errors}]}``, and ``GET /v1/map/{name}``
as a list of ``{key: {...}, value: {...}}`` (see ``ciliumd.flows.maprows``); the agent accepts names
without prefix and layout version.
"""

import argparse
from pathlib import PurePosixPath
from typing import Any

from ciliumd.cli.arguments import Commands, client, command, group
from ciliumd.cli.client import segment
from ciliumd.cli.errors import OK
from ciliumd.cli.output import emit, table

Json = dict[str, Any]


def register(commands: Commands) -> None:
    """Add ``map``."""
    verbs = group(commands, "map", "Access userspace cached content of BPF maps")
    command(verbs, "list", "List all open BPF maps", run_list, aliases=("ls",))
    get = command(verbs, "get", "Display the rows of a BPF map", run_get)
    get.add_argument("name", metavar="NAME", help="e.g. cilium_lxc_v1, cilium_lxc or lxc")


def run_list(arguments: argparse.Namespace) -> int:
    """Print the maps and how full they are."""
    answer = client(arguments).get("map")
    rows = [
        (PurePosixPath(row["path"]).name, row["entries"], row["max-entries"], row.get("errors", 0))
        for row in answer["maps"]
    ]
    emit(
        answer, arguments.output, table([("Name", "Num entries", "Max entries", "Num errors"), *sorted(rows)])
    )
    return OK


def run_get(arguments: argparse.Namespace) -> int:
    """Print the rows of one map."""
    rows = client(arguments).get(f"map/{segment(arguments.name)}")
    lines = [("Key", "Value"), *((_fields(row["key"]), _fields(row["value"])) for row in rows)]
    emit(rows, arguments.output, table(lines))
    return OK


def _fields(fields: Json) -> str:
    return " ".join(
        f"{name}={','.join(value) if isinstance(value, list) else value}" for name, value in fields.items()
    )
