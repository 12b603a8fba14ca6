# SPDX-License-Identifier: Apache-2.0
"""
Decoded events with names: pods, labels, devices, and the policy that decided.

The result follows Hubble's ``flow.proto`` field by field, so that the monitor, metrics and the
Observer API all read one type.  Names come from lookups that are passed in; nothing is cached.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from ciliumd.abi import EventType
from ciliumd.flows import decode
from ciliumd.flows.decode import DecodedEvent
from ciliumd.flows.reasons import reason_name
from ciliumd.model.net import Addr, mac_str

ETHERTYPE_IPV4: Final = 0x0800
ETHERTYPE_IPV6: Final = 0x86DD


class Verdict(StrEnum):
    """Members of ``flow.Verdict`` this version produces."""

    FORWARDED = "FORWARDED"
    DROPPED = "DROPPED"
    AUDIT = "AUDIT"
    REDIRECTED = "REDIRECTED"


@dataclass(frozen=True, slots=True)
class PodName:
    """A local endpoint, or a pod elsewhere (id 0)."""

    id: int
    namespace: str
    pod_name: str


@dataclass(frozen=True, slots=True)
class Lookups:
    """
    Where names come from.  Each answers at once and None (or nothing) for what it does not know.

    labels: identity -> ``k8s:app=foo``, ...; pod: address -> endpoint; origins: rule cookie ->
    ``cnp:default/rule1/ingress/0``, ...; interface: ifindex -> name.
    """

    labels: Callable[[int], Sequence[str] | None]
    pod: Callable[[Addr], PodName | None]
    origins: Callable[[int], Sequence[str]]
    interface: Callable[[int], str | None]
    node_name: str = ""


@dataclass(frozen=True, slots=True)
class PolicyName:
    """A policy that decided, and the rule of it if one did (``flow.Policy``)."""

    kind: str
    namespace: str
    name: str
    rule: str = ""

    def __str__(self) -> str:
        short = _SHORT_KINDS.get(self.kind, self.kind)
        return f"{short} {self.namespace}/{self.name}" if self.namespace else f"{short} {self.name}"


@dataclass(frozen=True, slots=True)
class FlowEndpoint:
    """One side of a flow (``flow.Endpoint``); id 0 is not an endpoint of this node."""

    id: int
    identity: int
    namespace: str = ""
    labels: tuple[str, ...] = ()
    pod_name: str = ""


@dataclass(frozen=True, slots=True)
class Flow:
    """One event with names.  ``event`` keeps the record as it was decoded."""

    event: DecodedEvent
    verdict: Verdict
    source: FlowEndpoint
    destination: FlowEndpoint
    policies: tuple[PolicyName, ...]
    interface: str
    node_name: str

    @property
    def drop_reason_desc(self) -> str:
        """Member of ``flow.DropReason``; empty unless this is a drop."""
        return reason_name(self.event.reason) if self.event.type == EventType.EVENT_DROP else ""

    @property
    def is_ipv6(self) -> bool:
        """Whether the packet was IPv6."""
        return self.event.src.version == 6

    @property
    def is_ip(self) -> bool:
        """Whether the addresses mean anything."""
        return self.event.ethertype in (ETHERTYPE_IPV4, ETHERTYPE_IPV6)

    @property
    def source_mac(self) -> str:
        """Source address of the frame."""
        return mac_str(self.event.smac)

    @property
    def destination_mac(self) -> str:
        """Destination address of the frame."""
        return mac_str(self.event.dmac)


def enrich(event: DecodedEvent, lookups: Lookups) -> Flow:
    """*event* with every name *lookups* know."""
    return Flow(
        event=event,
        verdict=verdict_of(event),
        source=_endpoint(event.src, event.src_identity, lookups),
        destination=_endpoint(event.dst, event.dst_identity, lookups),
        policies=policy_names(lookups.origins(event.rule_cookie)) if event.rule_cookie else (),
        interface=lookups.interface(event.ifindex) or str(event.ifindex),
        node_name=lookups.node_name,
    )


def verdict_of(event: DecodedEvent) -> Verdict:
    """What became of the packet, in Hubble's words."""
    match event.type:
        case EventType.EVENT_DROP:
            return Verdict.AUDIT if event.audit else Verdict.DROPPED
        case EventType.EVENT_POLICY_VERDICT if not decode.is_allowed(event.reason):
            return Verdict.AUDIT if event.audit else Verdict.DROPPED
        case EventType.EVENT_TRACE if decode.trace_point_name(event.trace_point) == "to-proxy":
            return Verdict.REDIRECTED
        case _:
            return Verdict.FORWARDED


def policy_names(origins: Sequence[str]) -> tuple[PolicyName, ...]:
    """The policies named by *origins*, each once, in order."""
    return tuple(dict.fromkeys(parse_origin(origin) for origin in origins))


def parse_origin(origin: str) -> PolicyName:
    """
    The policy in a rule's origin: ``kind:namespace/name[/rule]``, or ``kind:name[/rule]`` if cluster-wide.

    What is of no known kind, like the built-in rules, is a name as a whole.
    """
    short, _, path = origin.partition(":")
    if short not in _KINDS:
        return PolicyName(short, "", path)
    kind = _KINDS[short]
    namespace, _, path = ("", "", path) if kind in _CLUSTERWIDE else path.partition("/")
    name, _, rule = path.partition("/")
    return PolicyName(kind, namespace, name, rule)


_KINDS: Final = {
    "cnp": "CiliumNetworkPolicy",
    "ccnp": "CiliumClusterwideNetworkPolicy",
    "knp": "NetworkPolicy",
}
_CLUSTERWIDE: Final = frozenset({"CiliumClusterwideNetworkPolicy"})
_SHORT_KINDS: Final = {
    "CiliumNetworkPolicy": "cnp",
    "CiliumClusterwideNetworkPolicy": "ccnp",
    "NetworkPolicy": "knp",
}


def _endpoint(address: Addr, identity: int, lookups: Lookups) -> FlowEndpoint:
    labels = tuple(sorted(lookups.labels(identity) or ()))
    pod = lookups.pod(address)
    if pod is None:
        return FlowEndpoint(id=0, identity=identity, labels=labels)
    return FlowEndpoint(
        id=pod.id, identity=identity, namespace=pod.namespace, labels=labels, pod_name=pod.pod_name
    )
