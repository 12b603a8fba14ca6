# SPDX-License-Identifier: Apache-2.0
"""Fixtures of every layer with a laboratory: a world, a node in it with a running agent, per module."""

from collections.abc import Iterator
from typing import Any

import pytest

from lab.node import Node
from lab.sweep import sweep
from lab.world import World


@pytest.fixture(scope="session", autouse=True)
def swept() -> None:
    """What killed runs left behind is gone before the first test."""
    sweep()


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """The world outside; nobody there knows a route to pods."""
    with World() as world:
        yield world


@pytest.fixture(scope="module")
def node(world: World) -> Iterator[Node]:
    """A node with a running agent and no pods, shared by the tests of a module."""
    with Node(world) as node:
        yield node.start()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """A failure shows the end of the log of the node's agent."""
    outcome: Any = yield
    report = outcome.get_result()
    node = getattr(item, "funcargs", {}).get("node")
    if report.failed and isinstance(node, Node):
        report.sections.append(("agent", node.agent.log_tail()))
