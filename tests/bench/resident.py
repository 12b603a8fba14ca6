# SPDX-License-Identifier: Apache-2.0
"""
P11: what the containers of a node cost at rest: memory by share (PSS), maps apart, CPU.

All processes of a container count, found by its control group.  PSS divides a page by those who have it
mapped, also by processes of other clusters on this machine that run the same files: so what is anonymous, and
RSS, stand beside it.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple, Self

from bench.machine import memory_kib, peak_kib, process_seconds
from bench.result import Figure, Goal
from lab.cgroup import cgroup2_mount
from lab.k8s import baseline
from lab.k8s.ciliumd import AGENT, NAMESPACE, Ciliumd
from lab.k8s.cluster import Cluster
from lab.k8s.pod import ClusterPod
from lab.waiting import eventually

IDLE_MIB: Final = Goal(at_most=120)
IDLE_CPU: Final = Goal(at_most=1.0)
OPERATOR: Final = "cilium-operator"
OPERATOR_SELECTOR: Final = "io.cilium/app=operator"
PROXY: Final = "kube-proxy"
MAPPED_MAP: Final = "anon_inode:bpf-map"
# kube-proxy lists services, writes its rules and then has nothing to do.
PROXY_SECONDS: Final = 15.0


class Resident(NamedTuple):
    """A program at rest: memory in MiB, CPU in seconds since its start, its processes."""

    pss: float
    # The part of `pss` that is no file's: what one more such program would certainly cost.
    anonymous: float
    rss: float
    # The most that its first process ever had resident.
    peak: float
    cpu: float
    processes: int
    # The part of `pss` that is maps of the kernel's, mapped to be read: it is in the figure of the maps too.
    mapped: float

    @classmethod
    def of(cls, pids: Sequence[int]) -> Self:
        """All these processes."""
        memory = [memory_kib(pid, "Rss", "Pss", "Pss_Anon") for pid in pids]
        return cls(
            pss=sum(one["Pss"] for one in memory) / 1024,
            anonymous=sum(one["Pss_Anon"] for one in memory) / 1024,
            rss=sum(one["Rss"] for one in memory) / 1024,
            peak=peak_kib(pids[0]) / 1024,
            cpu=sum(process_seconds(pid) for pid in pids),
            processes=len(pids),
            mapped=sum(_mapped_kib(pid) for pid in pids) / 1024,
        )

    def __str__(self) -> str:
        parts = {"anonymous": self.anonymous, "maps": self.mapped, "RSS": self.rss, "peak": self.peak}
        return ", ".join(f"{name} {mib:.1f}" for name, mib in parts.items())


def containers(ciliumd: Ciliumd) -> dict[str, int]:
    """First processes of agents and operator, by what they are called here."""
    cluster = ciliumd.cluster
    found = {}
    for node in cluster.nodes:
        found[f"agent, {node.name}"] = ClusterPod(ciliumd.agent(node), node).container_pid(AGENT)
    for pod in cluster.pods(OPERATOR_SELECTOR, NAMESPACE):
        found[f"operator, {pod.node.name}"] = pod.container_pid(OPERATOR)
    return found


def at_rest(pids: Mapping[str, int], *, seconds: float, when: str) -> list[Figure]:
    """Memory, and CPU over some seconds in which nothing is asked of them."""
    before = {name: Resident.of(family(pid)) for name, pid in pids.items()}
    time.sleep(seconds)
    figures = []
    for name, pid in pids.items():
        now = Resident.of(family(pid))
        share = 100 * (now.cpu - before[name].cpu) / seconds
        agent = name.startswith("agent")
        note = f"{now}, processes: {now.processes}"
        figures += [
            Figure.of(f"{name}, {when}: PSS", now.pss, "MiB", goal=IDLE_MIB if agent else None, note=note),
            Figure.of(f"{name}, {when}: CPU", share, "% of a core", goal=IDLE_CPU if agent else None),
        ]
    return figures


def maps(pids: Mapping[str, int], *, when: str) -> list[Figure]:
    """Kernel memory of the maps that agents hold open, each counted once."""
    return [
        Figure.of(f"{name}, {when}: maps", sum(_maps(pid).values()) / (1 << 20), "MiB", note="by fdinfo")
        for name, pid in pids.items()
        if name.startswith("agent")
    ]


def kube_proxy(cluster: Cluster) -> list[Figure]:
    """
    kube-proxy over the same objects, a node with iptables and one with nftables.

    It takes services away from ciliumd: nothing can be measured on the cluster afterwards.
    """
    figures = []
    for node, mode in zip(cluster.nodes, baseline.PROXY_MODES, strict=False):
        baseline.start_proxy([node], cluster.pki, cluster.programs, mode)
        (pid,) = eventually(lambda node=node: _named(node.cgroup, PROXY), f"{PROXY} runs on {node.name}")
        time.sleep(PROXY_SECONDS)
        now = Resident.of([pid])
        figures.append(Figure.of(f"{PROXY}, {mode}: PSS", now.pss, "MiB", note=str(now)))
    return figures


def family(pid: int) -> list[int]:
    """All processes of a process's container, itself first."""
    line = next(line for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines() if line[:3] == "0::")
    group = cgroup2_mount() / line[3:].lstrip("/")
    pids = [int(word) for path in group.rglob("cgroup.procs") for word in path.read_text().split()]
    return [pid, *(one for one in pids if one != pid)]


def _named(group: Path, name: str) -> list[int]:
    """Processes of a control group by their program's name."""
    pids = [int(word) for word in (group / "cgroup.procs").read_text().split()]
    return [pid for pid in pids if Path(f"/proc/{pid}/comm").read_text().strip() == name]


def _mapped_kib(pid: int) -> int:
    total, counts = 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "Pss":
            total += int(value.split()[0]) if counts else 0
        elif "-" in name.split()[0]:  # the address range that begins a mapping
            counts = line.endswith(MAPPED_MAP)
    return total


def _maps(pid: int) -> dict[int, int]:
    """Bytes of maps by their number."""
    found = {}
    for one in family(pid):
        for path in Path(f"/proc/{one}/fdinfo").iterdir():
            fields = dict(line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)
            if "map_id" in fields:
                found[int(fields["map_id"])] = int(fields["memlock"])
    return found
