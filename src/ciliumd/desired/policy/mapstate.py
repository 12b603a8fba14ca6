# SPDX-License-Identifier: Apache-2.0
"""
What one policy version's two maps hold: classes of identities, and each class's verdicts.

The datapath knows no precedence: it takes the class of the peer and the longest matching row.  What the
rows say is decided in ``ruling``.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from ciliumd import abi
from ciliumd.model.identity import NumericIdentity
from ciliumd.model.policy import Direction

EVERYBODY_ELSE = 0
"""The class of every identity without a row of its own."""


class ClassRow(NamedTuple):
    """One row of a class: where it applies and what it says."""

    prefixlen: int
    protocol: int
    dport: int
    verdict: int
    flags: int
    proxy_slot: int
    rule_cookie: int


ClassRows = tuple[ClassRow, ...]
"""The rows of one class in one direction, sorted: the content by which classes are equal."""


@dataclass(frozen=True, slots=True)
class MapState:
    """
    Content of both maps of a policy version, or an addition to it.

    Entries must be in the kernel before the classes that lead to them.
    """

    classes: Mapping[tuple[NumericIdentity, Direction], int] = field(default_factory=dict)
    entries: Mapping[abi.PolicyKey, abi.PolicyEntry] = field(default_factory=dict)

    def with_added(self, addition: "MapState") -> "MapState":
        """Return this content after *addition* was written over it."""
        return MapState({**self.classes, **addition.classes}, {**self.entries, **addition.entries})

    def without(self, identities: Iterable[NumericIdentity]) -> "MapState":
        """Return this content with *identities* belonging to everybody else; no row of a class goes."""
        gone = set(identities)
        return MapState({k: v for k, v in self.classes.items() if k[0] not in gone}, self.entries)

    def rows(self) -> dict[tuple[Direction, int], ClassRows]:
        """Return the rows by direction and class."""
        found: dict[tuple[Direction, int], list[ClassRow]] = {}
        for key, entry in self.entries.items():
            row = ClassRow(
                key.prefixlen,
                key.protocol,
                key.dport,
                int(entry.verdict),
                entry.flags,
                entry.proxy_slot,
                entry.rule_cookie,
            )
            found.setdefault((Direction(key.direction), key.class_id), []).append(row)
        return {place: tuple(sorted(rows)) for place, rows in found.items()}

    def meaning(self) -> frozenset[tuple[NumericIdentity | None, Direction, ClassRows]]:
        """
        Return what this content says, whatever its classes are called.

        Rows no identity leads to, and identities that differ in nothing from everybody else (None),
        do not show.
        """
        rows = self.rows()
        others = {direction: rows.get((direction, EVERYBODY_ELSE), ()) for direction in Direction}
        said: set[tuple[NumericIdentity | None, Direction, ClassRows]] = {
            (None, direction, content) for direction, content in others.items()
        }
        for (identity, direction), class_id in self.classes.items():
            content = rows.get((direction, class_id), ())
            if content != others[direction]:
                said.add((identity, direction, content))
        return frozenset(said)


def class_entries(
    direction: Direction, class_id: int, rows: ClassRows
) -> Iterator[tuple[abi.PolicyKey, abi.PolicyEntry]]:
    """Yield the rows of one class as the rules map holds them."""
    for row in rows:
        key = abi.PolicyKey(
            prefixlen=row.prefixlen,
            class_id=class_id,
            direction=int(direction),
            protocol=row.protocol,
            dport=row.dport,
        )
        # The check is made when the row is packed.
        entry = abi.PolicyEntry(row.verdict, row.flags, row.proxy_slot, row.rule_cookie, check=0)
        yield key, entry
