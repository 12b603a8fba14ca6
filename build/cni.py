# SPDX-License-Identifier: Apache-2.0
"""
Build src/ciliumd/cni/bin/cilium-cni: the static executable container runtimes start on the host.

Static, because the host's C library is not this image's.  Warnings are errors, and the same sources make
the same bytes wherever the checkout lies.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
from pathlib import Path

from toolchain import OUT, PACKAGE, ROOT, build_lock, digest, replace, run, tool

SOURCES = PACKAGE / "cni" / "executable"
NAME = "cilium-cni"
INSTALLED = PACKAGE / "cni" / "bin" / NAME
STANDARD = ("-std=gnu11", "-O2", "-Werror", "-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Wconversion")
STRICTER = ("-Wstrict-prototypes", "-Wmissing-prototypes", "-Wformat=2", "-Wvla", "-Wwrite-strings")
HARDENED = ("-D_FORTIFY_SOURCE=2", "-fstack-protector-strong", "-fstack-clash-protection", "-fPIE")
LINKED = ("-static-pie", "-s", "-Wl,-z,relro,-z,now,-z,noexecstack", "-Wl,--build-id=none")
# What only one architecture's compiler knows.
BRANCHES = {"x86_64": ("-fcf-protection=full",), "aarch64": ("-mbranch-protection=standard",)}


def compile_executable(sources: Path) -> bytes:
    """The executable made of the sources in a directory."""
    flags = (*STANDARD, *STRICTER, *HARDENED, *BRANCHES.get(platform.machine(), ()))
    with tempfile.TemporaryDirectory() as scratch:
        built = Path(scratch) / NAME
        files = [path.name for path in sorted(sources.glob("*.c"))]
        places = f"-ffile-prefix-map={scratch}=."
        run([tool("cc"), *flags, places, *LINKED, *files, "-o", built], cwd=sources)
        return built.read_bytes()


def inputs() -> str:
    """What the executable is made of, as one digest."""
    files = [*sorted(SOURCES.iterdir()), ROOT / "build" / "cni.py"]
    return digest([platform.machine().encode(), *(path.name.encode() + path.read_bytes() for path in files)])


def build() -> bool:
    """Bring build/out/ up to date; True when something was compiled."""
    target, stamp = OUT / NAME, OUT / f"{NAME}.inputs"
    wanted = inputs()
    if target.exists() and stamp.exists() and stamp.read_text() == wanted:
        return False
    replace(target, compile_executable(SOURCES))
    target.chmod(0o755)
    replace(stamp, wanted.encode())
    return True


def main() -> int:
    """Build the executable; with --in-place also put it into src/."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").strip().splitlines()[0])
    parser.add_argument("--in-place", action="store_true", help=f"install as {INSTALLED.relative_to(ROOT)}")
    parser.add_argument("--quiet", action="store_true", help="say nothing when nothing was compiled")
    options = parser.parse_args()
    with build_lock():
        built = build()
        if options.in_place:
            replace(INSTALLED, (OUT / NAME).read_bytes())
            INSTALLED.chmod(0o755)
    if built or not options.quiet:
        sys.stdout.write(f"{'compiled' if built else 'unchanged'} {NAME}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
