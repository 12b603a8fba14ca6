# SPDX-License-Identifier: Apache-2.0
"""
Build ciliumd.bpf._libbpf: libbpf's calls and the objects' skeletons in one cffi extension.

Declarations are real C headers under datapath/cdef/, joined in the order below.  The extension
carries the bytes, the SHA-256 and the ABI hash of every object, so that what is loaded at run
time is what was built together.  It is linked with the system's libbpf and uses Python's limited
API: one file serves every Python from 3.11 on.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import sys
import sysconfig
import tempfile
from pathlib import Path

import cffi

from layouts import collect
from toolchain import (
    ABI_HEADER,
    OBJECTS,
    OUT,
    PACKAGE,
    ROOT,
    SKELETONS,
    build_lock,
    digest,
    replace,
    run,
    tool,
)

# What libbpf's own headers declare, and what shim.c implements; map.h declares what object.h needs.
LIBBPF_HEADERS = ("libbpf.h",)
SHIM_HEADERS = ("log.h", "map.h", "object.h", "prog.h", "link.h", "ringbuf.h", "feature.h")
CDEF = ROOT / "datapath" / "cdef"
EXTENSION = "_libbpf.abi3.so"
INCLUDES = """
#include <errno.h>
#include <limits.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/vfs.h>
#include <unistd.h>
#include <linux/bpf.h>
#include <linux/magic.h>
#include <bpf/bpf.h>
#include <bpf/btf.h>
#include <bpf/libbpf.h>
#if LIBBPF_MAJOR_VERSION < 1 || (LIBBPF_MAJOR_VERSION == 1 && LIBBPF_MINOR_VERSION < 3)
#error "libbpf 1.3 or newer is needed (on Debian bookworm: from backports)"
#endif
"""
FLAGS = ("-O2", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror=implicit-function-declaration")


def declarations(names: tuple[str, ...]) -> str:
    """Declarations of these headers, in this order."""
    return "\n".join((CDEF / name).read_text() for name in names)


def registry(names: list[str], abi_hash: str) -> str:
    """C source of the table of embedded objects."""
    lines = [f'#include "{name}.skel.h"' for name in names]
    lines += [
        "int cil_embedded_at(unsigned int index, struct cil_embedded *found)",
        "{",
        "\tswitch (index) {",
    ]
    for index, name in enumerate(names):
        sha256 = hashlib.sha256((OBJECTS / f"{name}.bpf.o").read_bytes()).hexdigest()
        lines += [
            f"\tcase {index}:",
            f'\t\tfound->name = "{name}";',
            f"\t\tfound->data = {name}_bpf__elf_bytes(&found->size);",
            f'\t\tfound->sha256 = "{sha256}";',
            "\t\treturn 0;",
        ]
    lines += ["\t}", "\treturn -ENOENT;", "}"]
    lines += ["const char *cil_embedded_abi_hash(void)", "{", f'\treturn "{abi_hash}";', "}"]
    return "\n".join(lines)


def source(names: list[str], abi_hash: str) -> str:
    """The C source cffi compiles its wrappers with."""
    shim = (CDEF / "shim.c").read_text()
    return "\n".join([INCLUDES, declarations(SHIM_HEADERS), shim, registry(names, abi_hash)])


def compile_extension(target: Path) -> None:
    """Write the wrappers and compile them."""
    names = sorted(path.name.removesuffix(".bpf.o") for path in OBJECTS.glob("*.bpf.o"))
    ffi = cffi.FFI()
    ffi.cdef(declarations(LIBBPF_HEADERS + SHIM_HEADERS))
    ffi.set_source("ciliumd.bpf._libbpf", source(names, collect().hash))
    with tempfile.TemporaryDirectory() as scratch:
        written, built = Path(scratch) / "_libbpf.c", Path(scratch) / EXTENSION
        with contextlib.redirect_stdout(io.StringIO()):
            ffi.emit_c_code(str(written))
        includes = ["-I", SKELETONS, "-I", sysconfig.get_path("include"), "-DPy_LIMITED_API=0x030b0000"]
        run([tool("cc"), *FLAGS, f"-ffile-prefix-map={scratch}=.", *includes, written, "-o", built, "-lbpf"])
        replace(target, built.read_bytes())


def inputs() -> str:
    """What the extension is made of, as one digest."""
    files = [*sorted(CDEF.iterdir()), *sorted(OBJECTS.glob("*.bpf.o")), *sorted(SKELETONS.iterdir())]
    files += [ROOT / "build" / f"{name}.py" for name in ("btf", "cffi_build", "layouts", "toolchain")]
    files.append(ABI_HEADER)
    return digest([sys.version.encode(), *(path.name.encode() + path.read_bytes() for path in files)])


def install(package: Path) -> None:
    """Put the extension and the objects it was built from into a package directory."""
    replace(package / "bpf" / EXTENSION, (OUT / EXTENSION).read_bytes())
    wanted = {path.name: path for path in OBJECTS.glob("*.bpf.o")}
    for name, path in wanted.items():
        replace(package / "bpf" / "objects" / name, path.read_bytes())
    for path in (package / "bpf" / "objects").glob("*.bpf.o"):
        if path.name not in wanted:
            path.unlink()


def build() -> bool:
    """Bring build/out/ up to date; True when something was compiled."""
    target, stamp = OUT / EXTENSION, OUT / "_libbpf.inputs"
    wanted = inputs()
    if target.exists() and stamp.exists() and stamp.read_text() == wanted:
        return False
    compile_extension(target)
    replace(stamp, wanted.encode())
    return True


def main() -> int:
    """Build the extension; with --in-place also put it into src/."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").strip().splitlines()[0])
    parser.add_argument("--in-place", action="store_true", help="install into src/ciliumd/bpf")
    parser.add_argument("--quiet", action="store_true", help="say nothing when nothing was compiled")
    options = parser.parse_args()
    with build_lock():
        built = build()
        if options.in_place:
            install(PACKAGE)
    if built or not options.quiet:
        sys.stdout.write(f"{'compiled' if built else 'unchanged'} {EXTENSION}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
