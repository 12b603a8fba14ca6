# SPDX-License-Identifier: Apache-2.0
"""
Policy as plain data: who is selected, which peers and which ports, allowed or denied.

Every policy kind (CiliumNetworkPolicy, NetworkPolicy, ...) is reduced to these types by
``ciliumd.resources``; ``ciliumd.desired.policy`` turns them into map rows.  Whatever is implicit in
a document is explicit here: namespaces are labels of the selectors, default deny is two flags,
"any" is None and "nothing" is an empty tuple.  Nothing here parses, validates or resolves.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum

from ciliumd.model.labels import ANY, NODE, PART, RESERVED, Label, Labels
from ciliumd.model.net import Prefix, holds

ANY_SOURCE = ANY
"""Label source of a selector that accepts the key from every source but those of agents' own labels."""

_OWN = frozenset({NODE, PART})

NODE_NAMES = frozenset({"host", "remote-node"})
"""Reserved labels of which every identity of a node has one."""

ENTITIES = frozenset(
    {
        "all",
        "world",
        "world-ipv4",
        "world-ipv6",
        "cluster",
        "host",
        "remote-node",
        "init",
        "health",
        "unmanaged",
        "ingress",
        "kube-apiserver",
        "none",
    }
)
"""Names a :class:`PeerEntity` may carry."""

ANY_PROTOCOL = "ANY"
"""Protocol of a port rule that stands for TCP, UDP and SCTP."""


class Enforcement(StrEnum):
    """When endpoints are in default deny (``enable-policy``), spelled as in the setting."""

    DEFAULT = "default"  # in the directions a policy that selects them isolates
    ALWAYS = "always"  # in both directions, whether a policy selects them or not
    NEVER = "never"  # never; no rule applies at all


class Direction(IntEnum):
    """Traffic direction seen from the endpoint whose policy judges (numbers of the datapath ABI)."""

    INGRESS = 1
    EGRESS = 2


class Operator(StrEnum):
    """How a requirement compares, spelled as in Kubernetes label selectors."""

    IN = "In"
    NOT_IN = "NotIn"
    EXISTS = "Exists"
    DOES_NOT_EXIST = "DoesNotExist"


@dataclass(frozen=True, slots=True)
class Requirement:
    """One matchExpressions term; *source* is a label source or ``any``."""

    source: str
    key: str
    op: Operator
    values: frozenset[str] = frozenset()

    def matches(self, labels: Labels) -> bool:
        """Tell whether *labels* fulfil this requirement; an absent key fulfils the negative operators."""
        found = _values(labels, self.source, self.key)
        match self.op:
            case Operator.IN:
                return any(value in self.values for value in found)
            case Operator.NOT_IN:
                return all(value not in self.values for value in found)
            case Operator.EXISTS:
                return any(True for _ in found)
            case Operator.DOES_NOT_EXIST:
                return not any(True for _ in found)


@dataclass(frozen=True, slots=True)
class Selector:
    """
    Label selector: every label of *match_labels* (source or ``any``, key, value) and every expression.

    An empty selector matches every set of labels; scope (a namespace) is a label like any other.
    """

    match_labels: frozenset[tuple[str, str, str]] = frozenset()
    expressions: tuple[Requirement, ...] = ()
    _exact: frozenset[Label] = field(init=False, repr=False, compare=False)
    _loose: tuple[tuple[str, str], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Split once: labels of a known source are then one subset test, the common case.
        exact = frozenset(Label(s, k, v) for s, k, v in self.match_labels if s != ANY_SOURCE)
        loose = tuple(sorted((k, v) for s, k, v in self.match_labels if s == ANY_SOURCE))
        object.__setattr__(self, "_exact", exact)
        object.__setattr__(self, "_loose", loose)

    def matches(self, labels: Labels) -> bool:
        """Tell whether *labels* are selected."""
        return (
            self._exact <= labels
            and all(value in _values(labels, ANY_SOURCE, key) for key, value in self._loose)
            and all(requirement.matches(labels) for requirement in self.expressions)
        )


def all_of(selectors: Collection[Selector]) -> Selector:
    """What all of *selectors* select, written the same in whichever order they come."""
    terms = {term for one in selectors for term in one.expressions}
    return Selector(
        frozenset().union(*(one.match_labels for one in selectors)), tuple(sorted(terms, key=_term_order))
    )


@dataclass(frozen=True, slots=True)
class PeerSelector:
    """Identities selected by their labels."""

    selector: Selector


@dataclass(frozen=True, slots=True)
class PeerCIDR:
    """Addresses outside the cluster that lie in *prefix* and in none of *excepts*; never pods or nodes."""

    prefix: Prefix
    excepts: tuple[Prefix, ...] = ()
    _holes: Mapping[int, frozenset[int]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # By length, the leading bits: of a thousand exceptions no more are asked than there are lengths.
        same_family = [one for one in self.excepts if one.version == self.prefix.version]
        holes: dict[int, set[int]] = {one.prefixlen: set() for one in same_family}
        for one in same_family:
            holes[one.prefixlen].add(_leading_bits(one, one.prefixlen))
        object.__setattr__(self, "_holes", {length: frozenset(bits) for length, bits in holes.items()})

    def covers(self, prefix: Prefix) -> bool:
        """Tell whether every address of *prefix* is in this peer's prefix, and it lies in no exception."""
        return holds(self.prefix, prefix) and not any(
            length <= prefix.prefixlen and _leading_bits(prefix, length) in bits
            for length, bits in self._holes.items()
        )


@dataclass(frozen=True, slots=True)
class PeerPart:
    """Pods whose addresses lie in a *block*: NetworkPolicy's ``ipBlock``, inside the cluster."""

    block: PeerCIDR


@dataclass(frozen=True, slots=True)
class PeerEntity:
    """A named group of identities, one of :data:`ENTITIES`."""

    name: str

    def __post_init__(self) -> None:
        # A name nobody knows would match nothing: harmless in an allow, a hole in a deny.
        if self.name not in ENTITIES:
            raise ValueError(f"unknown entity: {self.name!r}")


@dataclass(frozen=True, slots=True)
class PeerNodes:
    """Nodes selected by their labels, this one included; *selector* is about labels of source ``node``."""

    selector: Selector

    def matches(self, labels: Labels) -> bool:
        """
        Tell whether *labels* are those of a node that is selected.

        Nobody but a node has labels of that source; where there are none, nobody knows which node it is.
        """
        return (
            any(label.source == RESERVED and label.key in NODE_NAMES for label in labels)
            and any(label.source == NODE for label in labels)
            and self.selector.matches(labels)
        )


Peer = PeerSelector | PeerCIDR | PeerPart | PeerEntity | PeerNodes
"""Whom a rule allows or denies; the members of a rule's peers are alternatives."""


@dataclass(frozen=True, slots=True)
class GroupReference:
    """
    The prefixes of the CiliumCIDRGroup *name*, or of all that *selector* selects, without *excepts*.

    The selector is about labels of source ``k8s``.
    """

    name: str
    selector: Selector | None = None
    excepts: tuple[Prefix, ...] = ()


@dataclass(frozen=True, slots=True)
class ServiceReference:
    """
    What is behind the service *name*, or behind all that *selector* selects; empty *namespace*: in any.

    The selector is about labels of source ``k8s``.
    """

    namespace: str
    name: str
    selector: Selector | None = None


@dataclass(frozen=True, slots=True)
class BlockReference:
    """The pods in a *block* of addresses, if those of the cluster lie in it at all."""

    block: PeerCIDR


NamedReference = GroupReference | ServiceReference
"""Peers that another object names."""

Reference = NamedReference | BlockReference
"""Peers that are not known from the policy alone."""


@dataclass(frozen=True, slots=True)
class PortRule:
    """
    Destination ports of one protocol: TCP, UDP, SCTP or ANY (these three); or a type of ICMP or ICMPV6.

    *port* 0 with no *name* is every port; *end_port* 0 is a single port; *name* is a named port of
    the destination pod, to be resolved per destination.  *icmp_type* None is every type.
    """

    protocol: str = ANY_PROTOCOL
    port: int = 0
    end_port: int = 0
    name: str | None = None
    icmp_type: int | None = None


@dataclass(frozen=True, slots=True)
class NamedPort:
    """A container port a pod gives a name to."""

    name: str
    protocol: str
    port: int


@dataclass(frozen=True, slots=True)
class Rule:
    """
    One allow or deny in one direction: any of *peers* on any of *ports*.

    None means unrestricted (any peer, any protocol and port), an empty tuple means nothing.
    *origin* says where the rule is written, e.g. ``cnp:default/rule1/ingress/0``.  *refers* are further
    peers that are not known from the policy alone: a rule in force has none (``desired.policy.references``).
    *requires* is what every peer that is selected by labels must be as well, in this and in all other allow
    rules of the direction that the endpoint is under; an endpoint's have none (``desired.policy.select``).
    """

    direction: Direction
    deny: bool
    peers: tuple[Peer, ...] | None
    ports: tuple[PortRule, ...] | None
    origin: str
    refers: tuple[Reference, ...] = ()
    requires: tuple[Selector, ...] = ()


@dataclass(frozen=True, slots=True)
class Policy:
    """
    One policy: the endpoints *subject* selects get *rules*.

    *namespace* is empty for a policy of the whole cluster; whom it can select is all in *subject*.
    A default-deny flag puts the selected endpoints into default deny in that direction whether or
    not the policy has rules for it.
    """

    kind: str
    namespace: str
    name: str
    uid: str
    subject: Selector
    rules: tuple[Rule, ...]
    default_deny_ingress: bool
    default_deny_egress: bool
    origin: str


def _term_order(term: Requirement) -> tuple[str, str, str, list[str]]:
    return (term.source, term.key, term.op, sorted(term.values))


def _values(labels: Labels, source: str, key: str) -> Iterator[str]:
    return (
        label.value
        for label in labels
        if label.key == key
        and (source == label.source or (source == ANY_SOURCE and label.source not in _OWN))
    )


def _leading_bits(prefix: Prefix, length: int) -> int:
    return int(prefix.network_address) >> (prefix.max_prefixlen - length)
