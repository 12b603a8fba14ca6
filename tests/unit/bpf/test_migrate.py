# SPDX-License-Identifier: Apache-2.0
"""
What follows what, and which way there is from one version to another.

Converters are tested row by row with the next version: tests/datapath/test_bpf_upgrade.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest

from ciliumd import abi
from ciliumd.bpf import carry, migrate
from ciliumd.bpf.migrate import Succession

STEP = Succession("cilium_lxc_v1", "cilium_ifindex_v1", lambda k, v: (k, v), lambda k, v: (k, v))
MANY, FEW = 4 * abi.MAPS["cilium_lxc_v1"].max_entries, 16


def left_behind(known: Iterable[str], steps: Iterable[Succession]) -> set[str]:
    """Maps of *known* that have a newer relative and no step to it: a mistake in a build."""
    matches = {name: migrate.VERSIONED.fullmatch(name) for name in known}
    versions = {name: (found[1], int(found[2])) for name, found in matches.items() if found}
    newest = dict(sorted(versions.values()))
    older = {name for name, (family, version) in versions.items() if version < newest[family]}
    return older - {step.old for step in steps}


def test_every_older_map_is_carried() -> None:
    """Two maps of one family without an entry would mean rows that nobody takes along."""
    assert left_behind(abi.MAPS, migrate.SUCCESSIONS) == set()
    older = {*abi.MAPS, "cilium_ct_v2"}
    assert left_behind(older, migrate.SUCCESSIONS) == {"cilium_ct_v1"}
    carried = replace(STEP, old="cilium_ct_v1", new="cilium_ct_v2")
    assert left_behind(older, (carried,)) == set()


def test_only_maps_that_can_be_carried_are() -> None:
    """Maps of maps and mapped words are not rows to copy (decision 13)."""
    for step in migrate.SUCCESSIONS:
        for name in (step.old, step.new):
            assert abi.MAPS[name].inner is None
            assert abi.MAPS[name].value_struct is not None


def test_a_family_is_its_versions() -> None:
    """Numbers of more than one digit, and names without one."""
    assert migrate.family("cilium_lb_services_v1") == migrate.family("cilium_lb_services_v12")
    assert migrate.family("cilium_ipcache_v1") != migrate.family("cilium_ipcache_lpm_v1")
    assert migrate.family("calls") == "calls"


@pytest.mark.parametrize(
    ("held", "gone"),
    [
        ({"cilium_ct_v1", "cilium_ct_v2"}, set()),
        ({"cilium_ct_v1"}, {"cilium_ct_v2"}),
        ({"cilium_ct_v2"}, set()),
        (set(), set()),
        ({"cilium_snat_v1"}, set()),
    ],
)
def test_rows_of_an_earlier_stay_are_seen(held: set[str], gone: set[str]) -> None:
    """A newer map that the active programs do not write; what they say nothing of is taken over."""
    assert migrate.leftovers({"cilium_ct_v1", "cilium_ct_v2", "cilium_lxc_v1"}, held) == gone


@pytest.mark.parametrize(
    ("held", "known", "lost"),
    [
        ({"cilium_ct_v1"}, {"cilium_ct_v1"}, None),
        ({"cilium_ct_v1"}, {"cilium_ct_v1", "cilium_ct_v2"}, None),
        ({"cilium_ct_v1", "cilium_ct_v2"}, {"cilium_ct_v1"}, None),
        ({"cilium_ct_v1", "cilium_ct_v2"}, {"cilium_ct_v2", "cilium_ct_v3"}, None),
        ({"cilium_ct_v1"}, {"cilium_snat_v1"}, None),
        (set(), {"cilium_ct_v1"}, None),
        (
            {"cilium_ct_v1"},
            {"cilium_ct_v3", "cilium_ct_v2"},
            ("cilium_ct_v1", ("cilium_ct_v2", "cilium_ct_v3")),
        ),
        ({"cilium_ct_v3", "cilium_snat_v1"}, {"cilium_ct_v1"}, ("cilium_ct_v3", ("cilium_ct_v1",))),
    ],
)
def test_a_skipped_version_is_seen(
    held: set[str], known: set[str], lost: tuple[str, tuple[str, ...]] | None
) -> None:
    """One map of a family must be both written and known; a family that nobody wants any more may go."""
    assert migrate.no_way_from(held, known) == lost


def test_a_new_layout_is_never_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes over rows has room for them; pinned maps stay as they are; on a new node both are alike."""
    monkeypatch.setattr(migrate, "SUCCESSIONS", (STEP,))
    old, new = STEP.old, STEP.new
    assert carry.sizes({new: FEW}, {old: MANY})[new] == MANY
    assert carry.sizes({new: MANY}, {old: FEW})[new] == MANY
    assert carry.sizes({new: MANY}, {old: MANY, new: FEW}) == {old: MANY, new: FEW}
    assert carry.sizes({new: FEW}, {}) == {old: FEW, new: FEW}
    assert carry.sizes({}, {})[old] == abi.MAPS[new].max_entries
