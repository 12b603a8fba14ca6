# SPDX-License-Identifier: Apache-2.0
"""
``cilium-health``: how the nodes of the cluster answer this one.

Consumed: ``GET /v1/health`` and ``PUT /v1/health/probe``, Cilium's ``models.HealthStatusResponse``::

    {local: {name}, timestamp, probeInterval, nodes: [{name, host: H, health-endpoint: H | null}]}
    H = {primary-address: P | null, secondary-addresses: [P]}
    P = {ip, icmp: C, http: C}      C = {status, latency (ns), lastProbed}; status is empty when all is well

and ``GET /v1/healthz`` (see ``status``).
"""

import argparse
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from ciliumd.cli import status
from ciliumd.cli.arguments import SHARED, Parser, client, command, run_command
from ciliumd.cli.errors import OK
from ciliumd.cli.main import guarded
from ciliumd.cli.output import emit, table

Json = Mapping[str, Any]

_UNITS: Final = ((1_000_000_000, "s"), (1_000_000, "ms"), (1_000, "µs"))
_PROTOCOLS: Final = (("icmp", "ICMP to stack:"), ("http", "HTTP to agent:"))


def build_parser() -> Parser:
    """The parser of every command."""
    parser = Parser(prog="cilium-health", description="Connectivity of the cluster's nodes", parents=[SHARED])
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)
    shown = command(commands, "status", "Display the latest probes", run_status)
    shown.add_argument("--probe", action="store_true", help="probe now instead of showing what is known")
    shown.add_argument("--succinct", action="store_true", help="one line for each node")
    ping = command(commands, "ping", "Probe every node now", run_status)
    ping.set_defaults(probe=True, succinct=False)
    command(commands, "get", "Display the status of the local agent", run_get)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    return guarded(lambda: run_command(build_parser(), words))


def run_status(arguments: argparse.Namespace) -> int:
    """Print the probes."""
    agent = client(arguments)
    report: Json = agent.put("health/probe", {}) if arguments.probe else agent.get("health")
    emit(report, arguments.output, succinct(report) if arguments.succinct else render(report))
    return OK


def run_get(arguments: argparse.Namespace) -> int:
    """Print the load of the node and the status of its agent."""
    answer: Json = client(arguments).get("healthz")
    load = [f"{number:.2f}" for number in os.getloadavg()]
    text = table([("Node load:", *load)], min_width=0) + status.render(answer, now=datetime.now(UTC))
    names = ("last1min", "last5min", "last15min")
    emit({"cilium": answer, "systemLoad": dict(zip(names, load, strict=True))}, arguments.output, text)
    return OK


def render(report: Json) -> str:
    """Every probe of every node, this one first."""
    head = table([("Probe time:", report["timestamp"])], min_width=0)
    return head + "Nodes:\n" + "".join(_node(node, report) for node in _ordered(report))


def succinct(report: Json) -> str:
    """One line for each node: how many of its addresses answer."""
    nodes = list(_ordered(report))
    healthy = sum(all(_reachable(path) for path in _paths(node)) and bool(_hosts(node)) for node in nodes)
    rows = [
        (
            f"  {_name(node, report)}",
            ",".join(path["ip"] for path in _hosts(node)) or "Unavailable",
            _count(_hosts(node)),
            _count(_endpoints(node)),
        )
        for node in nodes
    ]
    head = ("Cluster health:", f"{healthy}/{len(nodes)} reachable", f"({report['timestamp']})")
    return table([head, ("  Name", "IP", "Node", "Endpoints"), *rows], min_width=0)


def duration(nanoseconds: int) -> str:
    """A time as Go prints it, e.g. ``315.254µs``."""
    for unit, name in _UNITS:
        if nanoseconds >= unit:
            whole, rest = divmod(nanoseconds, unit)
            fraction = f"{rest:0{len(str(unit)) - 1}d}".rstrip("0")
            return f"{whole}.{fraction}{name}" if fraction else f"{whole}{name}"
    return f"{nanoseconds}ns" if nanoseconds else "0s"


def _ordered(report: Json) -> Iterator[Json]:
    local = report["local"]["name"]
    yield from sorted(report["nodes"], key=lambda node: (node["name"] != local, node["name"]))


def _name(node: Json, report: Json) -> str:
    return f"{node['name']} (localhost)" if node["name"] == report["local"]["name"] else str(node["name"])


def _node(node: Json, report: Json) -> str:
    text = f"  {_name(node, report)}:\n"
    for kind, paths in (("Host", _hosts(node)), ("Endpoint", _endpoints(node))):
        for number, path in enumerate(paths):
            secondary = "Secondary " if number else ""
            text += f"    {secondary}{kind} connectivity to {path['ip']}:\n"
            text += table(
                [(f"      {title}", _outcome(path[name])) for name, title in _PROTOCOLS], min_width=0
            )
    return text


def _outcome(check: Json) -> str:
    return str(check["status"]) or f"OK, RTT={duration(check['latency'])}"


def _hosts(node: Json) -> list[Json]:
    return _addresses(node.get("host"))


def _endpoints(node: Json) -> list[Json]:
    return _addresses(node.get("health-endpoint"))


def _paths(node: Json) -> list[Json]:
    return _hosts(node) + _endpoints(node)


def _addresses(side: Json | None) -> list[Json]:
    if not side or not side.get("primary-address"):
        return []
    return [side["primary-address"], *(side.get("secondary-addresses") or ())]


def _reachable(path: Json) -> bool:
    return not any(path[name]["status"] for name, _ in _PROTOCOLS)


def _count(paths: list[Json]) -> str:
    return f"{sum(map(_reachable, paths))}/{len(paths)}"


if __name__ == "__main__":
    sys.exit(main())
