# SPDX-License-Identifier: Apache-2.0
"""Kubernetes' own end-to-end specs of sig-network: specs.txt has those that must pass, one result each."""

import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import pytest

from lab.k8s import upstream
from lab.k8s.cluster import Cluster

SPECS = upstream.listed(upstream.LISTS / "specs.txt")
SECONDS = 1200
CONFORMANCE = r"\[sig-network\].*\[Conformance\]"


@pytest.fixture(scope="module")
def ran(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> dict[str, ET.Element]:
    """All of them."""
    return upstream.run_specs(cluster, SPECS, tmp_path_factory.mktemp("specs"), seconds=SECONDS)


def test_the_list_is_complete(cluster: Cluster, tmp_path: Path) -> None:
    """specs.txt has every conformance spec of this version of Kubernetes."""
    specs = upstream.existing(cluster, CONFORMANCE, tmp_path)
    listed = {name for name in specs if "[Conformance]" in name}

    assert listed == {spec for spec in SPECS if "[Conformance]" in spec}


@pytest.mark.parametrize("spec", SPECS)
def test_spec(ran: dict[str, ET.Element], spec: str, record_property: Callable[[str, object], None]) -> None:
    """The spec passed."""
    upstream.judge(ran[spec], "single", record_property)
