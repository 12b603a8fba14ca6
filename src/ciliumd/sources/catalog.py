# SPDX-License-Identifier: Apache-2.0
"""
Which file owns which object, and so which rows are in the tables.

The files as they are now decide, in the order of their names, not the order of events: an object in two
files belongs to the first by name, and to the other one when the first is gone.  Two things are
remembered on purpose, because a slip of the pen must not take away what works: the last good content
of a file that became malformed, and the last good version of an object that became invalid.  Whoever
reads a file for the first time may know of both from an earlier agent (see ``lastgood``).

No file is opened here.  The event loop's thread only.
"""

from collections.abc import Mapping

from ciliumd.sources.manifests import MalformedManifest, ManifestObject, ObjectKey
from ciliumd.tables import Problem, Tables

_RowKey = tuple[str, object]
_STAYS = "; its last good version stays"


class Catalog:
    """The objects of all files, and what of them stands in *tables*."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._files: dict[str, tuple[ManifestObject, ...]] = {}
        self._file_problems: dict[str, Problem] = {}
        self._last_good: dict[ObjectKey, ManifestObject] = {}
        self._rows: set[_RowKey] = set()
        self._problems: set[ObjectKey] = set()

    @property
    def files(self) -> int:
        """How many files there are."""
        return len(self._files)

    @property
    def objects(self) -> int:
        """How many objects they hold, valid or not."""
        return sum(len(objects) for objects in self._files.values())

    @property
    def problems(self) -> int:
        """How many objects and files have a problem."""
        return len(self._problems)

    def put(
        self, file: str, objects: tuple[ManifestObject, ...], recalled: tuple[ManifestObject, ...] = ()
    ) -> None:
        """*file* now holds *objects*; *recalled* are last good versions of invalid ones, if none is known."""
        self._files[file] = objects
        self._file_problems.pop(file, None)
        for one in recalled:
            self._last_good.setdefault(one.key, one)

    def put_malformed(
        self, file: str, error: MalformedManifest, recalled: tuple[ManifestObject, ...] = ()
    ) -> None:
        """*file* cannot be understood; what it held before, or else *recalled*, stays in force."""
        before = self._files.setdefault(file, recalled)
        stays = _STAYS if any(self._good(one) for one in before) else ""
        self._file_problems[file] = Problem("", f"{error.message}{stays}", error.place)

    def remove(self, file: str) -> None:
        """*file* is gone, and its objects with it."""
        self._files.pop(file, None)
        self._file_problems.pop(file, None)

    def documents(self) -> dict[tuple[str, ObjectKey], str]:
        """The last good document of every object of every file."""
        documents: dict[tuple[str, ObjectKey], str] = {}
        for file, objects in self._files.items():
            for one in objects:
                good = self._good(one)
                if good is not None and good.text is not None:
                    documents.setdefault((file, one.key), good.text)
        return documents

    def write(self, other_problems: Mapping[ObjectKey, Problem]) -> None:
        """Make the tables hold exactly the rows and problems of all files, and *other_problems*."""
        rows, problems = self._merge()
        for file, problem in self._file_problems.items():
            problems["File", "", file] = problem
        problems.update(other_problems)

        for table_name, key in self._rows - rows.keys():
            self._tables.named(table_name).delete(key)
        for (table_name, key), row in rows.items():
            self._tables.named(table_name).set(key, row)
        self._rows = set(rows)
        for problem_key in self._problems - problems.keys():
            self._tables.problems.delete(problem_key)
        for problem_key, problem in problems.items():
            self._tables.problems.set(problem_key, problem)
        self._problems = set(problems)

    def _merge(self) -> tuple[dict[_RowKey, object], dict[ObjectKey, Problem]]:
        """Rows and problems of the objects of all files."""
        rows: dict[_RowKey, object] = {}
        problems: dict[ObjectKey, Problem] = {}
        owners: dict[ObjectKey, ManifestObject] = {}
        last_good: dict[ObjectKey, ManifestObject] = {}
        for file in sorted(self._files):
            for one in self._files[file]:
                owner = owners.setdefault(one.key, one)
                if owner is not one:
                    _add(
                        problems,
                        one.key,
                        Problem("", f"is also in {one.place}, which is ignored", owner.place),
                    )
                    continue
                good = self._good(one)
                if good is not None:
                    last_good[one.key] = good
                    rows.update({(table, key): row for table, key, row in good.rows or ()})
                if one.problem is not None:
                    stays = "" if good is None else _STAYS
                    problem = one.problem
                    message = f"{problem.message}{stays}"
                    _add(problems, one.key, Problem(problem.field, message, problem.file))
        self._last_good = last_good
        return rows, problems

    def _good(self, one: ManifestObject) -> ManifestObject | None:
        """*one* if it is valid, else its last good version, if there is one."""
        return self._last_good.get(one.key) if one.rows is None else one


def _add(problems: dict[ObjectKey, Problem], key: ObjectKey, problem: Problem) -> None:
    """Add a problem; a second one of the same object is appended to the first."""
    first = problems.get(key)
    if first is not None:
        problem = Problem(first.field, f"{first.message}; {problem.message}", first.file)
    problems[key] = problem
