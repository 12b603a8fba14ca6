# SPDX-License-Identifier: Apache-2.0
"""
Figures and how they are told: a table for people, JSON for comparisons.

A goal is judged by the worse end of the interval.  A figure without a goal is a report; a section that
could not be measured tells why, and makes the run fail when all others are done.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Self

from bench.samples import Ratio

Value = float | int | str
JUDGEMENT: Final = {True: "met", False: "MISSED", None: "not judged"}


@dataclass(frozen=True, slots=True)
class Goal:
    """A pass line."""

    at_least: float | None = None
    at_most: float | None = None

    def met(self, low: float, high: float) -> bool:
        """Whether the worse end is on the right side."""
        return (self.at_least is None or low >= self.at_least) and (
            self.at_most is None or high <= self.at_most
        )

    def __str__(self) -> str:
        if self.at_least is not None:
            return f">= {self.at_least:g}"
        return f"<= {self.at_most:g}"


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the report."""

    name: str
    value: Value
    unit: str = ""
    low: float | None = None
    high: float | None = None
    goal: str = ""
    met: bool | None = None
    note: str = ""
    case: str = ""

    @classmethod
    def of(cls, name: str, value: Value, unit: str = "", *, goal: Goal | None = None, note: str = "") -> Self:
        """A figure that is exact, or has no interval."""
        met = None if goal is None or isinstance(value, str) else goal.met(value, value)
        return cls(name, value, unit, goal=str(goal or ""), met=met, note=note)

    @classmethod
    def of_ratio(cls, name: str, ratio: Ratio, *, goal: Goal | None = None, void: bool = False) -> Self:
        """A ratio; one of a void run meets nothing."""
        met = None if goal is None or void else goal.met(ratio.low, ratio.high)
        note = f"best quartiles {ratio.best:.3f}, {ratio.pairs} pairs"
        return cls(
            name,
            round(ratio.median, 4),
            low=round(ratio.low, 4),
            high=round(ratio.high, 4),
            goal=str(goal or ""),
            met=met,
            note=f"void run; {note}" if void else note,
        )

    @property
    def text(self) -> str:
        """Value, interval and unit."""
        value = (
            f"{self.value:,.3f}".rstrip("0").rstrip(".") if isinstance(self.value, float) else f"{self.value}"
        )
        if self.low is not None and self.high is not None:
            value += f" [{self.low:.3f}, {self.high:.3f}]"
        return f"{value} {self.unit}".rstrip()

    @property
    def judged(self) -> str:
        """The goal and whether it is met."""
        if not self.goal:
            return ""
        return f"{self.goal} {JUDGEMENT[self.met]}"


@dataclass(slots=True)
class Table:
    """Counts side by side, without goals."""

    columns: tuple[str, ...]
    rows: list[tuple[Value, ...]] = field(default_factory=list)

    def __str__(self) -> str:
        cells = [self.columns, *(tuple(f"{value}" for value in row) for row in self.rows)]
        widths = [max(len(row[column]) for row in cells) for column in range(len(self.columns))]
        return "\n".join(
            "  " + "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in cells
        )


@dataclass(slots=True)
class Section:
    """What one module measured; `data` holds the samples."""

    name: str
    title: str
    figures: list[Figure] = field(default_factory=list)
    table: Table | None = None
    data: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    problem: str = ""
    case: str = ""

    def add(self, *figures: Figure, case: str = "") -> None:
        """More lines, of another row of the scorecard than the section's if *case* says so."""
        self.figures += [replace(figure, case=case or self.case) for figure in figures]

    def __str__(self) -> str:
        lines = [f"{self.title}  ({self.seconds:.0f} s)"]
        cells = [(one.name, one.text, one.judged, one.note) for one in self.figures]
        widths = [max((len(row[column]) for row in cells), default=0) for column in range(3)]
        for name, text, judged, note in cells:
            line = f"  {name:<{widths[0]}}  {text:>{widths[1]}}  {judged:<{widths[2]}}  {note}"
            lines.append(line.rstrip())
        if self.table is not None:
            lines.append(str(self.table))
        if self.problem:
            lines.append(f"  FAILED: {self.problem}")
        return "\n".join(lines)


def write_json(path: Path, machine: dict[str, Any], sections: Sequence[Section]) -> None:
    """Everything, samples included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {"machine": machine, "sections": {one.name: asdict(one) for one in sections}}
    path.write_text(json.dumps(document, indent=1) + "\n")
