# SPDX-License-Identifier: Apache-2.0
"""Compile every object and the CNI executable twice more, in two directories: all must be identical."""

from __future__ import annotations

import concurrent.futures
import os
import shutil
import sys
import tempfile
from pathlib import Path

import cni
from compile_bpf import compile_object, sources
from toolchain import OBJECTS, ROOT, build_lock


def built_in(root: Path) -> dict[str, bytes]:
    """What a copy of the sources at *root* is compiled to, by file name."""
    shutil.copytree(ROOT / "datapath", root / "datapath")
    shutil.copytree(cni.SOURCES, root / "cni")
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        made = {name: root / "out" / f"{name}.bpf.o" for name in sources(root)}
        jobs = [
            pool.submit(compile_object, path, made[name], root=root) for name, path in sources(root).items()
        ]
        for job in jobs:
            job.result()
    return {path.name: path.read_bytes() for path in made.values()} | {
        cni.NAME: cni.compile_executable(root / "cni")
    }


def main() -> int:
    """Compare the two builds with each other and with build/out/."""
    with tempfile.TemporaryDirectory() as scratch, build_lock():
        one = built_in(Path(scratch) / "a")
        two = built_in(Path(scratch) / "deeper" / "directory")
        here = {f"{name}.bpf.o": (OBJECTS / f"{name}.bpf.o").read_bytes() for name in sources()}
        here[cni.NAME] = cni.INSTALLED.read_bytes()
    different = sorted(name for name in here if not one[name] == two[name] == here[name])
    sys.stderr.writelines(f"{name} depends on where it is built\n" for name in different)
    return 1 if different else 0


if __name__ == "__main__":
    raise SystemExit(main())
