# SPDX-License-Identifier: Apache-2.0
"""
``cilium completion``: shell completion for bash, zsh and fish.

The shells ask the hidden command ``__complete`` for words, so one implementation serves all, and
endpoint ids and map names come from the agent.
"""

import argparse
import textwrap
from collections.abc import Iterator
from typing import Any, Final

from ciliumd.cli.arguments import Commands, client, command
from ciliumd.cli.errors import OK, CommandError

_SCRIPTS: Final = {
    "bash": """
        _PROG_complete() {
            local IFS=$'\\n'
            COMPREPLY=($(PROG __complete -- "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
        }
        complete -o default -F _PROG_complete PROG
        """,
    "zsh": """
        #compdef PROG
        _PROG() {
            local -a found
            found=(${(f)"$(PROG __complete -- "${(@)words[2,CURRENT]}" 2>/dev/null)"})
            compadd -a found
        }
        compdef _PROG PROG
        """,
    "fish": """
        function __PROG_complete
            set -l words (commandline -opc)
            PROG __complete -- $words[2..-1] (commandline -ct) 2>/dev/null
        end
        complete -c PROG -f -a '(__PROG_complete)'
        """,
}


def register(commands: Commands) -> None:
    """Add ``completion`` and what its scripts call."""
    parser = command(commands, "completion", "Output shell completion code", run, output=False)
    parser.add_argument("shell", choices=sorted(_SCRIPTS))


def run(arguments: argparse.Namespace) -> int:
    """Print the script."""
    print(script(arguments.shell, "cilium"))
    return OK


def script(shell: str, program: str) -> str:
    """Completion code of *shell* for *program*."""
    return textwrap.dedent(_SCRIPTS[shell]).strip().replace("PROG", program)


def candidates(parser: argparse.ArgumentParser, words: list[str]) -> list[str]:
    """Words that can stand in place of the last of *words*, the one being typed."""
    *done, typed = words or [""]
    for word in done:
        below = _commands(parser).get(word)
        parser = below if below is not None else parser
    if typed.startswith("-"):
        found = [text for action in parser._actions for text in action.option_strings]  # noqa: SLF001
    else:
        found = [*_commands(parser), *_choices(parser), *_live(done)]
    return sorted({word for word in found if word.startswith(typed)})


def _commands(parser: argparse.ArgumentParser) -> dict[str, Any]:
    # argparse offers no other way to its own tree than its list of actions.
    for action in parser._actions:  # noqa: SLF001
        if isinstance(action.choices, dict):
            return action.choices
    return {}


def _choices(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:  # noqa: SLF001
        if not action.option_strings and isinstance(action.choices, list):
            yield from map(str, action.choices)


def _live(done: list[str]) -> list[str]:
    """Names only the agent knows; none if it does not answer at once."""
    agent = client(argparse.Namespace(timeout=1.0))
    try:
        match done:
            case ["endpoint", "get" | "config" | "delete" | "del"] | ["bpf", "policy", "get" | "list"]:
                return [str(endpoint["id"]) for endpoint in agent.get("endpoint")]
            case ["identity", "get"]:
                return [str(identity["id"]) for identity in agent.get("identity")]
            case ["service", "get"]:
                return [str(service["spec"]["id"]) for service in agent.get("service")]
            case ["map", "get"]:
                return [row["path"].rpartition("/")[2] for row in agent.get("map")["maps"]]
            case _:
                return []
    except CommandError:
        return []
