# SPDX-License-Identifier: Apache-2.0
"""Pins that were removed or lead elsewhere lead again to what is held open."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ciliumd import abi
from ciliumd.bpf import Map
from ciliumd.bpf.keep import repin, repin_all
from datapath.pinned import own_directory

if TYPE_CHECKING:
    from collections.abc import Iterator

NAME = "cilium_lxc_v1"


@pytest.fixture
def directory() -> Iterator[Path]:
    """A bpffs directory."""
    with own_directory() as path:
        yield path


@pytest.fixture
def held(directory: Path) -> Iterator[Map]:
    """A map that is open and pinned."""
    with Map.create(abi.MAPS[NAME]) as made:
        made.pin(directory / "pin")
        yield made


def pinned_id(pin: Path) -> int:
    """Which map a pin leads to."""
    with Map.from_pin(pin) as found:
        return found.info.id


def test_a_good_pin_is_left_alone(directory: Path, held: Map) -> None:
    """The same file."""
    before = (directory / "pin").stat().st_ino

    assert repin(directory / "pin", held) is False
    assert (directory / "pin").stat().st_ino == before


def test_a_removed_pin_is_made_again(directory: Path, held: Map) -> None:
    """Its directory too."""
    (directory / "pin").unlink()
    assert repin(directory / "pin", held) is True
    assert repin(directory / "sub" / "pin", held) is True

    assert pinned_id(directory / "pin") == pinned_id(directory / "sub" / "pin") == held.info.id
    (directory / "sub" / "pin").unlink()
    (directory / "sub").rmdir()


@pytest.mark.parametrize("name", [NAME, "cilium_ct_v1", "cilium_node_state_v1"])
def test_a_pin_of_another_map_is_replaced(directory: Path, held: Map, name: str) -> None:
    """Of the same layout or of another type."""
    (directory / "pin").unlink()
    with Map.create(abi.MAPS[name], max_entries=16) as other:
        other.pin(directory / "pin")
    repaired = repin_all({directory / "pin": held})

    assert repaired == [directory / "pin"]
    assert pinned_id(directory / "pin") == held.info.id
