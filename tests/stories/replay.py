# SPDX-License-Identifier: Apache-2.0
"""
A node without a kernel: objects go into tables, tables into the rows of every map.

Rows are planned as the agent plans them, by the same :class:`~ciliumd.daemon.plan.NodePlan`, and kept
by map as a kernel that does as told would keep them.  Between two steps enough time passes for policy
versions nobody uses to go.

What a pod's wiring would add is said in the story by documents of its own (``apiVersion: stories/v1``):
``Endpoint`` adds one, ``Deleted`` takes an object or an endpoint away.
"""

from collections.abc import Mapping
from ipaddress import IPv4Address, ip_address
from typing import Any

from ciliumd.bpf.policy_maps import CLASSES, RULES, split_key
from ciliumd.daemon.node_facts import NodeFacts
from ciliumd.daemon.plan import NodePlan
from ciliumd.daemon.policy_versions import RETIRE_AFTER
from ciliumd.desired.bindports import bind_rows
from ciliumd.model.endpoint import EndpointSpec
from ciliumd.resources import InvalidResource, parse
from ciliumd.tables import Problem, Tables

NODE = "node-one"
HOST_ADDRESSES = (ip_address("10.0.0.254"),)
STORIES = "stories/v1"
CLUSTER_SCOPED = frozenset({"Namespace", "CiliumCIDRGroup", "CiliumClusterwideNetworkPolicy"})
SOURCES = (
    *("namespaces", "pods", "services", "slices", "policies", "cidr_groups"),
    *("nodes", "remote_endpoints", "cluster_identities", "endpoints"),
)

Maps = dict[str, dict[bytes, bytes]]


class Node:
    """One node's tables and, after :meth:`settle`, the rows of its maps."""

    def __init__(self) -> None:
        self.tables = Tables()
        self.maps: Maps = {}
        self._rows_of: dict[tuple[str, str, str], set[tuple[str, Any]]] = {}
        self._now = 0.0
        self._plan = NodePlan(
            self.tables,
            NodeFacts(NODE, "default", HOST_ADDRESSES),
            reserve_version=lambda _number: None,
            next_version=1,
            clock=lambda: self._now,
        )
        self._policy_rows: dict[bytes, bytes] = {}
        for name in SOURCES:
            getattr(self.tables, name).mark_initialized()

    def apply(self, document: Mapping[str, Any]) -> None:
        """Take in one document of a step."""
        if document.get("apiVersion") == STORIES:
            self._apply_stage_direction(document)
            return
        try:
            resource = parse(document)
        except InvalidResource as error:
            # What was valid before stays in force; the object is reported.
            self.tables.problems.set(error.key, Problem(error.field, error.message))
            return
        self.tables.problems.delete(resource.key)
        rows = resource.rows()
        self._drop(resource.key, keep={(table, key) for table, key, _ in rows})
        for table, key, row in rows:
            getattr(self.tables, table).set(key, row)
        self._rows_of[resource.key] = {(table, key) for table, key, _ in rows}

    def settle(self) -> None:
        """Plan: prefixes, then the rules that name them, and again once what is unused may go."""
        plan = self._plan
        for _ in range(3):
            plan.refresh()
            changes = plan.policy_changes()
            for key in changes.removals:
                self._policy_rows.pop(key, None)
            self._policy_rows.update(changes.updates)
            self._now += RETIRE_AFTER
        self.maps = {
            "cilium_policy_rules_v1": self._policy_map(RULES),
            "cilium_policy_classes_v1": self._policy_map(CLASSES),
            "cilium_ipcache_v1": dict(plan.ipcache_rows.addresses),
            "cilium_ipcache_lpm_v1": dict(plan.ipcache_rows.prefixes),
            "cilium_lb_backends_v1": dict(plan.services.rows.backends),
            "cilium_lb_revnat_v1": dict(plan.services.rows.revnat),
            "cilium_lb_affinity_match_v1": dict(plan.services.rows.matches),
            "cilium_lb_source_range_v1": dict(plan.services.rows.sources),
            "cilium_lb_services_v1": dict(plan.services.rows.services),
            "cilium_endpoints_v1": dict(plan.endpoint_rows.facts),
            "cilium_lxc_v1": dict(plan.endpoint_rows.addresses),
            "cilium_ifindex_v1": dict(plan.endpoint_rows.devices),
            "cilium_lb_bind_v1": bind_rows(plan.services.served),
            "cilium_netns_v1": dict(plan.endpoint_rows.namespaces),
            "cilium_endpoint_state_v1": dict(plan.state_rows),
        }

    def _policy_map(self, wanted: int) -> dict[bytes, bytes]:
        """Rows of one of the two policy maps, as the decoder shows them: version first."""
        rows: dict[bytes, bytes] = {}
        for key, value in self._policy_rows.items():
            version, which, inner = split_key(key)
            if which == wanted:
                rows[version.to_bytes(4, "little") + inner] = value
        return rows

    def _apply_stage_direction(self, document: Mapping[str, Any]) -> None:
        meta = document["metadata"]
        namespace, name = meta.get("namespace", "default"), meta["name"]
        match document["kind"], document.get("spec", {}):
            case "Endpoint", {"id": int(number), "ipv4": str(ipv4), **rest} if not rest:
                spec = wired(number, namespace, name, ip_address(ipv4))
                self.tables.endpoints.set(number, spec)
            case "Deleted", {"kind": "Endpoint", **rest} if not rest:
                for number in self.tables.endpoints_of_pod.get((namespace, name)):
                    self.tables.endpoints.delete(number)
            case "Deleted", {"kind": str(kind), **rest} if not rest:
                key = (kind, "" if kind in CLUSTER_SCOPED else namespace, name)
                self.tables.problems.delete(key)
                self._drop(key, keep=set())
            case kind, spec:
                raise ValueError(f"no such stage direction: {kind} {spec}")

    def _drop(self, key: tuple[str, str, str], *, keep: set[tuple[str, Any]]) -> None:
        for table, row_key in self._rows_of.pop(key, set()) - keep:
            getattr(self.tables, table).delete(row_key)


def wired(number: int, namespace: str, pod: str, ipv4: IPv4Address | Any) -> EndpointSpec:
    """The endpoint a pod would have been given: everything follows from its number."""
    return EndpointSpec(
        id=number,
        slot=number,
        slot_gen=number + 100,
        namespace=namespace,
        pod=pod,
        container_id="",
        netns=f"/run/netns/{pod}",
        ifname=f"lxc{number:04x}",
        ifindex=number + 1000,
        mac=f"02:00:00:00:00:{number:02x}",
        node_mac=f"02:00:00:00:01:{number:02x}",
        ipv4=ipv4,
        ipv6=None,
    )
