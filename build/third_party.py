# SPDX-License-Identifier: Apache-2.0
"""
Write the table of Python packages in THIRD_PARTY.md from the lock and the packages' own metadata.

Everything around the table is written by hand.  `--check` fails when the table is not what the lock says.
"""

from __future__ import annotations

import argparse
import re
from importlib.metadata import PackageNotFoundError, metadata

from locked import requirements
from sbom import python_licences
from toolchain import ROOT, fail

PAGE = ROOT / "THIRD_PARTY.md"
BEGIN, END = "<!-- packages: build/third_party.py -->\n", "<!-- end of packages -->\n"
PINNED = re.compile(r"^([a-z0-9-]+)==(\S+)", re.MULTILINE)


def row(name: str, version: str) -> str:
    """One package of the lock, with the licence it says it has."""
    try:
        entry = metadata(name)
    except PackageNotFoundError:
        fail(f"{name} is not installed: build/dev deps")
    if entry["Version"] != version:
        fail(f"{name} {entry['Version']} is installed, the lock names {version}: build/dev deps")
    found = python_licences(entry)
    said = ", ".join(str(getattr(one, "value", None) or getattr(one, "name", "")) for one in found)
    return f"| {name} | {version} | {said or fail(f'{name} says no licence')} |"


def table() -> str:
    """The table."""
    rows = [row(name, version) for name, version in sorted(PINNED.findall(requirements("runtime")))]
    return "\n".join(["", "| package | version | licence |", "|---|---|---|", *rows, "", ""])


def main() -> int:
    """Rewrite the page, or compare it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").strip().splitlines()[0])
    parser.add_argument("--check", action="store_true")
    is_check = parser.parse_args().check
    text = PAGE.read_text()
    before, rest = text.split(BEGIN)
    wanted = before + BEGIN + table() + END + rest.split(END)[1]
    if is_check and text != wanted:
        fail(f"{PAGE.name} is not what the lock says: build/dev lock")
    if not is_check:
        PAGE.write_text(wanted)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
