# SPDX-License-Identifier: Apache-2.0
"""The generated codecs: sizes as in C, every value survives, nothing is cut silently."""

from __future__ import annotations

import dataclasses
import inspect
import random
import struct
from ipaddress import IPv6Address
from typing import Any

import pytest

from ciliumd import abi

ROWS = [
    found
    for _, found in inspect.getmembers(abi, inspect.isclass)
    if hasattr(found, "unpack") and found is not abi.Row and found is not struct.Struct
]


def example(row: type[Any], seed: int) -> Any:
    """A row with random values found by asking the codec which ones it takes."""
    source = random.Random(seed)
    octets = bytearray(source.randbytes(row.SIZE))
    if row in {abi.LayoutKey, abi.LayoutValue}:
        return row(f"text {seed}")
    return row.unpack(bytes(octets))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.__name__)
def test_every_row_survives_pack_and_unpack(row: type[Any]) -> None:
    """unpack(pack(x)) == x and the packed size is the size the compiler gave the struct."""
    for seed in range(20):
        value = example(row, seed)
        packed = value.pack()
        assert len(packed) == row.SIZE
        assert row.unpack(packed) == value


def test_rows_are_frozen_and_slotted() -> None:
    """A row can be a dictionary key and carries no surprises."""
    row = abi.LxcValue(check=1, slot=2)
    assert hash(row) == hash(abi.LxcValue(1, 2))
    with pytest.raises(dataclasses.FrozenInstanceError):
        row.slot = 3  # type: ignore[misc]
    assert not hasattr(row, "__dict__")


def test_big_endian_fields_are_swapped_by_the_codec() -> None:
    """Port 80 in Python is 80 on the wire, at the offset the struct has."""
    key = abi.PolicyKey(prefixlen=48, class_id=7, direction=1, protocol=6, dport=80)
    assert key.pack() == bytes.fromhex("30000000 0700 01 06 0050 0000".replace(" ", ""))


def test_members_are_found_in_packed_rows() -> None:
    """Of whichever type: what lies there is the member's value and nothing else."""
    key = abi.PolicyKey(prefixlen=48, class_id=7, direction=1, protocol=6, dport=80).pack()
    assert key[abi.place_of(abi.PolicyKey, "prefixlen")] == bytes.fromhex("30000000")
    assert key[abi.place_of(abi.PolicyKey, "dport")] == bytes.fromhex("0050")
    assert abi.place_of(abi.CtKey, "remote") == slice(16, 32)


def test_addresses_keep_their_bytes() -> None:
    """cil_addr is sixteen bytes in network order."""
    address = IPv6Address("fd00::1").packed
    assert abi.LxcKey(address).pack() == address


@pytest.mark.parametrize("wrong", [b"", b"\0" * 15, b"\0" * 17])
def test_an_address_of_another_length_is_refused(wrong: bytes) -> None:
    """Struct would cut or fill it silently."""
    with pytest.raises(ValueError, match="16 bytes expected"):
        abi.LxcKey(wrong).pack()


def test_a_port_out_of_range_is_refused() -> None:
    """70000 must not become another port."""
    with pytest.raises(OverflowError):
        abi.FragPorts(sport=70000, dport=1).pack()


def test_a_text_that_does_not_fit_is_refused() -> None:
    """The terminating NUL has to fit as well."""
    assert abi.LayoutKey.unpack(abi.LayoutKey("x" * 31).pack()).name == "x" * 31
    with pytest.raises(ValueError, match="at most 31"):
        abi.LayoutKey("x" * 32).pack()


def test_padding_is_zero() -> None:
    """What is not named carries nothing: equal rows have equal bytes."""
    row = abi.LbServiceKey.unpack(b"\xff" * abi.LbServiceKey.SIZE)
    assert row.pack()[-2:] == b"\0\0"


@pytest.mark.parametrize("spec", abi.MAPS.values(), ids=lambda spec: spec.name)
def test_maps_have_the_sizes_of_their_structs(spec: abi.MapSpec) -> None:
    """Key and value sizes are those of the structs, and the layout text fits its row."""
    for inspected in (spec, spec.inner):
        if inspected is None:
            continue
        if inspected.key_struct is not None:
            assert inspected.key_size == inspected.key_struct.SIZE
        if inspected.value_struct is not None:
            assert inspected.value_size == inspected.value_struct.SIZE
    assert abi.LayoutValue(spec.layout).pack()


def test_layout_text_names_every_field() -> None:
    """A reordered struct of equal size changes the text."""
    layout = abi.MAPS["cilium_lxc_v1"].layout
    assert "addr@0:16:bytes" in layout
    assert "check@0:4:u32,slot@4:4:u32" in layout


def test_state_maps_carry_a_layout_version_and_no_dot() -> None:
    """Bpffs refuses dots, and a new layout needs a new name."""
    for name in abi.MAPS:
        if name.startswith("cilium_"):
            assert name.rpartition("_v")[2].isdigit()
            assert "." not in name
