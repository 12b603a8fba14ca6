# SPDX-License-Identifier: Apache-2.0
"""
Asked of the next version, with its own packages: run by test_bpf_upgrade.py, never by itself.

Every converter row by row, in Python and in the programs; and what a generation does that cannot carry
rows.  CILIUMD_TEST_PINS is a directory of pins that this version's agent left.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ciliumd import __version__, abi
from ciliumd.bpf import BpfError, Generation, Map, MigrationFailed, Pins, migrate
from ciliumd.bpf import generation as generations
from ciliumd.model.net import fold32
from datapath.pinned import own_directory

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ciliumd.bpf import Program
    from ciliumd.bpf.migrate import Succession

assert __version__.endswith("+next"), "these are questions to the next version"
SMALL = {name: 1024 for name, spec in abi.MAPS.items() if spec.max_entries > 4096} | {
    "cilium_events_v1": 1 << 16
}
BY_NAME = {step.new: step for step in migrate.SUCCESSIONS}
PROGRAMS = {"cilium_ct_v2": ("read_ct", "write_ct"), "cilium_snat_v2": ("read_nat", "claim_nat")}
HEADER = bytes.fromhex("0200000000010200000000020800")
DONE, ABSENT, REFUSED = 0, 1, 2
CT_FLAGS = sum(abi.CtFlags)
every_row = settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))


def fields(name: str) -> dict[str, tuple[int, int]]:
    """Offset and size of every field of a map's values."""
    text = abi.MAPS[name].layout.partition(" value=")[2]
    found = re.findall(r"(\w+)@(\d+):(\d+):", text)
    return {field: (int(offset), int(size)) for field, offset, size in found}


def shared(step: Succession) -> list[str]:
    """Fields that both layouts have."""
    old, new = fields(step.old), fields(step.new)
    return [field for field in old if field in new and not field.startswith("pad")]


@st.composite
def rows(draw: st.DrawFn, step: Succession, name: str) -> tuple[bytes, bytes]:
    """A row as the programs could have made it: no field larger than either layout has room for."""
    key = draw(st.binary(min_size=abi.MAPS[name].key_size, max_size=abi.MAPS[name].key_size))
    value = bytearray(abi.MAPS[name].value_size)
    for field in shared(step):
        offset, size = fields(name)[field]
        room = min(size, fields(step.old)[field][1], fields(step.new)[field][1])
        data = draw(st.binary(min_size=room, max_size=room))
        if field == "flags" and "ct" in name:
            data = (int.from_bytes(data, "little") & CT_FLAGS).to_bytes(room, "little")
        value[offset : offset + room] = data
    if step.by_programs:
        offset, size = fields(name)["check"]
        value[offset : offset + size] = fold32(key).to_bytes(4, "little")
    return key, bytes(value)


def said(name: str, value: bytes, names: list[str]) -> dict[str, object]:
    """What a value says in the fields of these names."""
    struct = abi.MAPS[name].value_struct
    assert struct is not None
    row = struct.unpack(value)
    return {field: getattr(row, field) for field in names}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Generation]:
    """The next version on a node of its own."""
    with (
        own_directory() as directory,
        Pins(directory / "next", state_dir=tmp_path_factory.mktemp("state")) as pins,
        Generation.load(pins, config={}, max_entries=SMALL) as made,
    ):
        made.activate()
        yield made


def probe(loaded: Generation, name: str, which: int) -> Program:
    """The program that reads (0) or writes (1) rows as packets do."""
    return loaded.programs[f"probe_{PROGRAMS[name][which]}"]


# -- row by row --------------------------------------------------------------------------------


def test_there_are_rows_of_both_kinds() -> None:
    """Of programs and of the agent; otherwise nothing below would mean much."""
    assert {step.by_programs for step in migrate.SUCCESSIONS} == {True, False}
    assert all(len(shared(step)) >= 5 for step in migrate.SUCCESSIONS)


@pytest.mark.parametrize("step", migrate.SUCCESSIONS, ids=lambda step: step.old)
def test_there_and_back(step: Succession) -> None:
    """An old row comes back as it was; what it says is said in the new layout, too."""

    @every_row
    @given(rows(step, step.old))
    def check(row: tuple[bytes, bytes]) -> None:
        new = step.forward(*row)
        assert step.back(*new) == row
        assert step.back_key(new[0]) == row[0]
        assert said(step.new, new[1], shared(step)) == said(step.old, row[1], shared(step))

    check()


@pytest.mark.parametrize("step", migrate.SUCCESSIONS, ids=lambda step: step.new)
def test_back_and_there(step: Succession) -> None:
    """A new row loses only what the old layout cannot say."""

    @every_row
    @given(rows(step, step.new))
    def check(row: tuple[bytes, bytes]) -> None:
        old = step.back(*row)
        assert old is not None
        again = step.forward(*old)
        assert again[0] == row[0]
        assert said(step.new, again[1], shared(step)) == said(step.new, row[1], shared(step))

    check()


def test_a_row_that_cannot_be_is_refused() -> None:
    """Flags nobody knows are not dropped silently."""
    row = abi.CtEntryV1(*(0 for _ in abi.CtEntryV1.__match_args__))
    broken = abi.CtEntryV1(**{name: getattr(row, name) for name in row.__match_args__} | {"flags": 0x8000})
    with pytest.raises(ValueError, match="0x8000"):
        BY_NAME["cilium_ct_v2"].forward(bytes(40), broken.pack())


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_read_an_old_row_as_the_converter_does(loaded: Generation, name: str) -> None:
    """On a miss in the new map; and they do not read a row of another key."""
    step, reader = BY_NAME[name], probe(loaded, name, 0)
    size = abi.MAPS[name].value_size

    @every_row
    @given(rows(step, step.old))
    def check(row: tuple[bytes, bytes]) -> None:
        key, value = row
        loaded.maps[step.old].update(key, value)
        run = reader.test_run(HEADER + key + bytes(size))
        assert run.retval == DONE
        assert run.data == HEADER + key + step.forward(key, value)[1]
        foreign = (fold32(key) ^ 1).to_bytes(4, "little")
        loaded.maps[step.old].update(key, foreign + value[4:])
        assert reader.test_run(HEADER + key + bytes(size)).retval == ABSENT
        loaded.maps[step.old].delete(key)
        assert reader.test_run(HEADER + key + bytes(size)).retval == ABSENT

    check()


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_write_both_layouts(loaded: Generation, name: str) -> None:
    """The old row is what the converter says; the new one is read first from then on."""
    step, reader, writer = BY_NAME[name], probe(loaded, name, 0), probe(loaded, name, 1)
    new = loaded.maps[name]

    @every_row
    @given(rows(step, name))
    def check(row: tuple[bytes, bytes]) -> None:
        key, value = row
        new.delete(key)
        assert loaded.maps[step.old].lookup(key) is None
        assert writer.test_run(HEADER + key + value).retval == DONE
        assert new.lookup(key) == value
        assert (key, loaded.maps[step.old].lookup(key)) == step.back(key, value)
        assert reader.test_run(HEADER + key + bytes(len(value))).data == HEADER + key + value

    check()


def test_a_port_is_claimed_against_the_old_layout_too(loaded: Generation) -> None:
    """What a program of the version before has claimed stays its."""
    step, claim = BY_NAME["cilium_snat_v2"], probe(loaded, "cilium_snat_v2", 1)
    key = bytes(range(abi.MAPS[step.old].key_size))
    value = fold32(key).to_bytes(4, "little") + bytes(abi.MAPS[step.new].value_size - 4)
    loaded.maps[step.new].delete(key)
    loaded.maps[step.old].update(key, step.back(key, value)[1])
    assert claim.test_run(HEADER + key + value).retval == REFUSED
    assert loaded.maps[step.new].lookup(key) is None


# -- what this version left --------------------------------------------------------------------


@pytest.fixture
def left(tmp_path: Path) -> Iterator[Pins]:
    """The pins of the version before, without its agent."""
    with Pins(Path(os.environ["CILIUMD_TEST_PINS"]), state_dir=tmp_path) as held:
        yield held


def names(held: Pins) -> set[str]:
    """Pinned maps."""
    return {path.name for path in held.maps.iterdir()}


def strange_row() -> tuple[bytes, bytes]:
    """A conntrack row that no converter takes."""
    key = b"strange row".ljust(40, b".")
    row = dict.fromkeys(abi.CtEntryV1.__match_args__, 0) | {"check": fold32(key), "flags": 0x4000}
    return key, abi.CtEntryV1(**row).pack()


def test_everything_is_carried(left: Pins) -> None:
    """
    Rows of the agent before the flip, those of programs after it.

    A second start finds them there, and carries what a first one that was killed did not come to.
    """
    with Generation.load(left, config={}) as made:
        assert [(one.new, one.rows) for one in made.carried] == [("cilium_lb_backends_v2", 3)]
        assert generations.active(left) == 1
        made.activate()
        assert {one.new: (one.rows, one.present) for one in made.carried} == {
            "cilium_lb_backends_v2": (3, 0),
            "cilium_ct_v2": (200, 0),
            "cilium_snat_v2": (50, 0),
        }
        for name, step in BY_NAME.items():
            converted = dict(step.forward(*row) for row in made.maps[step.old].items())
            assert dict(made.maps[name].items()) == converted
        for key in list(made.maps["cilium_ct_v2"].keys())[:30]:
            Map.delete(made.maps["cilium_ct_v2"], key)
    with Generation.load(left, config={}) as again:
        again.activate()
        assert {one.new: (one.rows, one.present) for one in again.carried} == {
            "cilium_ct_v2": (30, 170),
            "cilium_snat_v2": (0, 50),
        }


def test_what_the_agent_writes_is_in_both(left: Pins) -> None:
    """Also what an agent could not write any more, because it was killed between the two writes."""
    with Generation.load(left, config={}) as made:
        made.activate()
        new, old = made.maps["cilium_lb_backends_v2"], made.maps["cilium_lb_backends_v1"]
        key = (77).to_bytes(4, "little")
        row = abi.LbBackend(id=77, port=80, protocol=6, state=0, addr=bytes(16)).pack()
        assert new.update_batch({key: row}) == {}
        assert (key, old.lookup(key)) == BY_NAME[new.name].back(key, row)
        assert new.delete_batch([key]) == {}
        assert old.lookup(key) is None
        Map.update(new, key, row)
        old.delete((1).to_bytes(4, "little"))
        old.update((99).to_bytes(4, "little"), bytes(old.value_size))
        expected = dict(BY_NAME[new.name].back(*one) for one in new.items())
    with Generation.load(left, config={}) as again:
        assert dict(again.maps["cilium_lb_backends_v1"].items()) == expected
        assert key in expected
        # Pins of both layouts are made again, and with them what says who uses which.
        lost = [left.maps / "cilium_ct_v2", left.generation(again.number) / "cilium_ct_v1"]
        for pin in lost:
            pin.unlink()
        assert again.repin() == lost
        assert all(pin.exists() for pin in lost)


def test_a_row_that_is_no_row_stops_it_before_the_flip(left: Pins) -> None:
    """The map, the row and the reason are named; no map, no program and no pin is left of it."""
    key, value = strange_row()
    before = names(left)
    with Map.from_pin(left.maps / "cilium_ct_v1") as old:
        old.update(key, value)
        with pytest.raises(MigrationFailed) as caught:
            Generation.load(left, config={})
        old.delete(key)
    for word in ("cilium_ct_v1", "cilium_ct_v2", key.hex(), "0x4000", "go on with cilium_ct_v1"):
        assert word in str(caught.value)
    assert names(left) == before
    assert left.generations() == [1]


def test_a_row_that_is_no_row_turns_it_back_after_the_flip(left: Pins) -> None:
    """The old programs are active again, and have what was written meanwhile in their own layout."""
    key, value = strange_row()
    before = names(left)
    made = Generation.load(left, config={})
    made.maps["cilium_ct_v1"].update(key, value)
    fresh, entry = b"written meanwhile".ljust(40, b"."), bytearray(abi.MAPS["cilium_ct_v2"].value_size)
    entry[:4] = fold32(fresh).to_bytes(4, "little")
    run = made.programs["probe_write_ct"].test_run(HEADER + fresh + bytes(entry))
    assert run.retval == DONE
    with pytest.raises(MigrationFailed, match="0x4000"):
        made.activate()
    assert generations.active(left) == 1
    assert names(left) == before
    assert left.generations() == [1]
    with Map.from_pin(left.maps / "cilium_ct_v1") as old:
        assert old.lookup(fresh) is not None
        old.delete(fresh)
        old.delete(key)


def test_no_memory_for_a_map_stops_it(left: Pins) -> None:
    """The kernel's refusal names the map."""
    before = names(left)
    with pytest.raises(BpfError, match="cilium_ct_v2") as caught:
        Generation.load(left, config={}, max_entries={"cilium_ct_v2": 1 << 31})
    assert caught.value.errno
    assert names(left) == before
    assert left.generations() == [1]
