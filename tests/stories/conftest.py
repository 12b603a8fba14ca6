# SPDX-License-Identifier: Apache-2.0
"""Every folder with an ``in`` folder is a story; ``--update`` writes down what the stories say now."""

from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_addoption(parser: pytest.Parser) -> None:
    """Offer --update, which makes the current outcome the expected one, for a reviewer to read."""
    parser.addoption("--update", action="store_true", help="rewrite tables.txt and maps.txt of every story")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test per story."""
    if "story" in metafunc.fixturenames:
        stories = sorted(path.parent for path in HERE.glob("*/in"))
        metafunc.parametrize("story", stories, ids=[story.name for story in stories])


@pytest.fixture
def update(request: pytest.FixtureRequest) -> bool:
    """Whether to write expectations instead of checking them."""
    return bool(request.config.getoption("--update", default=False))
