# SPDX-License-Identifier: Apache-2.0
"""
Kubernetes' own specs about NetworkPolicy, for ``--long``.

specs_policies.txt has all of them, specs_excluded.toml those that this machine cannot run, and why.
"""

import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import pytest

from lab.k8s import upstream
from lab.k8s.cluster import Cluster

SPECS = upstream.runnable("single", "specs_policies.txt")
SECONDS = 3600


@pytest.fixture(scope="module")
def ran(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> dict[str, ET.Element]:
    """All of them."""
    return upstream.run_specs(cluster, SPECS, tmp_path_factory.mktemp("policies"), seconds=SECONDS)


def test_the_list_is_complete(cluster: Cluster, tmp_path: Path) -> None:
    """specs_policies.txt has every spec of the group in this version of Kubernetes."""
    specs = upstream.existing(cluster, upstream.POLICIES, tmp_path)

    assert specs == set(upstream.listed(upstream.LISTS / "specs_policies.txt"))


@pytest.mark.parametrize("spec", SPECS)
def test_spec(ran: dict[str, ET.Element], spec: str, record_property: Callable[[str, object], None]) -> None:
    """The spec passed."""
    upstream.judge(ran[spec], "single", record_property)
