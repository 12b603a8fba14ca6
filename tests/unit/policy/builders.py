# SPDX-License-Identifier: Apache-2.0
"""Small worlds for policy tests: labels, identities, rules and policies with everything else default."""

from collections.abc import Iterable, Mapping
from ipaddress import ip_network

from ciliumd.desired.policy import EndpointRules, MapState, lookup, select
from ciliumd.model.identity import NumericIdentity, cidr_labels, reserved_identities
from ciliumd.model.labels import Labels, pod_labels
from ciliumd.model.policy import (
    Direction,
    Peer,
    PeerCIDR,
    PeerSelector,
    Policy,
    PortRule,
    Rule,
    Selector,
)

INGRESS, EGRESS = Direction.INGRESS, Direction.EGRESS
HOST, WORLD, REMOTE_NODE = 1, 2, 6
WEB, DB, OTHER, CIDR_8, CIDR_16, UNKNOWN = 1001, 1002, 1003, 1 << 24, (1 << 24) + 1, 4242
TCP, UDP, ICMP, SCTP = 6, 17, 1, 132


def pod(app: str, namespace: str = "default") -> Labels:
    """The labels of a pod."""
    return pod_labels(namespace, {"app": app}, {}, "default")


def identities() -> dict[NumericIdentity, Labels]:
    """Three kinds of pods, two nested CIDRs and everything reserved."""
    return {
        **reserved_identities(),
        WEB: pod("web"),
        DB: pod("db"),
        OTHER: pod("other", "elsewhere"),
        CIDR_8: cidr_labels(ip_network("10.0.0.0/8")),
        CIDR_16: cidr_labels(ip_network("10.1.0.0/16")),
    }


def app(name: str) -> PeerSelector:
    """Pods with this app label, in any namespace."""
    return PeerSelector(Selector(match_labels=frozenset({("k8s", "app", name)})))


def cidr(text: str, *excepts: str) -> PeerCIDR:
    """A CIDR peer."""
    return PeerCIDR(ip_network(text), tuple(ip_network(excluded) for excluded in excepts))


def rule(
    *peers: Peer,
    ports: tuple[PortRule, ...] | None = None,
    deny: bool = False,
    direction: Direction = INGRESS,
    origin: str = "cnp:default/p/ingress/0",
    anybody: bool = False,
) -> Rule:
    """A rule for *peers*, or for *anybody*."""
    return Rule(direction, deny, None if anybody else peers, ports, origin)


def policy(
    *rules: Rule,
    subject: Selector | None = None,
    ingress: bool = True,
    egress: bool = False,
    origin: str = "cnp:default/p",
) -> Policy:
    """A policy for every endpoint; ingress default deny unless told otherwise."""
    return Policy(
        "CiliumNetworkPolicy", "default", "p", "", subject or Selector(), rules, ingress, egress, origin
    )


def rules_of(*rules: Rule, ingress: bool = True, egress: bool = False) -> EndpointRules:
    """What an endpoint under one policy of *rules* is under."""
    return select([policy(*rules, ingress=ingress, egress=egress)], pod("web"))


def verdicts(
    state: MapState,
    peers: Iterable[NumericIdentity],
    *traffic: tuple[int, int],
    direction: Direction = INGRESS,
) -> Mapping[NumericIdentity, tuple[str, ...]]:
    """The verdict names per peer for each (protocol, port)."""
    return {
        peer: tuple(
            lookup(state, peer, direction, protocol, port)[0].name.removeprefix("POLICY_VERDICT_")
            for protocol, port in traffic
        )
        for peer in peers
    }
