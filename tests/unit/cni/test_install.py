# SPDX-License-Identifier: Apache-2.0
"""The executable on the host: replaced whole, also while it runs."""

import stat
import subprocess

import pytest

from ciliumd.cni import install


def test_the_executable_is_put_in_place_and_runs(tmp_path):
    """Also over an older one that somebody is running."""
    target = install.install_executable(tmp_path)
    assert target == tmp_path / "cilium-cni"
    assert stat.S_IMODE(target.stat().st_mode) == 0o755
    environment = {"CNI_COMMAND": "STATUS"}
    with subprocess.Popen(
        [target], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as running:
        install.install_executable(tmp_path)
        running.communicate()
    assert target.read_bytes() == install.EXECUTABLE.read_bytes()
    assert [one.name for one in tmp_path.iterdir()] == ["cilium-cni"]


def test_an_installation_without_it_says_so(tmp_path, monkeypatch):
    """A checkout that was not built."""
    monkeypatch.setattr(install, "EXECUTABLE", tmp_path / "none")
    with pytest.raises(install.NotBuilt, match="build/dev build"):
        install.install_executable(tmp_path)


def test_it_can_be_removed(tmp_path):
    """Once."""
    install.install_executable(tmp_path)
    assert install.remove_executable(tmp_path)
    assert not install.remove_executable(tmp_path)
