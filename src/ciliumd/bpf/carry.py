# SPDX-License-Identifier: Apache-2.0
"""
The effects of a changed layout: two maps kept in step, rows carried, leftovers let go.

A generation pins what its programs use in its own directory.  So what the active programs write, and
with it which maps are up to date, is known after any crash and to any version.

Around the flip to new programs:

    before    rows of the agent are copied, nobody else writes them; rows of programs are tried
    flip      new programs read new, then old, and write both
    after     once no packet is in an old program, rows of programs are copied unless they are there
    failure   the old programs are active again: their map has every row
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from ciliumd import abi
from ciliumd.bpf import layout, migrate
from ciliumd.bpf.errors import BpfError, Exists
from ciliumd.bpf.handle import duplicate, unpin
from ciliumd.bpf.map import ANY, NOEXIST, Map

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from ciliumd.bpf.migrate import Row, Succession
    from ciliumd.bpf.pins import Pins

CHUNK = 4096
LRU = frozenset({abi.MapType.LRU_HASH, abi.MapType.LRU_PERCPU_HASH})
ARRAYS = frozenset({abi.MapType.ARRAY})


class MigrationFailed(BpfError):
    """Rows could not be carried into a map's new layout; what was active before is active."""

    def __init__(self, old: str, new: str, reason: str) -> None:
        self.map = new
        self.reason = reason
        hint = f"{reason}; the programs that were there go on with {old}, nothing of it was changed"
        super().__init__(f"carry the rows of {old} into", new, errno.EINVAL, hint)


class VersionSkipped(BpfError):
    """What runs is more than one version away: its rows would be lost."""

    def __init__(self, held: str, known: tuple[str, ...]) -> None:
        hint = (
            f"this version knows {' and '.join(known)}, so connections would be lost; go by the version in "
            "between, or give them up with cleanBpfState"
        )
        super().__init__("take over", held, errno.EINVAL, hint)


@dataclass(frozen=True, slots=True)
class Carried:
    """Rows that were written into *new*, had been there, or that a full LRU map gave up for others."""

    old: str
    new: str
    rows: int
    present: int
    evicted: int


class Twin(Map):
    """A map under its new layout; what the agent writes or deletes is so in the old one, too."""

    def __init__(self, new: Map, old: Map, step: Succession) -> None:
        super().__init__(duplicate(new.fd), new.name)
        self.old = old
        self.step = step

    def update(self, key: bytes, value: bytes, flags: int = ANY) -> None:
        """Write one element, in both."""
        super().update(key, value, flags)
        if row := self.step.back(key, value):
            self.old.update(*row)

    def delete(self, key: bytes) -> bool:
        """Remove one element, from both; False when the new one had none."""
        self.old.delete(self.step.back_key(key))
        return super().delete(key)

    def update_batch(self, items: Mapping[bytes, bytes], flags: int = ANY) -> dict[bytes, BpfError]:
        """Write many elements, in both; the failures of either by key."""
        failed = super().update_batch(items, flags)
        back = {key: self.step.back(key, value) for key, value in items.items() if key not in failed}
        rows = {key: row for key, row in back.items() if row}
        broken = self.old.update_batch(dict(rows.values()))
        return failed | {key: broken[row[0]] for key, row in rows.items() if row[0] in broken}

    def delete_batch(self, keys: Iterable[bytes]) -> dict[bytes, BpfError]:
        """Remove many elements, from both; the failures of either by key."""
        old_keys = {key: self.step.back_key(key) for key in keys}
        broken = self.old.delete_batch(old_keys.values())
        failed = {key: broken[old] for key, old in old_keys.items() if old in broken}
        return failed | super().delete_batch(old_keys)


# -- what is there -----------------------------------------------------------------------------


def held(pins: Pins, generation: int) -> frozenset[str]:
    """State maps that a generation's programs use; none when nobody wrote that down."""
    return frozenset(path.name for path in pins.generation(generation).glob(f"{layout.STATE_PREFIX}*"))


def take_stock(pins: Pins, generation: int) -> set[str]:
    """
    Names of the pinned maps that can be taken over from *generation*, the active one.

    A map that it does not use, though it does use an older one of the family, is a leftover with old
    rows, and goes.  Raises LayoutMismatch and VersionSkipped; then nothing has changed.
    """
    used = held(pins, generation)
    if lost := migrate.no_way_from(used, abi.MAPS):
        raise VersionSkipped(*lost)
    leftovers = migrate.leftovers(_pinned(pins.maps) & set(abi.MAPS), used)
    pinned = layout.check_pinned(pins.maps, besides=leftovers)
    _let_go(pins.maps, leftovers)
    return pinned


def drop_strangers(pins: Pins, generation: int) -> list[str]:
    """Let go of maps that neither the active generation nor this version uses: those of another version."""
    used = held(pins, generation)
    return _let_go(pins.maps, _pinned(pins.maps) - used - set(abi.MAPS)) if used else []


def _pinned(maps_dir: Path) -> set[str]:
    names = {path.name for path in maps_dir.iterdir() if path.name.startswith(layout.STATE_PREFIX)}
    return names - {layout.LAYOUTS}


def _let_go(maps_dir: Path, names: Iterable[str]) -> list[str]:
    gone = sorted(name for name in names if unpin(maps_dir / name))
    layout.forget(maps_dir, gone)
    return gone


# -- carrying ----------------------------------------------------------------------------------


def paired(maps: Mapping[str, Map]) -> dict[str, Twin]:
    """A twin for every map with an older layout beside it; the old handles stay the caller's."""
    return {step.new: Twin(maps[step.new], maps[step.old], step) for step in migrate.SUCCESSIONS}


def sizes(wanted: Mapping[str, int], pinned: Mapping[str, int]) -> dict[str, int]:
    """
    max_entries by map: of *pinned* maps what they have, of others what is wanted.

    What takes over the rows of a map is never smaller than it.
    """
    found = dict(wanted) | dict(pinned)
    for step in migrate.SUCCESSIONS:
        size = found.get(step.new, abi.MAPS[step.new].max_entries)
        if step.new not in pinned:
            size = max(size, pinned.get(step.old, 0))
        found[step.new] = size
        if step.old not in pinned:
            found[step.old] = size
    return found


def before_flip(twins: Iterable[Twin], fresh: set[str]) -> list[Carried]:
    """
    Make new maps of the agent complete, and old ones what the new ones say.

    *fresh*: maps made just now.  Rows of programs are only tried.  Raises MigrationFailed.
    """
    done = []
    for twin in twins:
        if twin.step.by_programs:
            for _ in _converted(twin):
                pass
        elif twin.name in fresh:
            done.append(copy(twin))
        else:
            _even_out(twin)
    return done


def after_flip(twins: Iterable[Twin]) -> list[Carried]:
    """Write rows of programs that are only in the old map.  Raises MigrationFailed."""
    return [copy(twin) for twin in twins if twin.step.by_programs]


def copy(twin: Twin) -> Carried:
    """Write every row of the old map that the new one does not have; an array has none that counts."""
    array = twin.info.type in ARRAYS
    there = set() if array else set(twin.keys())
    every: set[bytes] = set()
    written = present = 0
    rows = _converted(twin)
    while chunk := dict(islice(rows, CHUNK)):
        every |= chunk.keys()
        wanted = {key: value for key, value in chunk.items() if key not in there}
        # Whoever was faster knows more: a packet wrote the row anew.
        failed = Map.update_batch(twin, wanted, ANY if array else NOEXIST)
        faster = sum(isinstance(error, Exists) for error in failed.values())
        if len(failed) > faster:
            key, error = next((k, e) for k, e in failed.items() if not isinstance(e, Exists))
            raise MigrationFailed(twin.old.name, twin.name, f"row {key.hex()}: {error}")
        written += len(wanted) - faster
        present += len(chunk) - len(wanted) + faster
    evicted = len(every - set(twin.keys())) if twin.info.type in LRU else 0
    return Carried(twin.old.name, twin.name, written, present, evicted)


def _even_out(twin: Twin) -> None:
    """An agent that ended between its two writes left the old map behind."""
    rows = (twin.step.back(key, value) for key, value in twin.items())
    wanted = dict(row for row in rows if row)
    found = dict(twin.old.items())
    failed = twin.old.update_batch({k: v for k, v in wanted.items() if found.get(k) != v})
    failed |= twin.old.delete_batch(found.keys() - wanted.keys())
    for error in failed.values():
        raise error


def _converted(twin: Twin) -> Iterator[Row]:
    for key, value in twin.old.items():
        try:
            row = twin.step.forward(key, value)
        except Exception as error:
            reason = f"row {key.hex()}: {type(error).__name__}: {error}"
            raise MigrationFailed(twin.old.name, twin.name, reason) from error
        yield row
