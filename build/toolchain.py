# SPDX-License-Identifier: Apache-2.0
"""
What the build scripts share: where things lie, which tools they call, how outputs are replaced.

Outputs go to build/out/ only, and every output is written aside and renamed, so that a reader
never sees half a file.  A lock keeps two builds of one checkout from writing at the same time.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "build" / "out"
OBJECTS = OUT / "bpf"
SKELETONS = OUT / "skel"
PACKAGE = ROOT / "src" / "ciliumd"
ABI_HEADER = ROOT / "datapath" / "include" / "ciliumd" / "abi.h"


def tool(name: str) -> str:
    """The path of a required program; Debian installs bpftool outside the usual PATH of users."""
    found = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if found is None:
        fail(f"{name} is not installed; `build/dev deps` installs what the build needs")
    return found


def fail(message: str) -> NoReturn:
    """End the script with one line that says what is wrong."""
    sys.stderr.write(f"{Path(sys.argv[0]).name}: {message}\n")
    raise SystemExit(1)


def run(command: Sequence[str | Path], *, cwd: Path = ROOT) -> bytes:
    """Run a tool, return what it printed; its own diagnostics are shown when it fails."""
    done = subprocess.run([str(word) for word in command], cwd=cwd, capture_output=True, check=False)
    if done.returncode != 0:
        sys.stderr.buffer.write(done.stdout + done.stderr)
        fail(f"{Path(str(command[0])).name} ended with {done.returncode}")
    return done.stdout


def replace(path: Path, content: bytes) -> bool:
    """Give *path* this content in one rename; False when it had it already."""
    if path.exists() and path.read_bytes() == content:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_bytes(content)
    aside.rename(path)
    return True


def digest(parts: Iterable[bytes]) -> str:
    """SHA-256 over parts, each with its length so that bytes cannot move between two of them."""
    total = hashlib.sha256()
    for part in parts:
        total.update(len(part).to_bytes(8, "little"))
        total.update(part)
    return total.hexdigest()


def multiarch() -> str:
    """Debian's directory name of this machine's architecture, for <asm/types.h>."""
    return f"{platform.machine()}-linux-gnu"


@contextlib.contextmanager
def build_lock() -> Iterator[None]:
    """One build of this checkout at a time."""
    OUT.mkdir(parents=True, exist_ok=True)
    with (OUT / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
