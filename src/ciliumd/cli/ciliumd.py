# SPDX-License-Identifier: Apache-2.0
"""
``ciliumd``: run agent and operator, give an agent endpoints, and judge policies without it.

Consumed: ``PUT /v1/endpoint`` with ``{netns, pod: "ns/name", ip?, ifname, container-id?}``, answered
by the endpoint (see ``cli.endpoint``); ``DELETE /v1/endpoint/{id}`` and ``DELETE
/v1/endpoint/pod:ns/name``.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from ciliumd import __version__
from ciliumd.cli import install_cni, mounts, policy, sysctl
from ciliumd.cli.arguments import SHARED, Commands, Parser, client, command, group, run_command
from ciliumd.cli.client import segment
from ciliumd.cli.errors import OK, USAGE, CommandError
from ciliumd.cli.main import guarded
from ciliumd.cli.output import emit

NETNS_DIRECTORY: Final = Path("/var/run/netns")


def build_parser() -> Parser:
    """The parser of every command but ``agent`` and ``operator``, whose options are their own."""
    parser = Parser(prog="ciliumd", description="Networking, policy and load balancing", parents=[SHARED])
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)
    commands.add_parser("agent", help="run the agent (ciliumd agent --help)", add_help=False)
    commands.add_parser("operator", help="run the operator (ciliumd operator --help)", add_help=False)
    _register_endpoint(group(commands, "endpoint", "Turn network namespaces into endpoints and back"))
    policy.register_validate(group(commands, "policy", "Work with policies offline"))
    for part in (install_cni, mounts, sysctl):
        part.register(commands)
    command(commands, "version", "Print the version", run_version, output=False)
    return parser


def _register_endpoint(verbs: Commands) -> None:
    add = command(verbs, "add", "Make an endpoint of a network namespace", run_add)
    add.add_argument("netns", metavar="NETNS", help="name below /var/run/netns, or a path")
    add.add_argument("--pod", required=True, metavar="NAMESPACE/NAME")
    add.add_argument("--ip", metavar="ADDRESS", help="this address instead of the next free one")
    add.add_argument("--ifname", default="eth0", metavar="NAME", help="device inside the namespace")
    add.add_argument("--container-id", metavar="ID")
    delete = command(verbs, "del", "Take an endpoint away", run_del, aliases=("delete",), output=False)
    delete.add_argument("id", metavar="ID", help="12 or NAMESPACE/NAME")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["agent"]:
        from ciliumd.daemon.app import main as agent

        return agent(words[1:])
    if words[:1] == ["operator"]:
        from ciliumd.operator.app import main as operator

        return operator(words[1:])
    return guarded(lambda: run_command(build_parser(), words))


def run_add(arguments: argparse.Namespace) -> int:
    """Ask the agent for an endpoint and print it."""
    body = {"netns": _netns_path(arguments.netns), "pod": _pod(arguments.pod), "ifname": arguments.ifname}
    if arguments.ip:
        body["ip"] = arguments.ip
    if arguments.container_id:
        body["container-id"] = arguments.container_id
    endpoint = client(arguments).put("endpoint", body)
    pair = (endpoint["status"]["networking"]["addressing"] or [{}])[0]
    addresses = " ".join(pair[family] for family in ("ipv4", "ipv6") if pair.get(family))
    emit(endpoint, arguments.output, f"Endpoint {endpoint['id']} {arguments.pod} {addresses}\n")
    return OK


def run_del(arguments: argparse.Namespace) -> int:
    """Ask the agent to remove an endpoint."""
    wanted = arguments.id if arguments.id.isdecimal() else f"pod:{_pod(arguments.id)}"
    client(arguments).delete(f"endpoint/{segment(wanted)}")
    print(f"Endpoint {arguments.id} removed")
    return OK


def run_version(_arguments: argparse.Namespace) -> int:
    """Print the version of this package."""
    print(f"ciliumd {__version__}")
    return OK


def _netns_path(text: str) -> str:
    """A bare name is one of ``ip netns``; a path is meant from here, not from where the agent runs."""
    return str(Path(text).absolute() if "/" in text else NETNS_DIRECTORY / text)


def _pod(text: str) -> str:
    namespace, separator, name = text.partition("/")
    if not separator or not namespace or not name or "/" in name:
        raise CommandError(
            f"{json.dumps(text)} does not name a pod",
            hint="write NAMESPACE/NAME, e.g. default/xwing",
            code=USAGE,
        )
    return text


if __name__ == "__main__":
    sys.exit(main())
