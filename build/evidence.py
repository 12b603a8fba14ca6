# SPDX-License-Identifier: Apache-2.0
"""
What a long run measured, kept with the commit it was measured on: docs/evidence/<layer>.json.

Only runs of `build/dev test --long` write such files.  A file says whether the checkout had changes that
are in no commit; a release is asked for one that had none.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from typing import TYPE_CHECKING, Any

from toolchain import ROOT, tool

if TYPE_CHECKING:
    from pathlib import Path

DIRECTORY = ROOT / "docs" / "evidence"


def _git(*words: str) -> str:
    done = subprocess.run([tool("git"), *words], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _machine() -> dict[str, object]:
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {"kernel": platform.release(), "processors": os.cpu_count(), "memory_gib": round(gib)}


def write(
    layer: str, *, seconds: float, passed: int, failed: int, skipped: int, tests: dict[str, dict[str, Any]]
) -> Path:
    """
    Write the file of *layer*; its path.

    *tests* has what a test recorded by its name: ``figure``, lines of text, and ``data``, decoded JSON.
    """
    document = {
        "command": f"build/dev test --long {layer}",
        "commit": _git("rev-parse", "HEAD"),
        # The evidence itself is written beside it, and is no change of what was measured.
        "uncommitted_changes": bool(_git("status", "--porcelain", "--", ".", ":!docs/evidence")),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": _machine(),
        "seconds": round(seconds, 1),
        "passed": passed,
        "failed": failed,
        "skipped": skipped,
        "tests": tests,
    }
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    path = DIRECTORY / f"{layer}.json"
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    return path
