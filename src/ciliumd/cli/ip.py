# SPDX-License-Identifier: Apache-2.0
"""
``cilium ip``: which identity an address has, with the labels behind it.

Consumed: ``GET /v1/map/{ipcache maps}`` (see ``bpf_rows``) and ``GET /v1/identity``.  JSON is a list of
Cilium's ``models.IPListEntry``: ``{cidr, identity, hostIP?, encryptKey}``.
"""

import argparse
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ciliumd.cli import bpf_rows
from ciliumd.cli.arguments import Commands, client, command, group
from ciliumd.cli.bpf import IPCACHE
from ciliumd.cli.errors import OK
from ciliumd.cli.output import emit, table

Json = dict[str, Any]


def register(commands: Commands) -> None:
    """Add ``ip``."""
    verbs = group(commands, "ip", "Manage IP addresses and associated information")
    listing = command(verbs, "list", "List addresses and their identities", run_list, aliases=("ls",))
    listing.add_argument("-n", "--numeric", action="store_true", help="identities as numbers")


def run_list(arguments: argparse.Namespace) -> int:
    """Print the table of addresses."""
    agent = client(arguments)
    rows = [row for name in IPCACHE for row in agent.get(f"map/{name}")]
    entries = bpf_rows.ip_entries(rows)
    labels = {} if arguments.numeric else {row["id"]: sorted(row["labels"]) for row in agent.get("identity")}
    emit(entries, arguments.output, table([("IP", "IDENTITY", "HOST"), *_rows(entries, labels)]))
    return OK


def _rows(entries: Iterable[Json], labels: Mapping[int, list[str]]) -> Iterator[tuple[str, ...]]:
    for entry in entries:
        first, *others = labels.get(entry["identity"]) or [str(entry["identity"])]
        yield (entry["cidr"], first, entry.get("hostIP", ""))
        for label in others:
            yield ("", label, "")
