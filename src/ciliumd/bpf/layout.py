# SPDX-License-Identifier: Apache-2.0
"""
Is a map what abi.py says?  Checked for objects before load and for pinned maps before reuse.

The kernel knows sizes only; a struct whose fields were reordered would be reused silently.  So
the text of every pinned map's layout is kept in cilium_layout_v1, written before the map is
made: a map without its text, or with another, is refused by name and field.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ciliumd import abi
from ciliumd.bpf.errors import LayoutMismatch
from ciliumd.bpf.map import Map

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    from ciliumd.bpf.map import MapInfo

STATE_PREFIX = "cilium_"
LAYOUTS = "cilium_layout_v1"
# Sizes of these follow from enums; all others are the operator's choice and stay as pinned.
FIXED_SIZE = frozenset({abi.MapType.PROG_ARRAY, abi.MapType.PERCPU_ARRAY})
# What makes two maps different to the kernel; flags it adds by itself are not among them.
CREATE_FLAGS = 0x4C1  # NO_PREALLOC, RDONLY_PROG, WRONLY_PROG, MMAPABLE


def check_declared(maps: Mapping[str, MapInfo]) -> None:
    """Raise LayoutMismatch when an object declares a map otherwise than abi.py."""
    for name, info in maps.items():
        spec = abi.MAPS.get(name)
        if spec is None:
            raise LayoutMismatch(name, "name", "a map of abi.py", "an unknown map")
        _compare_sizes(spec, info)


def check_pinned(maps_dir: Path, *, besides: Collection[str] = ()) -> set[str]:
    """
    Compare every pinned map with abi.py, *besides* those; returns the names that are pinned.

    Raises LayoutMismatch with the map and the field.  Nothing is changed.
    """
    known = {name for name in abi.MAPS if name.startswith(STATE_PREFIX)} - set(besides)
    pinned = {name for name in known if (maps_dir / name).exists()}
    texts = recorded(maps_dir)
    for name in sorted(pinned):
        with Map.from_pin(maps_dir / name) as found:
            _compare_sizes(abi.MAPS[name], found.info, pinned=True)
        if name != LAYOUTS:
            _compare_text(name, abi.MAPS[name].layout, texts.get(name, ""))
    return pinned


def recorded(maps_dir: Path) -> dict[str, str]:
    """Layout texts of the pinned maps, by name."""
    path = maps_dir / LAYOUTS
    if not path.exists():
        return {}
    with Map.from_pin(path) as layouts:
        _compare_sizes(abi.MAPS[LAYOUTS], layouts.info, pinned=True)
        return {
            abi.LayoutKey.unpack(key).name: abi.LayoutValue.unpack(value).text
            for key, value in layouts.items()
        }


def record(maps_dir: Path, pinned: set[str]) -> None:
    """Write the texts of maps that are about to be made: all that are not pinned yet."""
    path = maps_dir / LAYOUTS
    if not path.exists():
        with Map.create(abi.MAPS[LAYOUTS]) as made:
            made.pin(path)
    with Map.from_pin(path) as layouts:
        for name, spec in abi.MAPS.items():
            if name.startswith(STATE_PREFIX) and name not in pinned:
                layouts.update(abi.LayoutKey(name).pack(), abi.LayoutValue(spec.layout).pack())


def forget(maps_dir: Path, names: Collection[str]) -> None:
    """Remove the texts of maps that are gone."""
    path = maps_dir / LAYOUTS
    if names and path.exists():
        with Map.from_pin(path) as layouts:
            layouts.delete_batch([abi.LayoutKey(name).pack() for name in names])


def _compare_sizes(spec: abi.MapSpec, info: MapInfo, *, pinned: bool = False) -> None:
    """What the kernel itself can tell."""
    pairs = [
        ("type", spec.type, info.type),
        ("key_size", spec.key_size, info.key_size),
        ("value_size", spec.value_size, info.value_size),
        ("flags", spec.flags & CREATE_FLAGS, info.flags & CREATE_FLAGS),
    ]
    if pinned and spec.type in FIXED_SIZE:
        pairs.append(("max_entries", spec.max_entries, info.max_entries))
    for field, expected, found in pairs:
        if expected != found:
            raise LayoutMismatch(spec.name, field, _readable(field, expected), _readable(field, found))


def _readable(field: str, number: int) -> str:
    if field == "type" and number in set(abi.MapType):
        return abi.MapType(number).name
    return hex(number) if field == "flags" else str(number)


def _compare_text(name: str, expected: str, found: str) -> None:
    """Name the first field in which two layout texts differ; what a struct is called is no layout."""
    expected, found = _without_names(expected), _without_names(found)
    if expected == found:
        return
    if not found:
        raise LayoutMismatch(name, "layout", "a recorded layout", "none: its creation was interrupted")
    ours, theirs = _parts(expected), _parts(found)
    for part in [*ours, *theirs]:
        if ours.get(part) != theirs.get(part):
            raise LayoutMismatch(name, part, ours.get(part, "absent"), theirs.get(part, "absent"))
    raise LayoutMismatch(name, "order of fields", expected, found)


def _without_names(text: str) -> str:
    """``value=ct_entry:48{...}`` without the struct's name, which changes when it becomes an old one."""
    return re.sub(r"=\w+:(\d+)\{", r"=struct:\1{", text)


def _parts(text: str) -> dict[str, str]:
    """The pieces of a layout text: "key.addr" -> "@0:16:bytes", and "flags" -> "0x1"."""
    parts: dict[str, str] = {"type": text.split(" ", 1)[0]}
    side = ""
    for word in re.split(r"[ ,{}()]+", text):
        label, equals, rest = word.partition("=")
        if equals:
            side, parts[label] = label, rest
            continue
        field, at, where = word.partition("@")
        if at:
            parts[f"{side}.{field}"] = at + where
    return parts
