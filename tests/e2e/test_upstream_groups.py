# SPDX-License-Identifier: Apache-2.0
"""
Whole groups of Kubernetes' own specs about services, for ``--long``.

specs_services.txt has the groups, specs_excluded.toml those that this machine cannot run, and why.
"""

import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import pytest

from lab.k8s import upstream
from lab.k8s.cluster import Cluster

SPECS = upstream.runnable("single", "specs_services.txt")
SECONDS = 5400


@pytest.fixture(scope="module")
def ran(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> dict[str, ET.Element]:
    """All of them."""
    return upstream.run_specs(cluster, SPECS, tmp_path_factory.mktemp("groups"), seconds=SECONDS)


def test_the_list_is_complete(cluster: Cluster, tmp_path: Path) -> None:
    """specs_services.txt has every spec of the groups in this version of Kubernetes."""
    specs = upstream.existing(cluster, upstream.GROUPS, tmp_path)

    assert specs == set(upstream.listed(upstream.LISTS / "specs_services.txt"))


@pytest.mark.parametrize("spec", SPECS)
def test_spec(ran: dict[str, ET.Element], spec: str, record_property: Callable[[str, object], None]) -> None:
    """The spec passed."""
    upstream.judge(ran[spec], "single", record_property)
