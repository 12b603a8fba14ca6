# SPDX-License-Identifier: Apache-2.0
"""The pin directory: first start aside, one agent at a time, layouts checked before reuse."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ciliumd import abi
from ciliumd.bpf import BpfError, LayoutMismatch, Map, Pins, layout, pins
from ciliumd.bpf.errors import Busy
from datapath.pinned import own_directory

if TYPE_CHECKING:
    from collections.abc import Iterator

LXC = abi.MAPS["cilium_lxc_v1"]


@pytest.fixture
def root() -> Iterator[Path]:
    """Where an agent of this test pins; it does not exist yet."""
    with own_directory() as directory:
        yield directory / "ciliumd"


def made(root: Path, state: Path, spec: abi.MapSpec = LXC) -> None:
    """An agent that recorded its layouts and pinned one map."""
    with Pins(root, state_dir=state) as held:
        layout.record(held.maps, layout.check_pinned(held.maps))
        with Map.create(spec) as new:
            new.pin(held.maps / LXC.name)
        held.commit()


def test_a_first_start_is_seen_only_when_committed(root: Path, tmp_path: Path) -> None:
    """Until commit() the root does not exist; afterwards everything is under it."""
    with Pins(root, state_dir=tmp_path) as held:
        assert held.first_start
        (held.maps / "inner").mkdir()
        assert not root.exists()
        held.commit()
        assert (root / "maps" / "inner").is_dir()
        assert held.maps == root / "maps"
    with Pins(root, state_dir=tmp_path) as again:
        assert not again.first_start
        assert (again.maps / "inner").is_dir()


def test_an_interrupted_first_start_leaves_nothing(root: Path, tmp_path: Path) -> None:
    """Neither when it fails nor when it is killed."""
    with Pins(root, state_dir=tmp_path) as held:
        layout.record(held.maps, set())
    assert list(root.parent.iterdir()) == []
    killed = (
        "import os, sys; from pathlib import Path; from ciliumd.bpf import Pins, layout;"
        "held = Pins(Path(sys.argv[1]), state_dir=Path(sys.argv[2]));"
        "layout.record(held.maps, set()); os._exit(9)"
    )
    environment = os.environ | {"PYTHONPATH": ":".join(sys.path)}
    command = [sys.executable, "-c", killed, str(root), str(tmp_path)]
    assert subprocess.run(command, env=environment, check=False).returncode == 9
    assert [path.name for path in root.parent.iterdir()] == ["ciliumd_new"]
    with Pins(root, state_dir=tmp_path) as held:
        assert held.first_start
        assert list(held.maps.iterdir()) == []
        held.commit()
    assert [path.name for path in root.parent.iterdir()] == ["ciliumd"]


def test_two_agents_cannot_share_a_root(root: Path, tmp_path: Path) -> None:
    """The second is told which lock is held; it works once the first has ended."""
    with Pins(root, state_dir=tmp_path), pytest.raises(Busy, match=r"another agent holds .*\.lock"):
        Pins(root, state_dir=tmp_path)
    Pins(root, state_dir=tmp_path).close()


def test_a_root_with_a_dot_is_refused(root: Path, tmp_path: Path) -> None:
    """Bpffs would answer EPERM, which says nothing."""
    with pytest.raises(BpfError, match="refuses names with a dot"):
        Pins(root.with_name("ciliumd.one"), state_dir=tmp_path)


def test_generations_are_numbered_directories(root: Path, tmp_path: Path) -> None:
    """make, list, drop; making one again empties it."""
    with Pins(root, state_dir=tmp_path) as held:
        held.make_generation(3)
        (held.make_generation(12) / "old").mkdir()
        held.make_generation(12)
        assert held.generations() == [3, 12]
        assert list(held.generation(12).iterdir()) == []
        assert held.drop_generation(3) is True
        assert held.drop_generation(3) is False
        assert held.generations() == [12]


def test_link_pins_have_no_dots(root: Path, tmp_path: Path) -> None:
    """Device names may have them."""
    with Pins(root, state_dir=tmp_path) as held:
        assert held.link("tcx", "eth0.100", "ingress").name == "tcx_eth0_100_ingress"


def test_a_pinned_map_of_the_same_layout_is_accepted(root: Path, tmp_path: Path) -> None:
    """Also with another size, which is the operator's choice."""
    made(root, tmp_path)
    assert layout.check_pinned(root / "maps") == {LXC.name, "cilium_layout_v1"}
    assert layout.recorded(root / "maps")[LXC.name] == LXC.layout


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"value_size": 16}, "value_size"),
        ({"key_size": 20}, "key_size"),
        ({"type": abi.MapType.LRU_HASH}, "type"),
        ({"flags": 1}, "flags"),
    ],
)
def test_a_pinned_map_of_another_size_is_refused(
    root: Path, tmp_path: Path, change: dict[str, int], field: str
) -> None:
    """By map and by field, and the pin stays as it was."""
    values = {name: getattr(LXC, name) for name in abi.MapSpec.__slots__} | change
    made(root, tmp_path, abi.MapSpec(**values))
    with pytest.raises(LayoutMismatch) as caught:
        layout.check_pinned(root / "maps")
    assert (caught.value.map, caught.value.field) == (LXC.name, field)
    assert (root / "maps" / LXC.name).exists()


def test_a_pinned_map_with_reordered_fields_is_refused(root: Path, tmp_path: Path) -> None:
    """Sizes agree, so only the recorded text can tell."""
    made(root, tmp_path)
    swapped = LXC.layout.replace("check@0:4:u32,slot@4:4:u32", "slot@0:4:u32,check@4:4:u32")
    with Map.from_pin(root / "maps" / "cilium_layout_v1") as layouts:
        layouts.update(abi.LayoutKey(LXC.name).pack(), abi.LayoutValue(swapped).pack())
    with pytest.raises(LayoutMismatch, match=r"cilium_lxc_v1.*value\.check"):
        layout.check_pinned(root / "maps")


def test_a_pinned_map_without_a_recorded_layout_is_refused(root: Path, tmp_path: Path) -> None:
    """Nobody knows what wrote it."""
    made(root, tmp_path)
    with Map.from_pin(root / "maps" / "cilium_layout_v1") as layouts:
        layouts.delete(abi.LayoutKey(LXC.name).pack())
    with pytest.raises(LayoutMismatch, match="a recorded layout"):
        layout.check_pinned(root / "maps")


def test_bpffs_is_mounted_where_it_is_absent(tmp_path: Path) -> None:
    """On the parent of a root outside /sys/fs/bpf; a mounted one is used as it is."""
    place = tmp_path / "bpf"
    try:
        assert pins.ensure_bpffs(place / "ciliumd") == place
        assert pins.ensure_bpffs(place / "ciliumd") == place
        mounts = Path("/proc/self/mounts").read_text().splitlines()
        assert len([line for line in mounts if f" {place} bpf " in line]) == 1
    finally:
        subprocess.run(["/bin/umount", place], check=False)
