# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the network tests."""

from lab.fixtures import node, pytest_runtest_makereport, swept, world

__all__ = ["node", "pytest_runtest_makereport", "swept", "world"]
