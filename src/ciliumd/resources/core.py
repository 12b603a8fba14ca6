# SPDX-License-Identifier: Apache-2.0
"""
Namespace and Pod (v1): where labels, service accounts and named ports come from.

Most of a pod is no concern of ours and is not read.
"""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, PlainValidator

from ciliumd.model.net import Addr
from ciliumd.model.objects import HostPort, NamespaceRow, PodRow
from ciliumd.resources.fields import Lenient, ObjectMeta, PortName, PortNumber, Row, parse_address

NAMESPACE_NAME_LABEL = "kubernetes.io/metadata.name"
_FINISHED = frozenset({"Succeeded", "Failed"})


def _address_or_none(value: object) -> Addr | None:
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not a string")  # noqa: TRY004 - pydantic reports ValueError
    return parse_address(value)


MaybeAddress = Annotated[Addr | None, PlainValidator(_address_or_none)]
"""An address others fill in later: missing, or empty, until then."""


class Namespace(Lenient):
    """A namespace; its labels select it in policies."""

    metadata: ObjectMeta

    def rows(self) -> list[Row]:
        """One row of ``namespaces``.  The name is a label too, as the API server sees to it."""
        name = self.metadata.name
        labels = {**(self.metadata.labels or {}), NAMESPACE_NAME_LABEL: name}
        return [("namespaces", name, NamespaceRow(name, labels))]


class ContainerPort(Lenient):
    """A port a container says it listens on."""

    name: PortName | None = None
    container_port: PortNumber
    protocol: Literal["TCP", "UDP", "SCTP"] = "TCP"
    host_port: int = Field(0, ge=0, le=65535)
    host_ip: MaybeAddress = Field(None, alias="hostIP")


class Container(Lenient):
    """A container, for its ports."""

    ports: list[ContainerPort] | None = None
    restart_policy: str | None = None


class PodSpec(Lenient):
    """What we read of a pod's spec."""

    containers: list[Container] | None = None
    init_containers: list[Container] | None = None
    service_account_name: str | None = None
    host_network: bool | None = None
    node_name: str | None = None


class PodCondition(Lenient):
    """One of a pod's conditions."""

    type: str
    status: str


class PodStatus(Lenient):
    """What we read of a pod's status; absent in manifests."""

    phase: str | None = None
    pod_ip: MaybeAddress = Field(None, alias="podIP")
    conditions: list[PodCondition] | None = None


class Pod(Lenient):
    """A pod: labels and service account make its identity, named ports resolve in rules and services."""

    metadata: ObjectMeta
    spec: PodSpec = PodSpec()
    status: PodStatus | None = None

    def rows(self) -> list[Row]:
        """One row of ``pods``; none once the pod has run to its end, since nothing answers any more."""
        status = self.status or PodStatus.model_validate({})
        if status.phase in _FINISHED:
            return []
        row = PodRow(
            namespace=self.metadata.scope,
            name=self.metadata.name,
            labels=dict(self.metadata.labels or {}),
            service_account=self.spec.service_account_name or "default",
            ip=status.pod_ip,
            host_network=bool(self.spec.host_network),
            node=self.spec.node_name or None,
            named_ports=self._named_ports(),
            ready=all(c.status == "True" for c in status.conditions or () if c.type == "Ready"),
            terminating=self.metadata.deletion_timestamp is not None,
            host_ports=self._host_ports(),
        )
        return [("pods", (row.namespace, row.name), row)]

    def _ports(self) -> Iterator[ContainerPort]:
        # Init containers that keep running are sidecars.
        sidecars = [c for c in self.spec.init_containers or () if c.restart_policy == "Always"]
        for container in [*(self.spec.containers or ()), *sidecars]:
            yield from container.ports or ()

    def _named_ports(self) -> dict[str, tuple[str, int]]:
        ports: dict[str, tuple[str, int]] = {}
        for port in self._ports():
            if port.name:
                # Of equal names the first container's counts.
                ports.setdefault(port.name, (port.protocol, port.container_port))
        return ports

    def _host_ports(self) -> tuple[HostPort, ...]:
        if self.spec.host_network:
            # The container listens on the node itself.
            return ()
        return tuple(
            HostPort(_unless_any(port.host_ip), port.host_port, port.protocol, port.container_port)
            for port in self._ports()
            if port.host_port
        )


def _unless_any(addr: Addr | None) -> Addr | None:
    """The address; None for 0.0.0.0 and ::, which mean every one."""
    return None if addr is None or addr.is_unspecified else addr
