# SPDX-License-Identifier: Apache-2.0
"""
P11: the agent with 10,000 services of ten backends each, read from manifests.

Written before it starts, a few hundred objects in a file; pydantic judges every one of them.
"""

import json
import time
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final

from bench.machine import memory_kib, peak_kib, percent_at_rest
from bench.paths import DEFAULT_SIZES
from bench.result import Figure, Goal, Section
from lab import manifests
from lab.node import Node
from lab.waiting import eventually
from lab.world import World

BACKENDS: Final = 10
PER_FILE: Final = 250
FIRST_VIP: Final = IPv4Address("10.96.0.10")
FIRST_BACKEND: Final = IPv4Address("10.200.0.1")
STEADY, PEAK, CPU = Goal(at_most=180), Goal(at_most=220), Goal(at_most=1.0)
START: Final = Goal(at_most=20)
SIZES: Final = {**DEFAULT_SIZES, "bpf-lb-map-max": "262144"}


def slice_of(number: int) -> manifests.Object:
    """The EndpointSlice of service *number*."""
    addresses = [str(FIRST_BACKEND + number * BACKENDS + at) for at in range(BACKENDS)]
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"s{number}-1",
            "namespace": "default",
            "labels": {"kubernetes.io/service-name": f"s{number}"},
        },
        "addressType": "IPv4",
        "ports": [{"name": "tcp-80", "port": 8080, "protocol": "TCP"}],
        "endpoints": [{"addresses": [one], "conditions": {"ready": True}} for one in addresses],
    }


def service(number: int) -> manifests.Object:
    """Service *number*, whose backends are not picked by labels."""
    made = manifests.service(f"s{number}", str(FIRST_VIP + number), {}, ports=[("TCP", 80, 8080)])
    del made["spec"]["selector"]
    return made


def write(directory: Path, services: int) -> None:
    """The manifests of all of them."""
    for first in range(0, services, PER_FILE):
        numbers = range(first, min(first + PER_FILE, services))
        items = [each for number in numbers for each in (service(number), slice_of(number))]
        (directory / f"many-{first:05}.yaml").write_text("\n---\n".join(map(json.dumps, items)) + "\n")


def measure(*, services: int) -> Section:
    """Start with all of them, rest, restart."""
    backends = services * BACKENDS
    section = Section("many services", f"P11  {services} services, {backends} backends", case="P11")
    with World() as world, Node(world, options=SIZES) as node:
        write(node.manifests, services)
        began = time.monotonic()
        node.agent.start()
        _wait(node, services)
        section.add(
            Figure.of(
                "cold: start to all services known and healthy",
                time.monotonic() - began,
                "s",
                note="from manifests",
            )
        )
        for label in ("cold", "restarted"):
            assert node.agent.process is not None
            pid = node.agent.process.pid
            percent = percent_at_rest(pid)
            mib = {field: kib / 1024 for field, kib in memory_kib(pid).items()}
            section.add(
                Figure.of(f"{label}, at rest: PSS", mib["Pss"], "MiB", goal=STEADY),
                Figure.of(f"{label}: peak RSS", peak_kib(pid) / 1024, "MiB", goal=PEAK),
                Figure.of(f"{label}, at rest: CPU", percent, "% of a core", goal=CPU),
            )
            if label == "restarted":
                break
            began = time.monotonic()
            node.agent.restart()
            _wait(node, services)
            section.add(
                Figure.of(
                    "restart to all services known and healthy", time.monotonic() - began, "s", goal=START
                ),
                case="P12",
            )
    return section


def _wait(node: Node, services: int) -> None:
    """Until the agent knows all of them and is healthy: then all has been written once."""

    def written() -> bool:
        return len(node.agent.get("service")) == services and node.agent.healthy()

    eventually(written, f"{services} services are written", seconds=300, every=0.5)
