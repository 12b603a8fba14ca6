# SPDX-License-Identifier: Apache-2.0
"""
One table for each bullet of what a release must show, from docs/evidence/.

    python build/evidence_tables.py [BULLET...]     all of evidence_cases.toml, or kernels, faults, ...

A row is a case: what its tests recorded, counts added up, on which commit and when.  Ends with 1 when a
bullet has no evidence, a case has no row or did not pass, or evidence is of a checkout with changes that
are in no commit.  A goal that a benchmark missed is told and is no error.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import textwrap
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evidence import DIRECTORY, SOME, parts_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

CASES = Path(__file__).with_name("evidence_cases.toml")
ABSENT = "absent"
KERNELS = "kernels"
# What every fault is reported with; tests/lab/figures.py has the same words.
COUNTS = ("injected", "survived", "lost", "wrongly_allowed")
# What says of what a row is, and no figure; of numbers those that name something.
NAMES = frozenset({"case", "fault", "reason"})
ID = re.compile(r"[A-Z]\d+")
PARAMETER = re.compile(r"\[([^\]]+)\]$")
COMMIT_LETTERS = 9
VARIOUS = "various"
# Figures of a benchmark that have no goal: so many are shown of a section.
MOST_REPORTS = 4
FIGURES_WIDTH = 70


@dataclass(slots=True)
class Row:
    """A case, and what was measured of it by one or more tests."""

    case: str
    # Of a benchmark, whose rows are one for each section.
    section: str = ""
    counts: dict[str, int] = field(default_factory=dict)
    figures: dict[str, int | float | str] = field(default_factory=dict)
    tests: set[str] = field(default_factory=set)
    failed: list[str] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)
    commits: set[str] = field(default_factory=set)
    dates: set[str] = field(default_factory=set)
    uncommitted: bool = False
    # Layers of which other tests failed or were not run: what they would have recorded is in no row.
    broken: set[str] = field(default_factory=set)

    def of(self, about: Mapping[str, Any]) -> None:
        """Note on what it was measured."""
        self.commits.add(about["commit"][:COMMIT_LETTERS])
        self.dates.add(about["date"][:10])
        self.uncommitted |= bool(about["uncommitted_changes"])

    def add(self, recorded: Mapping[str, Any]) -> None:
        """
        Take in what one test recorded.

        Whole numbers add up, of others the largest is kept, and texts as long as all say the same.
        """
        for name, value in flat(recorded):
            if name in COUNTS:
                self.counts[name] = self.counts.get(name, 0) + int(value)
                continue
            before = self.figures.get(name, value)
            if isinstance(value, str) or isinstance(before, str):
                self.figures[name] = value if value == before else VARIOUS
            elif isinstance(value, float) or isinstance(before, float):
                self.figures[name] = max(value, before)
            else:
                self.figures[name] = value + self.figures.get(name, 0)

    @property
    def verdict(self) -> str:
        """Whether it passed."""
        if self.failed:
            return "FAILED"
        return f"missed {len(self.missed)}" if self.missed else "passed"

    @property
    def text(self) -> str:
        """Its figures but for the counts."""
        told = [
            f"{name.replace('_', ' ')} {shown(value)}"
            for name, value in self.figures.items()
            if value != VARIOUS
        ]
        first = [f"{len(self.tests)} tests"] if len(self.tests) > 1 else []
        return ", ".join([*([f"[{self.section}]"] if self.section else first), *told])


def shown(value: float | str) -> str:
    """A number as people write it."""
    return f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value


def flat(recorded: Mapping[str, Any]) -> Iterator[tuple[str, int | float | str]]:
    """Names and values that fit into a row; what is in ``more`` counts as if it stood beside it."""
    for name, value in recorded.items():
        if name in NAMES:
            continue
        if name == "more" and isinstance(value, dict):
            yield from flat(value)
        elif isinstance(value, bool):
            yield name, "yes" if value else "no"
        elif isinstance(value, int | float | str):
            yield name, value


def case_of(recorded: Mapping[str, Any], layer: str, test: str) -> str:
    """
    Its case, "" if it names none: F6 of ``{"fault": "F6-pin removed"}``.

    On other kernels it is the kernel: that of ``test_guest[6.1]``, or the one that is recorded.
    """
    if layer == KERNELS and "kernel" in recorded:
        found = PARAMETER.search(test)
        return found[1] if found else str(recorded["kernel"])
    name = str(recorded.get("case") or recorded.get("fault") or "")
    found = ID.match(name)
    return found[0] if found else name


def read(directory: Path = DIRECTORY) -> tuple[dict[str, list[Row]], list[str]]:
    """Rows by case id, and what is wrong with the files."""
    rows: dict[str, list[Row]] = {}
    problems: list[str] = []
    told: dict[str, frozenset[str]] = {}
    documents = [(path.stem, json.loads(path.read_text())) for path in sorted(directory.glob("*.json"))]
    # The first parts before what was measured before them: that is asked only for cases they do not tell.
    for stem, document in sorted(documents, key=lambda one: not one[0].endswith(SOME)):
        name = stem.removesuffix(SOME)
        layer = name.partition("-")[0]  # of kernels-5.10
        parts = document.get("parts", {})
        if parts or "tests" in document:
            but = told.get(name, frozenset())
            add = read_parts(layer, parts, rows, but) if parts else read_layer(layer, document, rows, but=but)
            problems += add
        else:
            problems += read_bench(document, rows)
        if stem != name:
            both = (pair for part in parts.values() for pair in recorded(part))
            told[name] = frozenset(case_of(one, layer, test) for test, one in both)
    return rows, problems


def recorded(document: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """What tests recorded as data, each with its test."""
    for test, measured in document["tests"].items():
        data = measured.get("data", [])
        yield from ((test, one) for one in (data if isinstance(data, list) else [data]))


def read_layer(
    layer: str,
    document: Mapping[str, Any],
    rows: dict[str, list[Row]],
    *,
    lacks: Iterable[str] = (),
    but: Collection[str] = (),
) -> Iterator[str]:
    """Add the rows of a layer's file, of which something *lacks*, *but* those cases; what cannot be added."""
    for test, data in recorded(document):
        case = case_of(data, layer, test)
        if not case:
            yield f"{layer}: {test} recorded data of no case"
            continue
        if case in but:
            continue
        row = rows.setdefault(case, [Row(case)])[0]
        row.add(data)
        row.of(document)
        row.tests.add(test)
        row.broken.update(lacks)
        if document["failed"]:
            row.broken.add(f"{document['failed']} tests of {layer} failed")
        if document["tests"][test].get("failed") and test not in row.failed:
            row.failed.append(test)


def read_parts(
    layer: str, parts: Mapping[str, Any], rows: dict[str, list[Row]], but: Collection[str]
) -> Iterator[str]:
    """Add the rows of a layer's parts, *but* those cases; what cannot be added."""
    count = parts_of(next(iter(parts)))
    missing = [part for number in range(1, count + 1) if (part := f"{number}/{count}") not in parts]
    for part, document in parts.items():
        lacks = [f"{document['command'].replace(part, one)} was not run" for one in missing]
        yield from read_layer(layer, document, rows, lacks=lacks, but=but)


def read_bench(document: Mapping[str, Any], rows: dict[str, list[Row]]) -> Iterator[str]:
    """Add a row for each case of each section, whose figures add up with nobody's; what went wrong."""
    for section, measured in document["sections"].items():
        made: dict[str, Row] = {}
        title = (measured["title"].split() or [""])[0]
        for figure in measured["figures"]:
            case = figure.get("case") or measured.get("case") or title
            row = made.setdefault(case, Row(case, section))
            if figure["met"] is None and len(row.figures) >= MOST_REPORTS:
                continue
            goal = f" ({figure['goal']})" if figure["goal"] else ""
            row.figures[figure["name"]] = f"{shown(figure['value'])} {figure['unit']}".strip() + goal
            if figure["met"] is False:
                row.missed.append(figure["name"])
        for case, row in made.items():
            row.of(measured)
            row.failed += [measured["problem"]] if measured["problem"] else []
            rows.setdefault(case, []).append(row)
        if measured["problem"] and not made:
            yield f"{section}: {measured['problem']}"


def table(rows: Sequence[Row]) -> list[str]:
    """Lines of text, columns beside each other; counts only where a row has some."""
    counts = [name for name in COUNTS if any(name in row.counts for row in rows)]
    head = ["case", *(name.replace("_", " ") for name in counts), "result", "commit", "date", "figures"]
    lines = [head]
    for row in rows:
        numbers = [f"{row.counts[name]:,}" if name in row.counts else "" for name in counts]
        made = [row.verdict, " ".join(sorted(row.commits)), " ".join(sorted(row.dates))]
        first, *more = textwrap.wrap(row.text, FIGURES_WIDTH) or [""]
        lines += [[row.case, *numbers, *made, first], *([""] * (len(head) - 1) + [line] for line in more)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    right = range(1, 1 + len(counts))
    return [
        "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]


def report(
    bullet: str, cases: Mapping[str, str], rows: Mapping[str, list[Row]], absent: Iterable[str] = ()
) -> tuple[list[str], list[str]]:
    """Lines of a bullet's table, and what is wrong with it."""
    found = [row for case in cases for row in rows.get(case, ())]
    problems = [f"{case} has no evidence: {what}" for case, what in cases.items() if case not in rows]
    problems += [f"{row.case} did not pass: {', '.join(row.failed)}" for row in found if row.failed]
    problems += [
        f"{row.case} is of a checkout with uncommitted changes ({' '.join(sorted(row.commits))})"
        for row in found
        if row.uncommitted
    ]
    problems += sorted({told for row in found for told in row.broken})
    if not found:
        problems = [f"no evidence at all; cases: {', '.join(cases)}"]
    lines = [f"## {bullet}", *(table(found) if found else ())]
    lines += [f"  goal missed: {row.case} {name}" for row in found for name in row.missed]
    lines += [f"  not in this version: {one}" for one in absent]
    return [*lines, *(f"  MISSING: {problem}" for problem in problems)], problems


def main(words: Sequence[str] | None = None, directory: Path = DIRECTORY) -> int:
    """Print the tables asked for; 1 when something is missing in one of them."""
    cases = tomllib.loads(CASES.read_text())
    absent = cases.pop(ABSENT)
    parser = argparse.ArgumentParser(prog="build/dev evidence", description=(__doc__ or "").splitlines()[1])
    parser.add_argument("bullets", nargs="*", choices=[*cases, []], metavar="bullet", help=" ".join(cases))
    bullets = parser.parse_args(words).bullets or list(cases)
    rows, remarks = read(directory)
    bad = 0
    for bullet in bullets:
        gone = [f"{case}, {why}" for case, why in absent.get(bullet, {}).items()]
        lines, problems = report(bullet, cases[bullet], rows, gone)
        print("\n".join(lines), end="\n\n")
        bad += bool(problems)
    known = {case for listed in cases.values() for case in listed}
    if strange := sorted(rows.keys() - known):
        remarks.append(f"cases that no bullet asks for: {', '.join(strange)}")
    sys.stdout.writelines(f"{remark}\n" for remark in remarks)
    print(f"{len(bullets) - bad} of {len(bullets)} bullets have all their evidence")
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
