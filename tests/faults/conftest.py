# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the fault suite: those of the laboratory, who is watched, what is done, how long to go on."""

import pytest

from lab.fixtures import node, pytest_runtest_makereport, swept, world
from lab.node import Node
from lab.probers import Probers
from lab.workload import Workload

__all__ = ["node", "pytest_runtest_makereport", "swept", "world"]


@pytest.fixture(scope="session")
def is_long(request: pytest.FixtureRequest) -> bool:
    """Whether every step of every fault is asked for, and not a sample."""
    return bool(request.config.getoption("--long"))


@pytest.fixture(scope="module")
def probers(node: Node) -> Probers:
    """Who must get through all the while, and who must not."""
    return Probers(node)


@pytest.fixture(scope="module")
def workload(node: Node, probers: Probers) -> Workload:
    """The script, done once undisturbed."""
    del probers  # they are there before it
    workload = Workload(node)
    workload.rehearse()
    return workload
