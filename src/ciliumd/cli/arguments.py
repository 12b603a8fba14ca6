# SPDX-License-Identifier: Apache-2.0
"""Argument parsers as every command builds them: shared options, nouns and verbs, did-you-mean."""

import argparse
import difflib
from collections.abc import Callable, Sequence
from typing import Any, Final, NoReturn

from ciliumd.cli.client import DEFAULT_TIMEOUT, Client, socket_path
from ciliumd.cli.errors import USAGE
from ciliumd.cli.output import FORMATS, check_format

Run = Callable[[argparse.Namespace], int]
Commands = Any  # argparse publishes no name for what add_subparsers returns


class Parser(argparse.ArgumentParser):
    """A parser that says what a mistyped command was meant to be."""

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        close = difflib.get_close_matches(str(value), [str(choice) for choice in action.choices], n=1)
        hint = (
            f"did you mean {close[0]!r}?" if close else f"choose from {', '.join(map(str, action.choices))}"
        )
        raise argparse.ArgumentError(None, f"unknown command {value!r}; {hint}")

    def error(self, message: str) -> NoReturn:
        """End with the usage code."""
        self.exit(USAGE, f"Error: {message}\nRun '{self.prog} --help' for usage.\n")


def run_command(parser: argparse.ArgumentParser, words: Sequence[str]) -> int:
    """Parse *words* and run the command they name."""
    arguments = parser.parse_args(words)
    code: int = arguments.run(arguments)
    return code


def _shared() -> argparse.ArgumentParser:
    shared = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    group = shared.add_argument_group("global options")
    group.add_argument("-H", "--host", metavar="SOCKET", help="the agent's socket, a path or unix://path")
    group.add_argument("--timeout", type=float, metavar="SECONDS", help="how long to wait for the agent")
    return shared


SHARED: Final = _shared()


def output_option(parser: argparse.ArgumentParser) -> None:
    """Give *parser* ``-o``."""
    parser.add_argument(
        "-o", "--output", type=check_format, metavar="FORMAT", help=f"output format: {', '.join(FORMATS)}"
    )


def group(commands: Commands, name: str, text: str) -> Commands:
    """A noun: a command that only has further commands."""
    parser = commands.add_parser(name, help=text, description=text, parents=[SHARED])
    return parser.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)


def command(
    commands: Commands, name: str, text: str, run: Run, *, aliases: tuple[str, ...] = (), output: bool = True
) -> argparse.ArgumentParser:
    """A verb that runs *run*."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=text, parents=[SHARED], aliases=aliases
    )
    parser.set_defaults(run=run)
    if output:
        output_option(parser)
    return parser


def client(arguments: argparse.Namespace) -> Client:
    """The agent the command line names."""
    return Client(
        socket_path(getattr(arguments, "host", None)), timeout=getattr(arguments, "timeout", DEFAULT_TIMEOUT)
    )
