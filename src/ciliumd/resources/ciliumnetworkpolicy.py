# SPDX-License-Identifier: Apache-2.0
"""
CiliumNetworkPolicy (cilium.io/v2): what is enforced, and what is refused by name.

A field that is valid but not enforced yet refuses the whole policy: half a policy is a hole or an outage.
Says what a valid one means; who wins among policies is decided in ``desired.policy``.
"""

import re
from collections.abc import Iterator
from typing import Annotated, Any, Generic, TypeVar

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from ciliumd.model.policy import (
    ANY_PROTOCOL,
    ENTITIES,
    Direction,
    Peer,
    PeerCIDR,
    PeerEntity,
    PeerSelector,
    Policy,
    PortRule,
    Rule,
)
from ciliumd.resources.errors import FieldError, not_enforced
from ciliumd.resources.fields import (
    CIDR,
    CIDROrAddress,
    Exact,
    NotEnforced,
    ObjectMeta,
    Row,
    check_excepts,
    is_port_name,
)
from ciliumd.resources.selectors import CiliumSelector, peer_in_namespace, subject_in_namespace

KIND = "CiliumNetworkPolicy"
_PORTS_MAX = 40
_DECIMAL = re.compile(r"0|[1-9][0-9]{0,4}")
_PROTOCOLS = frozenset({"TCP", "UDP", "SCTP", ANY_PROTOCOL})
_PROTOCOLS_NOT_ENFORCED = frozenset({"ICMP", "ICMPV6", "VRRP", "IGMP"})
# No address carries these identities in this version, so rules about them would have no effect.
_ENTITIES_NOT_ENFORCED = frozenset({"kube-apiserver", "ingress", "world-ipv4", "world-ipv6"})


def _entity(name: str) -> str:
    if name in _ENTITIES_NOT_ENFORCED:
        raise not_enforced()
    if name not in ENTITIES:
        known = ", ".join(sorted(ENTITIES - _ENTITIES_NOT_ENFORCED))
        raise ValueError(f"{name!r} is not an entity; there are {known}")
    return name


def _port(text: str) -> str:
    # Port names compare without case; whatever can be a name is one, the rest must be decimal.
    name = text.lower()
    if is_port_name(name):
        return name
    if not _DECIMAL.fullmatch(text) or int(text) > 65535:
        raise ValueError(f"{text!r} is neither a port between 0 and 65535 nor a port name (IANA_SVC_NAME)")
    return text


def _protocol(text: str) -> str:
    if text in _PROTOCOLS_NOT_ENFORCED:
        raise not_enforced()
    if text not in _PROTOCOLS:
        raise ValueError(f"{text!r} is not a protocol; there are {', '.join(sorted(_PROTOCOLS))}")
    return text


class PortProtocol(Exact):
    """A port (0: every one), a range or a named port, of one protocol or of any."""

    port: Annotated[str, AfterValidator(_port)]
    end_port: Annotated[int, Field(ge=0, le=65535)] | None = None
    protocol: Annotated[str, AfterValidator(_protocol)] = ANY_PROTOCOL

    @field_validator("end_port")
    @classmethod
    def _ends_a_range(cls, end_port: int | None, info: ValidationInfo) -> int | None:
        port = info.data.get("port")
        if not end_port or port is None:
            return end_port
        if is_port_name(port) or port == "0":
            raise ValueError("needs a numeric port")
        if end_port < int(port):
            raise ValueError(f"{end_port} is below port {port}")
        return end_port

    def to_model(self) -> PortRule:
        """The ports it means."""
        if is_port_name(self.port):
            return PortRule(self.protocol, name=self.port)
        return PortRule(self.protocol, int(self.port), self.end_port or 0)


class L7Rules(Exact):
    """Rules above the transport layer; none of them is enforced yet."""

    http: NotEnforced = None
    kafka: NotEnforced = None
    dns: NotEnforced = None
    l7proto: NotEnforced = Field(None, alias="l7proto")
    l7: NotEnforced = None


class PortDenyRule(Exact):
    """Ports to refuse."""

    ports: Annotated[list[PortProtocol], Field(min_length=1, max_length=_PORTS_MAX)]


class PortAllowRule(PortDenyRule):
    """Ports to allow, with conditions that are not enforced yet."""

    rules: L7Rules | None = None
    terminating_tls: NotEnforced = Field(None, alias="terminatingTLS")
    originating_tls: NotEnforced = Field(None, alias="originatingTLS")
    server_names: NotEnforced = None
    listener: NotEnforced = None


class CIDRRule(Exact):
    """A prefix without some of its parts."""

    cidr: CIDR
    excepts: list[CIDR] | None = Field(None, alias="except")
    cidr_group_ref: NotEnforced = None
    cidr_group_selector: NotEnforced = None

    @field_validator("excepts")
    @classmethod
    def _are_inside(cls, excepts: list[CIDR] | None, info: ValidationInfo) -> list[CIDR] | None:
        if "cidr" in info.data:
            check_excepts(info.data["cidr"], excepts or [])
        return excepts


Entity = Annotated[str, AfterValidator(_entity)]


Ports = TypeVar("Ports", bound=PortDenyRule)


class _Section(Exact, Generic[Ports]):
    """A rule of either direction and kind; the subclasses say what its fields are called in YAML."""

    endpoints: list[CiliumSelector] | None = None
    cidrs: list[CIDROrAddress] | None = None
    cidr_set: list[CIDRRule] | None = None
    entities: list[Entity] | None = None
    to_ports: list[Ports] | None = None
    icmps: NotEnforced = None

    def to_model(self, direction: Direction, namespace: str, *, deny: bool, origin: str) -> Rule:
        """The rule it means in a policy of *namespace*."""
        return Rule(direction, deny, self._peers(namespace, deny=deny), self._ports(), origin)

    def _peers(self, namespace: str, *, deny: bool) -> tuple[Peer, ...] | None:
        # Lists are alternatives and an empty one means nobody.  Without any list the ports alone decide;
        # a rule with neither means nobody too: it is how default deny is switched on.
        lists = (self.endpoints, self.cidrs, self.cidr_set, self.entities)
        if all(peers is None for peers in lists) and self.to_ports:
            return None
        return (
            *(
                PeerSelector(peer_in_namespace(selector.to_selector(), namespace, deny=deny))
                for selector in self.endpoints or ()
            ),
            *(PeerCIDR(prefix) for prefix in self.cidrs or ()),
            *(PeerCIDR(rule.cidr, tuple(rule.excepts or ())) for rule in self.cidr_set or ()),
            *(PeerEntity(name) for name in self.entities or ()),
        )

    def _ports(self) -> tuple[PortRule, ...] | None:
        if not self.to_ports:
            return None
        return tuple(port.to_model() for rule in self.to_ports for port in rule.ports)


class _Ingress(_Section[Ports]):
    endpoints: list[CiliumSelector] | None = Field(None, alias="fromEndpoints")
    cidrs: list[CIDROrAddress] | None = Field(None, alias="fromCIDR")
    cidr_set: list[CIDRRule] | None = Field(None, alias="fromCIDRSet")
    entities: list[Entity] | None = Field(None, alias="fromEntities")
    from_requires: NotEnforced = None
    from_groups: NotEnforced = None
    from_nodes: NotEnforced = None


class IngressDenyRule(_Ingress[PortDenyRule]):
    """Who must not come in on which ports."""


class IngressRule(_Ingress[PortAllowRule]):
    """Who may come in on which ports."""

    authentication: NotEnforced = None


class _Egress(_Section[Ports]):
    endpoints: list[CiliumSelector] | None = Field(None, alias="toEndpoints")
    cidrs: list[CIDROrAddress] | None = Field(None, alias="toCIDR")
    cidr_set: list[CIDRRule] | None = Field(None, alias="toCIDRSet")
    entities: list[Entity] | None = Field(None, alias="toEntities")
    to_requires: NotEnforced = None
    to_services: NotEnforced = None
    to_groups: NotEnforced = None
    to_nodes: NotEnforced = None


class EgressDenyRule(_Egress[PortDenyRule]):
    """Where not to go on which ports."""


class EgressRule(_Egress[PortAllowRule]):
    """Where to go on which ports."""

    to_fqdns: NotEnforced = Field(None, alias="toFQDNs")
    authentication: NotEnforced = None


class DefaultDeny(Exact):
    """Whether the policy takes the endpoints it selects into default deny; None: if it has rules."""

    ingress: bool | None = None
    egress: bool | None = None


class RuleSpec(Exact):
    """The rules for one set of endpoints."""

    endpoint_selector: CiliumSelector
    node_selector: NotEnforced = None
    ingress: list[IngressRule] | None = None
    ingress_deny: list[IngressDenyRule] | None = None
    egress: list[EgressRule] | None = None
    egress_deny: list[EgressDenyRule] | None = None
    enable_default_deny: DefaultDeny | None = None
    description: str | None = None
    labels: list[Any] | None = None
    log: NotEnforced = None

    def to_policy(self, meta: ObjectMeta, *, field: str, origin: str) -> Policy:
        """The policy it means; *field* is where it is written."""
        selector = self.endpoint_selector.to_selector()
        default_deny = self.enable_default_deny or DefaultDeny()
        return Policy(
            kind=KIND,
            namespace=meta.scope,
            name=meta.name,
            uid=meta.uid,
            subject=subject_in_namespace(selector, meta.scope, field=f"{field}.endpointSelector"),
            rules=tuple(self._rules(meta.scope, origin)),
            default_deny_ingress=_given(default_deny.ingress, bool(self.ingress or self.ingress_deny)),
            default_deny_egress=_given(default_deny.egress, bool(self.egress or self.egress_deny)),
            origin=origin,
        )

    def _rules(self, namespace: str, origin: str) -> Iterator[Rule]:
        for i, rule in enumerate(self.ingress or ()):
            yield rule.to_model(Direction.INGRESS, namespace, deny=False, origin=f"{origin}/ingress/{i}")
        for i, deny in enumerate(self.ingress_deny or ()):
            yield deny.to_model(Direction.INGRESS, namespace, deny=True, origin=f"{origin}/ingressDeny/{i}")
        for i, to in enumerate(self.egress or ()):
            yield to.to_model(Direction.EGRESS, namespace, deny=False, origin=f"{origin}/egress/{i}")
        for i, not_to in enumerate(self.egress_deny or ()):
            yield not_to.to_model(Direction.EGRESS, namespace, deny=True, origin=f"{origin}/egressDeny/{i}")


class CiliumNetworkPolicy(Exact):
    """A CiliumNetworkPolicy: one ``spec``, several ``specs``, or both."""

    api_version: str
    kind: str
    metadata: ObjectMeta
    spec: RuleSpec | None = None
    specs: list[RuleSpec] | None = None
    status: dict[str, Any] | None = None

    def rows(self) -> list[Row]:
        """Rows of ``policies``: ``spec`` under the policy's name, each of ``specs`` under name/specs/n."""
        namespace, name = self.metadata.scope, self.metadata.name
        if self.spec is None and not self.specs:
            raise FieldError("spec", "is missing")
        rows: list[Row] = []
        if self.spec is not None:
            policy = self.spec.to_policy(self.metadata, field="spec", origin=f"cnp:{namespace}/{name}")
            rows.append(("policies", (KIND, namespace, name), policy))
        for i, spec in enumerate(self.specs or ()):
            part = f"{name}/specs/{i}"
            policy = spec.to_policy(self.metadata, field=f"specs[{i}]", origin=f"cnp:{namespace}/{part}")
            rows.append(("policies", (KIND, namespace, part), policy))
        return rows


def _given(choice: bool | None, otherwise: bool) -> bool:
    return otherwise if choice is None else choice
