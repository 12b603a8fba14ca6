# SPDX-License-Identifier: Apache-2.0
"""
The groups of test_upstream_groups.py and the specs about both families, where there are both; for ``--long``.

specs_dual.txt has what a cluster of one family cannot run.
"""

import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import pytest

from lab.k8s import upstream
from lab.k8s.ciliumd import Ciliumd

SPECS = upstream.runnable("dual", "specs_services.txt", "specs_dual.txt")
SECONDS = 5400


@pytest.fixture(scope="module")
def ran(dual: Ciliumd, tmp_path_factory: pytest.TempPathFactory) -> dict[str, ET.Element]:
    """All of them."""
    return upstream.run_specs(dual.cluster, SPECS, tmp_path_factory.mktemp("dual"), seconds=SECONDS)


def test_the_list_is_complete(dual: Ciliumd, tmp_path: Path) -> None:
    """specs_dual.txt has every spec about both families in this version of Kubernetes."""
    specs = upstream.existing(dual.cluster, upstream.DUAL, tmp_path)

    services, dual_only = (
        set(upstream.listed(upstream.LISTS / name)) for name in ("specs_services.txt", "specs_dual.txt")
    )

    assert specs - services == dual_only


@pytest.mark.parametrize("spec", SPECS)
def test_spec(ran: dict[str, ET.Element], spec: str, record_property: Callable[[str, object], None]) -> None:
    """The spec passed."""
    upstream.judge(ran[spec], "dual", record_property)
