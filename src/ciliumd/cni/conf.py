# SPDX-License-Identifier: Apache-2.0
"""
The configuration runtimes find us by: ``/etc/cni/net.d/05-cilium.conflist``.

It appears when pods can be made and stays when the agent ends, as the pods do.  Runtimes take the first
file of the directory; when we are to be the only one, others are renamed to ``*.cilium_bak``, also when
they come back, and get their names again with :func:`uninstall`.
"""

import json
import os
from pathlib import Path
from typing import Any

import structlog

DEFAULT_SOCKET = Path("/var/run/cilium/cni.sock")
DEFAULT_QUEUE = Path("/var/run/cilium/deleteQueue")
DEFAULT_LOG = Path("/var/run/cilium/cilium-cni.log")
PLUGIN = "cilium-cni"

_BACKUP = ".cilium_bak"
_CONFIGURATIONS = frozenset({".conf", ".conflist", ".json"})

log = structlog.get_logger("cni")


def conflist(
    *,
    portmap: bool,
    debug: bool = False,
    ipv6: bool = False,
    log_file: Path = DEFAULT_LOG,
    socket: Path = DEFAULT_SOCKET,
    queue: Path = DEFAULT_QUEUE,
) -> bytes:
    """
    Our network configuration list: ``cilium-cni``, and *portmap* behind it where we do not serve host ports.

    0.3.1 is what every runtime and every portmap speaks.
    """
    plugin: dict[str, Any] = {"type": PLUGIN, "enable-debug": debug, "log-file": str(log_file)}
    if ipv6:
        plugin["enable-ipv6"] = True
    if socket != DEFAULT_SOCKET:
        plugin["cni-socket"] = str(socket)
    if queue != DEFAULT_QUEUE:
        plugin["delete-queue"] = str(queue)
    plugins = [plugin, {"type": "portmap", "capabilities": {"portMappings": True}}] if portmap else [plugin]
    whole = {"cniVersion": "0.3.1", "name": "cilium", "plugins": plugins}
    return json.dumps(whole, indent=2).encode() + b"\n"


class Conf:
    """The file at *path*, and what becomes of others beside it."""

    def __init__(self, path: Path, content: bytes, *, exclusive: bool) -> None:
        self._path = path
        self._content = content
        self._exclusive = exclusive

    def enforce(self) -> None:
        """
        Write the file unless it is there as it should be, then set others aside.

        Call it once pods can be made, and every few seconds from then on.  Raises OSError.
        """
        if not self._is_written():
            self._path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            _replace(self._path, self._content)
            log.info("cni.conf_written", path=str(self._path))
        if self._exclusive:
            for other in _others(self._path):
                other.replace(other.with_name(other.name + _BACKUP))
                log.warning("cni.conf_set_aside", path=str(other))

    def _is_written(self) -> bool:
        try:
            return self._path.read_bytes() == self._content
        except FileNotFoundError:
            return False


def uninstall(path: Path) -> list[Path]:
    """Remove our file and give the others their names back, unless those are taken; what was changed."""
    changed = [path] if path.exists() else []
    path.unlink(missing_ok=True)
    for backup in sorted(path.parent.glob(f"*{_BACKUP}")):
        restored = backup.with_name(backup.name.removesuffix(_BACKUP))
        if not restored.exists():
            backup.rename(restored)
            changed.append(restored)
    return changed


def _others(path: Path) -> list[Path]:
    return [
        one
        for one in sorted(path.parent.iterdir())
        if one.suffix in _CONFIGURATIONS and one.name != path.name and not one.is_dir()
    ]


def _replace(path: Path, content: bytes) -> None:
    """Runtimes watch the directory: the file is there whole or not at all, its name never a half's."""
    aside = path.with_name(f".{path.name}.new")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
