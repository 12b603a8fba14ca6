# SPDX-License-Identifier: Apache-2.0
"""
What the tests on other kernels boot: Debian's kernels, and a root file system with this checkout in it.

The guest runs the same interpreter, packages, programs and tests as this machine, under the same paths.
Prints a line for each kernel.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import importlib.util
import json
import marshal
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import asdict
from pathlib import Path

import compile_bpf
import kernel_packages
from initramfs import Tree
from toolchain import ROOT, build_lock, replace

DIRECTORY = kernel_packages.DIRECTORY
IMAGE = DIRECTORY / "root.cpio"
MAGIC = importlib.util.MAGIC_NUMBER
MANIFEST = DIRECTORY / "kernels.json"
# What the tests and the agent call; everything else that a shell needs is busybox.
PROGRAMS = ("ip", "tc", "bridge", "nsenter", "setpriv", "unshare", "mount", "bpftool", "bash", "env")
DISTRIBUTIONS = ("ciliumd", "hypothesis", "pytest", "scapy")
CHECKOUT = ("build", "src", "tests", "pyproject.toml", "README.md", "docs", "charts", "examples")
PROGRAMS_OF_TESTS = ROOT / "tests" / "datapath" / "progs"
LEFT_OUT = frozenset({"__pycache__", "out", "go", "e2e", "bench", "chart", "evidence", "node_modules"})
LIBRARY_LEFT_OUT = frozenset(
    {
        *("site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "tkinter", "turtledemo"),
        *("ensurepip", "pydoc_data"),
    }
)
DIRECTORIES = ("/proc", "/sys", "/dev", "/run", "/tmp", "/root")  # noqa: S108  # of the guest
INIT = """\
#!/bin/busybox sh
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mkdir -p /dev/shm /dev/pts /run/netns /tmp
/bin/busybox mount -t devpts devpts /dev/pts
/bin/busybox mount -t tmpfs tmpfs /dev/shm
/bin/busybox mount -t tmpfs tmpfs /run
/bin/busybox mount -t tmpfs tmpfs /sys/fs/cgroup
/bin/busybox mkdir -p /sys/fs/cgroup/unified
/bin/busybox mount -t cgroup2 none /sys/fs/cgroup/unified
/bin/busybox mount -t bpf bpf /sys/fs/bpf
for module in $(/bin/busybox cat /modules/$(/bin/busybox uname -r)/order); do
	/bin/busybox insmod /modules/$(/bin/busybox uname -r)/$module.ko
done
/bin/busybox ip link set lo up
cd {root}
{python} -m kernels.guest.run
/bin/busybox poweroff -f
"""


def distributions() -> dict[str, importlib.metadata.Distribution]:
    """What the tests import, and what that needs."""
    from packaging.requirements import Requirement

    found: dict[str, importlib.metadata.Distribution] = {}
    todo = list(DISTRIBUTIONS)
    while todo:
        one = importlib.metadata.distribution(todo.pop())
        if one.name in found:
            continue
        found[one.name] = one
        for text in one.requires or ():
            wanted = Requirement(text)
            if wanted.marker is None or wanted.marker.evaluate({"extra": ""}):
                todo.append(wanted.name)
    return found


def interpreter(tree: Tree) -> None:
    """The interpreter, its library, and the packages of its environment."""
    executable = Path(sys.executable)
    while executable.is_symlink():
        tree.link(str(executable), str(executable.readlink()))
        executable = executable.parent / executable.readlink()
    tree.file(executable)
    environment = Path(sys.prefix) / "pyvenv.cfg"
    if environment.exists():
        tree.file(environment)
    library = Path(sysconfig.get_path("stdlib"))
    configuration = {path.name for path in library.glob("config-*")}
    tree.files(library, without=LIBRARY_LEFT_OUT | configuration | {"__pycache__"})
    site = Path(sysconfig.get_path("purelib"))
    for one in distributions().values():
        for file in one.files or ():
            path = Path(str(one.locate_file(file)))
            if site in path.parents and path.is_file() and path.suffix != ".pyc":
                tree.file(path)


def checkout(tree: Tree, more: list[Path]) -> None:
    """Sources, objects, extension and tests, and what else is asked for."""
    for path in [*(ROOT / name for name in CHECKOUT), *more]:
        if path.is_file():
            tree.file(path)
        else:
            tree.files(path, without=LEFT_OUT)


def test_programs(tree: Tree) -> None:
    """The objects of tests' own programs, beside their sources: no guest has a compiler."""
    with tempfile.TemporaryDirectory() as scratch:
        for source in sorted(PROGRAMS_OF_TESTS.glob("*.bpf.c")):
            target = Path(scratch) / source.with_suffix(".o").name
            compile_bpf.compile_object(source, target)
            tree.text(str(source.with_suffix(".o")), target.read_bytes())


def compiled(path: Path) -> bytes:
    """A module's code, marked as not to be compared with its source (PEP 552): no guest compiles."""
    source = path.read_bytes()
    stamp = int(path.stat().st_mtime).to_bytes(4, "little") + len(source).to_bytes(4, "little")
    cached = Path(importlib.util.cache_from_source(str(path)))
    if cached.exists() and (found := cached.read_bytes())[:16] == MAGIC + bytes(4) + stamp:
        code = found[16:]
    else:
        code = marshal.dumps(compile(source, path, "exec", dont_inherit=True, optimize=0))
    return MAGIC + b"\1\0\0\0" + bytes(8) + code


def compile_all(tree: Tree) -> None:
    """Every module of the tree that can be compiled."""
    for path in tree.sources():
        with contextlib.suppress(SyntaxError, ValueError):
            tree.text(importlib.util.cache_from_source(str(path)), compiled(path))


def root(kernels: dict[str, kernel_packages.Kernel], more: list[Path]) -> bytes:
    """The root file system, one for all kernels; *more* files and directories under their own paths."""
    tree = Tree()
    interpreter(tree)
    busybox = "/usr/bin/busybox"
    tree.file(Path(busybox))
    for applet in subprocess.run(
        [busybox, "--list"], capture_output=True, text=True, check=True
    ).stdout.split():
        if applet != "busybox":
            tree.link(f"/usr/bin/{applet}", "busybox")
    for name in PROGRAMS:
        tree.program(name)
    for name in ("protocols", "services", "passwd", "group"):
        if (path := Path("/etc") / name).exists():
            tree.file(path)
    for directory in DIRECTORIES:
        tree.directory(directory)
    for kernel in kernels.values():
        tree.text(f"/modules/{kernel.release}/order", "\n".join(kernel.modules) + "\n")
        for path in kernel.module_files:
            tree.file(path, f"/modules/{kernel.release}/{path.name}")
    checkout(tree, more)
    test_programs(tree)
    compile_all(tree)
    tree.text("/init", INIT.format(root=ROOT, python=sys.executable), 0o755)
    return tree.cpio()


def main() -> int:
    """Make what is not up to date."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").strip().splitlines()[0])
    parser.add_argument("--update", action="store_true", help="ask Debian for newer kernels")
    parser.add_argument("--more", nargs="*", type=Path, default=[], help="what to take along")
    arguments = parser.parse_args()
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    with build_lock():
        kernels = kernel_packages.fetch(update=arguments.update)
        replace(IMAGE, root(kernels, arguments.more))
        described = {name: asdict(kernel) | {"image": str(kernel.image)} for name, kernel in kernels.items()}
        replace(MANIFEST, json.dumps({"root": str(IMAGE), "kernels": described}, indent=2).encode())
    for kernel in kernels.values():
        sys.stdout.write(f"{kernel.name}: Linux {kernel.release} ({kernel.version} of {kernel.suite})\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
