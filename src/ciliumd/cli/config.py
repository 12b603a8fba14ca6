# SPDX-License-Identifier: Apache-2.0
"""
``cilium config``: the settings the agent runs with, and those that are changed while it does.

Consumed from ``GET /v1/config``: ``{spec: {options: {name: value}}, status: {version,
daemonConfigurationMap: {name: value}}}``; options are what can be changed live, until the agent starts
again, by ``PATCH /v1/config``: ``{options: {name: Enabled | Disabled}}``.
"""

import argparse
from typing import Any

from ciliumd.cli.arguments import Commands, client, command
from ciliumd.cli.errors import OK
from ciliumd.cli.options import switches
from ciliumd.cli.output import emit, table

Json = dict[str, Any]


def register(commands: Commands) -> None:
    """Add ``config``."""
    parser = command(commands, "config", "Cilium configuration options", run)
    parser.add_argument("-a", "--all", action="store_true", help="also what only a restart can change")
    parser.add_argument("-r", "--list-options", action="store_true", help="names of options only")
    parser.add_argument("changes", nargs="*", metavar="OPTION=VALUE", help="e.g. TraceNotification=Disabled")


def run(arguments: argparse.Namespace) -> int:
    """Print the settings, or change some."""
    agent = client(arguments)
    answer: Json = agent.get("config")
    options: Json = (answer.get("spec") or {}).get("options") or {}
    changes = switches(arguments.changes, options)
    if changes:
        agent.patch("config", {"options": changes})
        print("Configuration updated successfully; the agent's next start is with what its ConfigMap says")
        return OK
    fixed: Json = (answer.get("status") or {}).get("daemonConfigurationMap") or {}
    if arguments.list_options:
        emit(sorted(options), arguments.output, "".join(f"{name}\n" for name in sorted(options)))
        return OK
    text = _section("Read-write configurations", options)
    if arguments.all or not options:
        text = _section("Read-only configurations", fixed) + text
    emit(answer, arguments.output, text)
    return OK


def _section(title: str, values: Json) -> str:
    rows = [(name, _text(value)) for name, value in sorted(values.items())]
    return f"##### {title} #####\n" + table(rows)


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "Enabled" if value else "Disabled"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
