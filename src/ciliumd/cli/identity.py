# SPDX-License-Identifier: Apache-2.0
"""
``cilium identity``: the numbers that stand for label sets.

Consumed from ``GET /v1/identity``: a list of ``{id, labels: [text]}``.
"""

import argparse
from collections.abc import Iterable, Iterator
from typing import Any

from ciliumd.cli.arguments import Commands, client, command, group
from ciliumd.cli.errors import OK, NotFoundError
from ciliumd.cli.output import emit, table

Json = dict[str, Any]


def register(commands: Commands) -> None:
    """Add ``identity``."""
    verbs = group(commands, "identity", "Manage security identities")
    listing = command(verbs, "list", "List identities", run_list, aliases=("ls",))
    listing.add_argument("labels", nargs="*", metavar="LABEL", help="only identities with all these labels")
    get = command(verbs, "get", "Retrieve information about an identity", run_get)
    get.add_argument("id", type=int, metavar="ID")


def run_list(arguments: argparse.Namespace) -> int:
    """Print the table of identities."""
    wanted = set(arguments.labels)
    rows = [row for row in client(arguments).get("identity") if wanted <= set(row["labels"])]
    rows.sort(key=lambda row: int(row["id"]))
    emit(rows, arguments.output, _table(rows))
    return OK


def run_get(arguments: argparse.Namespace) -> int:
    """Print one identity."""
    rows = [row for row in client(arguments).get("identity") if row["id"] == arguments.id]
    if not rows:
        raise NotFoundError(f"no identity {arguments.id} on this node", hint="cilium identity list")
    emit(rows, arguments.output, _table(rows))
    return OK


def _table(rows: Iterable[Json]) -> str:
    return table([("ID", "LABELS"), *_rows(rows)])


def _rows(rows: Iterable[Json]) -> Iterator[tuple[object, ...]]:
    for row in rows:
        first, *others = sorted(row["labels"]) or ["no labels"]
        yield (row["id"], first)
        for label in others:
            yield ("", label)
