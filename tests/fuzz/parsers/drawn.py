# SPDX-License-Identifier: Apache-2.0
"""Structures out of bytes: a fuzzer that changes a byte changes one choice."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from property.documents import ENTITIES, EXCEPTS, PORTS, PREFIXES, RANGES
from property.worlds import NAMESPACES, PORT_NAMES, Case, Document, namespace, pod

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
    return Case(
        namespaces=tuple(
            namespace(name, drawn.one_of(({}, {"team": "a"}, {"team": "b"}))) for name in NAMESPACES
        ),
        pods=tuple(pod(number, _pod(drawn)) for number in range(2 + drawn.below(2))),
        policies=tuple(_policy(drawn, number) for number in range(1 + drawn.below(3))),
        traffic=(("TCP", drawn.one_of(PORTS)), drawn.one_of((("UDP", 53), ("TCP", 81), ("ICMP", 8)))),
        remote=drawn.below(2),
    )


def _pod(drawn: Bytes) -> Document:
    return {
        "namespace": drawn.one_of(NAMESPACES[:2]),
        "labels": {
            "app": drawn.one_of(("web", "db")),
            **drawn.one_of(({}, {"tier": "front"}, {"tier": ""})),
        },
        "serviceAccountName": drawn.one_of(("default", "robot")),
        "ports": [
            {"name": drawn.one_of(PORT_NAMES), "protocol": "TCP", "containerPort": drawn.one_of((80, 53))}
        ],
    }


def _policy(drawn: Bytes, number: int) -> Document:
    kind = drawn.one_of(("CiliumNetworkPolicy", "CiliumClusterwideNetworkPolicy"))
    spec: dict[str, Any] = {"endpointSelector": drawn.one_of(({}, {"matchLabels": {"app": "web"}}))}
    for section, side in (
        ("ingress", "from"),
        ("ingressDeny", "from"),
        ("egress", "to"),
        ("egressDeny", "to"),
    ):
        if drawn.below(2):
            spec[section] = drawn.some(lambda side=side: _rule(drawn, side), 0, 2)
    metadata = {"name": f"policy-{number}"}
    if kind == "CiliumNetworkPolicy":
        metadata["namespace"] = drawn.one_of(NAMESPACES[:2])
    return {"apiVersion": "cilium.io/v2", "kind": kind, "metadata": metadata, "spec": spec}


def _rule(drawn: Bytes, side: str) -> Document:
    rule: dict[str, Any] = {}
    match drawn.below(5):
        case 0:
            rule[f"{side}Endpoints"] = drawn.some(lambda: _selector(drawn), 0, 2)
        case 1:
            rule[f"{side}CIDR"] = drawn.some(lambda: drawn.one_of(PREFIXES), 0, 2)
        case 2:
            prefix = drawn.one_of(sorted(EXCEPTS))
            excepts = drawn.some(lambda: drawn.one_of(EXCEPTS[prefix]), 1, 2)
            rule[f"{side}CIDRSet"] = [{"cidr": prefix, "except": excepts}]
        case 3:
            rule[f"{side}Entities"] = drawn.some(lambda: drawn.one_of(ENTITIES), 0, 2)
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
