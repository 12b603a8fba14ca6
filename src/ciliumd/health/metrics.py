# SPDX-License-Identifier: Apache-2.0
"""Cilium's metrics of node connectivity, as a collector for the agent's registry."""

from bisect import bisect_left
from collections.abc import Callable, Iterator
from typing import Final

from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily, Metric

from ciliumd.health import model
from ciliumd.model.objects import NodeRow

BUCKETS: Final = (0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_STATUSES: Final = ("reachable", "unreachable")
_TYPES: Final = ("node", "endpoint")


class HealthMetrics:
    """Counts results as they come; latencies are those of probes that were answered."""

    def __init__(
        self, *, local: Callable[[], NodeRow], results: Callable[[], Iterator[model.NodeResult]]
    ) -> None:
        """*results* are the newest ones, one of every node."""
        self._local = local
        self._results = results
        self._latencies: dict[tuple[str, str, str], tuple[list[int], float]] = {}

    def probed(self, result: model.NodeResult) -> None:
        """One more result."""
        for kind, paths in (("node", result.host), ("endpoint", result.endpoint)):
            for number, path in enumerate(paths):
                for protocol, check in path.checks:
                    if not check.error:
                        self._observe((kind, "secondary" if number else "primary", protocol), check.latency)

    def _observe(self, labels: tuple[str, str, str], seconds: float) -> None:
        counts, total = self._latencies.setdefault(labels, ([0] * (len(BUCKETS) + 1), 0.0))
        counts[bisect_left(BUCKETS, seconds)] += 1
        self._latencies[labels] = (counts, total + seconds)

    def collect(self) -> Iterator[Metric]:
        """The families."""
        results = list(self._results())
        counts = model.summary(results)
        yield GaugeMetricFamily(
            "cilium_unreachable_nodes", "Nodes that do not answer", value=counts.unreachable_nodes
        )
        yield GaugeMetricFamily(
            "cilium_unreachable_health_endpoints",
            "Health endpoints that do not answer",
            value=counts.unreachable_endpoints,
        )
        local = self._local()
        status = GaugeMetricFamily(
            "cilium_node_health_connectivity_status",
            "Nodes and health endpoints by whether they answer",
            labels=("source_cluster", "source_node_name", "type", "status"),
        )
        connectivity = model.connectivity(results)
        for kind in _TYPES:
            for word in _STATUSES:
                status.add_metric((local.cluster, local.name, kind, word), connectivity.get((kind, word), 0))
        yield status
        yield self._latency(local)

    def _latency(self, local: NodeRow) -> Metric:
        family = HistogramMetricFamily(
            "cilium_node_health_connectivity_latency_seconds",
            "Time until nodes and health endpoints answered",
            labels=("source_cluster", "source_node_name", "type", "address_type", "protocol"),
        )
        for labels, (counts, total) in sorted(self._latencies.items()):
            buckets, below = [], 0
            for bound, count in zip((*map(str, BUCKETS), "+Inf"), counts, strict=True):
                below += count
                buckets.append((bound, float(below)))
            family.add_metric((local.cluster, local.name, *labels), buckets, total)
        return family
