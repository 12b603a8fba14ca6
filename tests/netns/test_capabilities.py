# SPDX-License-Identifier: Apache-2.0
"""
Each capability of the chart's containers has a call that needs it: docs/install.md names both.

With all of a container's capabilities every call succeeds; without one of them just that one's fail.  So
none is given for nothing, and none is missing.
"""

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab.confined import capabilities, limited
from lab.netns import Namespace
from lab.process import REPOSITORY, run
from netns.test_node_mounts import node

__all__ = ["node"]

pytestmark = pytest.mark.netns

# What the agent asks of the kernel, by the names of the page; what is refused has an error.
SCRIPT = """
import json, socket
from bench.perfmon import refused
from ciliumd import abi
from ciliumd.bpf import Map
from pyroute2 import IPRoute

def device():
    with IPRoute() as route:
        route.link("add", ifname="made", kind="veth", peer={"ifname": "peer"})
        route.link("del", ifname="made")

def programs():
    if problems := refused():
        raise OSError(f"refused: {sorted(problems)}")

CALLS = {
    "netlink RTM_NEWLINK": device,
    "bpf BPF_MAP_CREATE": lambda: Map.create(abi.MAPS["cilium_ipcache_v1"], max_entries=8).close(),
    "bpf BPF_PROG_LOAD": programs,
    "socket SOCK_RAW": lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP).close(),
}
said = {}
for name, call in CALLS.items():
    try:
        call()
    except Exception as error:
        said[name] = f"{type(error).__name__}: {error}"
print(json.dumps(said))
"""
PAGE = REPOSITORY / "docs" / "install.md"
ROW = re.compile(r"^\| `([\w-]+)` \| ([A-Z_]+) \| ([^|]+) \| [^|]+ \|$", re.MULTILINE)


def listed(container: str) -> dict[str, set[str]]:
    """Capabilities of a container, and the calls that the page says need them."""
    rows = ROW.findall(PAGE.read_text())
    return {name: set(re.findall(r"`([^`]+)`", calls)) for of, name, calls in rows if of == container}


@pytest.fixture(scope="module")
def space() -> Iterator[Namespace]:
    """Where devices can be made."""
    with Namespace("capable") as space:
        yield space


def failing(space: Namespace, *held: str) -> dict[str, str]:
    """What fails of what the agent asks for with these capabilities."""
    words = [*limited(*held), sys.executable, "-c", SCRIPT]
    return dict(json.loads(run(words, netns=space.path, seconds=120).stdout))


def test_with_all_of_them_the_agent_can_do_what_it_does(space: Namespace) -> None:
    """None is missing."""
    assert failing(space, *capabilities()) == {}


@pytest.mark.parametrize("capability", capabilities())
def test_without_one_the_calls_that_the_page_names_fail(
    space: Namespace, capability: str, record_property: Callable[[str, object], None]
) -> None:
    """Those and no others: none is there for nothing."""
    found = failing(space, *(set(capabilities()) - {capability}))
    record_property("data", json.dumps({"case": "S2", f"calls that need {capability}": len(found)}))

    assert set(found) == listed("cilium-agent")[capability], found
    assert set(listed("cilium-agent")) == set(capabilities())


def mounting(tmp_path: Path, node: Path, *held: str) -> str:
    """What `ciliumd mount` complains about with these capabilities."""
    words = [
        sys.executable,
        "-m",
        "ciliumd.cli.ciliumd",
        "mount",
        "bpf",
        str(tmp_path / "bpf"),
        f"--node={node}",
    ]
    done = run([*limited(*held), *words], check=False)
    return done.stderr if done.returncode else ""


def test_mounting_on_the_node_needs_three(
    tmp_path: Path, node: Path, record_property: Callable[[str, object], None]
) -> None:
    """The container that mounts: with one less it cannot, and the page names the calls."""
    names = capabilities("mountBpfFs")
    refused = {name: mounting(tmp_path, node, *(set(names) - {name})) for name in names}
    data = {
        "case": "S2",
        "capabilities to mount": len(names),
        "refused without one": sum(map(bool, refused.values())),
    }
    record_property("data", json.dumps(data))

    assert {name for name, said in refused.items() if "cannot" in said} == set(names), refused
    assert mounting(tmp_path, node, *names) == ""
    assert set(listed("mount-bpf-fs")) == set(names)
