# SPDX-License-Identifier: Apache-2.0
"""
``cilium monitor``: drops, traces and policy verdicts as they happen.

Consumed: ``GET /v1/monitor?type=drop,trace,...``, a stream of lines in the form of
``ciliumd.flows.wire``.  Filtering by endpoint is done here, as is rendering.
"""

import argparse
import json
import sys
from typing import TYPE_CHECKING

from ciliumd.cli.arguments import Commands, client, command
from ciliumd.cli.errors import OK, USAGE, CommandError
from ciliumd.cli.output import note

if TYPE_CHECKING:
    from ciliumd.flows.enrich import Flow


def register(commands: Commands) -> None:
    """Add ``monitor``."""
    parser = command(commands, "monitor", "Display datapath events", run, output=False)
    parser.add_argument(
        "-t", "--type", action="append", default=[], metavar="TYPE", help="drop, trace, policy-verdict"
    )
    for name in ("from", "to", "related-to"):
        parser.add_argument(
            f"--{name}",
            dest=name.replace("-", "_") + "_id",
            type=int,
            action="append",
            default=[],
            metavar="ID",
        )
    parser.add_argument("-n", "--numeric", action="store_true", help="reserved identities as numbers")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("-j", "--json", action="store_true", help="one JSON object per event, as Cilium's")
    form.add_argument("--flow-json", action="store_true", help="one JSON object per event, as Hubble's")
    form.add_argument("-v", "--verbose", action="store_true", help="several lines per event")


def run(arguments: argparse.Namespace) -> int:
    """Print events until interrupted or until the agent ends the stream."""
    from ciliumd.flows import filter as filters
    from ciliumd.flows import wire

    try:
        types = filters.parse_types(arguments.type)
    except ValueError as error:
        raise CommandError(str(error), code=USAGE) from error
    wanted = filters.FlowFilter(
        types=types,
        source=frozenset(arguments.from_id),
        destination=frozenset(arguments.to_id),
        related=frozenset(arguments.related_to_id),
    )
    query = {"type": ",".join(sorted(types))} if types else {}
    try:
        for line in client(arguments).stream("monitor", **query):
            item = wire.from_json(line)
            if isinstance(item, wire.LostEvents):
                note(f"{item.num_events_lost} events lost ({item.source})")
            elif wanted.matches(item):
                print(_line(item, line, arguments))
                sys.stdout.flush()
    except KeyboardInterrupt:
        return OK
    return OK


def _line(flow: "Flow", line: object, arguments: argparse.Namespace) -> str:
    from ciliumd.flows import render

    if arguments.flow_json:
        return json.dumps(line)
    if arguments.json:
        return json.dumps(render.monitor_json(flow))
    if arguments.verbose:
        return render.verbose_text(flow, numeric=arguments.numeric)
    return render.text(flow, numeric=arguments.numeric)
