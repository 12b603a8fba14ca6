# SPDX-License-Identifier: Apache-2.0
"""What clients parse: Cilium's version first, ours behind."""

import json
import re

from ciliumd import __version__
from ciliumd.cli.main import main
from ciliumd.version import CILIUM_VERSION, cilium_version


def test_the_version_is_one_semantic_version():
    """Clients compare what stands before the first dash."""
    assert re.fullmatch(r"1\.18\.\d+", CILIUM_VERSION)
    assert cilium_version("0.9.1") == f"{CILIUM_VERSION}-ciliumd.0.9.1"
    assert cilium_version() == f"{CILIUM_VERSION}-ciliumd.{__version__}"


def test_both_versions(agent, run):
    """Of this command and of the agent, whatever that is."""
    agent.get("config", {"status": {"version": "0.9.1"}})

    assert run.cilium("version") == 0
    assert run.out == f"Client: {cilium_version()}\nDaemon: {cilium_version('0.9.1')}\n"
    assert run.cilium("version", "-o", "jsonpath={$.Daemon.Version}") == 0
    assert run.out == cilium_version("0.9.1") + "\n"
    assert run.cilium("version", "-o", "json") == 0
    assert json.loads(run.out)["Client"]["Version"] == cilium_version()


def test_without_an_agent_the_client_is_still_printed(capsys):
    """The command works on a machine without an agent."""
    assert main(["version", "-H", "/nonexistent.sock"]) == 0
    assert capsys.readouterr().out.endswith("Daemon: Not responding\n")
