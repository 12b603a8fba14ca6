# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the network tests."""

import pytest

from lab.fixtures import node, pytest_runtest_makereport, swept, world

__all__ = ["node", "pytest_runtest_makereport", "swept", "world"]


@pytest.fixture(scope="session")
def is_long(request: pytest.FixtureRequest) -> bool:
    """Whether as much is asked for as a release is, and not a sample."""
    return bool(request.config.getoption("--long"))
