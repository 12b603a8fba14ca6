# SPDX-License-Identifier: Apache-2.0
"""Maps of a real kernel: single elements, batches, per-CPU sums, maps in maps, mapped words."""

from __future__ import annotations

import errno
import struct
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from ciliumd import abi
from ciliumd.abi import MapSpec, MapType
from ciliumd.bpf import ArrayTarget, BpfError, Map, MapTarget, NotFound, Object, U64Array
from ciliumd.bpf import map as maps
from ciliumd.bpf.errors import NoSpace
from datapath.pinned import own_directory

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

U32, U64 = struct.Struct("=I"), struct.Struct("=Q")


def spec(kind: MapType, *, value_size: int = 8, max_entries: int = 64, flags: int = 0) -> MapSpec:
    """A map with u32 keys."""
    return MapSpec("test_map", kind, 4, value_size, max_entries, flags, None, None, "")


def rows(count: int, start: int = 0) -> dict[bytes, bytes]:
    """Keys 0..count-1 with values 1000 + key."""
    return {U32.pack(key): U64.pack(1000 + key) for key in range(start, start + count)}


@pytest.fixture(params=[MapType.HASH, MapType.LRU_HASH])
def hash_map(request: pytest.FixtureRequest) -> Iterator[Map]:
    """An empty hash with room for 10,000 elements."""
    with Map.create(spec(request.param, max_entries=10_000)) as made:
        yield made


def test_an_element_is_written_read_and_removed(hash_map: Map) -> None:
    """None and False tell absence; nothing is raised for it."""
    key, value = U32.pack(7), U64.pack(70)
    assert hash_map.lookup(key) is None
    hash_map.update(key, value)
    assert hash_map.lookup(key) == value
    assert hash_map.delete(key) is True
    assert hash_map.delete(key) is False


def test_flags_choose_between_new_and_existing() -> None:
    """NOEXIST refuses a present key, EXIST an absent one."""
    with Map.create(spec(MapType.HASH)) as made:
        key = U32.pack(1)
        with pytest.raises(NotFound):
            made.update(key, U64.pack(1), maps.EXIST)
        made.update(key, U64.pack(1), maps.NOEXIST)
        with pytest.raises(BpfError) as caught:
            made.update(key, U64.pack(2), maps.NOEXIST)
        assert caught.value.errno == errno.EEXIST
        assert made.lookup(key) == U64.pack(1)


@pytest.mark.parametrize("size", [0, 3, 5])
def test_keys_and_values_of_another_size_are_refused_before_the_kernel_reads_them(size: int) -> None:
    """The kernel would read beyond the buffer."""
    with Map.create(spec(MapType.HASH)) as made:
        with pytest.raises(ValueError, match="keys of 4 bytes"):
            made.lookup(b"\0" * size)
        with pytest.raises(ValueError, match="values of 8 bytes"):
            made.update(U32.pack(1), b"\0" * size)
        with pytest.raises(ValueError, match="values of 8 bytes"):
            made.update_batch({U32.pack(1): b"\0" * size})


def test_batches_larger_than_one_call_arrive_whole(hash_map: Map) -> None:
    """9,000 elements need three calls each way."""
    expected = rows(9000)
    assert hash_map.update_batch(expected) == {}
    assert dict(hash_map.items()) == expected
    assert set(hash_map.keys()) == set(expected)
    assert hash_map.delete_batch(list(expected)[:8000]) == {}
    assert len(dict(hash_map.items())) == 1000


def test_a_full_map_reports_the_keys_that_did_not_fit() -> None:
    """All others are written; each failure says the map is full."""
    with Map.create(spec(MapType.HASH, max_entries=8)) as made:
        failed = made.update_batch(rows(20))
        held = dict(made.items())
        assert len(held) == 8
        assert set(failed) == set(rows(20)) - set(held)
        assert all(isinstance(failure, NoSpace) for failure in failed.values())


def test_a_failure_in_the_middle_does_not_stop_the_batch() -> None:
    """With NOEXIST the present keys fail, all before and after are written."""
    with Map.create(spec(MapType.HASH)) as made:
        made.update(U32.pack(3), U64.pack(1))
        made.update(U32.pack(5), U64.pack(1))
        failed = made.update_batch(rows(10), maps.NOEXIST)
        assert set(failed) == {U32.pack(3), U32.pack(5)}
        assert len(dict(made.items())) == 10
        assert made.lookup(U32.pack(3)) == U64.pack(1)


def test_deleting_absent_keys_is_success() -> None:
    """Also when they stand between present ones."""
    with Map.create(spec(MapType.HASH)) as made:
        made.update_batch(rows(4))
        assert made.delete_batch(rows(40, start=2)) == {}
        assert set(made.keys()) == set(rows(2))


def test_map_types_without_batches_are_written_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that has no batch for a type answers ENOTSUPP; the result is the same."""

    class NoBatches:
        def __getattr__(self, name: str) -> object:
            if name.endswith("_batch"):
                return lambda *_: -maps.ENOTSUPP
            return getattr(real, name)

    real = maps.lib
    with Map.create(spec(MapType.HASH)) as made:
        monkeypatch.setattr(maps, "lib", NoBatches())
        assert made.update_batch(rows(10)) == {}
        assert dict(made.items()) == rows(10)
        assert made.delete_batch(rows(5)) == {}
        assert set(made.keys()) == set(rows(5, start=5))


def test_per_cpu_values_are_split_and_summed() -> None:
    """Every possible CPU has a value; words are summed one by one."""
    with Map.create(spec(MapType.PERCPU_ARRAY, value_size=16, max_entries=4)) as made:
        cpus = maps.possible_cpus()
        made.update(U32.pack(2), struct.pack("=QQ", 3, 5) * cpus)
        assert made.lookup_per_cpu(U32.pack(2)) == [struct.pack("=QQ", 3, 5)] * cpus
        assert made.lookup_sums(U32.pack(2)) == (3 * cpus, 5 * cpus)
        assert dict(made.items_sums()) == {
            U32.pack(row): (3 * cpus, 5 * cpus) if row == 2 else (0, 0) for row in range(4)
        }


def test_lpm_finds_the_longest_prefix() -> None:
    """Inner policy maps are created from their spec with a size of their own."""
    inner = abi.MAPS["cilium_policy_rules_v1"].inner
    assert inner is not None
    prefix = abi.PolicyPrefix
    with Map.create(inner, max_entries=32) as made:
        wide = abi.PolicyKey(prefix.POLICY_PREFIX_CLASS, 1, 1, 0, 0)
        narrow = abi.PolicyKey(prefix.POLICY_PREFIX_PORT, 1, 1, 6, 80)
        deny, allow = abi.PolicyEntry(2, 0, 0, 1, 0), abi.PolicyEntry(1, 0, 0, 2, 0)
        assert made.update_batch({wide.pack(): deny.pack(), narrow.pack(): allow.pack()}) == {}
        assert made.lookup(replace(narrow, dport=81).pack()) == deny.pack()
        assert made.lookup(narrow.pack()) == allow.pack()
        assert len(dict(made.items())) == 2
        assert made.info.max_entries == 32


def test_inner_maps_are_hung_in_and_opened_again() -> None:
    """The outer map refers to the inner one, which lives on without its handle."""
    with Object.open("lxc") as source:
        for name in source.program_names:
            source.set_autoload(name, False)
        source.load()
        with source.map("cilium_policy_rules_v1") as outer:
            inner_spec = abi.MAPS["cilium_policy_rules_v1"].inner
            assert inner_spec is not None
            key = abi.PolicyKey(abi.PolicyPrefix.POLICY_PREFIX_CLASS, 0, 1, 0, 0).pack()
            with Map.create(inner_spec, max_entries=16) as one, Map.create(inner_spec, max_entries=99) as two:
                one.update(key, abi.PolicyEntry(1, 0, 0, 11, 0).pack())
                assert outer.update_inner({U32.pack(1): one, U32.pack(2): two}) == {}
            with outer.open_inner(U32.pack(1)) as again:
                assert abi.PolicyEntry.unpack(again.lookup(key) or b"").rule_cookie == 11
            with pytest.raises(NotFound):
                outer.open_inner(U32.pack(3))


def test_mapped_words_are_the_rows_of_the_array() -> None:
    """What is stored through memory is read through the map, and the other way round."""
    with (
        Map.create(spec(MapType.ARRAY, max_entries=512, flags=0x400)) as made,
        U64Array(made) as words,
    ):
        words[511] = 0xFFFFFFFF00000001
        assert made.lookup(U32.pack(511)) == U64.pack(0xFFFFFFFF00000001)
        made.update(U32.pack(3), U64.pack(9))
        assert words[3] == 9
        assert len(words) == 512
        for outside in (-1, 512):
            with pytest.raises(IndexError):
                words[outside] = 1


def test_an_array_that_cannot_be_mapped_says_so() -> None:
    """Without BPF_F_MMAPABLE the kernel refuses."""
    with (
        Map.create(spec(MapType.ARRAY)) as made,
        pytest.raises(BpfError, match="map into memory test_map"),
    ):
        U64Array(made)


def test_targets_load_what_they_wrote() -> None:
    """A hash deletes; an array row becomes zero, and zero rows are absent."""
    with Map.create(spec(MapType.HASH)) as hashed, Map.create(spec(MapType.ARRAY)) as array:
        for target in (MapTarget(hashed), ArrayTarget(array)):
            assert target.update(rows(4)) == {}
            assert target.load() == rows(4)
            assert target.delete(list(rows(3))) == {}
            assert target.load() == rows(1, start=3)


def test_parts_of_a_map_are_targets_that_know_nothing_of_each_other() -> None:
    """Each loads the rows of its own keys, and none of the other's."""
    with Map.create(spec(MapType.HASH)) as hashed:
        even = MapTarget(hashed, part=lambda key: not key[0] & 1)
        odd = MapTarget(hashed, part=lambda key: bool(key[0] & 1))
        assert MapTarget(hashed).update(rows(4)) == {}

        assert even.load() | odd.load() == rows(4)
        assert {key[0] for key in odd.load()} == {1, 3}


@pytest.mark.parametrize("count", [0, 1, 9_000])
def test_a_fingerprint_is_the_same_until_somebody_writes(hash_map: Map, count: int) -> None:
    """Every value counts, also in a map that takes several calls to read."""
    assert hash_map.update_batch(rows(count)) == {}
    before = hash_map.fingerprint()
    assert before is not None
    assert hash_map.fingerprint() == before
    for key in {0, count // 2, count}:
        hash_map.update(U32.pack(key), U64.pack(7))
        after = hash_map.fingerprint()
        assert after != before
        before = after
    assert hash_map.delete(U32.pack(count))
    assert hash_map.fingerprint() != before


def test_a_map_without_batches_has_no_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is read in full instead."""
    with Map.create(spec(MapType.HASH)) as made:
        refused = SimpleNamespace(cil_map_lookup_batch=lambda *_: -maps.ENOTSUPP)
        monkeypatch.setattr(maps, "lib", refused)
        assert made.fingerprint() is None


def test_a_frozen_map_takes_no_more_writes() -> None:
    """Reading goes on."""
    with Map.create(spec(MapType.ARRAY)) as made:
        made.update(U32.pack(0), U64.pack(5))
        made.freeze()
        with pytest.raises(BpfError):
            made.update(U32.pack(0), U64.pack(6))
        assert made.lookup(U32.pack(0)) == U64.pack(5)


@pytest.fixture
def directory() -> Iterator[Path]:
    """A bpffs directory."""
    with own_directory() as path:
        yield path


def test_a_pin_outlives_its_handle(directory: Path) -> None:
    """Another handle finds the value; the name is the pin's."""
    with Map.create(spec(MapType.HASH)) as made:
        made.update(U32.pack(1), U64.pack(1))
        made.pin(directory / "kept_v1")
        with pytest.raises(BpfError) as caught:
            made.pin(directory / "kept_v1")
        assert caught.value.errno == errno.EEXIST
    with Map.from_pin(directory / "kept_v1") as again:
        assert again.name == "kept_v1"
        assert again.lookup(U32.pack(1)) == U64.pack(1)
    with pytest.raises(NotFound, match="absent_v1"):
        Map.from_pin(directory / "absent_v1")


def test_a_closed_handle_is_an_error_not_another_file() -> None:
    """Descriptors are reused by the kernel; a closed handle must never touch one."""
    made = Map.create(spec(MapType.HASH))
    made.close()
    made.close()
    with pytest.raises(ValueError, match="test_map is closed"):
        made.lookup(U32.pack(1))
