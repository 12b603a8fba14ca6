# SPDX-License-Identifier: Apache-2.0
"""
Write docs/reference/kernels.md from what the tests on other kernels measured last.

They leave build/out/kernels/measured.json.  With --check nothing is written, and a difference is an error,
but for kernels of which Debian has another version by now: a change here is not to blame for those.  With
--has KERNEL FEATURE only the exit code says something: whether that kernel has it, for
tests/expected_skips.toml.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from toolchain import OUT, ROOT, fail, replace

MEASURED = OUT / "kernels" / "measured.json"
PAGE = ROOT / "docs" / "reference" / "kernels.md"
ALLOWED = 1_000_000
# Walked instructions are given in steps, so that not every change of a program is one of the page.
STEP = 5_000
HEAD = """\
<!-- SPDX-License-Identifier: Apache-2.0 -->
<!-- Written by build/kernels_page.py from what `build/dev test kernels` measured. -->
# Kernels

`build/dev test kernels` boots Debian's kernels for clouds in qemu, loads every object there in every
combination of the options that change its code, and runs packets and pods through them.

"""
MISSING_ON = "missing on"
LACKS = f"""
## What a kernel lacks

| | {MISSING_ON} | what happens instead |
|---|---|---|
"""
INSTRUCTIONS = f"""
## What the verifier walks

Instructions of the dearest program of each object, in the dearest combination of options, rounded up to full
{STEP:,}. A kernel refuses a program beyond {ALLOWED:,}; the tests refuse half of that.

"""


def row(*cells: str) -> str:
    """A line of a table."""
    return f"| {' | '.join(cells)} |\n"


def table(head: str, kernels: dict[str, Any], rows: dict[str, list[str]]) -> str:
    """A table with a column for each kernel."""
    lines = [row(head, *kernels), "|---" * (len(kernels) + 1) + "|\n"]
    return "".join([*lines, *(row(name, *cells) for name, cells in rows.items())])


def most(programs: dict[str, dict[str, int]]) -> dict[str, int]:
    """By object, the most that one of its programs costs."""
    found: dict[str, int] = {}
    for name, counts in programs.items():
        owner = name.partition("/")[0]
        found[owner] = max(found.get(owner, 0), counts["most"])
    return found


def page(kernels: dict[str, Any]) -> str:
    """The whole page."""
    tried = table(
        "",
        kernels,
        {
            "Debian suite": [one["suite"] for one in kernels.values()],
            "tried": [f"{one['release']} ({one['version']})" for one in kernels.values()],
            "programs hang on devices by": [
                "tcx" if one["features"]["tcx"] else "clsact" for one in kernels.values()
            ],
        },
    )
    without = next(iter(kernels.values()))["without"]
    lacks = [
        row(name, ", ".join(missing), text)
        for name, text in without.items()
        if (missing := [kernel for kernel, one in kernels.items() if not one["features"][name]])
    ]
    walked = {name: most(one["verified_insns"]) for name, one in kernels.items()}
    instructions = table(
        "object",
        kernels,
        {
            name: [f"{-(-walked[kernel][name] // STEP) * STEP:,}" for kernel in kernels]
            for name in sorted(next(iter(walked.values())))
        },
    )
    return HEAD + tried + LACKS + "".join(lacks) + INSTRUCTIONS + instructions


def cells(line: str) -> list[str]:
    """A row of a table."""
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def versions(text: str) -> dict[str, str]:
    """What a page says was tried, by kernel."""
    lines = text.splitlines()
    (at,) = [index for index, line in enumerate(lines) if line.startswith("| tried |")]
    head = max(index for index in range(at) if lines[index + 1].startswith("|---"))
    return dict(zip(cells(lines[head])[1:], cells(lines[at])[1:], strict=True))


def without(text: str, moved: set[str]) -> list[list[str]]:
    """A page's rows without what they say of the kernels in *moved*; other lines as they are."""
    found: list[list[str]] = []
    head: list[str] = []
    lines = text.splitlines()
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if not line.startswith("|"):
            found.append([line])
            continue
        if following.startswith("|---"):
            head = cells(line)
        elif line.startswith("|---"):
            continue
        kept = [cell for name, cell in zip(head, cells(line), strict=True) if name not in moved]
        if head[1] == MISSING_ON and kept != head:
            kept[1] = ", ".join(name for name in kept[1].split(", ") if name not in moved)
            if not kept[1]:
                continue
        found.append(kept)
    return found


def differs(there: str, wanted: str) -> bool:
    """Whether two pages differ in what they say of kernels that both have tried in the same version."""
    before, now = versions(there), versions(wanted)
    moved = {name for name in before | now if before.get(name) != now.get(name)}
    return without(there, moved) != without(wanted, moved)


def main() -> int:
    """Write the page, or compare it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").strip().splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only compare")
    parser.add_argument("--has", nargs=2, metavar=("KERNEL", "FEATURE"), help="ask for a feature of a kernel")
    arguments = parser.parse_args()
    check = arguments.check
    if not MEASURED.exists():
        fail(f"nothing was measured yet ({MEASURED.relative_to(ROOT)}): run build/dev test kernels")
    measured = json.loads(MEASURED.read_text())
    if arguments.has:
        kernel, feature = arguments.has
        return 0 if measured[kernel]["features"][feature] else 1
    wanted = page(measured)
    if not check:
        if replace(PAGE, wanted.encode()):
            sys.stdout.write(f"wrote {PAGE.relative_to(ROOT)}\n")
    elif not PAGE.exists() or differs(PAGE.read_text(), wanted):
        fail(f"{PAGE.relative_to(ROOT)} is not what was measured: run build/kernels_page.py")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
