# SPDX-License-Identifier: Apache-2.0
"""
Programs of the tests' own, compiled as the build compiles the datapath.

That needs clang.  A guest has none (tests/kernels): it is given the objects beside their sources.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

from ciliumd.bpf.object import Embedded

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "tests/datapath/progs"


def compiled(name: str, scratch: Path) -> Embedded:
    """The object of tests/datapath/progs/NAME.bpf.c; where it is compiled its file is left in *scratch*."""
    brought = SOURCES / f"{name}.bpf.o"
    data = brought.read_bytes() if brought.exists() else _compile(name, scratch)
    return Embedded(name, data, hashlib.sha256(data).hexdigest())


def _compile(name: str, scratch: Path) -> bytes:
    sys.path.insert(0, str(ROOT / "build"))
    try:
        from compile_bpf import compile_object
    finally:
        sys.path.remove(str(ROOT / "build"))
    target = scratch / f"{name}.bpf.o"
    compile_object(SOURCES / f"{name}.bpf.c", target)
    return target.read_bytes()
