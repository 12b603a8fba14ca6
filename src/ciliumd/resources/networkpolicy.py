# SPDX-License-Identifier: Apache-2.0
"""
NetworkPolicy (networking.k8s.io/v1), the whole kind.

Says what a valid one means; who wins among policies is decided in ``desired.policy``.
"""

from typing import Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from ciliumd.model.policy import (
    BlockReference,
    Direction,
    Peer,
    PeerCIDR,
    PeerSelector,
    Policy,
    PortRule,
    Rule,
    all_of,
)
from ciliumd.resources.fields import (
    CIDR,
    Exact,
    ObjectMeta,
    PortNumber,
    PortNumberOrName,
    Row,
    check_excepts,
)
from ciliumd.resources.selectors import NamespaceSelector, PodSelector, in_namespace

KIND = "NetworkPolicy"


class IPBlock(Exact):
    """A prefix without some of its parts: what is outside the cluster there, and pods, but no nodes."""

    cidr: CIDR
    excepts: list[CIDR] | None = Field(None, alias="except")

    @field_validator("excepts")
    @classmethod
    def _are_inside(cls, excepts: list[CIDR] | None, info: ValidationInfo) -> list[CIDR] | None:
        if "cidr" in info.data:
            check_excepts(info.data["cidr"], excepts or [])
        return excepts


class NetworkPolicyPeer(Exact):
    """Pods by labels, pods by their namespace's labels, pods by both, or addresses."""

    pod_selector: PodSelector | None = None
    namespace_selector: NamespaceSelector | None = None
    ip_block: IPBlock | None = None

    @model_validator(mode="after")
    def _names_one_kind(self) -> Self:
        selects = self.pod_selector is not None or self.namespace_selector is not None
        if self.ip_block is not None and selects:
            raise ValueError("ipBlock cannot be combined with selectors")
        if self.ip_block is None and not selects:
            raise ValueError("must have podSelector, namespaceSelector or ipBlock")
        return self

    def to_model(self, namespace: str) -> Peer:
        """The peer it means in a policy of *namespace*."""
        if self.ip_block is not None:
            return PeerCIDR(self.ip_block.cidr, tuple(self.ip_block.excepts or ()))
        pods = (self.pod_selector or PodSelector()).to_selector()
        if self.namespace_selector is None:
            return PeerSelector(in_namespace(pods, namespace))
        return PeerSelector(all_of((self.namespace_selector.to_selector(), pods)))


class NetworkPolicyPort(Exact):
    """A port, a range, a named port, or every port of a protocol."""

    port: PortNumberOrName | None = None
    end_port: PortNumber | None = None
    protocol: Literal["TCP", "UDP", "SCTP"] | None = None

    @field_validator("end_port")
    @classmethod
    def _ends_a_range(cls, end_port: int | None, info: ValidationInfo) -> int | None:
        port = info.data.get("port")
        if end_port is None or "port" not in info.data:
            return end_port
        if not isinstance(port, int):
            raise ValueError("needs a numeric port")  # noqa: TRY004 - pydantic reports ValueError
        if end_port < port:
            raise ValueError(f"{end_port} is below port {port}")
        return end_port

    def to_model(self) -> PortRule:
        """The ports it means; without a protocol TCP."""
        protocol = self.protocol or "TCP"
        if isinstance(self.port, str):
            return PortRule(protocol, name=self.port)
        return PortRule(protocol, self.port or 0, self.end_port or 0)


class _Rule(Exact):
    """Peers and ports of either direction; without peers everybody, without ports all of them."""

    peers: list[NetworkPolicyPeer] | None = None
    ports: list[NetworkPolicyPort] | None = None

    def to_model(self, direction: Direction, namespace: str, origin: str) -> Rule:
        """The rule it means in a policy of *namespace*."""
        peers = tuple(peer.to_model(namespace) for peer in self.peers) if self.peers else None
        return Rule(
            direction=direction,
            deny=False,
            peers=peers,
            ports=tuple(port.to_model() for port in self.ports) if self.ports else None,
            origin=origin,
            refers=tuple(BlockReference(peer) for peer in peers or () if isinstance(peer, PeerCIDR)),
        )


class IngressRule(_Rule):
    """Who may come in on which ports."""

    peers: list[NetworkPolicyPeer] | None = Field(None, alias="from")


class EgressRule(_Rule):
    """Where to go on which ports."""

    peers: list[NetworkPolicyPeer] | None = Field(None, alias="to")


class NetworkPolicySpec(Exact):
    """The policy itself."""

    pod_selector: PodSelector | None = None
    policy_types: list[Literal["Ingress", "Egress"]] | None = None
    ingress: list[IngressRule] | None = None
    egress: list[EgressRule] | None = None

    def directions(self) -> frozenset[Direction]:
        """The directions it isolates: as listed, else ingress, and egress if it has egress rules."""
        if self.policy_types:
            return frozenset(Direction[name.upper()] for name in self.policy_types)
        return frozenset({Direction.INGRESS} | ({Direction.EGRESS} if self.egress else set()))


class NetworkPolicy(Exact):
    """A NetworkPolicy."""

    api_version: str
    kind: str
    metadata: ObjectMeta
    spec: NetworkPolicySpec
    status: dict[str, object] | None = None

    def rows(self) -> list[Row]:
        """One row of ``policies``."""
        namespace, name = self.metadata.scope, self.metadata.name
        origin = f"knp:{namespace}/{name}"
        directions = self.spec.directions()
        subject = (self.spec.pod_selector or PodSelector()).to_selector()
        policy = Policy(
            kind=KIND,
            namespace=namespace,
            name=name,
            uid=self.metadata.uid,
            subject=in_namespace(subject, namespace),
            rules=tuple(rule for rule in self._rules(namespace, origin) if rule.direction in directions),
            default_deny_ingress=Direction.INGRESS in directions,
            default_deny_egress=Direction.EGRESS in directions,
            origin=origin,
        )
        return [("policies", (KIND, namespace, name), policy)]

    def _rules(self, namespace: str, origin: str) -> list[Rule]:
        ingress = [
            rule.to_model(Direction.INGRESS, namespace, f"{origin}/ingress/{i}")
            for i, rule in enumerate(self.spec.ingress or ())
        ]
        egress = [
            rule.to_model(Direction.EGRESS, namespace, f"{origin}/egress/{i}")
            for i, rule in enumerate(self.spec.egress or ())
        ]
        return ingress + egress
