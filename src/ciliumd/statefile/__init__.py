# SPDX-License-Identifier: Apache-2.0
"""
Rows of text in one file, all of them or none.

The file is replaced whole (temporary file, fsync, rename) and carries a checksum: one that is cut, full
of other bytes or from another version is refused, never half-read.  What rows mean, and what to do
without them, is for the caller to know; one writer per file.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

FORMAT = 1


class StateFileDamaged(Exception):
    """The file holds something else than what was written to it."""


def read_rows(path: Path) -> dict[str, str]:
    """The rows of the file.  Raises StateFileDamaged, or OSError when it is missing or unreadable."""
    data = path.read_bytes()
    try:
        envelope = json.loads(data)
        if envelope["format"] != FORMAT:
            raise StateFileDamaged(f"format {envelope['format']}, this agent writes {FORMAT}")
        rows: dict[str, str] = envelope["rows"]
        if envelope["sha256"] != _digest(rows):
            raise StateFileDamaged("checksum does not match")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise StateFileDamaged(f"is no state file: {error}") from error
    return rows


def write_rows(path: Path, rows: Mapping[str, str]) -> None:
    """Replace the file.  Raises OSError, and then it is as it was."""
    aside = path.with_name(path.name + ".new")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump({"format": FORMAT, "sha256": _digest(rows), "rows": rows}, file, sort_keys=True)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def _digest(rows: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()
