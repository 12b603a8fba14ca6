# SPDX-License-Identifier: Apache-2.0
"""
What the agent counts and stamps itself, as it happens.

A tally may be added to from any thread (map writes have one of their own).
"""

import threading
from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

OTHER = "other"
"""Each label of the row that stands for those there is no room for."""


class Tally:
    """
    A counter with labels; rows appear when they are first counted, or declared.

    Beyond *most* rows what has none yet is counted as :data:`OTHER`: where labels come from objects, their
    writers must not decide how many there are.
    """

    def __init__(self, name: str, text: str, labels: tuple[str, ...], *, most: int | None = None) -> None:
        self.name = name
        self.text = text
        self.labels = labels
        self._most = most
        self._rows: dict[tuple[str, ...], float] = {}
        self._lock = threading.Lock()

    def add(self, *values: str, by: float = 1) -> None:
        """Count *by* more of the row with these label values."""
        self._check(values)
        if by < 0:
            raise ValueError(f"{self.name} only grows")
        with self._lock:
            if self._most is not None and values not in self._rows and len(self._rows) >= self._most:
                values = (OTHER,) * len(values)
            self._rows[values] = self._rows.get(values, 0) + by

    def declare(self, *values: str) -> None:
        """Show the row with these label values from the start, at 0."""
        self.add(*values, by=0)

    def value(self, *values: str) -> float:
        """The count so far."""
        self._check(values)
        return self._rows.get(values, 0)

    def collect(self) -> Iterator[Metric]:
        """The family, for a registry."""
        family = CounterMetricFamily(self.name, self.text, labels=self.labels)
        with self._lock:
            rows = sorted(self._rows.items())
        for values, count in rows:
            family.add_metric(values, count)
        yield family

    def _check(self, values: tuple[str, ...]) -> None:
        if len(values) != len(self.labels):
            raise ValueError(f"{self.name} takes the labels {', '.join(self.labels)}, not {values!r}")


class Level(Tally):
    """A gauge with labels that is set, not counted."""

    def set(self, *values: str, to: float) -> None:
        """The row with these label values is *to* from now on."""
        self._check(values)
        with self._lock:
            self._rows[values] = to

    def collect(self) -> Iterator[Metric]:
        """The family, for a registry."""
        family = GaugeMetricFamily(self.name, self.text, labels=self.labels)
        with self._lock:
            rows = sorted(self._rows.items())
        for values, level in rows:
            family.add_metric(values, level)
        yield family


class Tallies:
    """Every tally of the agent; one instance, handed to the parts that count."""

    def __init__(self) -> None:
        self.map_ops = Tally(
            "cilium_bpf_map_ops_total", "Operations on BPF maps", ("map_name", "operation", "outcome")
        )
        self.policy_changes = Tally("cilium_policy_change_total", "Policy changes", ("outcome",))
        self.regenerations = Tally(
            "cilium_endpoint_regenerations_total", "Endpoints whose rows were written", ("outcome",)
        )
        self.ipcache_events = Tally("cilium_ipcache_events_total", "Changes of the ipcache", ("type",))
        self.ipcache_errors = Tally(
            "cilium_ipcache_errors_total", "Failed changes of the ipcache", ("type", "error")
        )
        self.kubernetes_events = Tally(
            "cilium_kubernetes_events_total",
            "Objects received from Kubernetes or the manifest directory",
            ("scope", "action", "status"),
        )
        self.kubernetes_received = Tally(
            "cilium_kubernetes_events_received_total",
            "Objects received from Kubernetes, by whether they were valid and news",
            ("scope", "action", "valid", "equal"),
        )
        self.kubernetes_requests = Tally(
            "ciliumd_k8s_client_requests_total",
            "Requests to the API server; status 0: none answered",
            ("method", "path", "return_code"),
        )
        self.cni_requests = Tally(
            "ciliumd_cni_requests_total", "Requests of container runtimes", ("command", "code")
        )
        self.resource_errors = Tally(
            "ciliumd_resource_errors_total", "Objects refused", ("kind", "reason"), most=200
        )
        self.controller_runs = Tally("cilium_controllers_runs_total", "Runs of controllers", ("status",))
        self.terminated = Tally(
            "ciliumd_lb_terminated_total",
            "Sockets destroyed and flows forgotten because their service gave up the backend",
            ("what", "protocol", "outcome"),
        )
        self.provider_errors = Tally(
            "ciliumd_metrics_provider_errors_total",
            "Values that could not be read at a scrape",
            ("provider",),
        )
        self.event_ts = Level(
            "cilium_event_ts",
            "Time of the last event of a kind, seconds since the epoch",
            ("source", "scope", "action"),
        )
        self.bootstrap_seconds = Level(
            "cilium_agent_bootstrap_seconds", "Duration of a part of the agent's start", ("scope", "outcome")
        )

    def kubernetes_event(self, kind: str, action: str, valid: bool, equal: bool) -> None:
        """One object that the API server told of."""
        self.kubernetes_received.add(kind, action, str(valid).lower(), str(equal).lower())
        if not equal:
            self.kubernetes_events.add(kind, action, "success" if valid else "failed")

    def kubernetes_request(self, method: str, path: str, status: int, seconds: float) -> None:
        """One request to the API server.  Of any thread."""
        del seconds
        self.kubernetes_requests.add(method, path, str(status))

    def cni_request(self, command: str, code: int, seconds: float) -> None:
        """One request of a container runtime."""
        del seconds
        self.cni_requests.add(command, str(code))

    def __iter__(self) -> Iterator[Tally]:
        return iter(vars(self).values())
