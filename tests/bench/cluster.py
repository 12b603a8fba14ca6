# SPDX-License-Identifier: Apache-2.0
"""
What ``bench cluster`` measures: ciliumd as its image and chart bring it to a real Kubernetes of two nodes.

Memory at rest first, then policies, then memory beside what they left; kube-proxy last, because it takes the
services over.

``python -m bench.cluster N [--quick]`` measures on cluster N (`python -m lab.k8s list`), which has ciliumd.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from bench import enforcement, resident
from bench.result import Figure, Goal, Section
from lab.k8s import plan
from lab.k8s.ciliumd import IMAGE, Ciliumd
from lab.k8s.cluster import PROGRAMS_VARIABLE, Cluster, programs_directory, sweep
from lab.process import REPOSITORY, run

TOOLS: Final = ("ip", "nsenter", "setpriv", "unshare", "containerd", "ctr")
BUILD_SECONDS: Final = 2400.0


@dataclass(frozen=True, slots=True)
class Effort:
    """How much of everything; *changes* of each kind."""

    pods: int
    policies: int
    changes: int
    idle_seconds: float

    @property
    def crowd_size(self) -> str:
        """What is on the node where changes are made."""
        return f"{self.pods + 2} pods and {self.policies + 1} other policies"


FULL: Final = Effort(20, 240, 100, 60.0)
QUICK: Final = Effort(6, 200, 25, 20.0)
NONE: Final = Goal(at_most=0)
Part = Callable[[Effort], Iterator[Section]]


def whole(effort: Effort) -> Iterator[Section]:
    """A cluster of its own, from nothing to nothing."""
    with installed() as (ciliumd, section):
        yield section
        yield from on(ciliumd, effort)
        yield _section("kube-proxy", "P11  kube-proxy beside it", resident.kube_proxy(ciliumd.cluster))


def on(ciliumd: Ciliumd, effort: Effort) -> Iterator[Section]:
    """The figures of a cluster that has ciliumd."""
    crowd_size = effort.crowd_size
    pids = resident.containers(ciliumd)
    figures = resident.at_rest(pids, seconds=effort.idle_seconds, when="no policy")
    yield _section("at rest", "P11  at rest, no policy", figures + resident.maps(pids, when="no policy"))
    with enforcement.crowd(ciliumd.cluster, pods=effort.pods, policies=effort.policies) as api:
        agent = pids[f"agent, {ciliumd.cluster.nodes[0].name}"]
        yield enforcement.measure(
            ciliumd.cluster, api, agent=agent, changes=effort.changes, crowd_size=crowd_size
        )
        later = resident.containers(ciliumd)
        figures = resident.at_rest(later, seconds=effort.idle_seconds, when="policies")
        ended = sorted(name for name, pid in pids.items() if later.get(name) != pid)
        figures.append(
            Figure.of(
                "agents and operators that ended meanwhile", len(ended), goal=NONE, note=", ".join(ended)
            )
        )
        title = f"P11  at rest, {crowd_size}"
        yield _section("at rest, policies", title, figures + resident.maps(later, when="policies"))


@contextmanager
def installed() -> Iterator[tuple[Ciliumd, Section]]:
    """Two nodes with this checkout's image and chart, and how long that took without building."""
    for script in ("k8s_tools.py", "image.py"):
        program = [sys.executable, REPOSITORY / "build" / script]
        run(program, env={PROGRAMS_VARIABLE: str(programs_directory())}, seconds=BUILD_SECONDS)
    sweep()
    began = time.monotonic()
    with Cluster(nodes=2) as cluster:
        up = time.monotonic()
        cluster.load(IMAGE)
        loaded = time.monotonic()
        ciliumd = Ciliumd(cluster)
        ciliumd.install()
        ciliumd.wait()
        ready = time.monotonic()
        figures = [
            Figure.of("two nodes and a control plane", up - began, "s"),
            Figure.of("image onto both nodes", loaded - up, "s", note=f"{IMAGE.stat().st_size >> 20} MiB"),
            Figure.of("helm install to all nodes, agents and cluster DNS ready", ready - loaded, "s"),
        ]
        yield ciliumd, _section("cluster", "a cluster of two nodes", figures)


def _section(name: str, title: str, figures: list[Figure]) -> Section:
    """With what else the machine has to do: everything here shares its cores."""
    section = Section(name, title, figures)
    section.add(Figure.of("load average over the last minute", os.getloadavg()[0], note="in the end"))
    return section


PARTS: Final[dict[str, Part]] = {"cluster": whole}


if __name__ == "__main__":
    (existing,) = (one for one in plan.registered() if one.number == int(sys.argv[1]))
    before = time.monotonic()
    for measured in on(Ciliumd(Cluster(existing=existing)), QUICK if "--quick" in sys.argv else FULL):
        measured.seconds = time.monotonic() - before
        print(f"{measured}\n", flush=True)
        before = time.monotonic()
