# SPDX-License-Identifier: Apache-2.0
"""Check that every file says its licence, and the right one: C under datapath/ is dual-licensed."""

from __future__ import annotations

import re
import subprocess
import sys

from toolchain import ROOT, fail, tool

AGENT, DATAPATH = "Apache-2.0", "GPL-2.0-only OR BSD-2-Clause"
# Licence texts themselves, and formats without comments.
EXEMPT = re.compile(r"LICENSE|LICENSES/.*|.*\.(json|png|svg|lock|txt|pcap)|.*/\.gitkeep|.*/go\.(mod|sum)")
PATTERN = re.compile(rb"SPDX-License-Identifier: ([^\n]*?)\s*(?:\*/(?:\s*-?}})?|-->)?\s*\n")
FIRST_LINES = 3


def files() -> list[str]:
    """Everything under version control, or about to be."""
    listing = subprocess.run(
        [tool("git"), "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    return sorted(name for name in listing.stdout.decode().split("\0") if name and (ROOT / name).is_file())


def wanted(name: str) -> str:
    """The licence a file must carry."""
    in_datapath = name.startswith("datapath/") or name.endswith((".bpf.c", ".bpf.h"))
    return DATAPATH if in_datapath and name.endswith((".c", ".h")) else AGENT


def problem(name: str) -> str | None:
    """What is wrong with a file's licence line."""
    if EXEMPT.fullmatch(name) or not (ROOT / name).stat().st_size:
        return None
    head = b"".join((ROOT / name).read_bytes().splitlines(keepends=True)[:FIRST_LINES]) + b"\n"
    found = PATTERN.search(head)
    if found is None:
        return f"no SPDX-License-Identifier in the first {FIRST_LINES} lines"
    if found[1].decode() != wanted(name):
        return f"says {found[1].decode()}, wanted {wanted(name)}"
    return None


def main() -> int:
    """Check all files."""
    if not (ROOT / ".git").exists():
        fail("this check needs a git checkout")
    problems = {name: text for name in files() if (text := problem(name))}
    sys.stderr.writelines(f"{name}: {text}\n" for name, text in problems.items())
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
