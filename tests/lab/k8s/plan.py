# SPDX-License-Identifier: Apache-2.0
"""
What a cluster is called, and where it lives: names and addresses that no other cluster has.

Clusters on a machine are numbered.  A number is taken by a file in :data:`REGISTRY` that says whose
it is, so that what a killed run left can be found and removed by the next one.
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from typing import Any, Final

from ciliumd.model.net import Addr
from lab.k8s.ledger import start_time
from lab.netns import NETNS_DIRECTORY

REGISTRY: Final = Path("/run/ciliumd-clusters")
MOST_CLUSTERS: Final = 16
MOST_NODES: Final = 3
PREFIX: Final = "ck"

# The same in every cluster: no packet with these addresses leaves the cluster's own namespaces.
SERVICE_CIDR: Final = "10.96.0.0/16"
POD_CIDR: Final = "10.244.0.0/16"
API_SERVICE: Final = "10.96.0.1"
DNS_SERVICE: Final = "10.96.0.10"
# An address of the world that lies behind the nodes' default route.
FAR: Final = "203.0.113.10"
# The same of a cluster with both families, or with IPv6 alone.
SERVICE_CIDR6: Final = "fd00:96::/112"
POD_CIDR6: Final = "fd00:244::/56"
API_SERVICE6: Final = "fd00:96::1"
DNS_SERVICE6: Final = "fd00:96::a"
FAR6: Final = "2001:db8:203::10"


class NoClusterFree(RuntimeError):
    """All numbers are taken; the text says where to look."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Names and addresses of cluster *number*; *dual*: of both families, IPv4 first; *six*: of IPv6 alone."""

    number: int
    directory: Path
    node_count: int
    dual: bool = False
    six: bool = False

    @property
    def prefix(self) -> str:
        """What every link, namespace and control group of this cluster begins with."""
        return f"{PREFIX}{self.number}"

    @property
    def network(self) -> IPv4Network | IPv6Network:
        """The network between the nodes."""
        return self.network6 if self.six else IPv4Network(f"10.{100 + self.number}.0.0/24")

    @property
    def machine(self) -> Addr:
        """The machine's own address at the bridge."""
        return self.network[1]

    @property
    def world(self) -> Addr:
        """The world's address at the bridge: every node's default gateway."""
        return self.network[2]

    def node(self, index: int) -> Addr:
        """InternalIP of node *index*, counted from 1."""
        return self.network[10 + index]

    @property
    def network6(self) -> IPv6Network:
        """The same network's IPv6, where the cluster is *dual*."""
        return IPv6Network(f"fd00:{100 + self.number}::/64")

    @property
    def world6(self) -> IPv6Address:
        """The world's IPv6 address at the bridge: every node's default gateway."""
        return self.network6[2]

    def node6(self, index: int) -> IPv6Address:
        """The second InternalIP of node *index*."""
        return self.network6[10 + index]

    def families(self, four: object, six: object) -> str:
        """Both with a comma between, as Kubernetes' options have them; or the only family's."""
        if self.six:
            return str(six)
        return f"{four},{six}" if self.dual else str(four)

    @property
    def api_server(self) -> str:
        """``https://...`` of the API server, which sits on node1."""
        return f"https://[{self.node(1)}]:6443" if self.six else f"https://{self.node(1)}:6443"

    @property
    def api_service(self) -> str:
        """Address of the service of the API server."""
        return API_SERVICE6 if self.six else API_SERVICE

    @property
    def dns_service(self) -> str:
        """Address of the service of cluster DNS."""
        return DNS_SERVICE6 if self.six else DNS_SERVICE

    @property
    def far(self) -> str:
        """The address of the world that lies behind the nodes' default route."""
        return FAR6 if self.six else FAR

    def netns(self, label: str) -> Path:
        """Handle of one of its network namespaces."""
        return NETNS_DIRECTORY / f"{self.prefix}-{label}"

    @property
    def indexes(self) -> range:
        """Numbers of its nodes."""
        return range(1, self.node_count + 1)


@contextlib.contextmanager
def registry_lock() -> Iterator[None]:
    """One at a time reads and writes the registry."""
    REGISTRY.mkdir(parents=True, exist_ok=True)
    with (REGISTRY / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def take(root: Path, node_count: int, *, dual: bool = False, six: bool = False) -> Plan:
    """Take a free number; the cluster's files go below *root*.  Raises :class:`NoClusterFree`."""
    if not 1 <= node_count <= MOST_NODES:
        raise ValueError(f"a cluster has 1 to {MOST_NODES} nodes, not {node_count}")
    with registry_lock():
        for number in range(MOST_CLUSTERS):
            if not _entry(number).exists() and not _in_use(number):
                plan = Plan(number, root / f"{PREFIX}{number}", node_count, dual, six)
                _write(plan, kept=False)
                return plan
    raise NoClusterFree(f"{MOST_CLUSTERS} clusters run on this machine: see {REGISTRY}")


def keep(plan: Plan) -> None:
    """Let the cluster outlive this process."""
    with registry_lock():
        _write(plan, kept=True)


def release(plan: Plan) -> None:
    """Give the number back, when nothing of the cluster is left."""
    _entry(plan.number).unlink(missing_ok=True)


def registered(*, abandoned: bool = False) -> list[Plan]:
    """All clusters of this machine, or only those whose owner has ended without removing them."""
    plans = []
    with registry_lock():
        for path in sorted(REGISTRY.glob("[0-9]*.json")):
            entry = json.loads(path.read_text())
            if not abandoned or not (entry["kept"] or start_time(entry["pid"]) == entry["started"]):
                plans.append(
                    Plan(
                        entry["number"],
                        Path(entry["directory"]),
                        entry["nodes"],
                        entry.get("dual", False),
                        entry.get("six", False),
                    )
                )
    return plans


def _entry(number: int) -> Path:
    return REGISTRY / f"{number}.json"


def _in_use(number: int) -> bool:
    return any(NETNS_DIRECTORY.glob(f"{PREFIX}{number}-*"))


def _write(plan: Plan, *, kept: bool) -> None:
    entry: dict[str, Any] = {
        "number": plan.number,
        "directory": str(plan.directory),
        "nodes": plan.node_count,
        "dual": plan.dual,
        "six": plan.six,
        "pid": os.getpid(),
        "started": start_time(os.getpid()),
        "kept": kept,
    }
    _entry(plan.number).write_text(json.dumps(entry))
