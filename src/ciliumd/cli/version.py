# SPDX-License-Identifier: Apache-2.0
"""
``cilium version``: of this command and of the agent.

Clients of Cilium read a semantic version and gate features by it, so the version of Cilium this
release is compatible with comes first: ``1.18.0-ciliumd.0.1.0``.  The agent's part of it is
``status.version`` of ``GET /v1/config``: the version of its package, ``0.1.0``.
"""

import argparse
import platform
from typing import Any, Final

from ciliumd import __version__
from ciliumd.cli.arguments import Commands, client, command
from ciliumd.cli.errors import OK, CommandError
from ciliumd.cli.output import emit

CILIUM_VERSION: Final = "1.18.0"
_NOT_RESPONDING: Final = "Not responding"


def register(commands: Commands) -> None:
    """Add ``version``."""
    command(commands, "version", "Print version information", run)


def run(arguments: argparse.Namespace) -> int:
    """Print both versions; an agent that does not answer is reported, not an error."""
    try:
        daemon = compatible(client(arguments).get("config")["status"]["version"])
    except CommandError:
        daemon = ""
    own = compatible(__version__)
    data = {"Client": _document(own), "Daemon": _document(daemon)}
    emit(data, arguments.output, f"Client: {own}\nDaemon: {daemon or _NOT_RESPONDING}\n")
    return OK


def compatible(version: str) -> str:
    """*version* of ciliumd as clients of Cilium read it."""
    return f"{CILIUM_VERSION}-ciliumd.{version}"


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
