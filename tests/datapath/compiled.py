# SPDX-License-Identifier: Apache-2.0
"""
Programs of the tests' own, compiled as the build compiles the datapath.

That needs clang.  A guest has none (tests/kernels): it is given the objects beside their sources.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
from pathlib import Path

from ciliumd.bpf.object import Embedded

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "tests/datapath/progs"


def compiled(name: str, scratch: Path) -> Embedded:
    """The object of tests/datapath/progs/NAME.bpf.c; its file is left in *scratch*."""
    brought, target = SOURCES / f"{name}.bpf.o", scratch / f"{name}.bpf.o"
    if brought.exists():
        shutil.copy(brought, target)
    else:
        _compile(name, target)
    data = target.read_bytes()
    return Embedded(name, data, hashlib.sha256(data).hexdigest())


def _compile(name: str, target: Path) -> None:
    sys.path.insert(0, str(ROOT / "build"))
    try:
        from compile_bpf import compile_object
    finally:
        sys.path.remove(str(ROOT / "build"))
    compile_object(SOURCES / f"{name}.bpf.c", target)
