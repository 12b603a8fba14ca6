# SPDX-License-Identifier: Apache-2.0
"""
Node (v1): what Kubernetes knows of a node before any agent runs on it.

It is no row: what nodes need to know of each other is in CiliumNode, which each agent derives from its
own Node.  So nobody but that agent follows a Node, whose status its kubelet writes every few seconds.
"""

from dataclasses import dataclass

from pydantic import Field

from ciliumd.model.net import Addr, Prefix
from ciliumd.resources.errors import FieldError
from ciliumd.resources.fields import CIDR, Lenient, ObjectMeta, Row, parse_address

_USED_TYPES = frozenset({"InternalIP", "ExternalIP"})


@dataclass(frozen=True, slots=True)
class KubernetesNode:
    """
    A Node: *addresses* are pairs of type (``InternalIP``, ``ExternalIP``) and address in its order.

    *uid* tells two nodes that had the same name one after the other apart.
    """

    name: str
    uid: str
    labels: dict[str, str]
    addresses: tuple[tuple[str, Addr], ...]
    pod_cidrs: tuple[Prefix, ...]


class NodeSpec(Lenient):
    """What we read of a node's spec; the second field holds the CIDRs of both families."""

    pod_cidr: CIDR | None = Field(None, alias="podCIDR")
    pod_cidrs: list[CIDR] | None = Field(None, alias="podCIDRs")


class NodeAddress(Lenient):
    """One address: InternalIP, ExternalIP, Hostname, InternalDNS or ExternalDNS."""

    type: str
    address: str


class NodeStatus(Lenient):
    """What we read of a node's status."""

    addresses: list[NodeAddress] | None = None


class Node(Lenient):
    """A node as its kubelet and the cloud's controller describe it."""

    metadata: ObjectMeta
    spec: NodeSpec = NodeSpec.model_validate({})
    status: NodeStatus | None = None

    def rows(self) -> list[Row]:
        """None; that it can be read is checked."""
        self.to_model()
        return []

    def to_model(self) -> KubernetesNode:
        """What an agent needs of its own Node."""
        cidrs = self.spec.pod_cidrs or ([self.spec.pod_cidr] if self.spec.pod_cidr else [])
        return KubernetesNode(
            name=self.metadata.name,
            uid=self.metadata.uid,
            labels=dict(self.metadata.labels or {}),
            addresses=self._addresses(),
            pod_cidrs=tuple(cidrs),
        )

    def _addresses(self) -> tuple[tuple[str, Addr], ...]:
        found = []
        for i, one in enumerate((self.status and self.status.addresses) or ()):
            if one.type in _USED_TYPES:
                try:
                    found.append((one.type, parse_address(one.address)))
                except ValueError as error:
                    raise FieldError(f"status.addresses[{i}].address", str(error)) from None
        return tuple(found)
