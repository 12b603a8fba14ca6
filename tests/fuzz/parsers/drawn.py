# SPDX-License-Identifier: Apache-2.0
"""Structures out of bytes: a fuzzer that changes a byte changes one choice."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from property.documents import BLOCKS, ENTITIES, EXCEPTS, PORTS, PREFIXES, RANGES
from property.worlds import (
    HOSTS,
    MACHINES,
    NAMESPACES,
    PORT_NAMES,
    Case,
    Document,
    namespace,
    pod,
    pod_address,
)

T = TypeVar("T")


class Bytes:
    """Bytes that are consumed; zeros follow the last."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def more(self) -> bool:
        """Whether there are any left."""
        return self._at < len(self._data)

    def take(self, count: int) -> bytes:
        """The next *count* bytes."""
        found = self._data[self._at : self._at + count].ljust(count, b"\0")
        self._at += count
        return found

    def below(self, limit: int) -> int:
        """A number from 0 on, less than *limit*."""
        return self.take(1)[0] % limit

    def one_of(self, choices: Sequence[T]) -> T:
        """One of the *choices*."""
        return choices[self.below(len(choices))]

    def some(self, make: Callable[[], T], least: int, most: int) -> list[T]:
        """From *least* to *most* things."""
        return [make() for _ in range(least + self.below(most - least + 1))]


def drawn_case(drawn: Bytes) -> Case:
    """A small world, up to three policies and some traffic."""
    here, remote = 2 + drawn.below(2), drawn.below(2)
    # Addresses of their own: one in seven cases has pods of IPv6 alone.
    families = (4, 6) if drawn.below(7) else (6,)
    return Case(
        namespaces=tuple(
            namespace(name, drawn.one_of(({}, {"team": "a"}, {"team": "b"}))) for name in NAMESPACES
        ),
        pods=tuple(
            pod(number, _pod(drawn), [pod_address(where, family, HOSTS[number]) for family in families])
            for number, where in enumerate([*["here"] * here, *["there"] * remote])
        ),
        policies=tuple(_policy(drawn, number) for number in range(1 + drawn.below(3))),
        traffic=(("TCP", drawn.one_of(PORTS)), drawn.one_of((("UDP", 53), ("TCP", 81), ("ICMP", 8)))),
        remote=remote,
        machines={name: {"role": drawn.one_of(("edge", "core"))} for _, name in MACHINES}
        if drawn.below(2)
        else {},
    )


def _pod(drawn: Bytes) -> Document:
    return {
        "namespace": drawn.one_of(NAMESPACES[:2]),
        "labels": {
            "app": drawn.one_of(("web", "db")),
            **drawn.one_of(({}, {"tier": "front"}, {"tier": ""}, {"role": "edge"})),
        },
        "serviceAccountName": drawn.one_of(("default", "robot")),
        "ports": [
            {"name": drawn.one_of(PORT_NAMES), "protocol": "TCP", "containerPort": drawn.one_of((80, 53))}
        ],
    }


def _policy(drawn: Bytes, number: int) -> Document:
    kind = drawn.one_of(("CiliumNetworkPolicy", "CiliumClusterwideNetworkPolicy", "NetworkPolicy"))
    metadata = {"name": f"policy-{number}"}
    if kind != "CiliumClusterwideNetworkPolicy":
        metadata["namespace"] = drawn.one_of(NAMESPACES[:2])
    selected = drawn.one_of(({}, {"matchLabels": {"app": "web"}}))
    if kind == "NetworkPolicy":
        spec: dict[str, Any] = {"podSelector": selected, "policyTypes": ["Ingress", "Egress"]}
        for section, side in (("ingress", "from"), ("egress", "to")):
            if drawn.below(2):
                spec[section] = drawn.some(lambda side=side: _kubernetes_rule(drawn, side), 0, 2)
        return {"apiVersion": "networking.k8s.io/v1", "kind": kind, "metadata": metadata, "spec": spec}
    spec = {"endpointSelector": selected}
    for section, side in (
        ("ingress", "from"),
        ("ingressDeny", "from"),
        ("egress", "to"),
        ("egressDeny", "to"),
    ):
        if drawn.below(2):
            spec[section] = drawn.some(lambda side=side: _rule(drawn, side), 0, 2)
            if not section.endswith("Deny") and not drawn.below(5):
                spec[section].append({f"{side}Requires": [_selector(drawn)]})
    return {"apiVersion": "cilium.io/v2", "kind": kind, "metadata": metadata, "spec": spec}


def _kubernetes_rule(drawn: Bytes, side: str) -> Document:
    rule: dict[str, Any] = {}
    match drawn.below(4):
        case 0:
            rule[side] = [{"podSelector": {"matchLabels": {"app": drawn.one_of(("web", "db"))}}}]
        case 1:
            rule[side] = [{"namespaceSelector": drawn.one_of(({}, {"matchLabels": {"team": "a"}}))}]
        case 2:
            rule[side] = [{"ipBlock": _block(drawn, BLOCKS)}]
    if drawn.below(2):
        rule["ports"] = [{"port": drawn.one_of(PORTS), "protocol": drawn.one_of(("TCP", "UDP"))}]
    return rule


def _block(drawn: Bytes, known: Mapping[str, Sequence[str]]) -> Document:
    prefix = drawn.one_of(sorted(known))
    return {"cidr": prefix, "except": drawn.some(lambda: drawn.one_of(known[prefix]), 1, 2)}


def _rule(drawn: Bytes, side: str) -> Document:
    rule: dict[str, Any] = {}
    match drawn.below(6):
        case 0:
            rule[f"{side}Endpoints"] = drawn.some(lambda: _selector(drawn), 0, 2)
        case 1:
            rule[f"{side}CIDR"] = drawn.some(lambda: drawn.one_of(PREFIXES), 0, 2)
        case 2:
            rule[f"{side}CIDRSet"] = [_block(drawn, EXCEPTS)]
        case 3:
            rule[f"{side}Entities"] = drawn.some(lambda: drawn.one_of(ENTITIES), 0, 2)
        case 4:
            rule[f"{side}Nodes"] = [drawn.one_of(({}, {"matchLabels": {"role": "edge"}}))]
    match drawn.below(4):
        case 0:
            rule["toPorts"] = [{"ports": drawn.some(lambda: _port(drawn), 1, 2)}]
        case 1:
            rule["icmps"] = [{"fields": [{"type": drawn.one_of((8, 0, "EchoRequest"))}]}]
    return rule


def _selector(drawn: Bytes) -> Document:
    key = drawn.one_of(("app", "tier", "k8s:io.kubernetes.pod.namespace", "any:app"))
    value = drawn.one_of(("web", "db", "front", "blue", "green"))
    match drawn.below(4):
        case 0:
            return {}
        case 1:
            return {"matchLabels": {key: value}}
        case 2:
            operator = drawn.one_of(("In", "NotIn"))
            return {"matchExpressions": [{"key": key, "operator": operator, "values": [value]}]}
        case _:
            return {"matchExpressions": [{"key": key, "operator": drawn.one_of(("Exists", "DoesNotExist"))}]}


def _port(drawn: Bytes) -> Document:
    protocol = drawn.one_of(("TCP", "UDP", "ANY"))
    if drawn.below(2):
        first, last = drawn.one_of(RANGES)
        return {"port": str(first), "endPort": last, "protocol": protocol}
    return {"port": drawn.one_of((*map(str, PORTS), *PORT_NAMES, "0")), "protocol": protocol}
