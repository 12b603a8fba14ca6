# SPDX-License-Identifier: Apache-2.0
"""Every test gets the marker of the layer whose directory it lies in; `--long` is what the layers share."""

from __future__ import annotations

from pathlib import Path

import pytest

LAYERS = frozenset(
    {
        *("unit", "stories", "property", "datapath", "netns", "faults", "mutants"),
        *("chart", "api", "kernels", "e2e", "demo"),
    }
)
HERE = Path(__file__).parent


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--long``: as often as a release asks for, in the layers that have a longer form."""
    parser.addoption("--long", action="store_true", help="more restarts, every step of every fault")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """tests/unit/... -> @pytest.mark.unit, and so on; a test outside the layers is a mistake."""
    for item in items:
        layer = item.path.relative_to(HERE).parts[0]
        if layer not in LAYERS:
            raise pytest.UsageError(f"{item.nodeid} is in none of the layers {', '.join(sorted(LAYERS))}")
        item.add_marker(layer)
