# SPDX-License-Identifier: Apache-2.0
"""Every test gets the marker of the layer whose directory it lies in; `--long` is what the layers share."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.parts import Part

LAYERS = frozenset(
    {
        *("unit", "stories", "property", "datapath", "netns", "faults", "mutants"),
        *("chart", "api", "kernels", "e2e", "demo"),
    }
)
# What a file leaves behind is where another one begins, or they share what takes minutes to set up.
BEHIND = {
    "tests/e2e/test_beside_kube_proxy.py": "tests/e2e/test_uninstall.py",
    "tests/e2e/test_ipv6_upstream.py": "tests/e2e/test_ipv6_only.py",
}
SINGLE = frozenset({"unit", "property", "mutants"})
HERE = Path(__file__).parent


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--long``: as often as a release asks for, in the layers that have a longer form; ``--part`` of it."""
    parser.addoption("--long", action="store_true", help="more restarts, every step of every fault")
    parser.addoption("--part", type=Part.read, metavar="N/M", help="of --long, the N-th of M parts only")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """tests/unit/... -> @pytest.mark.unit, and so on; a test outside the layers is a mistake."""
    part: Part | None = config.getoption("--part")
    left_out = []
    for item in items:
        layer = item.path.relative_to(HERE).parts[0]
        if layer not in LAYERS:
            raise pytest.UsageError(f"{item.nodeid} is in none of the layers {', '.join(sorted(LAYERS))}")
        item.add_marker(layer)
        # Guests choose among tests of theirs.
        if part is not None and layer != "kernels" and not part.has(_unit(layer, item)):
            left_out.append(item)
    if left_out:
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)


def _unit(layer: str, item: pytest.Item) -> str:
    """What is run as a whole: files, which set something up for all of their tests, or single tests."""
    name: str = item.nodeid
    file = name.partition("::")[0]
    return name if layer in SINGLE else BEHIND.get(file, file)
