# SPDX-License-Identifier: Apache-2.0
"""
Live state read at scrape time, through providers that are passed in.

A provider that fails (a map that is gone) costs its own family only, and is counted.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol, TypeVar

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from ciliumd.abi import Direction
from ciliumd.flows.reasons import FORWARDED, reason_text
from ciliumd.metrics.tally import Tallies

T = TypeVar("T")
D = TypeVar("D")


class TrafficRow(NamedTuple):
    """One row of ``cilium_metrics_v1``, summed over CPUs."""

    reason: int
    direction: int
    packets: int
    bytes: int


class MapUsage(NamedTuple):
    """How full one map is."""

    map_name: str
    entries: int
    max_entries: int


class RingTotals(Protocol):
    """What the monitor saw; fulfilled by ``flows.ring.RingStats``."""

    @property
    def seen(self) -> int:
        """Events taken from the ring buffer."""

    @property
    def lost(self) -> int:
        """Events the ring buffer had no room for."""

    @property
    def subscriber_lost(self) -> int:
        """Events a slow watcher had no room for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Providers:
    """
    Where live numbers come from; called on the event loop at each scrape, so they must be quick.

    endpoint_states: state -> count; identities: type (``reserved``, ``cluster_local``, ``node_local``,
    ``remote_node``) -> count; enforcement: ``none``, ``both``, ``audit-both``, ... -> endpoints;
    identity_shares: range (``cluster``, ``cidr``, ``node``) -> 0 to 1; unrealized: ``policy``,
    ``identity`` -> endpoints;
    addresses: ``ipv4``, ``ipv6`` -> allocated; nat_saturation: the same -> 0 to 1;
    failures: what a provider may raise.
    """

    version: str
    traffic: Callable[[], Iterable[TrafficRow]]
    map_usage: Callable[[], Iterable[MapUsage]]
    endpoint_states: Callable[[], Mapping[str, int]]
    enforcement: Callable[[], Mapping[str, int]]
    identities: Callable[[], Mapping[str, int]]
    identity_shares: Callable[[], Mapping[str, float]]
    unrealized: Callable[[], Mapping[str, int]]
    services: Callable[[], int]
    ipcache_entries: Callable[[], int]
    policies: Callable[[], int]
    policy_revision: Callable[[], int]
    controllers_failing: Callable[[], int]
    addresses: Callable[[], Mapping[str, int]]
    nat_saturation: Callable[[], Mapping[str, float]]
    ring: Callable[[], RingTotals]
    failures: tuple[type[Exception], ...] = (OSError,)


DIRECTIONS: Final = {
    member.value: member.name.removeprefix("DIR_") for member in Direction if member is not Direction.DIR_MAX
}


def short_map_name(name: str) -> str:
    """``lxc`` for ``cilium_lxc_v1``: the label Cilium's dashboards know, stable across layouts."""
    return re.sub(r"_v\d+$", "", name.removeprefix("cilium_"))


class TrafficCollector:
    """Forwarded and dropped packets and bytes."""

    def __init__(self, providers: Providers, tallies: Tallies) -> None:
        self.providers = providers
        self.tallies = tallies

    def collect(self) -> Iterator[Metric]:
        """The four families, also when the map cannot be read."""
        drop_labels = ("reason", "direction")
        dropped = CounterMetricFamily("cilium_drop_count_total", "Dropped packets", labels=drop_labels)
        dropped_bytes = CounterMetricFamily("cilium_drop_bytes_total", "Dropped bytes", labels=drop_labels)
        passed = CounterMetricFamily("cilium_forward_count_total", "Forwarded packets", labels=("direction",))
        passed_bytes = CounterMetricFamily(
            "cilium_forward_bytes_total", "Forwarded bytes", labels=("direction",)
        )
        for row in _read(self.providers.traffic, (), "traffic", self):
            direction = DIRECTIONS.get(row.direction, str(row.direction))
            if row.reason == FORWARDED:
                passed.add_metric((direction,), row.packets)
                passed_bytes.add_metric((direction,), row.bytes)
            else:
                reason = reason_text(row.reason)
                dropped.add_metric((reason, direction), row.packets)
                dropped_bytes.add_metric((reason, direction), row.bytes)
        yield from (dropped, dropped_bytes, passed, passed_bytes)


class StateCollector:
    """Gauges over tables, maps and the monitor."""

    def __init__(self, providers: Providers, tallies: Tallies) -> None:
        self.providers = providers
        self.tallies = tallies

    def collect(self) -> Iterator[Metric]:
        """One family per provider; a family whose provider failed is left out."""
        p = self.providers
        version = GaugeMetricFamily("cilium_version", "Version of the agent", labels=("version",))
        version.add_metric((p.version,), 1)
        yield version
        yield from self._pressure()
        yield from self._endpoints()
        yield from self._by("cilium_identity", "Identities by type", "type", p.identities)
        yield from self._by(
            "cilium_policy_endpoint_enforcement_status",
            "Endpoints by policy enforcement",
            "enforcement",
            p.enforcement,
        )
        yield from self._by("cilium_ip_addresses", "Allocated addresses", "family", p.addresses)
        yield from self._by(
            "cilium_nat_endpoint_max_connection",
            "Share of masquerading's ports that the destination with most flows uses, 0 to 1",
            "family",
            p.nat_saturation,
        )
        yield from self._by(
            "ciliumd_identity_range_used",
            "Share of a range of identities that is given out, 0 to 1",
            "range",
            p.identity_shares,
        )
        yield from self._by(
            "ciliumd_endpoints_not_realized",
            "Endpoints that are shut, or as closed as before, since their rules or their identity do not fit",
            "reason",
            p.unrealized,
        )
        yield from self._one("cilium_services", "Service frontends", p.services)
        yield from self._one("cilium_ipcache_entries", "Entries of the ipcache", p.ipcache_entries)
        yield from self._one("cilium_policy", "Policies in force", p.policies)
        yield from self._one("cilium_policy_max_revision", "Newest policy revision", p.policy_revision)
        yield from self._one("cilium_controllers_failing", "Controllers failing", p.controllers_failing)
        yield from self._monitor()

    def _pressure(self) -> Iterator[Metric]:
        family = GaugeMetricFamily(
            "cilium_bpf_map_pressure", "Fill of a BPF map, 0 to 1", labels=("map_name",)
        )
        for usage in _read(self.providers.map_usage, (), "map_usage", self):
            if usage.max_entries:
                family.add_metric((short_map_name(usage.map_name),), usage.entries / usage.max_entries)
        yield family

    def _endpoints(self) -> Iterator[Metric]:
        states = _read(self.providers.endpoint_states, None, "endpoint_states", self)
        if states is None:
            return
        total = GaugeMetricFamily("cilium_endpoint", "Endpoints of this node")
        total.add_metric((), sum(states.values()))
        by_state = GaugeMetricFamily(
            "cilium_endpoint_state", "Endpoints by state", labels=("endpoint_state",)
        )
        for state, count in sorted(states.items()):
            by_state.add_metric((state,), count)
        yield from (total, by_state)

    def _monitor(self) -> Iterator[Metric]:
        totals = _read(self.providers.ring, None, "ring", self)
        if totals is None:
            return
        seen = CounterMetricFamily("ciliumd_monitor_events_total", "Events read from the datapath")
        seen.add_metric((), totals.seen)
        lost = CounterMetricFamily(
            "ciliumd_monitor_lost_events_total", "Events nobody will see", labels=("source",)
        )
        lost.add_metric(("ring_buffer",), totals.lost)
        lost.add_metric(("subscriber_queue",), totals.subscriber_lost)
        yield from (seen, lost)

    def _one(self, name: str, text: str, provider: Callable[[], int]) -> Iterator[Metric]:
        value = _read(provider, None, name, self)
        if value is not None:
            yield GaugeMetricFamily(name, text, value=value)

    def _by(
        self, name: str, text: str, label: str, provider: Callable[[], Mapping[str, float]]
    ) -> Iterator[Metric]:
        values = _read(provider, None, name, self)
        if values is None:
            return
        family = GaugeMetricFamily(name, text, labels=(label,))
        for value, count in sorted(values.items()):
            family.add_metric((value,), count)
        yield family


def _read(
    provider: Callable[[], T], default: D, name: str, owner: "TrafficCollector | StateCollector"
) -> T | D:
    try:
        return provider()
    except owner.providers.failures:
        owner.tallies.provider_errors.add(name)
        return default
