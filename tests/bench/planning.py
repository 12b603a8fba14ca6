# SPDX-License-Identifier: Apache-2.0
"""P9: processor time of the plan of services, without API server and kernel: of all, one more, one less."""

import time
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address
from typing import Final

from bench import many
from bench.result import Figure, Section
from bench.samples import percentile
from ciliumd.daemon.service_plan import ServicePlan, Surroundings
from ciliumd.desired.lbbook import PARTS
from ciliumd.model.objects import EndpointSliceRow
from ciliumd.model.service import Backend, Frontend, Service, ServiceKind, ServicePort
from ciliumd.reconcile.delta import DeltaTracker
from ciliumd.tables import Tables

REPEATS: Final = 50
PORT, TARGET = 80, 8080
NAMESPACE: Final = "default"


class Planned:
    """Tables, a plan of them, and whoever keeps its rows."""

    def __init__(self) -> None:
        self.tables = Tables()
        self.plan = ServicePlan(self.tables, external_cluster_ip=False)
        self.kept = {part: DeltaTracker[bytes, bytes]() for part in PARTS}
        self.plan.restore_slots(self.kept["slots"].desired.get)

    def serve(self, number: int) -> None:
        """A service of ten backends."""
        front = Frontend(many.FIRST_VIP + number, PORT, "TCP", ServiceKind.CLUSTER_IP)
        port = ServicePort("", "TCP", PORT, TARGET)
        made = Service(NAMESPACE, f"s{number}", "ClusterIP", (front,), (port,))
        first = int(many.FIRST_BACKEND) + number * many.BACKENDS
        backends = tuple(
            ("", Backend(IPv4Address(first + at), TARGET, "TCP", "far")) for at in range(many.BACKENDS)
        )
        self.tables.services.set(made.key, made)
        self.list(number, EndpointSliceRow(NAMESPACE, f"s{number}-1", made.name, backends))

    def list(self, number: int, row: EndpointSliceRow) -> None:
        """The slice of a service."""
        self.tables.slices.set((NAMESPACE, f"s{number}-1"), row)

    def lose_one(self, number: int) -> None:
        """A service's first backend goes."""
        row = self.tables.slices.get((NAMESPACE, f"s{number}-1"))
        assert row is not None
        self.list(number, replace(row, backends=row.backends[1:]))

    def refresh(self) -> int:
        """Plan; how many entries of maps are others now."""
        self.plan.refresh(Surroundings())
        entries = 0
        for part, tracker in self.kept.items():
            changes = self.plan.changes(part)
            tracker.set_desired(changes.updates, changes.removals)
            entries += len(tracker.pending_updates) + len(tracker.pending_deletions)
            tracker.record_updated({key: tracker.desired[key] for key in tuple(tracker.pending_updates)})
            tracker.record_deleted(tuple(tracker.pending_deletions))
        return entries


def timed(work: Callable[[], int]) -> tuple[float, int]:
    """Milliseconds of processor time, and what was answered."""
    began = time.process_time()
    answer = work()
    return 1000 * (time.process_time() - began), answer


def measure(*, services: int) -> Section:
    """Everything at once, then one change after the other."""
    title = f"P9  planning {services} services and {services * many.BACKENDS} backends"
    section = Section("planning", title, case="P9")
    planned = Planned()
    for number in range(services):
        planned.serve(number)
    spent, _ = timed(planned.refresh)
    section.add(Figure.of("everything: processor time", spent / 1000, "s"))
    for what, change, first in (
        ("one new service", planned.serve, services),
        ("one endpoint less", planned.lose_one, 0),
    ):
        taken = []
        for number in range(first, first + REPEATS):
            change(number)
            taken.append(timed(planned.refresh))
        times, entries = zip(*taken, strict=True)
        section.add(
            Figure.of(f"{what}: processor time, p50 of {REPEATS}", percentile(list(times), 0.5), "ms"),
            Figure.of(f"{what}: entries of maps", max(entries)),
        )
    return section
