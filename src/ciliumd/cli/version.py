# SPDX-License-Identifier: Apache-2.0
"""
``cilium version``: of this command and of the agent, as clients of Cilium read it.

The agent's part is ``status.version`` of ``GET /v1/config``: the version of its package, ``0.2.0``.
"""

import argparse
import platform
from typing import Any, Final

from ciliumd.cli.arguments import Commands, client, command
from ciliumd.cli.errors import OK, CommandError
from ciliumd.cli.output import emit
from ciliumd.version import cilium_version

_NOT_RESPONDING: Final = "Not responding"


def register(commands: Commands) -> None:
    """Add ``version``."""
    command(commands, "version", "Print version information", run)


def run(arguments: argparse.Namespace) -> int:
    """Print both versions; an agent that does not answer is reported, not an error."""
    try:
        daemon = cilium_version(client(arguments).get("config")["status"]["version"])
    except CommandError:
        daemon = ""
    own = cilium_version()
    data = {"Client": _document(own), "Daemon": _document(daemon)}
    emit(data, arguments.output, f"Client: {own}\nDaemon: {daemon or _NOT_RESPONDING}\n")
    return OK


def _document(version: str) -> dict[str, Any]:
    if not version:
        return {"Version": "", "Revision": "", "GoRuntimeVersion": "", "Arch": "", "AuthorDate": ""}
    return {
        "Version": version,
        "Revision": "",
        "GoRuntimeVersion": "",
        "Arch": f"{platform.system().lower()}/{platform.machine()}",
        "AuthorDate": "",
    }
