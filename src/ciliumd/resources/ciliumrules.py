# SPDX-License-Identifier: Apache-2.0
"""
Rules of Cilium's policies (cilium.io/v2): what is enforced, and what is refused by name.

A field that is valid but not enforced yet refuses the whole policy: half a policy is a hole or an outage.
Says what a valid one means; who wins among policies is decided in ``desired.policy``.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Generic, Self, TypeVar

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

from ciliumd.model.policy import (
    ENTITIES,
    Direction,
    GroupReference,
    Peer,
    PeerCIDR,
    PeerEntity,
    PeerNodes,
    PeerSelector,
    Policy,
    PortRule,
    Reference,
    Rule,
    ServiceReference,
)
from ciliumd.resources.ciliumports import PortAllowRule, PortDenyRule
from ciliumd.resources.fields import (
    CIDR,
    CIDROrAddress,
    Exact,
    NamespaceName,
    ObjectName,
    check_excepts,
    only_with,
    unless_enforced,
)
from ciliumd.resources.icmp import ICMPRule
from ciliumd.resources.selectors import CiliumSelector, NodeSelector, ObjectSelector, Scope

NODE_SELECTORS = "enable-node-selector-labels"
"""Option without which policies that select nodes by labels are refused."""

_AwsGroups = Annotated[None, unless_enforced("the address groups of a cloud provider")]
_DnsProxy = Annotated[None, unless_enforced("the DNS proxy")]
_HostFirewall = Annotated[None, unless_enforced("the host firewall")]
_MutualAuthentication = Annotated[None, unless_enforced("mutual authentication")]
_Requirements = Annotated[None, unless_enforced("requirements of denials: they would narrow every other one")]
_VerdictLogs = Annotated[None, unless_enforced("flow events that carry the text")]


def _entity(name: str) -> str:
    if name not in ENTITIES:
        raise ValueError(f"{name!r} is not an entity; there are {', '.join(sorted(ENTITIES))}")
    return name


class CIDRRule(Exact):
    """A prefix, or those of a CiliumCIDRGroup, without some parts."""

    cidr: CIDR | None = None
    excepts: list[CIDR] | None = Field(None, alias="except")
    cidr_group_ref: ObjectName | None = None
    cidr_group_selector: ObjectSelector | None = None

    @field_validator("excepts")
    @classmethod
    def _are_inside(cls, excepts: list[CIDR] | None, info: ValidationInfo) -> list[CIDR] | None:
        # What is in a group is not known here: an exception outside of it takes nothing away.
        if info.data.get("cidr") is not None:
            check_excepts(info.data["cidr"], excepts or [])
        return excepts

    @model_validator(mode="after")
    def _says_one_thing(self) -> Self:
        given = [one for one in (self.cidr, self.cidr_group_ref, self.cidr_group_selector) if one is not None]
        if len(given) != 1:
            raise ValueError("must have one of cidr, cidrGroupRef and cidrGroupSelector")
        return self

    def to_peer(self) -> PeerCIDR | GroupReference:
        """Whom it means."""
        excepts = tuple(self.excepts or ())
        if self.cidr is not None:
            return PeerCIDR(self.cidr, excepts)
        selector = self.cidr_group_selector
        return GroupReference(
            self.cidr_group_ref or "", None if selector is None else selector.to_selector(), excepts
        )


class ServiceByName(Exact):
    """A service; without a namespace the services of that name in all of them."""

    service_name: ObjectName
    namespace: NamespaceName | None = None

    def to_reference(self) -> ServiceReference:
        """Whom it means."""
        return ServiceReference(self.namespace or "", self.service_name)


class ServicesByLabels(Exact):
    """Services of a namespace, or of all of them."""

    selector: ObjectSelector
    namespace: NamespaceName | None = None

    def to_reference(self) -> ServiceReference:
        """Whom it means."""
        return ServiceReference(self.namespace or "", "", self.selector.to_selector())


class ServicePeer(Exact):
    """What is behind services: their pods, or their endpoints' addresses if they select none."""

    k8s_service: ServiceByName | None = Field(None, alias="k8sService")
    k8s_service_selector: ServicesByLabels | None = Field(None, alias="k8sServiceSelector")

    @model_validator(mode="after")
    def _says_one_thing(self) -> Self:
        if (self.k8s_service is None) == (self.k8s_service_selector is None):
            raise ValueError("must have one of k8sService and k8sServiceSelector")
        return self


Entity = Annotated[str, AfterValidator(_entity)]
Nodes = Annotated[list[NodeSelector] | None, only_with(NODE_SELECTORS, "nodeSelectorLabels")]


Ports = TypeVar("Ports", bound=PortDenyRule)


class _Section(Exact, Generic[Ports]):
    """A rule of either direction and kind; the subclasses say what its fields are called in YAML."""

    endpoints: list[CiliumSelector] | None = None
    cidrs: list[CIDROrAddress] | None = None
    cidr_set: list[CIDRRule] | None = None
    entities: list[Entity] | None = None
    nodes: Nodes = None
    to_ports: list[Ports] | None = None
    icmps: list[ICMPRule] | None = None

    @field_validator("icmps")
    @classmethod
    def _stand_alone(cls, icmps: list[ICMPRule] | None, info: ValidationInfo) -> list[ICMPRule] | None:
        if icmps and info.data.get("to_ports"):
            raise ValueError("cannot be combined with toPorts: write a rule of its own")
        return icmps

    def to_model(self, direction: Direction, scope: Scope, *, deny: bool, origin: str) -> Rule:
        """The rule it means in a policy whose peers are looked for in *scope*."""
        return Rule(
            direction,
            deny,
            self._peers(scope, deny=deny),
            self._ports(),
            origin,
            refers=tuple(self._references()),
            requires=tuple(
                scope.peers(selector.to_selector(), deny=False) for selector in self._requirements()
            ),
        )

    def _peers(self, scope: Scope, *, deny: bool) -> tuple[Peer, ...] | None:
        # Lists are alternatives and an empty one means nobody.  Without any list the ports alone decide;
        # a rule with neither means nobody too: it is how default deny is switched on.  One that requires
        # something of others' peers allows nobody by itself.
        if (
            not self._requirements()
            and all(peers is None for peers in self._lists())
            and (self.to_ports or self.icmps)
        ):
            return None
        return (
            *(
                PeerSelector(scope.peers(selector.to_selector(), deny=deny))
                for selector in self.endpoints or ()
            ),
            *(PeerCIDR(prefix) for prefix in self.cidrs or ()),
            *(peer for rule in self.cidr_set or () if isinstance(peer := rule.to_peer(), PeerCIDR)),
            *(PeerEntity(name) for name in self.entities or ()),
            *(PeerNodes(selector.to_selector()) for selector in self.nodes or ()),
        )

    def _requirements(self) -> list[CiliumSelector]:
        """What all peers must be that are selected by labels."""
        return []

    def _lists(self) -> tuple[list[Any] | None, ...]:
        """Every list of peers."""
        return (self.endpoints, self.cidrs, self.cidr_set, self.entities, self.nodes)

    def _references(self) -> Iterator[Reference]:
        for rule in self.cidr_set or ():
            if isinstance(peer := rule.to_peer(), GroupReference):
                yield peer

    def _ports(self) -> tuple[PortRule, ...] | None:
        if self.icmps:
            return tuple(field.to_model() for rule in self.icmps for field in rule.fields)
        if self.to_ports:
            return tuple(port.to_model() for rule in self.to_ports for port in rule.ports)
        return None


class _Ingress(_Section[Ports]):
    endpoints: list[CiliumSelector] | None = Field(None, alias="fromEndpoints")
    cidrs: list[CIDROrAddress] | None = Field(None, alias="fromCIDR")
    cidr_set: list[CIDRRule] | None = Field(None, alias="fromCIDRSet")
    entities: list[Entity] | None = Field(None, alias="fromEntities")
    nodes: Nodes = Field(None, alias="fromNodes")
    from_groups: _AwsGroups = None


class IngressDenyRule(_Ingress[PortDenyRule]):
    """Who must not come in on which ports."""

    from_requires: _Requirements = None


class IngressRule(_Ingress[PortAllowRule]):
    """Who may come in on which ports."""

    from_requires: list[CiliumSelector] | None = None
    authentication: _MutualAuthentication = None

    def _requirements(self) -> list[CiliumSelector]:
        return self.from_requires or []


class _Egress(_Section[Ports]):
    endpoints: list[CiliumSelector] | None = Field(None, alias="toEndpoints")
    cidrs: list[CIDROrAddress] | None = Field(None, alias="toCIDR")
    cidr_set: list[CIDRRule] | None = Field(None, alias="toCIDRSet")
    entities: list[Entity] | None = Field(None, alias="toEntities")
    nodes: Nodes = Field(None, alias="toNodes")
    to_services: list[ServicePeer] | None = None
    to_groups: _AwsGroups = None

    def _lists(self) -> tuple[list[Any] | None, ...]:
        return (*super()._lists(), self.to_services)

    def _references(self) -> Iterator[Reference]:
        yield from super()._references()
        for peer in self.to_services or ():
            for service in (peer.k8s_service, peer.k8s_service_selector):
                if service is not None:
                    yield service.to_reference()


class EgressDenyRule(_Egress[PortDenyRule]):
    """Where not to go on which ports."""

    to_requires: _Requirements = None


class EgressRule(_Egress[PortAllowRule]):
    """Where to go on which ports."""

    to_requires: list[CiliumSelector] | None = None
    to_fqdns: _DnsProxy = Field(None, alias="toFQDNs")
    authentication: _MutualAuthentication = None

    def _requirements(self) -> list[CiliumSelector]:
        return self.to_requires or []


class DefaultDeny(Exact):
    """Whether the policy takes the endpoints it selects into default deny; None: if it has rules."""

    ingress: bool | None = None
    egress: bool | None = None


class RuleSpec(Exact):
    """The rules for one set of endpoints."""

    endpoint_selector: CiliumSelector
    node_selector: _HostFirewall = None
    ingress: list[IngressRule] | None = None
    ingress_deny: list[IngressDenyRule] | None = None
    egress: list[EgressRule] | None = None
    egress_deny: list[EgressDenyRule] | None = None
    enable_default_deny: DefaultDeny | None = None
    description: str | None = None
    labels: list[Any] | None = None
    log: _VerdictLogs = None

    def to_policy(self, about: "About") -> Policy:
        """The policy it means."""
        scope = Scope.of_policy(
            about.namespace,
            self.endpoint_selector.to_selector(),
            field=f"{about.field}.endpointSelector",
        )
        default_deny = self.enable_default_deny or DefaultDeny()
        return Policy(
            kind=about.kind,
            namespace=about.namespace or "",
            name=about.name,
            uid=about.uid,
            subject=scope.subject,
            rules=tuple(self._rules(scope, about.origin)),
            default_deny_ingress=_given(default_deny.ingress, bool(self.ingress or self.ingress_deny)),
            default_deny_egress=_given(default_deny.egress, bool(self.egress or self.egress_deny)),
            origin=about.origin,
        )

    def _rules(self, scope: Scope, origin: str) -> Iterator[Rule]:
        for i, rule in enumerate(self.ingress or ()):
            yield rule.to_model(Direction.INGRESS, scope, deny=False, origin=f"{origin}/ingress/{i}")
        for i, deny in enumerate(self.ingress_deny or ()):
            yield deny.to_model(Direction.INGRESS, scope, deny=True, origin=f"{origin}/ingressDeny/{i}")
        for i, to in enumerate(self.egress or ()):
            yield to.to_model(Direction.EGRESS, scope, deny=False, origin=f"{origin}/egress/{i}")
        for i, not_to in enumerate(self.egress_deny or ()):
            yield not_to.to_model(Direction.EGRESS, scope, deny=True, origin=f"{origin}/egressDeny/{i}")


@dataclass(frozen=True, slots=True)
class About:
    """Whose policy a spec is: *namespace* None for the whole cluster, *field* where the spec is written."""

    kind: str
    namespace: str | None
    name: str
    uid: str
    field: str
    origin: str


def _given(choice: bool | None, otherwise: bool) -> bool:
    return otherwise if choice is None else choice
