# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the command line's tests."""

import pytest

from ciliumd.cli import ciliumd as ciliumd_command
from ciliumd.cli import main as cilium_command
from unit.cli.agent import running_agent


@pytest.fixture
def agent():
    """A fake agent that listens on a unix socket."""
    with running_agent() as fake:
        yield fake


class Run:
    """Runs a command against the fake agent and keeps what it printed."""

    def __init__(self, agent, capsys):
        self._agent = agent
        self._capsys = capsys
        self.out = self.err = ""

    def cilium(self, *words):
        """Run ``cilium``; the exit code."""
        return self._run(cilium_command.main, words)

    def ciliumd(self, *words):
        """Run ``ciliumd``; the exit code."""
        return self._run(ciliumd_command.main, words)

    def _run(self, main, words):
        try:
            code = main([*words, "-H", self._agent.path])
        except SystemExit as end:
            code = end.code
        self.out, self.err = self._capsys.readouterr()
        return code


@pytest.fixture
def run(agent, capsys):
    """Commands against :func:`agent`."""
    return Run(agent, capsys)
