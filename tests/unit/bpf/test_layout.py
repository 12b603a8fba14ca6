# SPDX-License-Identifier: Apache-2.0
"""Comparing layouts: what differs is named; what an operator may choose is no difference."""

from __future__ import annotations

import dataclasses

import pytest

from ciliumd import abi
from ciliumd.bpf import layout
from ciliumd.bpf.errors import LayoutMismatch
from ciliumd.bpf.map import MapInfo

LXC = abi.MAPS["cilium_lxc_v1"]
INFO = MapInfo(LXC.type, 1, LXC.key_size, LXC.value_size, LXC.max_entries, LXC.flags, "cilium_lxc_v1")


def test_a_map_as_abi_declares_it_passes() -> None:
    """No exception."""
    layout.check_declared({"cilium_lxc_v1": INFO})


def test_another_size_is_the_operators_choice() -> None:
    """max_entries of a hash is no layout."""
    layout.check_declared({"cilium_lxc_v1": dataclasses.replace(INFO, max_entries=7)})


@pytest.mark.parametrize(
    ("change", "field", "expected", "found"),
    [
        ({"type": 2}, "type", "HASH", "ARRAY"),
        ({"key_size": 20}, "key_size", "16", "20"),
        ({"value_size": 4}, "value_size", "8", "4"),
        ({"flags": 1}, "flags", "0x0", "0x1"),
    ],
)
def test_what_the_kernel_can_tell_is_compared(
    change: dict[str, int], field: str, expected: str, found: str
) -> None:
    """The first differing property is named with both values."""
    with pytest.raises(LayoutMismatch) as caught:
        layout.check_declared({"cilium_lxc_v1": dataclasses.replace(INFO, **change)})
    assert (caught.value.map, caught.value.field) == ("cilium_lxc_v1", field)
    assert (caught.value.expected, caught.value.found) == (expected, found)


def test_an_unknown_map_is_refused() -> None:
    """An object with a map abi.py does not know was not built with it."""
    with pytest.raises(LayoutMismatch, match="cilium_other_v1"):
        layout.check_declared({"cilium_other_v1": INFO})


def test_reordered_fields_of_equal_size_are_found() -> None:
    """The kernel would reuse such a map silently."""
    swapped = LXC.layout.replace("check@0:4:u32,slot@4:4:u32", "slot@0:4:u32,check@4:4:u32")
    with pytest.raises(LayoutMismatch) as caught:
        layout._compare_text(LXC.name, LXC.layout, swapped)
    assert caught.value.field == "value.check"
    assert (caught.value.expected, caught.value.found) == ("@0:4:u32", "@4:4:u32")


def test_a_struct_may_get_another_name() -> None:
    """As it does when a newer one takes its name; its fields may not."""
    renamed = LXC.layout.replace("value=lxc_value:", "value=lxc_value_v1:")
    assert renamed != LXC.layout
    layout._compare_text(LXC.name, LXC.layout, renamed)
    with pytest.raises(LayoutMismatch):
        layout._compare_text(LXC.name, LXC.layout, renamed.replace("slot@", "row@"))


def test_a_missing_and_an_added_field_are_found() -> None:
    """Both directions name the field."""
    shorter = LXC.layout.replace(",slot@4:4:u32", "")
    with pytest.raises(LayoutMismatch) as missing:
        layout._compare_text(LXC.name, LXC.layout, shorter)
    assert (missing.value.field, missing.value.found) == ("value.slot", "absent")
    with pytest.raises(LayoutMismatch) as renamed:
        layout._compare_text(LXC.name, LXC.layout, LXC.layout.replace("slot@", "row@"))
    assert renamed.value.field == "value.slot"
    assert renamed.value.found == "absent"


def test_a_map_without_a_recorded_layout_is_refused() -> None:
    """Its creation was interrupted, or someone else made it."""
    with pytest.raises(LayoutMismatch) as caught:
        layout._compare_text(LXC.name, LXC.layout, "")
    assert caught.value.field == "layout"
