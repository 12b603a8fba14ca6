# SPDX-License-Identifier: Apache-2.0
"""
A node without a kernel: objects go into tables, tables into the rows of every map.

Steps are done as the agent does them, with its own functions: parse, write rows, hand out ids, compute.
What a pod's wiring would add is said in the story by documents of its own (``apiVersion: stories/v1``):
``Endpoint`` adds one, ``Deleted`` takes an object or an endpoint away.
"""

from collections.abc import Mapping
from ipaddress import IPv4Address, ip_address
from typing import Any

from ciliumd.desired.endpoints import endpoint_rows
from ciliumd.desired.identities import (
    allocate_identities,
    allocate_prefixes,
    endpoint_identities,
    endpoint_labels,
    known_identities,
    named_ports_by_identity,
    named_ports_of_pod,
    wanted_identities,
)
from ciliumd.desired.ipcache import ipcache_rows
from ciliumd.desired.lbrows import lb_rows
from ciliumd.desired.policy import (
    MapState,
    cidrs,
    packed_classes,
    packed_rules,
    plan_versions,
    resolve,
    select,
)
from ciliumd.desired.services import (
    ServedFrontend,
    allocate_backend_ids,
    allocate_service_ids,
    served_frontends,
)
from ciliumd.desired.slices import derived_slices
from ciliumd.model.endpoint import EndpointSpec
from ciliumd.resources import InvalidResource, parse
from ciliumd.tables import Problem, Tables

NODE = "node-one"
HOST_ADDRESSES = (ip_address("10.0.0.254"),)
STORIES = "stories/v1"

Maps = dict[str, dict[bytes, bytes]]


class Node:
    """One node's tables and, after :meth:`settle`, the rows of its maps."""

    def __init__(self) -> None:
        self.tables = Tables()
        self.maps: Maps = {}
        self._rows_of: dict[tuple[str, str, str], set[tuple[str, Any]]] = {}
        self._told: set[tuple[str, str, str]] = set()
        self._versions: dict[int, MapState] = {}
        self._next_version = 1

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
        """Hand out the ids that are missing and compute the rows of every map."""
        tables = self.tables
        labels = {
            number: endpoint_labels(spec, tables.pods.view(), tables.namespaces.view())
            for number, spec in tables.endpoints.items()
        }
        new_identities = allocate_identities(tables.identities.view(), wanted_identities(labels.values()))
        new_prefixes = allocate_prefixes(tables.prefixes.view(), cidrs(tables.policies.values()))
        _take(tables.identities, new_identities.assigned)
        _take(tables.prefixes, new_prefixes.assigned)
        served = self._served()
        _take(tables.service_ids, allocate_service_ids(tables.service_ids.view(), served).assigned)
        _take(tables.backend_ids, allocate_backend_ids(tables.backend_ids.view(), served).assigned)

        endpoints = sorted(tables.endpoints.values(), key=lambda spec: spec.id)
        identities = endpoint_identities(labels, tables.identities.view())
        known = known_identities(tables.identities.view(), tables.prefixes.view())
        named = named_ports_by_identity(endpoints, tables.pods.view(), identities)
        policies = tables.policies.values()
        wanted = {
            spec.id: resolve(
                select(
                    policies,
                    labels[spec.id],
                    named_ports=named_ports_of_pod(tables.pods.get(spec.pod_key)),
                ),
                known,
                named_ports=named,
            )
            for spec in endpoints
        }
        plan = plan_versions(wanted, self._versions, next_version=self._next_version)
        self._versions, self._next_version = dict(plan.states), plan.next_version

        rows = endpoint_rows(endpoints, identities, plan.assigned, host_addresses=HOST_ADDRESSES)
        cache = ipcache_rows(
            endpoints, identities, host_addresses=HOST_ADDRESSES, prefixes=tables.prefixes.view()
        )
        lb = lb_rows(served, tables.service_ids.view(), tables.backend_ids.view())
        self.maps = {
            "cilium_policy_rules_v1": _versioned(self._versions, packed_rules),
            "cilium_policy_classes_v1": _versioned(self._versions, packed_classes),
            "cilium_ipcache_v1": cache.addresses,
            "cilium_ipcache_lpm_v1": cache.prefixes,
            "cilium_lb_backends_v1": lb.backends,
            "cilium_lb_revnat_v1": lb.revnat,
            "cilium_lb_services_v1": lb.services,
            "cilium_endpoints_v1": rows.facts,
            "cilium_lxc_v1": rows.addresses,
            "cilium_ifindex_v1": rows.devices,
            "cilium_endpoint_state_v1": rows.states,
        }

    def _served(self) -> list[ServedFrontend]:
        tables = self.tables
        services, slices = tables.services.values(), tables.slices.values()
        derived = derived_slices(services, slices, tables.pods.view(), tables.endpoints.values(), node=NODE)
        served, problems = served_frontends(services, [*slices, *derived.values()], node=NODE)
        told = {
            ("Service", *problem.service): Problem("spec.clusterIP", problem.message) for problem in problems
        }
        for key in self._told - told.keys():
            tables.problems.delete(key)
        _take(tables.problems, told)
        self._told = set(told)
        return served

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
                key = (kind, "" if kind == "Namespace" else namespace, name)
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


def _take(table: Any, rows: Mapping[Any, Any]) -> None:
    for key, row in rows.items():
        table.set(key, row)


def _versioned(versions: Mapping[int, MapState], packed: Any) -> dict[bytes, bytes]:
    return {
        version.to_bytes(4, "little") + key: value
        for version, state in versions.items()
        for key, value in packed(state).items()
    }
