# SPDX-License-Identifier: Apache-2.0
"""
The CustomResourceDefinitions ciliumd installs: one row for each kind it serves or reads.

Names, short names, categories, columns and subresources are Cilium's (1.18), so that clients, scripts
and habits go on working.  A kind without a row does not exist in the cluster: using it is refused by the
API server, which is better than accepting what nobody enforces.
"""

from dataclasses import dataclass, field
from typing import Any, Final, Literal

from pydantic import BaseModel

from ciliumd.resources.ciliumcidrgroup import CiliumCIDRGroup
from ciliumd.resources.ciliumclusterwidenetworkpolicy import CiliumClusterwideNetworkPolicy
from ciliumd.resources.ciliumnetworkpolicy import CiliumNetworkPolicy
from ciliumd.resources.crd import shapes
from ciliumd.resources.crd.schema import Schema, structural

GROUP: Final = "cilium.io"
VERSION_LABEL: Final = "io.cilium.k8s.crd.schema.version"
SCHEMA_VERSION: Final = "1.0.0"
"""
Raised with every change of a schema.  It stays below every version of Cilium's own definitions: those
know all of our fields, so they are left in place where Cilium was before, and put back if it returns.
"""

_CIDRS: Final[Schema] = {
    "type": "array",
    "items": {"type": "string", "pattern": r"^[0-9A-Fa-f:.]+(/[0-9]{1,3})?$"},
}
_NULLABLE_CIDRS: Final[Schema] = {**_CIDRS, "nullable": True}


def _one_of(*fields: str) -> list[Schema]:
    return [{"required": [field]} for field in fields]


_CONDITIONS: Final[Schema] = {
    "type": "object",
    "description": "Whether the policy can be enforced as written.",
    "properties": {
        "conditions": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "type": {"type": "string"},
                    "status": {"type": "string", "enum": ["True", "False", "Unknown"]},
                    "lastTransitionTime": {"type": "string", "format": "date-time"},
                    "reason": {"type": "string"},
                    "message": {"type": "string"},
                },
                "required": ["status", "type"],
            },
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["type"],
        },
    },
    "x-kubernetes-preserve-unknown-fields": True,
}
_POLICY_HINTS: Final[dict[str, Schema]] = {
    # What selects and what is selected may be written in ways that are refused by name, not as missing.
    "RuleSpec": {"required": [], "oneOf": _one_of("endpointSelector", "nodeSelector")},
    "CIDRRule": {"oneOf": _one_of("cidr", "cidrGroupRef", "cidrGroupSelector")},
    "*.fromCIDR": _NULLABLE_CIDRS,
    "*.toCIDR": _NULLABLE_CIDRS,
    "CIDRRule.cidr": {"type": "string", "pattern": r"^[0-9A-Fa-f:.]+/[0-9]{1,3}$"},
    "CIDRRule.cidrGroupRef": {
        "type": "string",
        "description": "Name of a CiliumCIDRGroup; one that does not exist is nobody.",
        "maxLength": 253,
        "pattern": r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$",
    },
    "CIDRRule.except": _NULLABLE_CIDRS,
    "PortProtocol.port": {
        "type": "string",
        "description": "A number, 0 for every port, or a port name (IANA_SVC_NAME).",
        "maxLength": 15,
        "pattern": r"^[0-9]{1,5}$|^[A-Za-z0-9]([-A-Za-z0-9]*[A-Za-z0-9])?$",
    },
    "PortProtocol.protocol": {
        "type": "string",
        "enum": ["TCP", "UDP", "SCTP", "ICMP", "ICMPV6", "VRRP", "IGMP", "ANY"],
    },
}


@dataclass(frozen=True, slots=True)
class Column:
    """A column of ``kubectl get``; of priority 1 those of ``-o wide``."""

    name: str
    path: str
    type: Literal["string", "integer", "boolean", "date"] = "string"
    description: str = ""
    priority: int = 0

    def document(self) -> dict[str, Any]:
        """As the definition has it."""
        document: dict[str, Any] = {"name": self.name, "type": self.type, "jsonPath": self.path}
        if self.description:
            document["description"] = self.description
        if self.priority:
            document["priority"] = self.priority
        return document


@dataclass(frozen=True, slots=True)
class CustomKind:
    """One row: a kind, its model, and how clients see it."""

    kind: str
    plural: str
    scope: Literal["Namespaced", "Cluster"]
    model: type[BaseModel]
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ("cilium",)
    columns: tuple[Column, ...] = ()
    version: str = "v2"
    also: tuple[str, ...] = ()
    """Older versions with the same fields, which are served as deprecated."""
    status: bool = True
    """Whether status is a subresource: written apart from the rest."""
    hints: dict[str, Schema] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of its definition."""
        return f"{self.plural}.{GROUP}"

    def definition(self) -> dict[str, Any]:
        """Its CustomResourceDefinition (apiextensions.k8s.io/v1)."""
        schema = structural(self.model, self.hints)
        # The API server knows what metadata is and lets nobody say more about it.
        schema["properties"]["metadata"] = {"type": "object"}
        schema["required"] = [name for name in schema["required"] if name not in {"apiVersion", "kind"}]
        version: dict[str, Any] = {
            "name": self.version,
            "served": True,
            "storage": True,
            "additionalPrinterColumns": [column.document() for column in self.columns],
            "schema": {"openAPIV3Schema": schema},
            "subresources": {"status": {}} if self.status else {},
        }
        if not self.columns:
            del version["additionalPrinterColumns"]
        names = {
            "kind": self.kind,
            "listKind": f"{self.kind}List",
            "plural": self.plural,
            "singular": self.kind.lower(),
            "categories": list(self.categories),
        }
        if self.short_names:
            names["shortNames"] = list(self.short_names)
        return {
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {"name": self.name, "labels": {VERSION_LABEL: SCHEMA_VERSION}},
            "spec": {
                "group": GROUP,
                "names": names,
                "scope": self.scope,
                "versions": [
                    version,
                    *({**version, "name": name, "storage": False, "deprecated": True} for name in self.also),
                ],
            },
        }


_AGE: Final = Column("Age", ".metadata.creationTimestamp", "date")
_VALID: Final = Column("Valid", ".status.conditions[?(@.type=='Valid')].status")

KINDS: Final = (
    CustomKind(
        "CiliumNetworkPolicy",
        "ciliumnetworkpolicies",
        "Namespaced",
        CiliumNetworkPolicy,
        short_names=("cnp", "ciliumnp"),
        categories=("cilium", "ciliumpolicy"),
        columns=(_AGE, _VALID),
        hints={**_POLICY_HINTS, "CiliumNetworkPolicy.status": _CONDITIONS},
    ),
    CustomKind(
        "CiliumClusterwideNetworkPolicy",
        "ciliumclusterwidenetworkpolicies",
        "Cluster",
        CiliumClusterwideNetworkPolicy,
        short_names=("ccnp",),
        categories=("cilium", "ciliumpolicy"),
        columns=(_VALID,),
        hints={**_POLICY_HINTS, "CiliumClusterwideNetworkPolicy.status": _CONDITIONS},
    ),
    CustomKind(
        "CiliumCIDRGroup",
        "ciliumcidrgroups",
        "Cluster",
        CiliumCIDRGroup,
        short_names=("ccg",),
        also=("v2alpha1",),
        status=False,
        hints={"CIDRGroupSpec.externalCIDRs": _CIDRS},
    ),
    CustomKind(
        "CiliumNode",
        "ciliumnodes",
        "Cluster",
        shapes.CiliumNode,
        short_names=("cn", "ciliumn"),
        columns=(
            Column("CiliumInternalIP", '.spec.addresses[?(@.type=="CiliumInternalIP")].ip'),
            Column("InternalIP", '.spec.addresses[?(@.type=="InternalIP")].ip'),
            _AGE,
        ),
    ),
    CustomKind(
        "CiliumIdentity",
        "ciliumidentities",
        "Cluster",
        shapes.CiliumIdentity,
        short_names=("ciliumid",),
        columns=(Column("Namespace", r".metadata.labels.io\.kubernetes\.pod\.namespace"), _AGE),
    ),
    CustomKind(
        "CiliumEndpoint",
        "ciliumendpoints",
        "Namespaced",
        shapes.CiliumEndpoint,
        short_names=("cep", "ciliumep"),
        columns=(
            Column("Security Identity", ".status.identity.id", "integer", "Security identity"),
            Column("Ingress Enforcement", ".status.policy.ingress.state", description="In force", priority=1),
            Column("Egress Enforcement", ".status.policy.egress.state", description="In force", priority=1),
            Column("Endpoint State", ".status.state"),
            Column("IPv4", ".status.networking.addressing[0].ipv4"),
            Column("IPv6", ".status.networking.addressing[0].ipv6"),
        ),
        status=False,
    ),
    CustomKind(
        "CiliumNodeConfig",
        "ciliumnodeconfigs",
        "Namespaced",
        shapes.CiliumNodeConfig,
        status=False,
    ),
)


def definitions() -> dict[str, dict[str, Any]]:
    """Every definition, by name."""
    return {kind.name: kind.definition() for kind in KINDS}
