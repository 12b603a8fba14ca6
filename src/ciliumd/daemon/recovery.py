# SPDX-License-Identifier: Apache-2.0
"""
What an agent takes over from the one before it: numbers, and endpoints whose file is lost.

Files know what maps cannot hold, maps survive when a file is lost.  A pod's device names its endpoint
and pod, the maps hold the rest.  What nobody remembers is where the pod's namespace is: the next request
for that pod says so.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from ipaddress import IPv4Address, IPv6Address
from typing import TypeVar

import structlog

from ciliumd import abi
from ciliumd.bpf.policy_maps import CLASSES, split_key
from ciliumd.daemon import stages, state
from ciliumd.model.endpoint import EndpointSpec
from ciliumd.model.identity import (
    CLUSTER_MAX,
    CLUSTER_MIN,
    PART_MAX,
    PART_MIN,
    lost_labels,
    lost_node,
    lost_part,
)
from ciliumd.model.net import mac_str
from ciliumd.net.links import Link, endpoint_owner
from ciliumd.reconcile import restore
from ciliumd.tables.schema import Tables

Rows = Mapping[bytes, bytes]
T = TypeVar("T")

log = structlog.get_logger("recovery")


def readable(file: str, rows: Rows, read: Callable[[bytes, bytes], T]) -> Iterator[T]:
    """Every row of a state file that says something; the others are told and left out."""
    for key, value in rows.items():
        try:
            found = read(key, value)
        except ValueError as error:
            log.warning("recovery.row_ignored", file=file, row=key.decode(errors="replace"), error=str(error))
            continue
        yield found


def restore_numbers(tables: Tables, *, rows: Callable[[str], Rows]) -> None:
    """
    Identities, service and backend ids of an earlier agent, from what *rows* answers for a stage.

    A number the maps use for labels nobody remembers is given to nobody: whoever got it would be taken
    for its owner until the last map is rewritten.  Those of nodes are theirs again once the plan knows whose
    addresses had them.
    """
    for labels, number in readable(stages.IDENTITY_FILE, rows(stages.IDENTITY_FILE), state.identity_of):
        tables.identities.set(labels, number)
    known = set(tables.identities.view().values())
    for number in sorted(_identities_in_use(rows) - known):
        log.warning("recovery.identity_lost", identity=number)
        tables.identities.set(lost_labels(number), number)
    for prefix, number in restore.prefixes(rows(stages.IPCACHE), rows(stages.IPCACHE_LPM)).items():
        tables.prefixes.set(prefix, number)
    for prefix, number in readable(stages.PREFIX_FILE, rows(stages.PREFIX_FILE), state.prefix_of):
        tables.prefixes.set(prefix, number)
    for part, number in readable(stages.PART_FILE, rows(stages.PART_FILE), state.part_of):
        tables.parts.set(part, number)
    for number in sorted(_parts_in_use(rows) - set(tables.parts.view().values())):
        tables.parts.set(lost_part(number), number)
    for number in sorted(set(restore.nodes(rows(stages.IPCACHE)).values())):
        tables.node_identities.set(lost_node(number), number)
    for frontend, number in restore.service_ids(rows(stages.SERVICES)).items():
        tables.service_ids.set(frontend, number)
    for backend, number in restore.backend_ids(rows(stages.BACKENDS)).items():
        tables.backend_ids.set(backend, number)


def _identities_in_use(rows: Callable[[str], Rows]) -> set[int]:
    """Cluster identities packets may carry or policies may know."""
    found = set(restore.identities(rows(stages.IPCACHE)).values())
    found.update(abi.Endpoint.unpack(row).identity for row in rows(stages.FACTS).values())
    for key in rows(stages.POLICY):
        _, which, inner = split_key(key)
        if which == CLASSES:
            found.add(abi.PolicyClassKey.unpack(inner).identity)
    return {number for number in found if CLUSTER_MIN <= number <= CLUSTER_MAX}


def _parts_in_use(rows: Callable[[str], Rows]) -> set[int]:
    """Numbers of parts that rows say pods are judged by."""
    found = {abi.IpcacheEntry.unpack(row).judged for row in rows(stages.IPCACHE).values()}
    for one in map(abi.Endpoint.unpack, rows(stages.FACTS).values()):
        found.update((one.judged_ipv4, one.judged_ipv6))
    return {number for number in found if PART_MIN <= number <= PART_MAX}


def remembered_endpoints(
    links: Iterable[Link], *, slots: Rows, facts: Rows, states: Rows
) -> list[EndpointSpec]:
    """
    The endpoint behind every device of ours whose rows agree with it.

    *slots*, *facts* and *states* are the rows of cilium_ifindex, cilium_endpoints and
    cilium_endpoint_state.
    """
    found = []
    for link in links:
        slot = slots.get(link.ifindex.to_bytes(4, "little"))
        owner = endpoint_owner(link.alias)
        if owner is None or slot is None or slot not in facts or slot not in states:
            continue
        row = abi.Endpoint.unpack(facts[slot])
        generation = int.from_bytes(states[slot], "little") >> 32
        if (row.id, row.ifindex, row.slot_gen) != (owner.endpoint_id, link.ifindex, generation):
            continue
        namespace, _, pod = owner.pod.partition("/")
        found.append(
            EndpointSpec(
                id=row.id,
                slot=int.from_bytes(slot, "little"),
                slot_gen=row.slot_gen,
                namespace=namespace,
                pod=pod,
                container_id="",
                netns="",
                ifname=link.name,
                ifindex=link.ifindex,
                mac=mac_str(row.mac),
                node_mac=mac_str(row.node_mac),
                ipv4=IPv4Address(row.ipv4) if row.ipv4 else None,
                ipv6=IPv6Address(row.ipv6) if any(row.ipv6) else None,
            )
        )
    return found
