# SPDX-License-Identifier: Apache-2.0
"""
Objects gone wrong: a document with some of its parts replaced, removed, repeated, renamed or moved.

Mutations know the shape of documents, not of kinds: they go where there is something and put there what a
hostile or broken writer would.  Every document is one that JSON can say.
"""

import copy
import random
from collections.abc import Iterator, MutableMapping, MutableSequence, Sequence
from typing import Any

Document = dict[str, Any]
Place = tuple[Any, Any]
"""A container and the key, or index, in it."""

_LONG = 3_000
_DEEP = 60


def _nested(depth: int, *, mapping: bool) -> Any:
    value: Any = "bottom"
    for _ in range(depth):
        value = {"a": value} if mapping else [value]
    return value


NUMBERS = (0, 1, -1, 2, 65535, 65536, 2**31, 2**63, -(2**63), 2**64, 10**30, 0.5, 1e308, -0.0)
NO_NUMBERS = (float("nan"), float("inf"), float("-inf"))
TEXTS = (
    *("", " ", "\x00", "\n", "a\tb", "None", "null", "true", "~", "-", ".", "..", "/", ":", "*", "!"),
    *("\u0456", "\u200b", "\ufeff", "\ud800", "\U0001f980", "e\u0301", "\u0130", "\uff11", "\u0661\u0662"),
    *("a" * 63, "a" * 64, "a" * 253, "a" * 254, "a-" * 126 + "a", "a." * 126 + "a", "-" * 253),
    *("9" * 400, "9" * 5_000, "0" * 400 + "1", "1" * _LONG, "a" * _LONG, "a-" * _LONG, "1.2.3.4/" * 400),
    *("0", "00", "01", "1e3", "0x50", "-1", "65535", "65536", "4294967296", "1_000", " 80", "80 ", "+80"),
    *("10.0.0.1", "10.0.0.1/33", "10.0.0.1/-1", "10.0.0.1/08", "10.0.0.1/", "10.0.0.01", "256.1.1.1", "10.1"),
    *("0.0.0.0", "0.0.0.0/0", "255.255.255.255/32", "127.0.0.1", "169.254.1.1", "224.0.0.1", "240.0.0.1/4"),
    *(
        "::",
        "::/0",
        "::1",
        "fe80::1%eth0",
        "fe80::1%25eth0",
        "::ffff:1.2.3.4",
        "::ffff:1.2.3.4/96",
        "1::1::1",
    ),
    *("2001:db8::/129", "2001:db8::1/64", "ff02::1", "2001:db8::%1", "::1.2.3.4", "[::1]", "::g"),
    *("TCP", "tcp", "ANY", "ICMP", "SCTP", "VRRP", "In", "Exists", "Local", "Cluster", "Succeeded", "Ready"),
    *("reserved:host", "reserved:world", "reserved:", "k8s:", "any:", "cidr:1.2.3.4/32", "k8s:reserved:host"),
    *("io.kubernetes.pod.namespace", "io.cilium.k8s.policy.cluster", "io.cilium.k8s.namespace.labels."),
    *("all", "world", "host", "cluster", "kube-apiserver", "default", "kube-system", "kubernetes"),
    *("2026-01-01T00:00:00Z", "2026-13-41T99:99:99Z", "0000", "a" * 15, "a" * 16, "http", "1http", "a--b"),
    *("(a+)+$", "a" * 40 + "!", "$(id)", "{{x}}", "%s%n", "../../etc/passwd", "http://[::1"),
)
OTHERS = (None, True, False, [], {}, [None], [[]], [{}], {"": None}, {"": {}}, {"a": []}, ["", ""])
KEYS = (
    *(
        "spec",
        "specs",
        "metadata",
        "status",
        "labels",
        "name",
        "namespace",
        "uid",
        "ingress",
        "egress",
        "ports",
    ),
    *(
        "matchLabels",
        "matchExpressions",
        "operator",
        "values",
        "port",
        "endPort",
        "cidr",
        "except",
        "toPorts",
    ),
    *("fromEntities", "toFQDNs", "toServices", "icmps", "rules", "l7proto", "nodeSelector", "podSelector"),
    *TEXTS[:60],
)


class Mutator:
    """Mutates documents, each into one that shares nothing with it; the same for the same *chance*."""

    def __init__(self, chance: random.Random, donors: Sequence[Document]) -> None:
        self._chance = chance
        self._donors = donors

    def mutate(self, document: Document) -> Document:
        """*document* with one to four changes."""
        changed = copy.deepcopy(document)
        for _ in range(self._chance.choice((1, 1, 1, 2, 2, 3, 4))):
            self._change(changed)
        return changed

    def value(self) -> Any:
        """Something that is likely to be out of place."""
        chance = self._chance
        match chance.randrange(12):
            case 0 | 1 | 2:
                return chance.choice(NUMBERS)
            case 3 | 4 | 5 | 6:
                return chance.choice(TEXTS)
            case 7 | 8:
                return copy.deepcopy(chance.choice(OTHERS))
            case 9:
                return chance.choice(NO_NUMBERS)
            case 10:
                return _nested(chance.randrange(2, _DEEP), mapping=chance.random() < 0.5)
            case _:
                return [chance.choice(TEXTS) for _ in range(chance.randrange(5))]

    def _change(self, document: Document) -> None:
        places = list(_places(document))
        if not places:
            document["spec"] = self.value()
            return
        chance = self._chance
        container, key = chance.choice(places)
        match chance.randrange(11):
            case 0 | 1 | 2:
                container[key] = self.value()
            case 3:
                del container[key]
            case 4:
                self._repeat(container, key)
            case 5:
                container[key] = self._other(places, key)
            case 6:
                self._rename(container, key)
            case 7:
                self._add(container, key)
            case 8 | 9:
                container[key] = self._altered(container[key])
            case _:
                donor = list(_places(chance.choice(self._donors)))
                other, there = chance.choice(donor)
                container[key] = copy.deepcopy(other[there])

    def _repeat(self, container: Any, key: Any) -> None:
        value = container[key]
        count = self._chance.choice((2, 3, 20, 200))
        if isinstance(container, MutableSequence):
            container[key:key] = [copy.deepcopy(value) for _ in range(count)]
        elif isinstance(value, list):
            container[key] = [copy.deepcopy(one) for one in value for _ in range(count)]
        else:
            container[key] = [copy.deepcopy(value) for _ in range(count)]

    def _other(self, places: list[Place], key: Any) -> Any:
        """What stands somewhere else in the document, under a key of this name if there is one."""
        alike = [place for place in places if place[1] == key] if self._chance.random() < 0.5 else places
        container, there = self._chance.choice(alike)
        return copy.deepcopy(container[there])

    def _rename(self, container: Any, key: Any) -> None:
        if isinstance(container, MutableMapping):
            container[self._chance.choice(KEYS)] = container.pop(key)
        else:
            self._chance.shuffle(container)

    def _add(self, container: Any, key: Any) -> None:
        target = container[key] if isinstance(container[key], dict) else container
        if isinstance(target, MutableMapping):
            target[self._chance.choice(KEYS)] = self.value()
        else:
            target.insert(self._chance.randrange(len(target) + 1), self.value())

    def _altered(self, value: Any) -> Any:
        chance = self._chance
        if isinstance(value, bool) or value is None:
            return not value
        if isinstance(value, int | float):
            return chance.choice((value + 1, value - 1, -value, str(value), value * 2**32, float(value)))
        if isinstance(value, str):
            at = chance.randrange(len(value) + 1)
            return chance.choice(
                (
                    value[:at] + chance.choice(TEXTS[:40]) + value[at:],
                    value[:at] + value[at + 1 :],
                    value.upper(),
                    value * 2,
                    value[::-1],
                    value + chance.choice((" ", "\n", "\x00", ".", "/", ":", "%1", "/0", "/32")),
                )
            )
        if isinstance(value, list):
            return chance.choice((value[::-1], value[:-1], dict.fromkeys(map(str, range(len(value))), value)))
        return [[key, one] for key, one in value.items()]


def _places(document: Any) -> Iterator[Place]:
    """Every place in a document, the outer ones first."""
    if isinstance(document, dict):
        for key, value in document.items():
            yield document, key
            yield from _places(value)
    elif isinstance(document, list):
        for i, value in enumerate(document[:50]):
            yield document, i
            yield from _places(value)


def rooted(document: Document, *, uid: str, version: int, name: str, namespace: str) -> Document:
    """
    *document* with what an API server gives every object, whatever its writer sent.

    Name and namespace are text and the metadata is a mapping: they are in the address of the object.
    """
    metadata = document.get("metadata")
    kept = metadata if isinstance(metadata, dict) else {}
    rest = {"name": name, "uid": uid, "resourceVersion": str(version)}
    if namespace:
        rest["namespace"] = namespace
    else:
        kept.pop("namespace", None)
    return {**document, "metadata": {**kept, **rest}}
