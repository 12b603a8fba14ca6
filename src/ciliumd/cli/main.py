# SPDX-License-Identifier: Apache-2.0
"""
``cilium`` (also installed as ``cilium-dbg``): the command line of a running agent.

Where no agent's socket exists and a kubeconfig does, ``cilium`` is the command line of the cluster (see
``outer``).

Exit codes: 0 done, 1 a check failed or something is missing, 2 misuse, 3 the agent cannot be
reached.  Data goes to stdout, everything else to stderr.
"""

import os
import sys
from collections.abc import Callable, Sequence

from ciliumd.cli import (
    bpf,
    build_config,
    cleanup,
    completion,
    config,
    endpoint,
    identity,
    ip,
    maps,
    metrics,
    monitor,
    node,
    outer,
    policy,
    service,
    status,
    version,
)
from ciliumd.cli.arguments import SHARED, Parser, run_command
from ciliumd.cli.errors import OK, CommandError
from ciliumd.cli.output import note

NOUNS = (
    bpf,
    build_config,
    cleanup,
    completion,
    config,
    endpoint,
    identity,
    ip,
    maps,
    metrics,
    monitor,
    node,
    policy,
    service,
    status,
    version,
)


def build_parser() -> Parser:
    """The parser of every command."""
    parser = Parser(prog="cilium", description="CLI for interacting with the local agent", parents=[SHARED])
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)
    for noun in NOUNS:
        noun.register(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:2] == ["__complete", "--"]:
        print("\n".join(completion.candidates(build_parser(), words[2:])))
        return OK
    command = outer.run if outer.is_outside(sys.argv[0], words) else run
    return guarded(lambda: command(words))


def run(words: list[str]) -> int:
    """Parse *words* and run the command they name."""
    return run_command(build_parser(), words)


def guarded(action: Callable[[], int]) -> int:
    """Run *action*; its errors as text on stderr and an exit code."""
    try:
        code = action()
        sys.stdout.flush()
    except CommandError as error:
        note(f"Error: {error}")
        if error.hint:
            note(f"Try:   {error.hint}")
        return error.code
    except BrokenPipeError:
        # The reader of a pipe has seen enough.  Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except KeyboardInterrupt:
        return 130
    return code


if __name__ == "__main__":
    sys.exit(main())
