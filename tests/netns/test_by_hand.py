# SPDX-License-Identifier: Apache-2.0
"""
README's commands by hand, one node without Kubernetes, do what the page says.

They use the usual places of a machine, so they run in namespaces of their own: mounts, network, and names of
network namespaces.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lab.process import REPOSITORY, run
from lab.world import World
from unit.docs.pages import blocks, lines

pytestmark = pytest.mark.netns

PAGE = REPOSITORY / "README.md"
FIRST, AGENT, ENDPOINT = "mkdir manifests", "ciliumd agent", "ciliumd endpoint add"
# It does not end by itself: whoever looks at drops ends it.
FOLLOWS = "cilium monitor"
SECONDS = 120.0
# Programs of this checkout, which need not be installed, under the names the page calls.
SCRIPT = """#!{python}
import sys
sys.argv[0] = "{name}"
from ciliumd.cli.{module} import main
sys.exit(main())
"""
BEFORE = """\
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs /run
mount -t sysfs sysfs /sys
mount -t bpf bpf /sys/fs/bpf
ip link set lo up
ip link add net0 type veth peer name wire0
ip link set net0 up
ip link set wire0 up
ip address add 192.0.2.1/24 dev net0
ip route add default via 192.0.2.254
cp -r {examples} examples
"""


def commands() -> list[str]:
    """The block of the page."""
    (block,) = (one for one in blocks(PAGE) if any(line.startswith(FIRST) for line in lines(one)))
    return list(lines(block))


def script(directory: Path) -> str:
    """The commands as a shell's script, which waits where a reader would look first."""
    parts = [BEFORE.format(examples=REPOSITORY / "examples")]
    for line in commands():
        if line.startswith(AGENT):
            parts += [
                line.partition("&")[0] + f"> {directory}/agent.log 2>&1 &",
                "agent=$!",
                "trap 'kill $agent' EXIT",
                "for _ in $(seq 300); do cilium status > /dev/null 2>&1 && break; sleep 0.1; done",
            ]
        elif line.startswith(FOLLOWS):
            parts.append(f"timeout 2 {line} || test $? = 124")
        else:
            parts.append(line)
    return "\n".join(parts)


def programs(directory: Path) -> Path:
    """A directory with our programs."""
    found = directory / "bin"
    found.mkdir()
    for name, module in (("cilium", "main"), ("ciliumd", "ciliumd")):
        path = found / name
        path.write_text(SCRIPT.format(python=sys.executable, name=name, module=module))
        path.chmod(0o755)
    return found


def test_it_works(tmp_path: Path, world: World) -> None:
    """Manifests, agent, a pod, status, drops and an explanation, one after the other."""
    del world  # it sweeps what killed runs have left
    path = f"{programs(tmp_path)}:/usr/sbin:/sbin:{os.environ['PATH']}"
    (tmp_path / "work").mkdir()
    file = tmp_path / "by-hand.sh"
    file.write_text(script(tmp_path))
    words = [
        "/usr/bin/unshare",
        "--mount",
        "--net",
        "/usr/bin/env",
        "-C",
        tmp_path / "work",
        "/bin/bash",
        file,
    ]
    try:
        done = run(words, env={"PATH": path}, seconds=SECONDS, check=False)
    except subprocess.TimeoutExpired as late:
        pytest.fail(f"{late.stdout!r}\n{(tmp_path / 'agent.log').read_text()}")
    log = (tmp_path / "agent.log").read_text() if (tmp_path / "agent.log").exists() else ""

    assert done.returncode == 0, f"{done.stdout}{done.stderr}\n{log}"
    assert any(line.startswith("Cilium:") for line in done.stdout.splitlines()), done.stdout
    assert "default/deathstar" in done.stdout
    assert "default/xwing" in done.stdout
