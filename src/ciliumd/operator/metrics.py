# SPDX-License-Identifier: Apache-2.0
"""What the operator counts: families named as Cilium's operator names them."""

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import generate_latest

from ciliumd.metrics.tally import Level, Tally
from ciliumd.operator.podcidrs import Plan


class Metrics:
    """Every family of the operator; one instance, handed to the parts that count."""

    def __init__(self) -> None:
        self.unmanaged_pods = Level(
            "cilium_operator_unmanaged_pods", "Pods that run without an endpoint and are to have one", ()
        )
        self.ipam_nodes = Level(
            "cilium_operator_ipam_nodes", "CiliumNodes by the state of their pod CIDRs", ("category",)
        )
        self.ipam_blocks = Level(
            "cilium_operator_ipam_pod_cidrs", "Blocks of the cluster's pool by state", ("state",)
        )
        self.identity_gc_entries = Level(
            "cilium_operator_identity_gc_entries", "Identities seen by the last collection", ("status",)
        )
        self.identity_gc_runs = Tally(
            "cilium_operator_identity_gc_runs_total", "Collections of identities", ("outcome",)
        )
        self.identity_gc_latency = Level(
            "cilium_operator_identity_gc_latency_seconds", "Duration of the last collection", ("outcome",)
        )
        self.endpoint_gc_objects = Tally(
            "cilium_operator_endpoint_gc_objects_total", "CiliumEndpoints collected", ("outcome",)
        )
        self.leader = Level("cilium_operator_leader", "Whether this operator leads", ())
        self.unmanaged_pods.set(to=0)
        self.leader.set(to=0)
        # Rates and alerts need the zero before the first event.
        for outcome in ("success", "fail"):
            self.identity_gc_runs.declare(outcome)
        for outcome in ("success", "failed"):
            self.endpoint_gc_objects.declare(outcome)
        self._registry = CollectorRegistry()
        for family in vars(self).values():
            if isinstance(family, Tally):
                self._registry.register(family)
        ProcessCollector(namespace="cilium_operator", registry=self._registry)

    def pod_cidrs(self, plan: Plan) -> None:
        """Note how the CiliumNodes and the pool are."""
        failed = sum(1 for one in plan.assignments if one.error)
        self.ipam_nodes.set("total", to=len(plan.assignments))
        self.ipam_nodes.set("in-deficit", to=failed)
        if plan.usage is not None:
            self.ipam_blocks.set("used", to=plan.usage.used)
            self.ipam_blocks.set("free", to=plan.usage.free)
            self.ipam_blocks.set("refused", to=plan.usage.refused)

    def exposition(self) -> bytes:
        """Prometheus text."""
        return generate_latest(self._registry)
