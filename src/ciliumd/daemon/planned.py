# SPDX-License-Identifier: Apache-2.0
"""Which parts of a plan are up to date: each is computed again only when something it reads has changed."""

from collections.abc import Callable

from ciliumd.tables.schema import Tables


class NotPlanned(RuntimeError):
    """A part of the plan was never computed; why is in the log."""


class Planned:
    """The parts of a plan that is made of *tables*, each by what it was last computed from."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._seen: dict[str, tuple[object, ...]] = {}

    def plan(self, part: str, work: Callable[[], None], *tables: str, extra: tuple[object, ...] = ()) -> None:
        """
        Do *work* if a table it reads, or something of *extra*, has changed since it was last done.

        Its own writes to tables do not count.  What raises is done again next time.
        """
        if self._seen.get(part) != self._revisions(tables, extra):
            work()
            self._seen[part] = self._revisions(tables, extra)

    def require(self, part: str) -> None:
        """
        Raises NotPlanned while nothing is known of *part* although every source has told all it has.

        Its rows are empty then because they could not be computed: who takes that for a wish sweeps what
        an earlier agent left.  A part that was planned once stays as it was when it cannot be planned again.
        """
        if part not in self._seen and self._tables.in_sync:
            raise NotPlanned(f"{part} could not be planned yet")

    def _revisions(self, tables: tuple[str, ...], extra: tuple[object, ...]) -> tuple[object, ...]:
        return (*(self._tables.named(table).revision for table in tables), *extra)
