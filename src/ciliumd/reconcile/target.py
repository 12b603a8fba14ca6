# SPDX-License-Identifier: Apache-2.0
"""
What an effect must offer to be reconciled, and where it stands in the order of writes.

``bpf`` and ``net`` fulfil :class:`Target` by shape; they never import this module.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol, runtime_checkable

Rows = Mapping[bytes, bytes]
Failures = Mapping[bytes, Exception]


class Target(Protocol):
    """
    Something that holds packed rows.  Called from the writer thread only; may block.

    A failure of one row is returned under its key; an exception fails every row of the call.
    """

    name: str

    def load(self) -> dict[bytes, bytes]:
        """Read everything it holds."""

    def update(self, items: Rows) -> Failures:
        """Create or overwrite rows, in the order given; writing what is already there is success."""

    def delete(self, keys: Collection[bytes]) -> Failures:
        """Remove rows; an absent row is success."""


@runtime_checkable
class Fingerprinted(Protocol):
    """A target that can tell cheaply that it holds what it held before."""

    def fingerprint(self) -> bytes | None:
        """Equal to an earlier answer only if every row is; None if it cannot be told."""


@dataclass(frozen=True, slots=True)
class Whole:
    """A stage's desired rows, computed from scratch."""

    rows: Rows


@dataclass(frozen=True, slots=True)
class Changes:
    """What changed in a stage's desired rows since it was last asked; a key in both is wanted."""

    updates: Rows = field(default_factory=dict)
    removals: Iterable[bytes] = ()


Compute = Callable[[], Whole | Changes]
Refers = Callable[[bytes, bytes], Iterable[tuple[str, bytes]]]
Covers = Callable[[bytes], Iterable[tuple[str, bytes]]]
SetOf = Callable[[bytes], bytes]


class BeforeSync(Enum):
    """
    What a stage may write while a source is still reading.

    Rows computed from half of the objects are not wrong alone by having too many deletions: a
    service would shrink, a policy would open.  So existing rows are left as they are by default.
    """

    HOLD = "hold"  # nothing
    CREATE = "create"  # rows the target does not have yet
    WRITE = "write"  # new and changed rows: the stage does not depend on what is being read


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """
    One target and its place in the order of writes.

    *compute* is called on the loop's thread in each round that follows a trigger; it is None when
    somebody else feeds the tracker, and if it raises nothing may have been taken from its inputs.

    *needs* names earlier stages whose rows this one's refer to.  Without *refers* that is coarse: while
    one of them has failed updates all updates here wait, and while rows here are still to be changed
    or deleted its deletions wait.  With *refers*, which answers the (stage, key) pairs one row refers
    to, only the rows concerned wait for each other.

    *covers* answers the rows, of this stage or of earlier ones, that a row would stand in for as long as
    they are missing, as a prefix does for a longer one: it is written after them, and not without them.

    *set_of* answers the set of which a row is a member, *reads* the (stage, set) pairs that a row stands for
    as a whole, each for itself alone: what is not in a set means something, too.  A row that begins to read
    a set waits until it has all of its rows and no others, and what it read stays until it no longer does.

    *outlives* names earlier stages whose rows are read together with this one's as they were written: nothing
    is deleted here while a change of theirs is not written.
    """

    name: str
    target: Target
    compute: Compute | None = None
    needs: tuple[str, ...] = ()
    refers: Refers | None = None
    covers: Covers | None = None
    set_of: SetOf | None = None
    reads: Refers | None = None
    outlives: tuple[str, ...] = ()
    before_sync: BeforeSync = BeforeSync.CREATE
