# SPDX-License-Identifier: Apache-2.0
"""How long the fuzzers go on."""

import pytest


@pytest.fixture(scope="session")
def is_long(request: pytest.FixtureRequest) -> bool:
    """Whether new inputs are looked for, and not only the known ones tried."""
    return bool(request.config.getoption("--long"))
