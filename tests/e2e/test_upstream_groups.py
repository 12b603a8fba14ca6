# SPDX-License-Identifier: Apache-2.0
"""
Whole groups of Kubernetes' own specs, about services and about policies, for ``--long``.

A list beside this file has each group, specs_excluded.toml those that this machine cannot run, and why.
"""

import xml.etree.ElementTree as ET
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from lab.k8s import upstream
from lab.k8s.cluster import Cluster

LISTS = {"services": upstream.GROUPS, "policies": upstream.POLICIES}
SPECS = {name: upstream.runnable("single", f"specs_{name}.txt") for name in LISTS}
SECONDS = 5400


@pytest.fixture(scope="module")
def ran(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, ET.Element]]:
    """All of one group, when it is first asked for."""

    @cache
    def run(name: str) -> dict[str, ET.Element]:
        return upstream.run_specs(cluster, SPECS[name], tmp_path_factory.mktemp(name), seconds=SECONDS)

    return run


@pytest.mark.parametrize("name", LISTS)
def test_the_list_is_complete(cluster: Cluster, tmp_path: Path, name: str) -> None:
    """It has every spec of the group in this version of Kubernetes."""
    specs = upstream.existing(cluster, LISTS[name], tmp_path)

    assert specs == set(upstream.listed(upstream.LISTS / f"specs_{name}.txt"))


@pytest.mark.parametrize(
    ("name", "spec"),
    [pytest.param(name, spec, id=f"{name}: {spec}") for name, specs in SPECS.items() for spec in specs],
)
def test_spec(
    ran: Callable[[str], dict[str, ET.Element]],
    name: str,
    spec: str,
    record_property: Callable[[str, object], None],
) -> None:
    """The spec passed."""
    upstream.judge(ran(name)[spec], "single", record_property)
