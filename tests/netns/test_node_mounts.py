# SPDX-License-Identifier: Apache-2.0
"""A file system mounted on the node from elsewhere is the node's and nobody else's."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.waiting import eventually


@pytest.fixture
def node() -> Iterator[Path]:
    """Process 1 of a node, as far as mounts are concerned: /proc/<pid>."""
    words = ["/usr/bin/unshare", "--mount", "--propagation=private", "/bin/sleep", "infinity"]
    with subprocess.Popen(words) as process:
        own = Path("/proc/self/ns/mnt").stat().st_ino
        proc = Path(f"/proc/{process.pid}")
        eventually(lambda: (proc / "ns" / "mnt").stat().st_ino != own, "the node has mounts of its own")
        try:
            yield proc
        finally:
            process.kill()


def mount(kind: str, target: Path, node: Path) -> subprocess.CompletedProcess[str]:
    """``ciliumd mount``."""
    words = [sys.executable, "-m", "ciliumd.cli.ciliumd", "mount", kind, str(target), f"--node={node}"]
    return subprocess.run(
        words, capture_output=True, text=True, check=False, env={"PYTHONPATH": ":".join(sys.path)}
    )


@pytest.mark.parametrize("kind", ["bpf", "cgroup2"])
def test_it_is_mounted_there_once(node: Path, tmp_path: Path, kind: str) -> None:
    """The directory is made where it is missing."""
    target = tmp_path / "mounted" / kind
    first, second = mount(kind, target, node), mount(kind, target, node)
    assert (first.returncode, first.stdout) == (0, f"mounted {kind} on {target}\n"), first.stderr
    assert (second.returncode, second.stdout) == (0, f"{kind} is mounted on {target}\n"), second.stderr
    lines = [line.split() for line in (node / "mounts").read_text().splitlines()]
    assert [
        (line[2], line[3].startswith("rw,nosuid,nodev,noexec")) for line in lines if line[1] == str(target)
    ] == [(kind, True)]
    assert str(target) not in Path("/proc/self/mounts").read_text()
