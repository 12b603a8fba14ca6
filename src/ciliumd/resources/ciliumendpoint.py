# SPDX-License-Identifier: Apache-2.0
"""
CiliumEndpoint (cilium.io/v2): a pod as the agent of its node published it, under the pod's own name.

What another node claims is believed only as far as it may go: an endpoint is a pod, so it cannot have the
identity of a node, the API server or the world, nor an address no pod can have.
"""

from typing import Annotated, Literal

from pydantic import Field

from ciliumd.model.identity import CLUSTER_MAX, CLUSTER_MIN, Reserved
from ciliumd.model.net import Addr
from ciliumd.model.objects import RemoteEndpointRow
from ciliumd.resources.core import MaybeAddress
from ciliumd.resources.errors import FieldError
from ciliumd.resources.fields import Lenient, ObjectMeta, PortNumber, Row

_RESERVED_ALLOWED = frozenset({int(Reserved.HEALTH), int(Reserved.INIT)})


class EndpointIdentity(Lenient):
    """Its security identity; the labels are those of the CiliumIdentity of that number."""

    id: Annotated[int, Field(ge=0)] | None = None


class AddressPair(Lenient):
    """Its addresses of both families."""

    ipv4: MaybeAddress = None
    ipv6: MaybeAddress = None


class EndpointNetworking(Lenient):
    """Its addresses, and one of its node."""

    addressing: list[AddressPair] | None = None
    node: MaybeAddress = None


class NamedPort(Lenient):
    """A container port with a name."""

    name: str
    port: PortNumber
    protocol: Literal["TCP", "UDP", "SCTP"] = "TCP"


class EndpointStatus(Lenient):
    """What we read of its status."""

    identity: EndpointIdentity | None = None
    networking: EndpointNetworking | None = None
    named_ports: list[NamedPort] | None = Field(None, alias="named-ports")


class CiliumEndpoint(Lenient):
    """A pod of the cluster."""

    metadata: ObjectMeta
    status: EndpointStatus | None = None

    def rows(self) -> list[Row]:
        """One row of ``remote_endpoints``; none as long as it has no identity or no address."""
        status = self.status or EndpointStatus.model_validate({})
        identity = (status.identity and status.identity.id) or 0
        addresses = self._addresses(status)
        if not identity or not addresses:
            return []
        if not (CLUSTER_MIN <= identity <= CLUSTER_MAX or identity in _RESERVED_ALLOWED):
            message = f"must be between {CLUSTER_MIN} and {CLUSTER_MAX}, not {identity}"
            raise FieldError("status.identity.id", message)
        row = RemoteEndpointRow(
            namespace=self.metadata.scope,
            name=self.metadata.name,
            identity=identity,
            addresses=addresses,
            node=status.networking.node if status.networking else None,
            named_ports={port.name: (port.protocol, port.port) for port in status.named_ports or ()},
            created=self.metadata.creation_timestamp or "",
        )
        return [("remote_endpoints", row.key, row)]

    @staticmethod
    def _addresses(status: EndpointStatus) -> tuple[Addr, ...]:
        found: list[Addr] = []
        for i, pair in enumerate((status.networking and status.networking.addressing) or ()):
            for family, addr in (("ipv4", pair.ipv4), ("ipv6", pair.ipv6)):
                if addr is None:
                    continue
                if addr.is_loopback or addr.is_multicast or addr.is_unspecified:
                    where = f"status.networking.addressing[{i}].{family}"
                    raise FieldError(where, f"{addr} is no address a pod can have")
                found.append(addr)
        return tuple(found)
