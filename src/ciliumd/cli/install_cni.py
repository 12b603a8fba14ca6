# SPDX-License-Identifier: Apache-2.0
"""
``ciliumd install-cni``: put the CNI executable where the node's container runtime starts it.

Replaced in one rename: the runtime may start it at any moment, and one that runs goes on running.
"""

import argparse
import os
from pathlib import Path
from typing import Final

from ciliumd.cli.arguments import Commands, command
from ciliumd.cli.errors import OK, CommandError
from ciliumd.cni import EXECUTABLE

MODE: Final = 0o755


def register(commands: Commands) -> None:
    """Add ``install-cni``."""
    parser = command(commands, "install-cni", "Install the CNI executable on the node", run, output=False)
    parser.add_argument("directory", type=Path, metavar="DIR", help="the node's directory of CNI executables")
    parser.add_argument("--source", type=Path, default=EXECUTABLE, metavar="FILE")


def run(arguments: argparse.Namespace) -> int:
    """Install it, unless the same is there."""
    target = arguments.directory / arguments.source.name
    try:
        content = arguments.source.read_bytes()
        if target.is_file() and target.read_bytes() == content and os.access(target, os.X_OK):
            print(f"{target} is up to date")
            return OK
        arguments.directory.mkdir(parents=True, exist_ok=True)
        aside = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            aside.write_bytes(content)
            aside.chmod(MODE)
            aside.replace(target)
        finally:
            aside.unlink(missing_ok=True)
    except OSError as error:
        raise CommandError(
            f"cannot install {target}: {error.strerror} ({error.filename})",
            hint="cni.binPath of the chart names the runtime's directory (containerd: bin_dir)",
        ) from error
    print(f"installed {target}")
    return OK
