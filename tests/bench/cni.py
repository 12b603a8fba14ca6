# SPDX-License-Identifier: Apache-2.0
"""
P10: CNI ADD and DEL as a runtime sees them, beside the reference plugins bridge and host-local.

Both by real executables on one node, one pod after the other in turns, so that a machine that drifts
drifts alike for both; then many ADDs at once.  Namespaces and manifests are there before the clock starts.

``python -m bench.cni [PODS]`` (with src and tests on PYTHONPATH) prints the table.
"""

import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from bench.machine import timed
from bench.result import Figure, Goal, Section
from bench.samples import percentile, ratio
from ciliumd.net.links import HEALTH_LINK, LXC_PREFIX
from lab import manifests
from lab.cni import Runtime, Sandbox, runtime_of
from lab.netns import Namespace
from lab.node import Node
from lab.waiting import eventually
from lab.world import World

ADD_P50, ADD_P99 = Goal(at_most=60), Goal(at_most=200)
DEL_P99: Final = Goal(at_most=100)
ADD_RATIO: Final = Goal(at_most=1.3)
CROWD: Final = 110
CROWD_SECONDS, CROWD_FAILURES = Goal(at_most=15), Goal(at_most=0)
BRIDGE: Final = Path("/usr/lib/cni/bridge")
# As in a node's default pod CIDR, with room for every pod of a run.
POD_CIDR: Final = "10.11.0.0/20"


def measure(*, pods: int) -> Section:
    """Pods in turns, then a crowd at once."""
    section = Section("cni", "P10  CNI ADD and DEL", case="P10")
    ours: list[float] = []
    peers: list[float] = []
    deleted: list[float] = []
    peers_deleted: list[float] = []
    gone: list[float] = []
    with World() as world, Node(world, pod_cidr=POD_CIDR) as node:
        cilium, bridge = runtime_of(node), _bridge(node)
        for name in [f"p{number}" for number in range(pods)] + [f"crowd{number}" for number in range(CROWD)]:
            node.apply(f"pod-default-{name}", manifests.pod(name, {"app": "many"}))
        node.start()
        for number in range(pods):
            with Namespace("ours") as one, Namespace("peers") as other:
                ours_sandbox = cilium.sandbox(f"p{number}", one.path)
                peers_sandbox = bridge.sandbox(f"p{number}", other.path)
                turns: list[tuple[list[float], Callable[[], object]]] = [
                    (ours, lambda sandbox=ours_sandbox: cilium.add(sandbox)),
                    (peers, lambda sandbox=peers_sandbox: bridge.add(sandbox)),
                ]
                for samples, add in turns if number % 2 else turns[::-1]:
                    samples.append(timed(add))
                deleted.append(timed(lambda sandbox=ours_sandbox: cilium.delete(sandbox)))
                gone.append(deleted[-1] + timed(lambda: _wait_gone(node)))
                peers_deleted.append(timed(lambda sandbox=peers_sandbox: bridge.delete(sandbox)))
        seconds, failures = _crowd(node, cilium)
    add_ratio = ratio(ours, peers, higher_is_better=False)
    delete_ratio = ratio(deleted, peers_deleted, higher_is_better=False)
    section.add(
        Figure.of(f"CNI ADD, p50 of {pods}", 1000 * percentile(ours, 0.5), "ms", goal=ADD_P50),
        Figure.of("CNI ADD, p90", 1000 * percentile(ours, 0.9), "ms"),
        Figure.of("CNI ADD, p99", 1000 * percentile(ours, 0.99), "ms", goal=ADD_P99),
        Figure.of("bridge + host-local ADD, p50", 1000 * percentile(peers, 0.5), "ms"),
        Figure.of("bridge + host-local ADD, p99", 1000 * percentile(peers, 0.99), "ms"),
        Figure.of_ratio("CNI ADD / bridge + host-local", add_ratio, goal=ADD_RATIO),
        Figure.of("CNI DEL, p50", 1000 * percentile(deleted, 0.5), "ms"),
        Figure.of("CNI DEL, p99", 1000 * percentile(deleted, 0.99), "ms", goal=DEL_P99),
        Figure.of("CNI DEL to its device gone, p50", 1000 * percentile(gone, 0.5), "ms"),
        Figure.of("bridge + host-local DEL, p50", 1000 * percentile(peers_deleted, 0.5), "ms"),
        Figure.of_ratio("CNI DEL / bridge + host-local", delete_ratio),
        Figure.of(f"{CROWD} ADDs at once: all done", seconds, "s", goal=CROWD_SECONDS),
        Figure.of(f"{CROWD} ADDs at once: failures", failures, goal=CROWD_FAILURES),
    )
    section.data = {
        "added": ours,
        "peers": peers,
        "deleted": deleted,
        "peers_deleted": peers_deleted,
        "gone": gone,
    }
    return section


def _wait_gone(node: Node) -> None:
    """
    Until the device of a pod that was taken away is deleted.

    That is behind the answer, with the lock of all devices held: nobody else must pay for it.
    """
    eventually(
        lambda: not any(name.startswith(LXC_PREFIX) and name != HEALTH_LINK for name in node.netns.links()),
        "its device is gone",
        every=0.005,
    )


def _bridge(node: Node) -> Runtime:
    """The reference plugins on the same node."""
    config: dict[str, Any] = {
        "name": "reference",
        "bridge": "cni0",
        "isGateway": True,
        "ipam": {
            "type": "host-local",
            "ranges": [[{"subnet": "10.77.0.0/16"}]],
            "routes": [{"dst": "0.0.0.0/0"}],
            "dataDir": str(node.directory / "host-local"),
        },
    }
    return Runtime(node.netns.path, config, executable=BRIDGE, version="1.0.0")


def _crowd(node: Node, cilium: Runtime) -> tuple[float, int]:
    """Seconds until all of many ADDs at once are done, and how many failed."""

    def add(sandbox: Sandbox) -> bool:
        try:
            cilium.add(sandbox)
        except AssertionError:
            return False
        return True

    with ExitStack() as stack:
        spaces = [stack.enter_context(Namespace("crowd")) for _ in range(CROWD)]
        sandboxes = [cilium.sandbox(f"crowd{number}", space.path) for number, space in enumerate(spaces)]
        with ThreadPoolExecutor(CROWD) as pool:
            began = time.monotonic()
            done = list(pool.map(add, sandboxes))
            seconds = time.monotonic() - began
            for sandbox in sandboxes:
                cilium.delete(sandbox)
        eventually(lambda: not node.agent.get("endpoint"), "the crowd is gone")
    return seconds, done.count(False)


if __name__ == "__main__":
    began = time.monotonic()
    measured = measure(pods=int(sys.argv[1]) if len(sys.argv) > 1 else 100)
    measured.seconds = time.monotonic() - began
    print(measured)
