# SPDX-License-Identifier: Apache-2.0
"""Counts what the generated policies used and what became of the packets, to be printed and asserted."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from property.reference.oracle import ALLOW

_CILIUM_KINDS = ("CiliumNetworkPolicy", "CiliumClusterwideNetworkPolicy")
_SECTIONS = ("ingress", "egress")
_PEERS = ("Endpoints", "CIDR", "CIDRSet", "Entities", "Nodes")
_SELECTOR = (
    "matchLabels",
    "matchExpressions[].key",
    "matchExpressions[].operator",
    "matchExpressions[].values",
)


def _cilium_fields() -> Iterable[str]:
    yield from (f"endpointSelector.{term}" for term in _SELECTOR)
    yield from ("description", "labels", "enableDefaultDeny.ingress", "enableDefaultDeny.egress")
    for section in (*_SECTIONS, *(name + "Deny" for name in _SECTIONS)):
        side = "from" if section.startswith("ingress") else "to"
        yield from (f"{section}[].{side}{kind}" for kind in _PEERS)
        if side == "to":
            yield from (
                f"{section}[].toServices[].k8sService.{name}" for name in ("serviceName", "namespace")
            )
            yield f"{section}[].toServices[].k8sServiceSelector.namespace"
            yield from (f"{section}[].toServices[].k8sServiceSelector.selector.{term}" for term in _SELECTOR)
        if not section.endswith("Deny"):
            yield from (f"{section}[].{side}Requires[].{term}" for term in _SELECTOR)
        yield from (
            f"{section}[].{side}{kind}[].{term}" for kind in ("Endpoints", "Nodes") for term in _SELECTOR
        )
        yield from (f"{section}[].{side}CIDRSet[].{name}" for name in ("cidr", "except", "cidrGroupRef"))
        yield from (f"{section}[].{side}CIDRSet[].cidrGroupSelector.{term}" for term in _SELECTOR)
        yield from (f"{section}[].toPorts[].ports[].{name}" for name in ("port", "endPort", "protocol"))
        yield from (f"{section}[].icmps[].fields[].{name}" for name in ("family", "type"))


def _kubernetes_fields() -> Iterable[str]:
    yield "policyTypes"
    yield from (f"podSelector.{term}" for term in _SELECTOR)
    for section, side in (("ingress", "from"), ("egress", "to")):
        yield f"{section}[].{side}"
        yield from (f"{section}[].{side}[].podSelector.{term}" for term in _SELECTOR)
        yield from (f"{section}[].{side}[].namespaceSelector.{term}" for term in _SELECTOR)
        yield from (f"{section}[].{side}[].ipBlock.{name}" for name in ("cidr", "except"))
        yield from (f"{section}[].ports[].{name}" for name in ("port", "endPort", "protocol"))


ENFORCED_FIELDS = frozenset(
    {f"{kind}.{name}" for kind in _CILIUM_KINDS for name in (*_cilium_fields(), "spec", "specs[]")}
    | {f"NetworkPolicy.{name}" for name in (*_kubernetes_fields(), "spec")}
)
"""Every field of a policy that has a meaning in this version."""

_OPAQUE = frozenset({"matchLabels", "labels"})  # their keys are the users'


class Tally:
    """What was seen so far."""

    def __init__(self) -> None:
        self.cases = 0
        self.fields: Counter[str] = Counter()
        self.operators: Counter[str] = Counter()
        self.verdicts: Counter[str] = Counter()

    def add_case(self, policies: Iterable[Mapping[str, Any]]) -> None:
        """Count each field once per policy that uses it."""
        self.cases += 1
        for policy in policies:
            used: set[str] = set()
            kind = policy["kind"]
            if "spec" in policy:
                used.add(f"{kind}.spec")
                self._walk(policy["spec"], kind, used)
            for spec in policy.get("specs", ()):
                used.add(f"{kind}.specs[]")
                self._walk(spec, kind, used)
            self.fields.update(used)

    def _walk(self, value: Any, path: str, used: set[str]) -> None:
        used.add(path)
        if isinstance(value, Mapping):
            if "operator" in value:
                self.operators[value["operator"]] += 1
            for key, inner in value.items():
                if key in _OPAQUE:
                    used.add(f"{path}.{key}")
                else:
                    self._walk(inner, f"{path}.{key}", used)
        elif isinstance(value, Sequence) and not isinstance(value, str):
            for inner in value:
                self._walk(inner, f"{path}[]", used)

    @property
    def packets(self) -> int:
        """How many packets were judged."""
        return self.verdicts.total()

    @property
    def allowed_share(self) -> float:
        """The share of judged packets that were allowed."""
        return self.verdicts[ALLOW] / self.packets if self.packets else 0.0

    @property
    def missing(self) -> set[str]:
        """Enforced fields no policy used."""
        return set(ENFORCED_FIELDS - self.fields.keys())

    def report(self, judges: Iterable[str]) -> str:
        """The figures."""
        verdicts = ", ".join(f"{name} {count}" for name, count in sorted(self.verdicts.items()))
        operators = ", ".join(f"{name} {count}" for name, count in sorted(self.operators.items()))
        used = len(ENFORCED_FIELDS) - len(self.missing)
        rarest = min(self.fields.get(name, 0) for name in ENFORCED_FIELDS)
        lines = [
            f"policy property: {self.cases} cases, {self.packets} packets, judges: {', '.join(judges)}",
            f"  verdicts: {verdicts}; allowed {self.allowed_share:.1%}",
            f"  selector operators: {operators}",
            f"  fields used: {used} of {len(ENFORCED_FIELDS)}, the rarest in {rarest} policies",
        ]
        return "\n".join(lines)
