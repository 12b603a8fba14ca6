# SPDX-License-Identifier: Apache-2.0
"""
Compile datapath/progs/*.bpf.c into build/out/bpf/NAME.bpf.o and a skeleton header of each.

The objects do not depend on the directory, the user or the kernel they were built on: two builds
of one source tree with one compiler are identical bit for bit (build/reproducible.py checks it).
An object is compiled again only when a file it read, the flags or the compiler changed.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import os
import sys
import tempfile
from pathlib import Path

from toolchain import (
    ABI_HEADER,
    OBJECTS,
    ROOT,
    SKELETONS,
    build_lock,
    digest,
    fail,
    multiarch,
    replace,
    run,
    tool,
)

CLANG = "clang-19"
STRIP = "llvm-strip-19"
FLAGS = (
    *("-O2", "-g", "-target", "bpfel", "-mcpu=v3", "-std=gnu11"),
    *("-Wall", "-Wextra", "-Werror"),
    # Neither the directory of the checkout nor the time of day may reach the object.
    *("-fdebug-compilation-dir=.", "-Wdate-time"),
)


def sources(root: Path = ROOT) -> dict[str, Path]:
    """Every program file by the name of its object."""
    return {
        path.name.removesuffix(".bpf.c"): path for path in sorted((root / "datapath/progs").glob("*.bpf.c"))
    }


def flags(root: Path) -> list[str]:
    """Compiler flags for a checkout at *root*."""
    includes = ("-I", "datapath/include", "-I", "datapath", "-isystem", f"/usr/include/{multiarch()}")
    return [*FLAGS, f"-ffile-prefix-map={root}=.", *includes]


def compile_object(source: Path, target: Path, *, root: Path = ROOT) -> list[Path]:
    """Compile one file into a stripped object that keeps its BTF; returns the files it read."""
    with tempfile.TemporaryDirectory() as scratch:
        built, depends = Path(scratch) / "object.o", Path(scratch) / "depends"
        relative = source.relative_to(root) if source.is_relative_to(root) else source
        command = [tool(CLANG), *flags(root), "-MD", "-MF", depends, "-c", relative, "-o", built]
        run(command, cwd=root)
        run([tool(STRIP), "-g", built])
        replace(target, built.read_bytes())
        words = depends.read_text().replace("\\\n", " ").split(":", 1)[1].split()
    return [root / word for word in words]


def write_skeleton(name: str, target: Path) -> None:
    """The header bpftool makes of an object: its bytes, names and typed read-only data."""
    header = run([tool("bpftool"), "gen", "skeleton", OBJECTS / f"{name}.bpf.o", "name", f"{name}_bpf"])
    replace(target, header)


def inputs(files: list[Path]) -> str:
    """What an object was made of, as one digest."""
    compiler = run([tool(CLANG), "--version"]) + run([tool("bpftool"), "version"])
    words = [str(path).encode() + b"\0" + (path.read_bytes() if path.exists() else b"") for path in files]
    return digest([compiler, " ".join(flags(ROOT)).encode(), *words])


def build(name: str, source: Path) -> bool:
    """Bring one object up to date; True when it was compiled."""
    stamp = OBJECTS / f"{name}.inputs"
    target, skeleton = OBJECTS / f"{name}.bpf.o", SKELETONS / f"{name}.skel.h"
    if stamp.exists() and target.exists() and skeleton.exists():
        known, *read = stamp.read_text().splitlines()
        if known == inputs([Path(line) for line in read]):
            return False
    read_files = compile_object(source, target)
    write_skeleton(name, skeleton)
    replace(stamp, "\n".join([inputs(read_files), *map(str, read_files)]).encode())
    return True


def drop_stale(names: set[str]) -> None:
    """Outputs of program files that are gone."""
    for path in [*OBJECTS.glob("*.*"), *SKELETONS.glob("*.*")]:
        if path.name.split(".", 1)[0] not in names:
            path.unlink()


def main() -> int:
    """Build every object, as many at a time as there are processors."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").strip().splitlines()[0])
    parser.add_argument("--quiet", action="store_true", help="print only what was compiled")
    options = parser.parse_args()
    if not ABI_HEADER.exists():
        fail(f"{ABI_HEADER} is missing")
    with build_lock(), concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        wanted = sources()
        drop_stale(set(wanted))
        results = pool.map(lambda item: (item[0], build(*item)), wanted.items())
        for name, compiled in results:
            if compiled or not options.quiet:
                sys.stdout.write(f"{'compiled' if compiled else 'unchanged'} {name}.bpf.o\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
