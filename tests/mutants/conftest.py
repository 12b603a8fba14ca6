# SPDX-License-Identifier: Apache-2.0
"""Killing takes half an hour and is for ``--long``."""

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what takes so long."""
    if config.getoption("--long"):
        return
    left_out = [item for item in items if "copy" in getattr(item, "fixturenames", ())]
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=left_out)
