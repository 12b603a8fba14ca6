# SPDX-License-Identifier: Apache-2.0
"""
CiliumNode (cilium.io/v2): a node as its agent describes it to the agents of the other nodes.

The operator writes its pod CIDRs (``spec.ipam.podCIDRs``), the agent everything else.  Fields of parts
that do not exist here (encryption, cloud interfaces) are not read.
"""

from pydantic import Field

from ciliumd.model.net import Addr
from ciliumd.model.objects import CILIUM_INTERNAL_IP, EXTERNAL_IP, INTERNAL_IP, NodeRow
from ciliumd.resources.core import MaybeAddress
from ciliumd.resources.errors import FieldError
from ciliumd.resources.fields import CIDR, Lenient, ObjectMeta, Row, parse_address

_USED_TYPES = frozenset({INTERNAL_IP, EXTERNAL_IP, CILIUM_INTERNAL_IP})


class NodeAddress(Lenient):
    """An address of the node; of a type we do not know it is not used."""

    type: str | None = None
    ip: str | None = None


class NodeIpam(Lenient):
    """Where its pods get their addresses from."""

    pod_cidrs: list[CIDR] | None = Field(None, alias="podCIDRs")


class HealthAddresses(Lenient):
    """Addresses of its health endpoint; empty when it has none."""

    ipv4: MaybeAddress = None
    ipv6: MaybeAddress = None


class CiliumNodeSpec(Lenient):
    """What we read of the spec."""

    addresses: list[NodeAddress] | None = None
    ipam: NodeIpam | None = None
    health: HealthAddresses | None = None


class CiliumNode(Lenient):
    """A node of the cluster."""

    metadata: ObjectMeta
    spec: CiliumNodeSpec = CiliumNodeSpec()

    def rows(self) -> list[Row]:
        """One row of ``nodes``, also while the node has no pod CIDR yet."""
        spec, name = self.spec, self.metadata.name
        health = (spec.health.ipv4, spec.health.ipv6) if spec.health else ()
        cidrs = (spec.ipam and spec.ipam.pod_cidrs) or ()
        row = NodeRow(
            name=name,
            addresses=self._addresses(),
            pod_cidrs=tuple(cidrs),
            health=tuple(addr for addr in health if addr is not None),
            labels=dict(self.metadata.labels or {}),
            created=self.metadata.creation_timestamp or "",
        )
        return [("nodes", name, row)]

    def _addresses(self) -> tuple[tuple[str, Addr], ...]:
        found = []
        for i, one in enumerate(self.spec.addresses or ()):
            if one.type in _USED_TYPES:
                try:
                    found.append((one.type, parse_address(one.ip or "")))
                except ValueError as error:
                    raise FieldError(f"spec.addresses[{i}].ip", str(error)) from None
        return tuple(found)
