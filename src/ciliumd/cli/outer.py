# SPDX-License-Identifier: Apache-2.0
"""
``cilium`` away from an agent: the command line of a whole cluster, by its kubeconfig.

Exit codes: 0 all is well, 1 something is wrong, 2 misuse, 3 the API server cannot be reached.
"""

import argparse
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ciliumd.cli.arguments import Parser, output_option, run_command
from ciliumd.cli.client import DEFAULT_SOCKET, SOCKET_VARIABLE
from ciliumd.cli.errors import FAILED, OK, USAGE, CommandError
from ciliumd.cli.kubeconfig import connect, kubeconfig_path, unreachable
from ciliumd.cli.outer_status import ClusterStatus, document, render
from ciliumd.cli.output import emit, note
from ciliumd.version import cilium_version

if TYPE_CHECKING:
    from lightkube import Client

NAMESPACE: Final = "kube-system"
WAIT_SECONDS: Final = 300.0
POLL_SECONDS: Final = 2.0
_SECONDS: Final = {"h": 3600.0, "m": 60.0, "s": 1.0, "": 1.0}
_PART: Final = re.compile(r"(\d+(?:\.\d+)?)([hms]?)")
_DURATION: Final = re.compile(r"(?:\d+(?:\.\d+)?[hms])+|\d+(?:\.\d+)?")
_ASKS_NOBODY: Final = {("policy", "validate")}
_IN_POD: Final = "kubectl -n kube-system exec ds/cilium -c cilium-agent -- cilium"


def is_outside(program: str, words: Sequence[str]) -> bool:
    """
    Whether ``cilium`` speaks to a cluster here: no agent's socket is named or exists, a kubeconfig does.

    ``cilium-dbg`` always speaks to an agent; what asks nobody is the same everywhere.
    """
    if Path(program).name != "cilium" or tuple(words[:2]) in _ASKS_NOBODY:
        return False
    named = os.environ.get(SOCKET_VARIABLE) or any(
        word in {"-H", "--host"} or word.startswith(("--host=", "-H/")) for word in words
    )
    if named or Path(DEFAULT_SOCKET).exists():
        return False
    return kubeconfig_path().is_file() or any(
        word.startswith(("--context", "--kubeconfig")) for word in words
    )


class _ClusterParser(Parser):
    """A parser that knows where the agent's own commands are."""

    def _check_value(self, action: argparse.Action, value: object) -> None:
        if action.choices is not None and value not in action.choices:
            raise CommandError(
                f"{value!r} is no command for a cluster, and no agent runs here",
                hint=f"{_IN_POD} {value}",
                code=USAGE,
            )


def build_parser() -> Parser:
    """The parser of every command."""
    shared = Parser(add_help=False, argument_default=argparse.SUPPRESS)
    group = shared.add_argument_group("global options")
    group.add_argument("-n", "--namespace", metavar="NAME", help=f"where Cilium runs (default {NAMESPACE})")
    group.add_argument("--context", metavar="NAME", help="context of the kubeconfig")
    group.add_argument("--kubeconfig", type=Path, metavar="FILE", help="instead of KUBECONFIG")
    parser = _ClusterParser(prog="cilium", description="Cilium in a Kubernetes cluster", parents=[shared])
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)
    status = commands.add_parser("status", help="Display the status of Cilium", parents=[shared])
    status.add_argument("--wait", action="store_true", help="until there are no errors")
    status.add_argument(
        "--wait-duration", type=seconds, default=WAIT_SECONDS, metavar="TIME", help="how long, e.g. 5m"
    )
    status.set_defaults(run=run_status)
    version = commands.add_parser("version", help="Print version information", parents=[shared])
    version.set_defaults(run=run_version)
    for command in (status, version):
        output_option(command)
    return parser


def seconds(text: str) -> float:
    """A duration as ``5m``, ``90s``, ``1m30s`` or in seconds, for argparse."""
    if not _DURATION.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no duration, e.g. 5m")
    return sum(float(number) * _SECONDS[unit] for number, unit in _PART.findall(text))


def run(words: list[str]) -> int:
    """Parse *words* and run the command they name."""
    return run_command(build_parser(), words)


def run_version(arguments: argparse.Namespace) -> int:
    """Print the version of this command."""
    own = cilium_version()
    emit({"Client": {"Version": own}}, arguments.output, f"Client: {own}\n")
    return OK


def run_status(arguments: argparse.Namespace) -> int:
    """Print the picture; 1 if something is wrong, with ``--wait`` only once the time is up."""
    namespace = getattr(arguments, "namespace", NAMESPACE)
    path = getattr(arguments, "kubeconfig", None) or kubeconfig_path()
    client = connect(path, context=getattr(arguments, "context", None), namespace=namespace)
    patience = arguments.wait_duration if arguments.wait else 0.0
    status = settle(lambda: ask(client, namespace), patience)
    emit(document(status), arguments.output, render(status, colours=sys.stdout.isatty()))
    if status.errors and arguments.wait:
        note(f"Error: not well after {patience:g} s")
    return FAILED if status.errors else OK


def settle(look: Callable[[], ClusterStatus], patience: float) -> ClusterStatus:
    """What *look* sees: the first time without errors, or when *patience* (seconds) is over."""
    deadline = time.monotonic() + patience
    while (status := look()).errors and time.monotonic() + POLL_SECONDS < deadline:
        time.sleep(POLL_SECONDS)
    return status


def ask(client: "Client", namespace: str) -> ClusterStatus:
    """The status now.  Raises CommandError when the API server gives none."""
    import httpx2
    from lightkube.core.exceptions import ApiError

    from ciliumd.cli.outer_cluster import gather

    try:
        return gather(client, namespace)
    except (ApiError, httpx2.TransportError) as error:
        raise unreachable(error) from error
