# SPDX-License-Identifier: Apache-2.0
"""
Create before reference, delete after dereference: which rows of a stage must wait for which others.

Order within a round is the order of stages; this module is about what did *not* work out: a row that
could not be written must not be referred to, and a row that is still referred to must not go.
Pure bookkeeping over :class:`StageProgress`.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from ciliumd.reconcile.progress import StageProgress
from ciliumd.reconcile.target import Stage


class Order:
    """The stages in their order of writes, and who needs whom."""

    def __init__(self, progress: Sequence[StageProgress]) -> None:
        _check([each.stage for each in progress])
        self._progress = {each.stage.name: each for each in progress}
        self._dependants = {
            name: [other for other in progress if name in other.stage.needs] for name in self._progress
        }

    def ready_updates(self, progress: StageProgress, rows: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
        """Those of *rows* that may be written now; says in ``progress.held`` what the others wait for."""
        if progress.unread or progress.broken:
            progress.held = "target not read" if progress.unread else "desired rows not computed"
            return {}
        return self._uncovering(progress, self._reading(progress, self._referring(progress, rows)))

    def _uncovering(self, progress: StageProgress, rows: dict[bytes, bytes]) -> dict[bytes, bytes]:
        """Those of *rows* that stand in for no row which is still to be written."""
        covers = progress.stage.covers
        if covers is None:
            return rows
        ready = {
            key: value for key, value in rows.items() if all(self._is_written(*one) for one in covers(key))
        }
        if len(ready) < len(rows):
            progress.held = "updates wait for rows they would stand in for"
        return ready

    def _referring(self, progress: StageProgress, rows: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
        """Those of *rows* that refer to nothing which is still to be written."""
        refers = progress.stage.refers
        if refers is None:
            for name in progress.stage.needs:
                needed = self._progress[name]
                if needed.unread or needed.updates_failing or needed.held is not None:
                    progress.held = f"updates wait for {name}"
                    return {}
            return dict(rows)
        ready: dict[bytes, bytes] = {}
        for key, value in rows.items():
            missing = [name for name, other in refers(key, value) if not self._is_written(name, other)]
            if missing:
                progress.held = f"updates wait for {missing[0]}"
            else:
                ready[key] = value
        return ready

    def _reading(self, progress: StageProgress, rows: dict[bytes, bytes]) -> dict[bytes, bytes]:
        """Those of *rows* whose sets are whole, and nothing but that where they were not read before."""
        reads = progress.stage.reads
        if reads is None:
            return rows
        # Found once: thousands of rows may wait for one set each.
        unfinished = {name: self._unfinished(name) for name in progress.stage.needs} if rows else {}
        ready: dict[bytes, bytes] = {}
        for key, value in rows.items():
            begun = _begun(progress, key, value)
            waits = [
                stage
                for stage, which in reads(key, value)
                if unfinished[stage].holds_up(which, exactly=(stage, which) in begun)
            ]
            if waits:
                progress.held = f"updates wait for {waits[0]}"
            else:
                ready[key] = value
        return ready

    def in_the_way(self, progress: StageProgress, keys: Collection[bytes]) -> list[bytes]:
        """
        Those of *keys*, which are to be deleted, that are in a set which some row is about to read.

        Nobody reads them yet, and whoever begins to would take them for members.
        """
        name, set_of = progress.stage.name, progress.stage.set_of
        if set_of is None or not keys or progress.unread or progress.broken:
            return []
        begun: set[tuple[str, bytes]] = set()
        for dependant in self._dependants[name]:
            desired = dependant.tracker.desired
            for key in dependant.tracker.pending_updates:
                begun |= _begun(dependant, key, desired[key])
        return [key for key in keys if (name, set_of(key)) in begun]

    def ready_deletions(self, progress: StageProgress, keys: Collection[bytes]) -> list[bytes]:
        """Those of *keys* that may be deleted now; says in ``progress.held`` what the others wait for."""
        if progress.unread or progress.broken:
            return []
        name = progress.stage.name
        for other in progress.stage.outlives:
            outlived = self._progress[other]
            if outlived.unread or outlived.broken or outlived.tracker.pending_updates:
                progress.held = f"deletions wait for {other}"
                return []
        set_of = progress.stage.set_of
        kept: set[bytes] = set()
        sets: set[bytes] = set()
        for dependant in self._dependants[name]:
            waits = f"deletions wait for {dependant.stage.name}"
            if dependant.unread or dependant.broken:
                progress.held = waits
                return []
            references = _old_references(dependant, name)
            if references is None:
                progress.held = waits
                return []
            kept |= references
            if set_of is not None:
                sets |= {one for stage, one in _still_read(dependant) if stage == name}
        ready = [key for key in keys if key not in kept and not (set_of and set_of(key) in sets)]
        if len(ready) < len(keys):
            progress.held = "deletions wait for rows that refer to them"
        return ready

    def _is_written(self, stage: str, key: bytes) -> bool:
        """Whether the target of *stage* holds *key* as desired."""
        needed = self._progress[stage]
        value = needed.tracker.desired.get(key)
        return not needed.unread and value is not None and needed.tracker.held(key) == value

    def _unfinished(self, stage: str) -> "_Unfinished":
        needed = self._progress[stage]
        set_of, tracker = needed.stage.set_of, needed.tracker
        if needed.unread or needed.broken or set_of is None:
            return _Unfinished(all=True)
        return _Unfinished(
            lacking=frozenset(map(set_of, tracker.pending_updates)),
            crowded=frozenset(map(set_of, tracker.pending_deletions)),
        )


@dataclass(frozen=True, slots=True)
class _Unfinished:
    """The sets of a stage that its target does not hold whole, and those of which it holds more."""

    lacking: frozenset[bytes] = frozenset()
    crowded: frozenset[bytes] = frozenset()
    all: bool = False

    def holds_up(self, which: bytes, *, exactly: bool) -> bool:
        """Whether who reads a set must wait; *exactly*: also for what does not belong there to go."""
        return self.all or which in self.lacking or (exactly and which in self.crowded)


def _begun(progress: StageProgress, key: bytes, value: bytes) -> set[tuple[str, bytes]]:
    """The sets that a row is to read and does not read as it is held."""
    reads = progress.stage.reads
    if reads is None:
        return set()
    held = progress.tracker.held(key)
    return set(reads(key, value)) - set(() if held is None else reads(key, held))


def _still_read(progress: StageProgress) -> set[tuple[str, bytes]]:
    """The sets that rows of a stage read as they are held, and no longer are to."""
    reads, tracker = progress.stage.reads, progress.tracker
    found: set[tuple[str, bytes]] = set()
    if reads is None:
        return found
    for key in chain(tracker.pending_updates, tracker.pending_deletions):
        value, wanted = tracker.held(key), tracker.desired.get(key)
        if value is not None:
            found |= set(reads(key, value)) - set(() if wanted is None else reads(key, wanted))
    return found


def _old_references(dependant: StageProgress, name: str) -> set[bytes] | None:
    """
    Keys of stage *name* that rows of *dependant* refer to which are not yet replaced or deleted.

    A row that is in sync refers to desired rows only, so the pending ones are all there is to ask.
    None: there are such rows and the stage does not say what they refer to.
    """
    tracker = dependant.tracker
    refers = dependant.stage.refers
    references: set[bytes] = set()
    for key in chain(tracker.pending_updates, tracker.pending_deletions):
        value = tracker.held(key)
        if value is None:
            continue  # a row still to be created refers to nothing that goes away
        if refers is None:
            return None
        references.update(other for stage, other in refers(key, value) if stage == name)
    return references


def _check(stages: Sequence[Stage]) -> None:
    """Refuse stages that need something written after them."""
    seen: set[str] = set()
    for stage in stages:
        if stage.name in seen:
            raise ValueError(f"two stages are named {stage.name}")
        if missing := [name for name in (*stage.needs, *stage.outlives) if name not in seen]:
            raise ValueError(f"stage {stage.name} needs {', '.join(missing)}, which must come before it")
        seen.add(stage.name)
