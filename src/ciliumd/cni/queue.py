# SPDX-License-Identifier: Apache-2.0
"""
DELs the agent was not there for (``executable/queue.c`` writes them).

An entry is the name of an empty file, ``CONTAINER:IFNAME``: there is nothing in it that could be cut.
"""

from pathlib import Path

import structlog

from ciliumd.cni.request import Attachment

log = structlog.get_logger("cni")


class DeleteQueue:
    """The entries of a directory, which need not exist."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._refused: set[str] = set()

    def entries(self) -> list[Attachment]:
        """What is to be deleted, in no order; what is no entry is told once and left alone."""
        try:
            names = sorted(path.name for path in self._directory.iterdir())
        except FileNotFoundError:
            return []
        found = []
        for name in names:
            container_id, colon, ifname = name.partition(":")
            if container_id and colon and ifname:
                found.append(Attachment(container_id, ifname))
            elif name not in self._refused:
                self._refused.add(name)
                log.warning("cni.queue_entry_ignored", path=str(self._directory / name))
        return found

    def done(self, attachment: Attachment) -> None:
        """It has been deleted."""
        (self._directory / f"{attachment.container_id}:{attachment.ifname}").unlink(missing_ok=True)
