# SPDX-License-Identifier: Apache-2.0
"""Problems that parts of the agent found, as rows of the table beside those of the sources."""

from collections.abc import Mapping

from ciliumd.tables.schema import ObjectKey, Problem
from ciliumd.tables.table import Table


class ProblemBoard:
    """What each part found last, and what of that the *table* shows."""

    def __init__(self, table: Table[ObjectKey, Problem]) -> None:
        self._table = table
        self._found: dict[str, Mapping[ObjectKey, Problem]] = {}
        self._shown: dict[ObjectKey, Problem] = {}

    def found(self, part: str, problems: Mapping[ObjectKey, Problem]) -> None:
        """A *part* found these, instead of those before."""
        self._found[part] = problems

    def tell(self) -> None:
        """
        Show what was found; rows vanish when it is solved.

        A source that refused the object has said more about it: its row is left alone.
        """
        found = {key: problem for problems in self._found.values() for key, problem in problems.items()}
        own = {key for key, problem in self._shown.items() if self._table.get(key) == problem}
        for key in own - found.keys():
            self._table.delete(key)
        self._shown = {}
        for key, problem in found.items():
            if key in own or self._table.get(key) is None:
                self._table.set(key, problem)
                self._shown[key] = problem
