# SPDX-License-Identifier: Apache-2.0
"""
Pinned maps whose rows are laid out otherwise than this build reads them: 30 of 30 refuse the start.

Each is a real layout with one thing changed that the kernel cannot see: sizes stay what they were.
"""

from __future__ import annotations

import json
import random
import re
from typing import TYPE_CHECKING

import pytest

from ciliumd import abi
from ciliumd.bpf import Generation, LayoutMismatch, Map, Pins
from datapath.harness import SMALL
from datapath.pinned import own_directory

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.datapath

MUTATIONS = 30
LAYOUTS = "cilium_layout_v1"
FIELD = re.compile(r"(\w+)@(\d+):(\d+):(\w+)")
OTHER_TYPE = {"u8": "s8", "u16": "be16", "u32": "be32", "u64": "s64", "be16": "u16", "be32": "u32"}


def renamed(text: str, field: re.Match[str]) -> str:
    """A field has another meaning."""
    return text[: field.start(1)] + f"{field[1]}_of_old" + text[field.end(1) :]


def retyped(text: str, field: re.Match[str]) -> str:
    """The same bytes in another byte order, or signed, or as text."""
    return text[: field.start(4)] + OTHER_TYPE.get(field[4], "text") + text[field.end(4) :]


def moved(text: str, field: re.Match[str]) -> str:
    """A field lies elsewhere."""
    return text[: field.start(2)] + str(int(field[2]) + 4) + text[field.end(2) :]


def widened(text: str, field: re.Match[str]) -> str:
    """A field takes what was padding."""
    return text[: field.start(3)] + str(int(field[3]) * 2) + text[field.end(3) :]


def removed(text: str, field: re.Match[str]) -> str:
    """A field is gone."""
    return text[: field.start()] + text[field.end() :].removeprefix(",")


KINDS: tuple[Callable[[str, re.Match[str]], str], ...] = (renamed, retyped, moved, widened, removed)


def mutations() -> list[tuple[str, str]]:
    """Map and its changed layout: every kind of change equally often, maps and fields at random."""
    source, found = random.Random(30), []
    fields = [
        (name, match)
        for name, spec in sorted(abi.MAPS.items())
        if name.startswith("cilium_") and name != LAYOUTS
        for match in FIELD.finditer(spec.layout)
    ]
    for kind in KINDS:
        chosen = source.sample(fields, MUTATIONS // len(KINDS))
        found += [(name, kind(abi.MAPS[name].layout, match)) for name, match in chosen]
    return found


def recorded(pins: Pins, name: str, text: str) -> None:
    """Another version has made the map."""
    with Map.from_pin(pins.maps / LAYOUTS) as layouts:
        layouts.update(abi.LayoutKey(name).pack(), abi.LayoutValue(text).pack())


def load(pins: Pins) -> None:
    """What a start does with the pins."""
    with Generation.load(pins, config={}, max_entries=SMALL) as generation:
        generation.activate()


def test_mutated_layouts_refuse_the_start_30_of_30(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """The error names map and field, what runs goes on running, and the layout put right starts again."""
    refused = []
    with own_directory() as directory, Pins(directory / "ciliumd", state_dir=tmp_path) as pins:
        load(pins)
        pins.commit()
        before = pins.generations()
        for name, text in mutations():
            assert text != abi.MAPS[name].layout
            recorded(pins, name, text)
            with pytest.raises(LayoutMismatch) as caught:
                load(pins)
            assert caught.value.map == name
            assert caught.value.field
            assert pins.generations() == before
            recorded(pins, name, abi.MAPS[name].layout)
            refused.append(name)
        load(pins)
        assert pins.generations() != before

    data = {"case": "S8", "mutated layouts": MUTATIONS, "refused": len(refused), "maps": len(set(refused))}
    record_property("data", json.dumps(data))
    assert len(refused) == MUTATIONS
    assert len(set(refused)) > MUTATIONS // 3
