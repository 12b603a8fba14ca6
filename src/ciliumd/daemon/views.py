# SPDX-License-Identifier: Apache-2.0
"""
What the agent tells about its objects, in the shapes of Cilium's API models.

Functions of rows: reading them from tables and live maps is the caller's part.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

from ciliumd import abi
from ciliumd.daemon.proposal import Difference
from ciliumd.daemon.suggestion import Suggestion
from ciliumd.desired.policy import PROTOCOL_NUMBERS, EndpointRules, Explanation, Selected
from ciliumd.flows.enrich import PolicyName, policy_names
from ciliumd.flows.record import RecordedFlow
from ciliumd.flows.render import timestamp
from ciliumd.model.endpoint import HEALTH_POD, EndpointSpec
from ciliumd.model.labels import K8S, Labels, labels_text
from ciliumd.model.net import Addr
from ciliumd.model.policy import (
    Direction,
    Operator,
    Peer,
    PeerCIDR,
    PeerEntity,
    PeerNodes,
    PeerPart,
    PeerSelector,
    Policy,
    PortRule,
    Requirement,
    Selector,
)
from ciliumd.tables.schema import ObjectKey, Problem

Json = dict[str, Any]

AUDIT_OPTION = "PolicyAuditMode"

VERDICTS: Mapping[int, str] = {
    abi.PolicyVerdict.POLICY_VERDICT_ALLOW: "allow",
    abi.PolicyVerdict.POLICY_VERDICT_DENY: "deny",
    abi.PolicyVerdict.POLICY_VERDICT_DEFAULT_DENY: "default-deny",
}


_PROTOCOL_NAMES = {number: name for name, number in PROTOCOL_NUMBERS.items()}


def enforcement(rules: EndpointRules | None, *, audit: bool = False) -> str:
    """
    In which directions an endpoint is in default deny: none, ingress, egress or both.

    Under *audit* in which directions something passes that would be dropped: there a deny rule is enough.
    """
    if rules is None:
        return "none"
    ingress, egress = rules.ingress_enforced, rules.egress_enforced
    if audit:
        ingress |= any(rule.deny for rule in rules.of(Direction.INGRESS))
        egress |= any(rule.deny for rule in rules.of(Direction.EGRESS))
    match ingress, egress:
        case True, True:
            word = "both"
        case True, False:
            word = "ingress"
        case False, True:
            word = "egress"
        case _:
            return "none"
    return f"audit-{word}" if audit else word


def endpoint_model(
    endpoint: EndpointSpec,
    *,
    state: str,
    identity: int | None,
    labels: Labels,
    rules: EndpointRules | None,
    version: int | None,
    revision: int,
    audit: bool,
) -> Json:
    """``models.Endpoint``: one local pod, or the node's health endpoint."""
    options = {"options": {AUDIT_OPTION: "Enabled" if audit else "Disabled"}}
    texts = list(labels_text(labels))
    health = "OK" if state == "ready" else "Pending"
    policy = {
        "policy-enabled": enforcement(rules, audit=audit),
        "policy-revision": revision,
        "policy-version": version or 0,
    }
    return {
        "id": endpoint.id,
        "spec": options,
        "status": {
            "realized": options,
            "state": state,
            "health": {"overallHealth": health, "bpf": health, "policy": health, "connected": True},
            "identity": {"id": identity or 0, "labels": texts},
            "labels": {"security-relevant": texts},
            "networking": {
                "addressing": [
                    {
                        "ipv4": str(endpoint.ipv4) if endpoint.ipv4 else "",
                        "ipv6": str(endpoint.ipv6) if endpoint.ipv6 else "",
                    }
                ],
                "mac": endpoint.mac,
                "host-mac": endpoint.node_mac,
                "interface-name": endpoint.ifname,
                "interface-index": endpoint.ifindex,
                "container-interface-name": endpoint.ifname_in_pod,
            },
            "policy": {"realized": policy},
            "external-identifiers": _identifiers(endpoint),
            "slot": endpoint.slot,
            "slot-generation": endpoint.slot_gen,
        },
    }


def _identifiers(endpoint: EndpointSpec) -> Json:
    """``models.EndpointIdentifiers``; the health endpoint is no pod and is known by its container."""
    inside = {"container-id": endpoint.container_id, "netns": endpoint.netns}
    if endpoint.pod_key == HEALTH_POD:
        return {"container-name": endpoint.pod, **inside}
    return {
        "k8s-namespace": endpoint.namespace,
        "k8s-pod-name": endpoint.pod,
        "pod-name": f"{endpoint.namespace}/{endpoint.pod}",
        **inside,
    }


def identity_models(identities: Mapping[int, Labels]) -> list[Json]:
    """``models.Identity`` of every identity this node knows, by number."""
    return [
        {"id": number, "labels": list(labels_text(labels))} for number, labels in sorted(identities.items())
    ]


def policy_model(policy: Policy) -> Json:
    """One policy in force: what it selects, and what its rules are called in events."""
    return {
        "kind": policy.kind,
        "namespace": policy.namespace,
        "name": policy.name,
        "uid": policy.uid,
        "origin": policy.origin,
        "subject": selector_text(policy.subject),
        "default-deny": {"ingress": policy.default_deny_ingress, "egress": policy.default_deny_egress},
        "rules": [
            {
                "origin": rule.origin,
                "direction": rule.direction.name.lower(),
                "deny": rule.deny,
                "peers": None if rule.peers is None else [peer_text(peer) for peer in rule.peers],
                "ports": None if rule.ports is None else [port_text(port) for port in rule.ports],
                **({"requires": [selector_text(one) for one in rule.requires]} if rule.requires else {}),
            }
            for rule in policy.rules
        ],
    }


def peer_text(peer: Peer) -> str:
    """A peer as people write it: a label selector, a CIDR, an entity."""
    match peer:
        case PeerSelector(selector):
            return selector_text(selector)
        case PeerNodes(selector):
            return f"nodes {selector_text(selector)}" if selector != Selector() else "every node"
        case PeerCIDR(prefix, excepts):
            excluded = f" except {', '.join(map(str, excepts))}" if excepts else ""
            return f"{prefix}{excluded}"
        case PeerPart(block):
            return f"pods in {peer_text(block)}"
        case PeerEntity(name):
            return f"entity {name}"


def selector_text(selector: Selector) -> str:
    """A selector in the short form of kubectl, with the source of each label."""
    terms = [f"{source}:{key}={value}" for source, key, value in sorted(selector.match_labels)]
    terms += [_requirement_text(one) for one in selector.expressions]
    return ", ".join(terms) or "every endpoint"


def _requirement_text(requirement: Requirement) -> str:
    key = f"{requirement.source}:{requirement.key}"
    values = f"({', '.join(sorted(requirement.values))})"
    match requirement.op:
        case Operator.IN:
            return f"{key} in {values}"
        case Operator.NOT_IN:
            return f"{key} notin {values}"
        case Operator.EXISTS:
            return key
        case Operator.DOES_NOT_EXIST:
            return f"!{key}"


def port_text(rule: PortRule) -> str:
    """Ports as ``number/protocol``, ``first-last/protocol`` or ``name/protocol``; ICMP has types."""
    if rule.icmp_type is not None:
        return f"type {rule.icmp_type}/{rule.protocol}"
    port = rule.name or (str(rule.port) if rule.port else "any")
    if rule.end_port:
        port = f"{rule.port}-{rule.end_port}"
    return f"{port}/{rule.protocol}"


def policy_answer(
    policies: Iterable[Policy],
    problems: Mapping[ObjectKey, Problem],
    *,
    revision: int,
    cookies: Mapping[int, tuple[str, ...]],
) -> Json:
    """Body of ``GET /v1/policy``."""
    return {
        "revision": revision,
        "policy": [policy_model(p) for p in sorted(policies, key=lambda p: (p.kind, p.namespace, p.name))],
        "problems": _problem_models(problems),
        "rule-cookies": {str(number): list(origins) for number, origins in sorted(cookies.items())},
    }


def selector_models(selectors: Mapping[Peer, Selected]) -> list[Json]:
    """``models.SelectorCache``: every peer of the rules in force, and the rules that have it."""
    models = [
        {
            "selector": peer_text(peer),
            "identities": sorted(found.identities),
            "users": len(found.rules),
            "labels": [_policy_labels(one) for one in _policies_of(found.rules)],
            "rules": sorted(found.rules),
        }
        for peer, found in selectors.items()
    ]
    return sorted(models, key=lambda model: (model["selector"], model["rules"]))


def _policies_of(origins: Iterable[str]) -> list[PolicyName]:
    """The policies that rules are written in, each once."""
    return list(dict.fromkeys(replace(one, rule="") for one in policy_names(sorted(origins))))


def _policy_labels(policy: PolicyName) -> list[Json]:
    """The labels by which Cilium's API names a policy."""
    found = {"derived-from": policy.kind, "name": policy.name, "namespace": policy.namespace}
    return [
        {"key": f"io.cilium.k8s.policy.{key}", "value": value, "source": K8S}
        for key, value in found.items()
        if value
    ]


def explanation(
    found: Explanation,
    suggested: Suggestion,
    *,
    source: str,
    destination: str,
    audited: Collection[str] = (),
) -> Json:
    """Body of ``GET /v1/policy/explain``; who is *audited* lets through what its policies deny."""
    sides = {Direction.INGRESS: destination, Direction.EGRESS: source}
    return {
        "verdict": "allowed" if found.allowed else "denied",
        "from": source,
        "to": destination,
        "protocol": found.protocol,
        "port": found.port,
        "directions": [
            {
                "direction": one.direction.name.lower(),
                "endpoint": sides[one.direction],
                "audited": sides[one.direction] in audited,
                "verdict": VERDICTS.get(one.verdict, "none"),
                "origins": list(one.origins),
                "row": _row_text(one.row),
            }
            for one in found.directions
        ],
        "suggestion": {"documents": list(suggested.documents), "note": suggested.note},
    }


def counter(by_row: int, same: Iterable[RecordedFlow]) -> Json:
    """How often a row decided *by_row*, and what was recorded of the *same* traffic."""
    flows = list(same)
    last = max((flow.last_seen_ns for flow in flows), default=0)
    return {
        "row": by_row,
        "traffic": sum(flow.times for flow in flows),
        "last-seen": timestamp(last) if last else "",
    }


def difference(
    found: Difference,
    problems: Mapping[ObjectKey, Problem],
    *,
    lost: int,
    names: Mapping[Addr, str],
    before: Mapping[int, tuple[str, ...]],
    after: Mapping[int, tuple[str, ...]],
) -> Json:
    """Answer to ``POST /v1/policy/diff``; *before* and *after* give the origins of rule cookies."""

    def name(address: Addr) -> str:
        return names.get(address) or str(address)

    return {
        "flows": found.flows,
        "flows-left-out": found.unknown,
        "events-lost": lost,
        "problems": _problem_models(problems),
        "changes": [
            {
                "from": name(change.traffic.source),
                "to": name(change.traffic.destination),
                "protocol": _PROTOCOL_NAMES.get(change.traffic.protocol, str(change.traffic.protocol)),
                "port": change.traffic.port,
                "times": change.recorded.times,
                "last-seen": timestamp(change.recorded.last_seen_ns),
                "verdict": "denied" if change.would_pass else "allowed",
                "proposed-verdict": "allowed" if change.would_pass else "denied",
                "directions": [
                    {
                        "direction": hop.direction.name.lower(),
                        "endpoint": name(change.traffic.side(hop.direction)),
                        "verdict": VERDICTS.get(hop.before.verdict, "none"),
                        "origins": list(before.get(hop.before.rule_cookie, ())),
                        "proposed-verdict": VERDICTS.get(hop.after.verdict, "none"),
                        "proposed-origins": list(after.get(hop.after.rule_cookie, ())),
                    }
                    for hop in change.hops
                ],
            }
            for change in found.changes
        ],
    }


def _problem_models(problems: Mapping[ObjectKey, Problem]) -> list[Json]:
    return [
        {
            "kind": kind,
            "namespace": namespace,
            "name": name,
            "field": problem.field,
            "message": problem.message,
            "file": problem.file,
        }
        for (kind, namespace, name), problem in sorted(problems.items())
    ]


def _row_text(row: tuple[abi.PolicyKey, abi.PolicyEntry] | None) -> str:
    if row is None:
        return "none"
    key, entry = row
    place = f"class {key.class_id} protocol {key.protocol} port {key.dport} /{key.prefixlen}"
    return f"{place} -> {VERDICTS.get(entry.verdict, 'none')}"
