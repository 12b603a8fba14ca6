# SPDX-License-Identifier: Apache-2.0
"""
An operator under test: ``ciliumd operator`` against an API server, with the rights the chart gives it.

It is known from outside only: command line, signals, health, metrics, log, and what it writes.
"""

import contextlib
import signal
import sys
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Self

from lab.apiserver import ApiServer, free_ports
from lab.process import Process
from lab.waiting import eventually

USER: Final = "operator"
LEADING: Final = "operator.synced"
END_SECONDS: Final = 10.0
FAST: Final[Mapping[str, str]] = {
    "cluster-pool-ipv4-cidr": "10.50.0.0/22",
    "cilium-endpoint-gc-interval": "1s",
    "identity-gc-interval": "1s",
    "identity-heartbeat-timeout": "2s",
    "nodes-gc-interval": "1s",
    "resync-interval": "2s",
    "unmanaged-pod-watcher-interval": "1s",
    "unmanaged-pod-grace": "2s",
    # Long enough for a machine that has other things to do.
    "leader-election-lease-duration": "8s",
    "leader-election-renew-deadline": "6s",
    "leader-election-retry-period": "0.5s",
}


def _rule(group: str, resources: str, verbs: str) -> dict[str, Any]:
    return {"apiGroups": [group], "resources": resources.split(), "verbs": verbs.split()}


RULES: Final = (
    _rule("", "nodes", "get list watch patch"),
    _rule("", "nodes/status", "patch"),
    _rule("", "pods", "get list watch delete"),
    _rule("", "namespaces", "list"),
    _rule("", "events", "create"),
    _rule("", "services", "list watch"),
    _rule("discovery.k8s.io", "endpointslices", "list watch"),
    _rule("networking.k8s.io", "networkpolicies", "list watch"),
    _rule("networking.k8s.io", "servicecidrs", "list"),
    _rule("coordination.k8s.io", "leases", "get create update"),
    _rule("apiextensions.k8s.io", "customresourcedefinitions", "get create update"),
    _rule("cilium.io", "ciliumnodes", "list watch patch delete"),
    _rule("cilium.io", "ciliumnodes/status", "patch"),
    _rule("cilium.io", "ciliumidentities", "list patch delete"),
    _rule("cilium.io", "ciliumendpoints", "get list delete"),
    _rule(
        "cilium.io", "ciliumcidrgroups ciliumnetworkpolicies ciliumclusterwidenetworkpolicies", "list watch"
    ),
    _rule(
        "cilium.io",
        "ciliumnetworkpolicies/status ciliumclusterwidenetworkpolicies/status",
        "patch",
    ),
)
"""What the operator may do: nothing it needs is missing, and it does nothing else."""


class Operator:
    """``ciliumd operator`` with fast intervals, and *options* besides.  A context manager."""

    def __init__(self, server: ApiServer, directory: Path, options: Mapping[str, str] | None = None) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.log = directory / "operator.log"
        self._health, self._metrics = free_ports(2)
        self._options = {
            "k8s-kubeconfig-path": str(server.kubeconfig(USER)),
            "operator-api-serve-addr": f"127.0.0.1:{self._health}",
            "operator-prometheus-serve-addr": f"127.0.0.1:{self._metrics}",
            **FAST,
            **(options or {}),
        }
        self._process: Process | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def start(self) -> None:
        """Start the process."""
        words = [f"--{name}={value}" for name, value in self._options.items()]
        with self.log.open("ab") as log:
            self._process = Process([sys.executable, "-m", "ciliumd.operator.app", *words], output=log)

    def wait_leading(self, seconds: float = 60.0) -> Self:
        """Wait until it works."""
        assert self._process is not None
        eventually(
            lambda: LEADING in self.text() or not self.running, f"{self.log} says {LEADING}", seconds=seconds
        )
        assert self.running, self.text()
        return self

    @property
    def running(self) -> bool:
        """Whether the process has not ended."""
        return self._process is not None and self._process.running

    @property
    def state(self) -> str:
        """What it says of itself; empty while nobody answers."""
        with contextlib.suppress(OSError):
            return self.health().partition("ok: ")[2].strip()
        return ""

    def wait_standby(self) -> Self:
        """Wait until it waits for another one to end."""
        eventually(lambda: self.state == "waiting for the lease", "it waits", seconds=30.0)
        return self

    def kill(self) -> None:
        """End it without a word."""
        assert self._process is not None
        self._process.signal(signal.SIGKILL)
        self._process.wait(END_SECONDS)

    def end(self) -> int:
        """Ask it to end; its exit code."""
        assert self._process is not None
        return self._process.end(END_SECONDS)

    def code(self, seconds: float = END_SECONDS) -> int:
        """Exit code of a process that ends by itself."""
        assert self._process is not None
        return self._process.wait(seconds)

    def text(self) -> str:
        """All it has logged."""
        return self.log.read_text(errors="replace")

    def health(self) -> str:
        """Answer of /healthz."""
        return _get(f"http://127.0.0.1:{self._health}/healthz")

    def metrics(self) -> dict[str, float]:
        """Every sample, by name with labels."""
        lines = _get(f"http://127.0.0.1:{self._metrics}/metrics").splitlines()
        rows = (line.rpartition(" ") for line in lines if not line.startswith("#"))
        return {name: float(value) for name, _, value in rows}


def _get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5.0) as answer:  # noqa: S310  an address of our own
        return str(answer.read().decode())
