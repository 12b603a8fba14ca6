# SPDX-License-Identifier: Apache-2.0
"""Counts what the generated policies used and what became of the packets, to be printed and asserted."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

from property.reference.matching import Document, in_block
from property.reference.oracle import ALLOW, Packet, Pod
from property.worlds import Case

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

BLOCKS = ("all pods", "some pods", "no pod", "one pod", "some of the like", "a pod in an exception")
"""What blocks of addresses (ipBlock) do to the pods of a world."""

_OPAQUE = frozenset({"matchLabels", "labels"})  # their keys are the users'


class Tally:
    """
    What was seen so far.

    *blocks* counts cases by what blocks do to pods; *judged_apart* are verdicts that differ between pods
    that nothing but their addresses tells apart.
    """

    def __init__(self) -> None:
        self.cases = self.policies = 0
        self.fields: Counter[str] = Counter()
        self.operators: Counter[str] = Counter()
        self.verdicts: Counter[str] = Counter()
        self.blocks: Counter[str] = Counter()
        self.judged_apart = 0

    def add_case(self, case: Case) -> None:
        """Count each field once per policy that uses it, and what blocks do once per case."""
        self.cases += 1
        self.policies += len(case.policies)
        pods = [peer for peer in case.peers() if isinstance(peer, Pod)]
        self.blocks.update({word for block in _blocks(case) for word in _done(block, pods)})
        for policy in case.policies:
            used: set[str] = set()
            kind = policy["kind"]
            if "spec" in policy:
                used.add(f"{kind}.spec")
                self._walk(policy["spec"], kind, used)
            for spec in policy.get("specs", ()):
                used.add(f"{kind}.specs[]")
                self._walk(spec, kind, used)
            self.fields.update(used)

    def add_verdicts(self, said: Sequence[tuple[Packet, str]]) -> None:
        """Count what becomes of the packets of one endpoint."""
        self.verdicts.update(verdict for _, verdict in said)
        of_pods: dict[tuple[str, str, int], list[tuple[Pod, str]]] = {}
        for packet, verdict in said:
            if isinstance(packet.peer, Pod):
                traffic = packet.direction, packet.protocol, packet.port
                of_pods.setdefault(traffic, []).append((packet.peer, verdict))
        for judged in of_pods.values():
            self.judged_apart += sum(
                verdict != other and one.is_like(another)
                for (one, verdict), (another, other) in combinations(judged, 2)
            )

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
        """Enforced fields no policy used, and what no block of addresses did."""
        return set(ENFORCED_FIELDS - self.fields.keys()) | set(BLOCKS) - self.blocks.keys()

    def report(self, judges: Iterable[str]) -> str:
        """The figures."""
        verdicts = ", ".join(f"{name} {count}" for name, count in sorted(self.verdicts.items()))
        operators = ", ".join(f"{name} {count}" for name, count in sorted(self.operators.items()))
        blocks = ", ".join(f"{name} {self.blocks[name]}" for name in BLOCKS)
        used = len(ENFORCED_FIELDS & self.fields.keys())
        rarest = min(self.fields.get(name, 0) for name in ENFORCED_FIELDS)
        lines = [
            f"policy property: {self.cases} cases, {self.packets} packets, judges: {', '.join(judges)}",
            f"  verdicts: {verdicts}; allowed {self.allowed_share:.1%}",
            f"  selector operators: {operators}",
            f"  fields used: {used} of {len(ENFORCED_FIELDS)}, the rarest in {rarest} policies",
            f"  cases by what an ipBlock holds: {blocks}",
            f"  pods of one label set judged apart by their addresses: {self.judged_apart}",
        ]
        return "\n".join(lines)

    def data(self, judges: Iterable[str]) -> str:
        """The same, for evidence: of verdicts on which the *judges* agreed."""
        return json.dumps(
            {
                "case": "A2",
                "policy_sets": self.cases,
                "policies": self.policies,
                "verdicts": self.packets,
                "allowed": self.verdicts[ALLOW],
                "judges": ", ".join(judges),
                "fields_used": f"{len(ENFORCED_FIELDS & self.fields.keys())} of {len(ENFORCED_FIELDS)}",
                "uses_of_the_rarest_field": min(self.fields.get(name, 0) for name in ENFORCED_FIELDS),
            }
        )


def _blocks(case: Case) -> Iterator[Document]:
    for policy in case.policies:
        if policy["kind"] == "NetworkPolicy":
            for section, side in (("ingress", "from"), ("egress", "to")):
                for rule in policy["spec"].get(section) or []:
                    yield from (one["ipBlock"] for one in rule.get(side) or [] if "ipBlock" in one)


def _done(block: Document, pods: Sequence[Pod]) -> Iterator[str]:
    """What *block* does to *pods*, in the words of :data:`BLOCKS`."""
    inside = [in_block(block, pod) for pod in pods]
    yield "all pods" if all(inside) else "some pods" if any(inside) else "no pod"
    if sum(inside) == 1:
        yield "one pod"
    of_both = combinations(zip(pods, inside, strict=True), 2)
    if any(held != other and one.is_like(another) for (one, held), (another, other) in of_both):
        yield "some of the like"
    if sum(in_block({"cidr": block["cidr"]}, pod) for pod in pods) > sum(inside):
        yield "a pod in an exception"
