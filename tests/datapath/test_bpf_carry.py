# SPDX-License-Identifier: Apache-2.0
"""Two maps kept in step and rows carried between them, on maps of a real kernel made for the purpose."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from ciliumd import abi
from ciliumd.bpf import Map, MigrationFailed, carry
from ciliumd.bpf.errors import NoSpace
from ciliumd.bpf.migrate import Succession

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ciliumd.abi import MapType
    from ciliumd.bpf.migrate import Row

OLD = replace(
    abi.MAPS["cilium_lxc_v1"], key_size=4, value_size=4, max_entries=64, key_struct=None, value_struct=None
)
NO_PREALLOC = 1


def key_of(number: int) -> bytes:
    """Row *number*'s key."""
    return number.to_bytes(4, "little")


def forward(key: bytes, value: bytes) -> Row:
    """Values become twice as wide."""
    if value == b"\xff" * 4:
        raise ValueError("all ones")
    return key, value + bytes(4)


def back(key: bytes, value: bytes) -> Row | None:
    """A value that needs the new half has no place in the old layout."""
    return None if any(value[4:]) else (key, value[:4])


@contextlib.contextmanager
def twins(
    kind: MapType = abi.MapType.HASH, *, entries: int = 64, by_programs: bool = True, flags: int = 0
) -> Iterator[carry.Twin]:
    """A new map of so many entries, and an old one of 64 with ten rows."""
    old_spec = replace(OLD, name="cilium_old_v1", type=kind, flags=flags)
    new_spec = replace(old_spec, name="cilium_old_v2", value_size=8)
    step = Succession(old_spec.name, new_spec.name, forward, back, by_programs=by_programs)
    with (
        Map.create(old_spec) as old,
        Map.create(new_spec, max_entries=entries) as new,
        carry.Twin(new, old, step) as twin,
    ):
        for number in range(1, 11):
            old.update(key_of(number), key_of(number))
        yield twin


@pytest.mark.parametrize("kind", [abi.MapType.HASH, abi.MapType.LRU_HASH])
def test_rows_are_carried_once(kind: MapType) -> None:
    """A row that somebody wrote meanwhile stays as it is."""
    with twins(kind) as twin:
        Map.update(twin, key_of(3), b"newer!!!")
        assert carry.after_flip([twin]) == [carry.Carried("cilium_old_v1", "cilium_old_v2", 9, 1, 0)]
        assert twin.lookup(key_of(3)) == b"newer!!!"
        assert twin.lookup(key_of(4)) == key_of(4) + bytes(4)
        assert carry.after_flip([twin]) == [carry.Carried("cilium_old_v1", "cilium_old_v2", 0, 10, 0)]


def test_rows_of_an_array_are_carried_too() -> None:
    """In an array every key is there from the start: what counts is whether it was made just now."""
    with twins(abi.MapType.ARRAY, by_programs=False) as twin:
        carry.before_flip([twin], {twin.name})
        assert twin.lookup(key_of(4)) == key_of(4) + bytes(4)
        assert twin.lookup(key_of(63)) == bytes(8)


def test_a_full_map_is_a_failure() -> None:
    """The row and what the kernel says are named; the old map has all of them."""
    with twins(entries=4, flags=NO_PREALLOC) as twin, pytest.raises(MigrationFailed) as caught:
        carry.after_flip([twin])
    for word in ("cilium_old_v1", "cilium_old_v2", "the map is full", "go on with cilium_old_v1"):
        assert word in str(caught.value)


def test_rows_a_full_lru_gave_up_are_counted() -> None:
    """It never says that it is full: whoever looks learns how many have no place."""
    with twins(abi.MapType.LRU_HASH, entries=4) as twin:
        (carried,) = carry.after_flip([twin])
        assert carried.evicted == 10 - len(list(twin.keys())) > 0


def test_rows_of_programs_are_tried_before_the_flip() -> None:
    """Nothing is written; a row that cannot be is an error already."""
    with twins() as twin:
        assert carry.before_flip([twin], {twin.name}) == []
        assert list(twin.keys()) == []
        twin.old.update(key_of(5), b"\xff" * 4)
        with pytest.raises(MigrationFailed, match="05000000: ValueError: all ones"):
            carry.before_flip([twin], {twin.name})


def test_writes_reach_both() -> None:
    """One by one and in batches; what the old layout cannot say is only in the new one."""
    with twins() as twin:
        twin.update(key_of(20), key_of(7) + bytes(4))
        assert twin.old.lookup(key_of(20)) == key_of(7)
        rows = {key_of(21): key_of(8) + bytes(4), key_of(22): b"old" + b"\0new!!"[:5]}
        assert twin.update_batch(rows) == {}
        assert twin.old.lookup(key_of(21)) == key_of(8)
        assert twin.old.lookup(key_of(22)) is None
        assert twin.delete(key_of(20)) is True
        assert twin.delete(key_of(20)) is False
        assert twin.delete_batch([key_of(21), key_of(22), key_of(1)]) == {}
        assert {key for key, _ in twin.old.items()} == {key_of(number) for number in range(2, 11)}
        assert list(twin.keys()) == []


def test_a_failure_of_the_old_map_is_one_of_the_row() -> None:
    """The reconciler tries again what is not in both."""
    with twins(entries=128, flags=NO_PREALLOC) as twin:
        rows = {key_of(number): key_of(number) + bytes(4) for number in range(100, 200)}
        failed = twin.update_batch(rows)
        assert len(failed) == 100 - (64 - 10)
        assert {type(error) for error in failed.values()} == {NoSpace}
        assert set(failed) <= set(rows)
