# SPDX-License-Identifier: Apache-2.0
"""
Before anything else an agent must know its pod CIDR: wait for it, or remember it.

What was known last is in a file, so an agent that restarts while the API server is away serves its pods as
before.  An agent that never knew must wait.
"""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Final

import structlog
from pydantic import ValidationError

from ciliumd.kubernetes.client import Api
from ciliumd.kubernetes.errors import ApiError, NotFound
from ciliumd.kubernetes.kinds import NODE
from ciliumd.kubernetes.node import Mode, NodePublisher, pod_cidrs_of
from ciliumd.kubernetes.pace import Backoff
from ciliumd.model.net import Addr, Prefix
from ciliumd.resources.errors import FieldError
from ciliumd.resources.fields import parse_prefix
from ciliumd.resources.node import KubernetesNode, Node
from ciliumd.statefile import StateFileDamaged, read_rows, write_rows

# Seconds the API server is given before an agent that remembers goes on without it.
PATIENCE: Final = 3.0

log = structlog.get_logger("k8s-node")


@dataclass(frozen=True, slots=True)
class OwnNode:
    """What the agent starts with; *addresses* are pairs of type and address."""

    name: str
    pod_cidrs: tuple[Prefix, ...]
    addresses: tuple[tuple[str, Addr], ...]


def remember(path: Path, node: OwnNode) -> None:
    """Write *node* to the file.  Raises OSError."""
    rows = {
        "name": node.name,
        "pod-cidrs": " ".join(map(str, node.pod_cidrs)),
        "addresses": " ".join(f"{kind}={addr}" for kind, addr in node.addresses),
    }
    write_rows(path, rows)


def recall(path: Path, name: str) -> OwnNode | None:
    """What the file says of the node *name*; None if nothing in it can be trusted."""
    try:
        rows = read_rows(path)
        pairs = (pair.partition("=") for pair in rows["addresses"].split())
        node = OwnNode(
            rows["name"],
            tuple(ip_network(text) for text in rows["pod-cidrs"].split()),
            tuple((kind, ip_address(text)) for kind, _, text in pairs),
        )
    except FileNotFoundError:
        return None
    except (OSError, StateFileDamaged, KeyError, ValueError) as error:
        log.warning("node.file_ignored", path=str(path), error=str(error))
        return None
    if node.name != name:
        log.warning("node.file_ignored", path=str(path), error=f"is about node {node.name}, not {name}")
        return None
    return node if node.pod_cidrs else None


async def own_node(
    api: Api,
    publisher: NodePublisher,
    *,
    name: str,
    mode: Mode,
    memory: Path,
    waiting: Callable[[str], None],
    ipv6: bool = False,
    patience: float = PATIENCE,
) -> OwnNode:
    """
    The node's pod CIDRs and addresses: those the API server tells, or after *patience* those remembered.

    Publishes the CiliumNode, for the operator gives pod CIDRs to those.  *waiting* is told for what.  With
    *ipv6* one of IPv6 must be among them.
    """
    remembered = recall(memory, name)
    if remembered is not None and ipv6 and not has_ipv6(remembered.pod_cidrs):
        remembered = None
    limit = patience if remembered else None
    try:
        async with asyncio.timeout(limit):
            node = await _told(api, publisher, name=name, mode=mode, waiting=waiting, ipv6=ipv6)
    except TimeoutError:
        if remembered is None:
            raise
        log.warning("node.remembered", pod_cidrs=" ".join(map(str, remembered.pod_cidrs)))
        return remembered
    if remembered is not None and remembered.pod_cidrs != node.pod_cidrs:
        log.warning(
            "node.pod_cidr_changed",
            before=" ".join(map(str, remembered.pod_cidrs)),
            now=" ".join(map(str, node.pod_cidrs)),
        )
    if node != remembered:
        remember(memory, node)
    return node


async def _told(
    api: Api,
    publisher: NodePublisher,
    *,
    name: str,
    mode: Mode,
    waiting: Callable[[str], None],
    ipv6: bool,
) -> OwnNode:
    said = ""
    backoff = iter(Backoff(first=0.2, last=2.0))
    while True:
        try:
            node = _read(await api.get(NODE, name))
            publisher.node_changed(node)
            cilium_node = await publisher.ensure(node)
            if mode == "kubernetes":
                cidrs, problem = node.pod_cidrs, f"Node {name} has no spec.podCIDRs yet"
            else:
                cidrs = tuple(parse_prefix(text) for text in pod_cidrs_of(cilium_node))
                problem = f"CiliumNode {name} has no spec.ipam.podCIDRs yet: the operator gives them"
            if cidrs and ipv6 and not has_ipv6(cidrs):
                problem = f"node {name} has no IPv6 pod CIDR yet, only {', '.join(map(str, cidrs))}"
            elif cidrs:
                return OwnNode(name, cidrs, node.addresses)
        except NotFound as error:
            problem = f"the API server does not know {error.resource}"
        except (ApiError, FieldError, ValidationError, ValueError) as error:
            problem = str(error)
        waiting(problem)
        if problem != said:
            said = problem
            log.info("node.waiting", reason=problem)
        await asyncio.sleep(next(backoff))


def has_ipv6(cidrs: Iterable[Prefix]) -> bool:
    """Whether one of them is of IPv6."""
    return any(cidr.version == 6 for cidr in cidrs)


def _read(document: dict[str, object]) -> KubernetesNode:
    return Node.model_validate(document).to_model()
