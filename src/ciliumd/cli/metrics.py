# SPDX-License-Identifier: Apache-2.0
"""
``cilium metrics``: the agent's metrics without a Prometheus.

Consumed from ``GET /v1/metrics``: a list of ``{name, labels: {text: text}, value}``.
"""

import argparse
import re
from typing import Any

from ciliumd.cli.arguments import Commands, client, command, group
from ciliumd.cli.errors import OK, USAGE, CommandError
from ciliumd.cli.output import emit, table

Json = dict[str, Any]


def register(commands: Commands) -> None:
    """Add ``metrics``."""
    verbs = group(commands, "metrics", "Access metric status")
    listing = command(verbs, "list", "List all metrics", run_list, aliases=("ls",))
    listing.add_argument("-p", "--match-pattern", metavar="REGEX", help="only metrics whose names match")


def run_list(arguments: argparse.Namespace) -> int:
    """Print the metrics."""
    try:
        pattern = re.compile(arguments.match_pattern or "")
    except re.error as error:
        raise CommandError(f"{arguments.match_pattern!r} is no pattern: {error}", code=USAGE) from error
    rows = [row for row in client(arguments).get("metrics") if pattern.search(row["name"])]
    lines = [
        ("Metric", "Labels", "Value"),
        *((row["name"], _labels(row), f"{row['value']:f}") for row in rows),
    ]
    emit(rows, arguments.output, table(lines))
    return OK


def _labels(row: Json) -> str:
    return " ".join(f'{name}="{value}"' for name, value in sorted((row.get("labels") or {}).items()))
