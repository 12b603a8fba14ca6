# SPDX-License-Identifier: Apache-2.0
"""The specs of test_upstream.py on a cluster of IPv6 alone; for ``--long``."""

import xml.etree.ElementTree as ET
from collections.abc import Callable

import pytest

from lab.k8s import upstream
from lab.k8s.ciliumd import Ciliumd

SPECS = upstream.runnable("six", "specs.txt")
SECONDS = 2400


@pytest.fixture(scope="module")
def ran(six: Ciliumd, tmp_path_factory: pytest.TempPathFactory) -> dict[str, ET.Element]:
    """All of them."""
    return upstream.run_specs(six.cluster, SPECS, tmp_path_factory.mktemp("six"), seconds=SECONDS)


@pytest.mark.parametrize("spec", SPECS)
def test_spec(ran: dict[str, ET.Element], spec: str, record_property: Callable[[str, object], None]) -> None:
    """The spec passed."""
    upstream.judge(ran[spec], "six", record_property)
