# SPDX-License-Identifier: Apache-2.0
"""
What ``kubectl explain`` tells of the kinds that agents and the operator write for each other.

Shapes for schemas only (Cilium's CustomResourceDefinitions of 1.18 have these fields): how ciliumd reads
such objects is said in ``resources``.  They are lenient, so that fields of other writers are kept.
"""

from typing import Any, Literal

from pydantic import Field

from ciliumd.resources.fields import Exact, Lenient


class _Object(Exact):
    api_version: str
    kind: str
    metadata: dict[str, Any]


class NodeAddress(Lenient):
    """An address of the node: InternalIP, ExternalIP, or CiliumInternalIP for its router address."""

    type: str | None = None
    ip: str | None = None


class HealthAddresses(Lenient):
    """Addresses of the node's health endpoint."""

    ipv4: str | None = None
    ipv6: str | None = None


class EncryptionKey(Lenient):
    """The key in use; 0 without encryption."""

    key: int | None = None


class NodeIpam(Lenient):
    """Where the node's pods get their addresses from."""

    pod_cidrs: list[str] | None = Field(
        None, alias="podCIDRs", description="The node's pod CIDRs, written by the operator."
    )
    pool: dict[str, Any] | None = None
    pools: dict[str, Any] | None = None


class NodeSpec(Lenient):
    """How the other nodes reach this node and its pods."""

    addresses: list[NodeAddress] | None = None
    bootid: str | None = Field(None, description="Changes with every boot of the node.")
    encryption: EncryptionKey | None = None
    health: HealthAddresses | None = None
    ingress: HealthAddresses | None = Field(None, description="Addresses of the ingress listener.")
    instance_id: str | None = Field(None, alias="instance-id")
    ipam: NodeIpam | None = None
    nodeidentity: int | None = None


class OperatorStatus(Lenient):
    """What the operator has to say about the node."""

    error: str | None = Field(None, description="Why the node has no pod CIDR; empty when it has one.")


class NodeIpamStatus(Lenient):
    """State of the node's pod CIDRs."""

    operator_status: OperatorStatus | None = Field(None, alias="operator-status")
    pod_cidrs: dict[str, Any] | None = Field(None, alias="pod-cidrs")
    used: dict[str, Any] | None = None


class NodeStatus(Lenient):
    """State of the node."""

    ipam: NodeIpamStatus | None = None


class CiliumNode(_Object):
    """A node of the cluster, as its agent and the operator describe it to the other nodes."""

    spec: NodeSpec
    status: NodeStatus | None = None


class CiliumIdentity(_Object):
    """A set of labels and the number it has in the whole cluster; the number is the object's name."""

    security_labels: dict[str, str] = Field(
        alias="security-labels", description="The labels, each with its source: k8s:app."
    )
    status: dict[str, Any] | None = None


class EndpointIdentity(Lenient):
    """The endpoint's security identity."""

    id: int | None = None
    labels: list[str] | None = None


class AddressPair(Lenient):
    """Addresses of the endpoint."""

    ipv4: str | None = None
    ipv6: str | None = None


class EndpointNetworking(Lenient):
    """Where the endpoint is."""

    addressing: list[AddressPair]
    node: str | None = Field(None, description="An address of its node that other nodes can reach.")


class PolicyDirection(Lenient):
    """Whether policy is enforced in one direction, and who is allowed."""

    enforcing: bool
    state: str | None = None
    allowed: list[dict[str, Any]] | None = None
    denied: list[dict[str, Any]] | None = None


class EndpointPolicy(Lenient):
    """Policy of the endpoint by direction."""

    ingress: PolicyDirection | None = None
    egress: PolicyDirection | None = None


class NamedPort(Lenient):
    """A port the pod gives a name."""

    name: str | None = None
    port: int | None = None
    protocol: str | None = None


class EndpointStatus(Lenient):
    """State of the endpoint."""

    id: int | None = Field(None, description="Its number on its node.")
    identity: EndpointIdentity | None = None
    networking: EndpointNetworking | None = None
    encryption: EncryptionKey | None = None
    policy: EndpointPolicy | None = None
    state: (
        Literal[
            "creating",
            "waiting-for-identity",
            "not-ready",
            "waiting-to-regenerate",
            "regenerating",
            "restoring",
            "ready",
            "disconnecting",
            "disconnected",
            "invalid",
        ]
        | None
    ) = None
    named_ports: list[NamedPort] | None = Field(None, alias="named-ports")
    external_identifiers: dict[str, Any] | None = Field(None, alias="external-identifiers")
    service_account: str | None = Field(None, alias="service-account")


class CiliumEndpoint(_Object):
    """A pod as its node published it; the name is the pod's."""

    status: EndpointStatus | None = None


class LabelRequirement(Exact):
    """One term of a selector."""

    key: str
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    values: list[str] | None = None


class NodeSelector(Exact):
    """Nodes by their labels; an empty selector means all of them."""

    match_labels: dict[str, str] | None = None
    match_expressions: list[LabelRequirement] | None = None


class NodeConfigSpec(Exact):
    """Settings of the agents on some nodes."""

    defaults: dict[str, str] = Field(description="Keys of the ConfigMap cilium-config and their values here.")
    node_selector: NodeSelector


class CiliumNodeConfig(_Object):
    """Settings that win over the ConfigMap on the nodes it selects; of several the last by name."""

    spec: NodeConfigSpec
