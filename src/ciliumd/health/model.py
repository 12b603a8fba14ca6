# SPDX-License-Identifier: Apache-2.0
"""
Whom to probe and what came of it: rows, and their counts.  Pure.

JSON is Cilium's ``models.HealthStatusResponse`` (cilium-health API, ``v1beta``).
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from ciliumd.model.net import Addr
from ciliumd.model.objects import INTERNAL_IP, NodeRow, full_name

Json = dict[str, Any]

NANOSECONDS: Final = 10**9


@dataclass(frozen=True, slots=True)
class Target:
    """A node to probe: *host* are addresses of the node itself, *endpoint* of its health endpoint."""

    name: str
    cluster: str
    host: tuple[Addr, ...]
    endpoint: tuple[Addr, ...]

    @property
    def full_name(self) -> str:
        """As ``model.objects.full_name`` writes it."""
        return full_name(self.cluster, self.name)


@dataclass(frozen=True, slots=True)
class Check:
    """One probe: *error* says why there was no answer, else it came after *latency* seconds."""

    error: str
    latency: float
    at: float
    """Wall clock, seconds."""


@dataclass(frozen=True, slots=True)
class PathResult:
    """Both probes of one address."""

    address: Addr
    icmp: Check
    http: Check

    @property
    def reachable(self) -> bool:
        """Whether both were answered."""
        return not (self.icmp.error or self.http.error)

    @property
    def checks(self) -> tuple[tuple[str, Check], ...]:
        """The probes by protocol."""
        return (("icmp", self.icmp), ("http", self.http))


@dataclass(frozen=True, slots=True)
class NodeResult:
    """All that was found out about a node in one go; the first address of each kind is its primary one."""

    target: Target
    host: tuple[PathResult, ...]
    endpoint: tuple[PathResult, ...]

    @property
    def host_reachable(self) -> bool:
        """Whether every address of the node answered; one without any cannot be reached."""
        return bool(self.host) and all(path.reachable for path in self.host)

    @property
    def endpoint_reachable(self) -> bool:
        """Whether its health endpoint answered; a node without one owes no answer."""
        return all(path.reachable for path in self.endpoint)

    @property
    def reachable(self) -> bool:
        """Whether everything of it answered."""
        return self.host_reachable and self.endpoint_reachable


@dataclass(frozen=True, slots=True)
class Summary:
    """Counts over all nodes; *at* is the wall clock of the last probe, 0 before the first."""

    total: int
    unreachable: tuple[str, ...]
    unreachable_nodes: int
    unreachable_endpoints: int
    at: float

    @property
    def reachable(self) -> int:
        """How many nodes answered in every way."""
        return self.total - len(self.unreachable)


def targets(
    nodes: Iterable[NodeRow], local: NodeRow, health: Addr | None, *, endpoints: bool, family: int = 4
) -> tuple[Target, ...]:
    """
    Every node of the cluster by name, *local* among them whether or not it is published.

    The local health endpoint is at *health*, whatever is published; with *endpoints* off no health
    endpoint is probed.  Of each address is asked what is of *family*; nodes that have none are at the others.
    """
    rows = {node.name: node for node in nodes} | {local.name: local}
    return tuple(
        _target(row, local, health, endpoints=endpoints, family=family) for _, row in sorted(rows.items())
    )


def host_addresses(row: NodeRow, family: int) -> tuple[Addr, ...]:
    """Where a node itself is asked: at its addresses of *family*, or at all if it has none of that."""
    internal = row.addresses_of(INTERNAL_IP)
    return tuple(addr for addr in internal if addr.version == family) or internal


def _target(row: NodeRow, local: NodeRow, health: Addr | None, *, endpoints: bool, family: int) -> Target:
    host = host_addresses(row, family)
    if not endpoints:
        return Target(row.name, row.cluster, host, ())
    if row.name == local.name:
        return Target(row.name, row.cluster, host, () if health is None else (health,))
    published = tuple(addr for addr in row.health if addr.version == family)
    return Target(row.name, row.cluster, host, published)


def summary(results: Iterable[NodeResult]) -> Summary:
    """Counts of *results*."""
    known = sorted(results, key=lambda one: one.target.full_name)
    checks = [check for result in known for path in _paths(result) for _, check in path.checks]
    return Summary(
        total=len(known),
        unreachable=tuple(one.target.full_name for one in known if not one.reachable),
        unreachable_nodes=sum(not one.host_reachable for one in known),
        unreachable_endpoints=sum(not one.endpoint_reachable for one in known),
        at=max((check.at for check in checks), default=0.0),
    )


def connectivity(results: Iterable[NodeResult]) -> Mapping[tuple[str, str], int]:
    """How many nodes and health endpoints are reachable and unreachable, by (type, status)."""
    counts: Counter[tuple[str, str]] = Counter()
    for result in results:
        counts["node", _word(reachable=result.host_reachable)] += 1
        if result.endpoint:
            counts["endpoint", _word(reachable=result.endpoint_reachable)] += 1
    return counts


def _word(*, reachable: bool) -> str:
    return "reachable" if reachable else "unreachable"


def _paths(result: NodeResult) -> Iterator[PathResult]:
    yield from result.host
    yield from result.endpoint


def report(results: Iterable[NodeResult], *, local: str, interval: float) -> Json:
    """``models.HealthStatusResponse``; *local* is the full name of this node."""
    known = sorted(results, key=lambda one: one.target.full_name)
    return {
        "local": {"name": local},
        "nodes": [
            {
                "name": one.target.full_name,
                "host": _addresses(one.host),
                "health-endpoint": _addresses(one.endpoint) if one.endpoint else None,
            }
            for one in known
        ],
        "probeInterval": f"{interval:g}s",
        "timestamp": timestamp(summary(known).at),
    }


def timestamp(seconds: float) -> str:
    """A wall-clock time as RFC 3339."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _addresses(paths: tuple[PathResult, ...]) -> Json:
    primary, *secondary = map(_path, paths) if paths else (None,)
    return {"primary-address": primary, "secondary-addresses": secondary}


def _path(path: PathResult) -> Json:
    return {"ip": str(path.address), "icmp": _check(path.icmp), "http": _check(path.http)}


def _check(check: Check) -> Json:
    return {
        "status": check.error,
        "latency": round(check.latency * NANOSECONDS),
        "lastProbed": timestamp(check.at),
    }
