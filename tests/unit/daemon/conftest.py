# SPDX-License-Identifier: Apache-2.0
"""An agent of whom only what tests in memory need is there."""

from types import SimpleNamespace

import pytest

from ciliumd.daemon.agent import Agent
from ciliumd.metrics.tally import Tallies
from unit.daemon import nodes
from unit.daemon.kernel import Kernel


class Words(dict):
    """Words of the node's state."""

    def word(self, row):
        """One."""
        return self.get(int(row), 0)

    def set_word(self, row, value):
        """Store one."""
        self[int(row)] = value


@pytest.fixture
def kernel():
    """Two pods, one of which the other may reach; all written."""
    kernel = Kernel()
    nodes.add_pod(kernel.tables, 1, {"app": "web"})
    nodes.add_pod(kernel.tables, 2, {"app": "db"})
    nodes.add_policy(
        kernel.tables, nodes.policy("web", nodes.rule(nodes.app("db")), subject=nodes.subject(app="web"))
    )
    kernel.round()
    return kernel


@pytest.fixture
def agent(kernel):
    """An agent of whom only what these tests need is there."""
    made = Agent(
        settings=SimpleNamespace(devices=()),
        started=0.0,
        origin=None,
        kernel=None,
        tables=kernel.tables,
        plan=kernel.node.plan,
        datapath=Words(),
        attachments=SimpleNamespace(devices={}),
        pools=(),
        netlink=None,
        tallies=Tallies(),
        controllers=None,
        writer=None,
        wiring=None,
        native=(),
    )
    made.reconciler = kernel.reconciler
    made.health = SimpleNamespace(nodes_changed=lambda: None)
    return made
