# SPDX-License-Identifier: Apache-2.0
"""
Data on stdout: aligned text as Cilium's, JSON, YAML or JSONPath.

Columns are elastic tab stops: a column is as wide as its widest cell in consecutive lines that have
it, which is how Cilium's tables come to look as they do.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any, Final

from ciliumd.cli.errors import USAGE, CommandError

PADDING: Final = 3
MIN_WIDTH: Final = 5
FORMATS: Final = ("json", "yaml", "jsonpath=TEMPLATE", "table")


def table(rows: Iterable[Sequence[object]], *, min_width: int = MIN_WIDTH, padding: int = PADDING) -> str:
    """*rows* with their cells in columns; a cell that ends its row widens nothing."""
    lines = [[str(cell) for cell in row] for row in rows]
    widths = _widths(lines, min_width, padding)
    return "".join(
        "".join(cell.ljust(widths[index][column]) for column, cell in enumerate(line)).rstrip() + "\n"
        for index, line in enumerate(lines)
    )


def _widths(lines: list[list[str]], min_width: int, padding: int) -> list[list[int]]:
    widths = [[0] * len(line) for line in lines]
    for column in range(max((len(line) for line in lines), default=0)):
        block: list[int] = []
        for index in range(len(lines) + 1):
            # Only a cell with another one behind it is padded, and so takes part in its column.
            if index < len(lines) and len(lines[index]) > column + 1:
                block.append(index)
                continue
            if block:
                wide = max(max(len(lines[row][column]) for row in block) + padding, min_width)
                for row in block:
                    widths[row][column] = wide
            block = []
    return widths


def check_format(wanted: str) -> str:
    """*wanted* if it is an output format, for argparse."""
    if wanted in {"json", "yaml", "table"} or wanted.startswith("jsonpath="):
        return wanted
    raise argparse.ArgumentTypeError(f"unknown format {wanted!r}; choose from {', '.join(FORMATS)}")


def emit(data: Any, wanted: str | None, text: str) -> None:
    """Print *data* in the format *wanted*, or *text* where that is none or ``table``."""
    if wanted is None or wanted == "table":
        sys.stdout.write(text)
    elif wanted == "json":
        print(json.dumps(data, indent=2))
    elif wanted == "yaml":
        import yaml

        sys.stdout.write(yaml.safe_dump(data, sort_keys=False))
    else:
        from ciliumd.cli import jsonpath

        try:
            print(jsonpath.render(wanted.removeprefix("jsonpath="), data))
        except jsonpath.JSONPathError as error:
            raise CommandError(
                str(error), hint="example: -o jsonpath='{.status.state}'", code=USAGE
            ) from error


def note(text: str) -> None:
    """Tell the user something that is not data."""
    print(text, file=sys.stderr)
