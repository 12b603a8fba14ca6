# SPDX-License-Identifier: Apache-2.0
"""
``cilium cleanup``: take a stopped agent's BPF state off the node.

Links first, so that no packet meets half of it, then maps and programs; ``--all-state`` also removes
the state directory.  The lock the agent holds on its state keeps this from a running agent's.
"""

import argparse
import shutil
from pathlib import Path
from typing import Final

from ciliumd.cli.arguments import Commands, command
from ciliumd.cli.errors import OK, USAGE, CommandError
from ciliumd.cli.output import note

DEFAULT_BPF_ROOT: Final = Path("/sys/fs/bpf/ciliumd")
DEFAULT_STATE_DIR: Final = Path("/var/run/cilium/state")


def register(commands: Commands) -> None:
    """Add ``cleanup``."""
    parser = command(
        commands, "cleanup", "Remove system state installed by a stopped agent", run, output=False
    )
    parser.add_argument(
        "-f", "--force", action="store_true", help="do it; without this only say what would go"
    )
    parser.add_argument("--all-state", action="store_true", help="the state directory too: ids are forgotten")
    parser.add_argument("--bpf-root", type=Path, default=DEFAULT_BPF_ROOT, metavar="DIR")
    parser.add_argument("--state-dir", type=Path, default=DEFAULT_STATE_DIR, metavar="DIR")


def run(arguments: argparse.Namespace) -> int:
    """Remove, or say what would be removed."""
    found = [path for path in _paths(arguments) if path.is_dir()]
    if not found:
        note("Nothing to clean up.")
        return OK
    if not arguments.force:
        for path in found:
            print(path)
        raise CommandError(
            "nothing was removed: pods lose networking and policy when this state goes",
            hint="stop the agent, then: cilium cleanup -f" + " --all-state" * arguments.all_state,
            code=USAGE,
        )
    if arguments.bpf_root in found:
        _remove_bpf_state(arguments.bpf_root, arguments.state_dir)
    if arguments.all_state and arguments.state_dir in found:
        shutil.rmtree(arguments.state_dir)
    for path in found:
        print(f"removed {path}")
    return OK


def _paths(arguments: argparse.Namespace) -> list[Path]:
    paths: list[Path] = [arguments.bpf_root]
    return [*paths, arguments.state_dir] if arguments.all_state else paths


def _remove_bpf_state(root: Path, state_dir: Path) -> None:
    from ciliumd.bpf import BpfError, Pins, detach_all
    from ciliumd.bpf.pins import remove_tree

    try:
        with Pins(root, state_dir=state_dir) as pins:
            detach_all(pins)
            remove_tree(pins.base)
            # A start that was cut off leaves a root without maps, and Pins works beside it.
            remove_tree(root)
    except BpfError as error:
        raise CommandError(f"cannot remove {root}: {error}", hint="stop the agent first") from error
