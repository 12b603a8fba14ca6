# SPDX-License-Identifier: Apache-2.0
"""The agent's registry, rendered as Prometheus text and as the JSON of ``cilium metrics list``."""

from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import generate_latest

from ciliumd.metrics.collectors import Providers, StateCollector, TrafficCollector
from ciliumd.metrics.tally import Tallies

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def build_registry(providers: Providers, tallies: Tallies) -> CollectorRegistry:
    """A registry of everything the agent reports, and of its process."""
    registry = CollectorRegistry()
    registry.register(TrafficCollector(providers, tallies))
    registry.register(StateCollector(providers, tallies))
    for tally in tallies:
        registry.register(tally)
    ProcessCollector(namespace="cilium", registry=registry)
    return registry


def exposition(registry: CollectorRegistry) -> bytes:
    """Prometheus text, to be served as :data:`CONTENT_TYPE`."""
    return generate_latest(registry)


def samples(registry: CollectorRegistry) -> list[dict[str, Any]]:
    """Every sample as ``{"name", "labels", "value"}``, sorted by name and labels."""
    rows = [
        {"name": sample.name, "labels": dict(sample.labels), "value": sample.value}
        for family in registry.collect()
        for sample in family.samples
    ]
    return sorted(rows, key=lambda row: (row["name"], sorted(row["labels"].items())))
